"""One direction of a MySQL connection, cut into packets.

In: bytes, gaps, the end. Out: `Frame`s, each with its byte range and times; its `kind` is the sequence number.

A message over `MAX_MESSAGE` is not buffered: its head comes out once all of it, with the packets that continue it, has
passed, `cut`. So does a message with a gap inside, which ends where its length says, and one that the end of the stream
cuts off. Behind any other gap a place to go on is searched for.

Credentials are in what a client says before it is logged in (`login`), in COM_CHANGE_USER and in packets with another
number than 0 unless they are a file's content (`content`). Such a packet is settled when it is whole; `secrets`
collects the ranges to redact: those that the caller names by `redact`, those of cut packets, and of bytes that passed
unread.
"""

from enum import Enum

from msgspec.structs import replace

from appliance.dissect.mysql_frames import CHANGE_USER, FULL, HEADER, WORD, search_client, search_server
from appliance.dissect.sql_frames import FRAGMENT, Frame
from appliance.dissect.sql_half import MAX_MESSAGE, MAX_SEARCH, Reader

MAX_CREDENTIAL = 65535  # of an authentication response
MAX_REST = 512  # bytes behind a gap that may be the rest of a COM_CHANGE_USER
SSL_REQUEST = 32  # bytes behind the header: a response without a user name
_PROTOCOL_41 = 0x02  # bit of the second byte of a client's capabilities
_FIXED, _FIXED_OLD = 36, 9  # bytes of a handshake response, with its header, before the user name


class Mode(Enum):
    PACKETS = 0
    SEARCHING = 1
    IGNORED = 2


def before_user(packet: bytes | bytearray) -> int:
    """Where the user's name begins in a handshake response; nothing before it is secret."""
    return _FIXED if len(packet) > 5 and packet[5] & _PROTOCOL_41 else _FIXED_OLD


