"""One leg of a flow: a non-blocking TCP socket, in plain or with TLS over it (RFC 8446, RFC 5246).

TLS works in memory (`ssl.MemoryBIO`), not on the socket: one system call moves many records, a half-close does not lose
what is under way, and what was read before TLS began can be given to it. All legs of a process use the same memory, as
each finds it empty and leaves it empty: thousands of idle connections need none of their own.

The loop calls a reader again and again until it has read: nothing that one raises may reach the loop. `crashed` is
told, and this leg is not watched any more.
"""

import asyncio
import errno
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from appliance.relay import handshake, tcp_info
from appliance.relay.failure import Failure
from appliance.relay.resets import Resets
from appliance.relay.tls_records import Records

RECEIVE: Final = 256 * 1024  # bytes taken from a socket, or given to TLS, at once
_RECORD: Final = 16384  # plaintext bytes of one TLS record at most
_SCRATCH: Final = memoryview(bytearray(RECEIVE))  # ciphertext between socket and TLS; every use ends in its turn
_INCOMING: Final = ssl.MemoryBIO()  # what TLS is to read; what it leaves is kept by the leg
_OUTGOING: Final = ssl.MemoryBIO()  # what TLS says; every use ends with all of it taken out
_MAX_ANSWERS: Final = 64 * 1024  # bytes that TLS itself says while the peer takes nothing

AGAIN: Final = -1  # nothing to read now
_RESET: Final = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