class Half(Reader):
    """One direction. `feed`, then take frames by `next` or `all`; `read` is both for whole packets."""

    def __init__(self, offset: int, *, client: bool) -> None:
        super().__init__(offset)
        self.mode = Mode.PACKETS
        self.login = client  # the client's first packets are still to come
        self.content = False  # packets hold a file
        self.unsure = False  # the next bytes may be something else: TLS, or the rest of a packet
        self._client = client
        self._need = HEADER
        self._more = False  # another packet continues the present one of _head
        self._hidden = False  # _head is of a credential
        self._rest = 0  # bytes passed over that may still be the rest of a credential

    # -- input -----------------------------------------------------------------------------------------------------

    def feed(self, data: bytes, ts_ns: int) -> None:
        self._now_ns = ts_ns
        while data and self._head is not None:
            if self._skip:
                passed = min(self._skip, len(data))
                self._pass(passed)
                data = data[passed:]
            else:
                data = self._continue(data)
        if self.mode is Mode.IGNORED:
            self._ignored(data)
        elif data:
            if not self._buffer:
                self._ts_ns = ts_ns
                self._lost_ns = self._lost_ns or ts_ns
            self._buffer += data

    def gap(self, length: int, ts_ns: int) -> None:
        """Bytes are missing. Within a packet of known length it goes on behind that; else a place is searched for."""
        self._now_ns = ts_ns
        inside = 0
        if self.mode is Mode.PACKETS and self._head is None and len(self._buffer) >= HEADER:
            self._begin_skip(len(self._buffer))
        if self._skip and self._head is not None:
            inside = min(self._skip, length)
            self._head = replace(self._head, cut=True)
            self._skip -= inside
            self._offset += inside
            self._finish_skip()
        if length == inside:
            return
        if self._head is not None:
            self._ready.append(replace(self._head, end=self._offset, end_ns=ts_ns, cut=True))
            self._head = None
        if self.mode is not Mode.IGNORED:
            self._abandon()
            self.search(MAX_CREDENTIAL if self.login else MAX_REST)
        self._offset += length - inside
        self._lost_from, self._lost_ns = self._offset, ts_ns

    def search(self, rest: int) -> None:
        """Nothing is known of the next bytes; the first `rest` of them may be of a credential."""
        self.mode = Mode.SEARCHING
        self._searched, self._need = 0, HEADER
        self._rest = rest if self._client else 0
        self._lost_from = self._offset
        self._lost_ns = self._ts_ns if self._buffer else 0
        self.content = self.unsure = False

    def begin(self) -> None:
        """What comes next begins a packet, whatever was searched for."""
        if self.mode is Mode.SEARCHING:
            self._pass_over(len(self._buffer))
            self._found()
            self.mode, self._need = Mode.PACKETS, HEADER
            self.login = False

    def close(self, ts_ns: int) -> list[Frame]:
        """The direction ended: what is left over, cut."""
        self._now_ns = ts_ns
        if self.mode is Mode.PACKETS and self._head is None and len(self._buffer) >= HEADER:
            self._begin_skip(len(self._buffer))
        if self._head is not None:
            self._offset += len(self._buffer)  # of a header that continues it
            self._buffer.clear()
            self._ready.append(replace(self._head, end=self._offset, cut=True))
            self._head, self._skip = None, 0
        else:
            self._abandon()
        self.mode = Mode.IGNORED
        return self._take()

    # -- output ----------------------------------------------------------------------------------------------------

    @property
    def inside(self) -> bool:
        """Whether what comes next may be the rest of a credential."""
        if self._head is not None:
            return self._hidden
        size = len(self._buffer)
        if self.mode is Mode.IGNORED or not size:
            return False
        if self.mode is Mode.SEARCHING or size < HEADER:
            return self._client
        return self._sensitive(WORD.unpack_from(self._buffer)[0] & FULL)

    def next(self) -> Frame | None:
        """The next frame, if one is complete."""
        if self.mode is Mode.SEARCHING:
            self._search()
        if self._ready:
            return self._ready.pop(0)
        buffer = self._buffer
        if self.mode is not Mode.PACKETS or self._head is not None or len(buffer) < HEADER:
            return None
        (word,) = WORD.unpack_from(buffer)
        size = HEADER + (word & FULL)
        if size > MAX_MESSAGE:
            if len(buffer) < min(size, MAX_MESSAGE):
                return None
            self._begin_skip(min(size, len(buffer)))
            return self.next() if self._ready else None
        if len(buffer) < size:
            return None
        frame = Frame(
            word >> 24, bytes(buffer[HEADER:size]), self._offset, self._offset + size, self._ts_ns, self._now_ns
        )
        del buffer[:size]
        self._offset += size
        self._ts_ns = self._now_ns
        return frame

    def all(self) -> list[Frame]:
        """All frames that are complete."""
        if self.mode is Mode.SEARCHING:
            self._search()
        frames = self._take()
        while self.mode is Mode.PACKETS and self._head is None and len(self._buffer) >= self._need:
            data, self._buffer = bytes(self._buffer), bytearray()
            at = self._whole(data, frames)
            self._buffer += data[at:]
            self._need = HEADER
            if len(data) - at >= HEADER:
                self._need += WORD.unpack_from(data, at)[0] & FULL
                if self._need > MAX_MESSAGE and len(self._buffer) >= MAX_MESSAGE:
                    self._begin_skip(min(self._need, len(self._buffer)))
                    self._need = HEADER
                    frames += self._take()
                else:
                    self._need = min(self._need, MAX_MESSAGE)
        return frames

    def read(self, data: bytes, ts_ns: int) -> list[Frame]:
        """`feed` and `all` in one: whole packets at the start are read where they are."""
        if self._buffer or self._head is not None or self._ready or self.mode is not Mode.PACKETS:
            self.feed(data, ts_ns)
            return self.all()
        frames: list[Frame] = []
        self._ts_ns = self._now_ns = ts_ns
        at = self._whole(data, frames)
        self._need = HEADER
        if at < len(data):
            self.feed(data[at:] if at else data, ts_ns)
            frames += self.all()
        return frames

    def ignore(self, *, tainted: bool = False) -> None:
        """Read nothing any more."""
        self.mode = Mode.IGNORED
        self._tainted = tainted
        if tainted:
            self.redact(self._offset, self.received)
        self._offset += len(self._buffer)
        self._buffer.clear()
        self._head, self._skip = None, 0

    # -- inside ----------------------------------------------------------------------------------------------------

    def _whole(self, data: bytes, frames: list[Frame]) -> int:
        """Cut whole packets off the start of `data`, which begins at the present offset; returns where they end."""
        unpack = WORD.unpack_from
        base, ts_ns, now_ns = self._offset, self._ts_ns, self._now_ns
        at, size = 0, len(data)
        while size - at >= HEADER:
            (word,) = unpack(data, at)
            end = at + HEADER + (word & FULL)
            if end > size or end - at > MAX_MESSAGE:
                break
            frames.append(Frame(word >> 24, data[at + HEADER : end], base + at, base + end, ts_ns, now_ns))
            at = end
            ts_ns = now_ns
        self._offset = base + at
        self._ts_ns = ts_ns
        return at

    def _abandon(self) -> None:
        """The buffered bytes can no longer become a packet."""
        if self.mode is Mode.SEARCHING:
            self._pass_over(len(self._buffer))
            self._found()
        elif self._buffer:
            size = len(self._buffer)
            self._ready.append(Frame(FRAGMENT, b"", self._offset, self.received, self._ts_ns, self._now_ns, True))
            self._offset += size
            self._buffer.clear()

    def _harmless(self) -> int:
        """How many of the buffered bytes cannot be a credential."""
        buffer = self._buffer
        size = len(buffer)
        if not self._client or not size or self._budget <= 0:
            return size
        if self.mode is Mode.SEARCHING:
            return 0
        if self.unsure:
            return 0
        if self._head is not None or size < HEADER or self.content:
            return size
        if self.login:
            return min(before_user(buffer), size)
        if buffer[3]:
            return HEADER
        return min(5, size) if buffer[4:5] == bytes((CHANGE_USER,)) else size

    def _sensitive(self, length: int) -> bool:
        """Whether the packet in the buffer, of which not all came, may hold a credential."""
        if not self._client or self.content:
            return False
        if self.login or self._buffer[3]:
            return True
        command = bytes(self._buffer[4:5])
        return command == bytes((CHANGE_USER,)) or (not command and length <= MAX_CREDENTIAL)

    def _begin_skip(self, upto: int) -> None:
        """Keep the head of the packet in the buffer, of which the bytes before `upto` came; pass over the rest."""
        buffer = self._buffer
        (word,) = WORD.unpack_from(buffer)
        length = word & FULL
        start, end = self._offset, self._offset + HEADER + length
        harmless = self._harmless()
        self._hidden = self._sensitive(length)
        if self._hidden:
            self.redact(start + harmless, start + upto)
        body = bytes(buffer[HEADER : min(upto, MAX_MESSAGE)])
        if self._hidden:
            body = body[: max(harmless - HEADER, 0)]
        del buffer[:upto]
        self._head = Frame(word >> 24, body, start, end, self._ts_ns, 0, cut=True)
        self._skip = HEADER + length - upto
        self._more = length == FULL
        self._offset = start + upto
        self._ts_ns = self._now_ns
        self._finish_skip()
        if self._head is not None and buffer:  # of a packet that continues it
            rest = bytes(buffer)
            buffer.clear()
            self.feed(rest, self._now_ns)

    def _continue(self, data: bytes) -> bytes:
        """The header of a packet that continues the head's."""
        wanted = HEADER - len(self._buffer)
        self._buffer += data[:wanted]
        if len(self._buffer) == HEADER:
            (word,) = WORD.unpack(self._buffer)
            self._buffer.clear()
            self._offset += HEADER
            self._skip = word & FULL
            self._more = self._skip == FULL
            assert self._head is not None  # the caller checked
            self._head = replace(self._head, end=self._offset + self._skip)
            self._finish_skip()
        return data[wanted:]

    def _pass(self, size: int) -> None:
        if self._hidden:
            self.redact(self._offset, self._offset + size)
        self._skip -= size
        self._offset += size
        self._finish_skip()

    def _finish_skip(self) -> None:
        if not self._skip and not self._more and self._head is not None:
            self._come_whole()
            self._need = HEADER

    # -- behind a gap ----------------------------------------------------------------------------------------------

    def _search(self) -> None:
        """Go on at the first place that looks like packets."""
        if len(self._buffer) < self._need:
            return
        data = bytes(self._buffer)
        at, self._need = search_client(data) if self._client else search_server(data)
        self._pass_over(at)
        if not self._need:
            self._found()
            self.mode, self._need = Mode.PACKETS, HEADER
            self.login = False
        elif self._searched > MAX_SEARCH:
            self._found()
            self.ignore()

    def _pass_over(self, size: int) -> None:
        hidden = min(self._rest, size)
        self.redact(self._offset, self._offset + hidden)
        self._rest -= hidden
        self._pass_by(size)