class Leg:
    """`readable` is called when there may be something to read, `drained` when the last waiting byte was sent, `broken`
    when the socket fails while something waits to be sent, `crashed` when one of these raises."""

    __slots__ = (
        *("_answers", "_backlog", "_ciphertext", "_found", "_loop"),
        *("_read", "_reading", "_records", "_reset", "_resets", "_shut", "_unread", "_writing"),
        *("broken", "closed", "crashed", "drained", "ended", "fd", "readable", "sock", "tls", "unconfirmed", "waiting"),
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = loop
        self._resets = Resets.of(loop)
        self.sock = sock
        self.fd = sock.fileno()
        self.readable: Callable[[], None] = _nothing
        self.drained: Callable[[], None] = _nothing
        self.broken: Callable[[], None] = _nothing
        self.crashed: Callable[[], None] = _nothing
        self.tls: ssl.SSLObject | None = None
        self._ciphertext = b""  # that TLS has not read yet
        self._backlog: deque[memoryview] = deque()
        self._unread = b""
        self._answers = 0  # bytes that TLS said by itself since the peer has last taken everything
        self._found = False  # the end, or a fault, before it was read
        self.waiting = 0  # bytes that wait to be sent, as they go over the wire
        self._records = Records()  # of the peer's TLS
        self.ended = False  # the peer sends no more
        self.unconfirmed = False  # its TLS ended without a closing alert (RFC 8446 §6.1)
        self._shut = 0  # 1: nothing more is to be sent, 2: the peer was told
        self._reading = self._writing = False
        self._reset = False  # the peer reset the connection
        self._read = 0  # bytes taken from the socket
        self.closed = False

    @property
    def truncated(self) -> bool:
        """The peer's TLS ended within a record, whose bytes are lost."""
        return self.unconfirmed and self._records.within

    # -- reading ---------------------------------------------------------------------------------------------------

    def watch(self, wanted: bool) -> None:
        """Call `readable`, or don't, when there is something to read."""
        if wanted and not self._reading and not self.closed:
            self._reading = True
            self._loop.add_reader(self.fd, self.wake)
            if self._unread or self.held or self._reset:
                self._loop.call_soon(self.wake)
        elif not wanted and self._reading:
            self._reading = False
            self._loop.remove_reader(self.fd)

    def wake(self) -> None:
        """Call `readable`, if that is wanted: there may be bytes for which the socket does not call."""
        if self._reading:
            try:
                self.readable()
            except Exception:
                self.watch(False)
                self.crashed()

    @property
    def held(self) -> bool:
        """Whether there are bytes to read for which the socket will not call."""
        if self._unread or self.tls is None or self.ended:
            return bool(self._unread)
        return bool(self._ciphertext) or self.tls.pending() > 0 or self._found

    def unread(self, data: bytes) -> None:
        """Bytes that were read already, to be read again."""
        self._unread = data + self._unread

    def read_into(self, view: memoryview) -> int:
        """Plaintext into `view`; its bytes, 0 at the peer's end, `AGAIN` if there is nothing. Raises `Failure`."""
        if self._unread:
            size = min(len(view), len(self._unread))
            view[:size] = self._unread[:size]
            self._unread = self._unread[size:]
            return size
        if self.tls is not None:
            return self._decrypt(view)
        try:
            size = self.sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return AGAIN
        except OSError as error:
            raise self._failed(error) from error
        if size:
            self._read += size
            self._look_behind()
        elif self._reset:
            raise self._failed(_RESET)
        else:
            self.ended = True
        return size

    def _decrypt(self, view: memoryview) -> int:
        if self._ciphertext:
            _INCOMING.write(self._ciphertext)
            self._ciphertext = b""
        try:
            taken = self._read_records(view)
        finally:
            if _INCOMING.pending:
                self._ciphertext = _INCOMING.read()
            if _OUTGOING.pending:
                self._answer()
        return taken if taken or self.ended else AGAIN

    def _read_records(self, view: memoryview) -> int:
        tls = self.tls
        assert tls is not None
        taken, room = 0, len(view)
        dry = _INCOMING.pending >= _RECORD  # the socket has nothing more for now, or is not to be asked
        over = False  # nor will it have
        try:
            while taken < room:
                if not dry and _INCOMING.pending < _RECORD:
                    wanted = RECEIVE if room - taken >= RECEIVE else max(room - taken, _RECORD)
                    received = self._take_in(wanted, taken)
                    dry, over = received < wanted, not received
                try:
                    size: Any = tls.read(room - taken, view[taken:] if taken else view)
                except ssl.SSLWantReadError:
                    if dry:
                        self.ended = self.unconfirmed = over and not taken
                        break
                    continue
                if not size:
                    self.ended = True
                    break
                taken += size
                if dry and not _INCOMING.pending:  # with room left, the record was read whole
                    break
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            if not taken:
                raise Failure("tls", f"TLS failed: {handshake.reason_of(error)}") from error
            self._found = True  # these are given out first
        return taken

    def _take_in(self, wanted: int, taken: int) -> int:
        """Give TLS what the socket has, `wanted` bytes at most: how many, 0 at the end, `AGAIN` when there are none.
        Raises `Failure`, but not behind `taken` bytes."""
        try:
            size = self.sock.recv_into(_SCRATCH, wanted)
        except (BlockingIOError, InterruptedError):
            return AGAIN
        except OSError as error:
            if not taken:
                raise self._failed(error) from error
            self._reset = True
            self._loop.call_soon(self.wake)
            return AGAIN
        if size:
            view = _SCRATCH[:size]
            _INCOMING.write(view)
            self._records.feed(view)
            self._read += size
            self._look_behind()
        elif self._reset:
            if not taken:
                raise self._failed(_RESET)
            self._loop.call_soon(self.wake)
            return AGAIN
        return size

    def _answer(self) -> None:
        """What reading makes TLS say (RFC 8446 §4.6.3, RFC 5246 §7.2.2): a peer may ask without taking answers."""
        said = _OUTGOING.read()
        self._answers = self._answers + len(said) if self._backlog else 0
        if self._answers > _MAX_ANSWERS:
            raise Failure("tls", "the peer has TLS answer again and again, and does not take the answers")
        self._transmit(said)

    def _look_behind(self) -> None:
        """Bytes were read; of a connection that failed behind them, the rest is read without being called."""
        if self._reset:
            self._loop.call_soon(self.wake)
        else:
            self._resets.look_behind(self, self._loop)

    def find_reset(self) -> None:
        """Has the connection failed behind the bytes that were read?"""
        if not self.closed and (self._reset or self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            self._reset = True  # asking has cleared it
            self.wake()

    def _failed(self, error: OSError) -> Failure:
        self._lose()
        return Failure("reset", f"the connection failed: {error.strerror}")

    # -- writing ---------------------------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview) -> None:
        """Send, now or as soon as the peer takes it. `data` may be reused when this returns."""
        if self._shut or self.closed or self._reset:
            return
        if self.tls is not None:
            try:
                for at in range(0, len(data), RECEIVE):
                    self.tls.write(data[at : at + RECEIVE])
                    self._transmit(_OUTGOING.read())
            except ssl.SSLError:
                _OUTGOING.read()
                self._loop.call_soon(self.broken)
        else:
            self._transmit(data)

    def _transmit(self, data: bytes | memoryview) -> None:
        sent = 0
        if not self._backlog:
            try:
                sent = self.sock.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self._lose()
                self._loop.call_soon(self.broken)
                return
        if sent < len(data):
            rest = memoryview(data)[sent:]
            self._backlog.append(rest if isinstance(data, bytes) else memoryview(bytes(rest)))
            self.waiting += len(data) - sent
            if not self._writing and not self.closed:
                self._writing = True
                self._loop.add_writer(self.fd, self._write)

    def _write(self) -> None:
        try:
            self._send_backlog()
        except Exception:
            self._stop_writing()
            self.crashed()

    def _send_backlog(self) -> None:
        try:
            while self._backlog:
                piece = self._backlog[0]
                sent = self.sock.send(piece)
                self.waiting -= sent
                if sent < len(piece):
                    self._backlog[0] = piece[sent:]
                    return
                self._backlog.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._lose()
            self.broken()
            return
        self._stop_writing()
        if self._shut == 1:
            self._say_shut()
        self.drained()

    def _lose(self) -> None:
        """The peer reset the connection: it takes nothing more. What it said before may still be read."""
        self._reset = True
        self._stop_writing()
        self._backlog.clear()
        self.waiting = 0

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self.fd)

    @property
    def shut_down(self) -> bool:
        """Nothing more is to be sent, and the peer has been told."""
        return self._shut == 2

    def shut(self, *, whole: bool = True) -> None:
        """Nothing more will be sent (half-close); the peer is told behind what waits. Without `whole`, TLS says no
        closing alert: the peer learns that what it was sent may be cut."""
        if self._shut or self.closed:
            return
        if self.tls is not None and whole:
            self._hold()
            with suppress(ssl.SSLError):  # it waits for the peer's own closing alert, which reading finds
                self.tls.unwrap()
            self._transmit(_OUTGOING.read())
        self._shut = 1
        if not self._backlog:
            self._say_shut()

    def _hold(self) -> None:
        """Decrypt what was received before the closing alert is said: OpenSSL takes such bytes for a fault behind it
        (SSL_shutdown(3)). What ends them is found again by who reads."""
        tls = self.tls
        assert tls is not None
        _INCOMING.write(self._ciphertext)
        try:
            while _INCOMING.pending or tls.pending():
                data = tls.read(_RECORD)
                self._found = not data
                if not data:
                    break
                self._unread += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._found = True
        finally:
            self._ciphertext = _INCOMING.read()

    def _say_shut(self) -> None:
        self._shut = 2
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    # -- TLS -------------------------------------------------------------------------------------------------------

    async def start_tls(
        self,
        context: ssl.SSLContext,
        *,
        server: bool,
        server_name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        """Shake hands, from the next byte on (first those `unread`). Raises `Failure`; the peer has its alert then."""
        self.watch(False)
        tls = handshake.begin(context, _INCOMING, _OUTGOING, server=server, server_name=server_name, session=session)
        self._records = Records()
        data, self._unread = self._unread, b""
        while not self._shake(tls, data):
            data = await self.receive()
            if not data:
                raise Failure("tls", "the TLS handshake failed: unexpected eof while reading")
        self.tls = tls

    def _shake(self, tls: ssl.SSLObject, data: bytes) -> bool:
        """One step, with what came; True when hands are shaken."""
        _INCOMING.write(self._ciphertext + data)
        self._records.feed(data)
        try:
            return handshake.step(tls)
        finally:
            self._ciphertext = _INCOMING.read()
            self._transmit(_OUTGOING.read())

    async def receive(self) -> bytes:
        """The next bytes as they come over the wire, b"" at the end; for handshakes. Raises `Failure`."""
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        try:
            data = await self._loop.sock_recv(self.sock, 65536)
        except OSError as error:
            raise self._failed(error) from error
        self._read += len(data)
        return data

    # -- the end ---------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int] | None:
        """Bytes that came from the peer, and that it acknowledged (SYN and FIN among these), as the socket counted."""
        return tcp_info.counts(self.sock, self._read)

    @property
    def owing(self) -> int:
        """Bytes that were said and that the peer has not taken yet."""
        return 0 if self.closed or self._reset else self.waiting + tcp_info.unacknowledged(self.sock)

    def close(self, *, reset: bool = False) -> None:
        """Let go of the socket; with `reset` the peer gets an RST."""
        if self.closed:
            return
        self.watch(False)
        self._stop_writing()
        self.closed = True
        if reset:
            with suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self._backlog.clear()
        self.waiting = 0


def _nothing(*unused: Any) -> None:
    return None
