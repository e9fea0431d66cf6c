"""asyncssh over a leg: its connections do the transport protocol and the log-in (RFC 4253, RFC 4252), nothing else.

What a connection writes goes through the journal's queue (`Recording.then`), so that no packet leaves before what was
recorded before it is in the journal. Messages of the connection protocol (RFC 4254) go to `Talks` as they are and are
sent as they are (`emit`): asyncssh's own channels are not used. It sees their packets in `process_packet`, and it looks
channels up in `_channels`; these, and what `emit` needs to frame a packet, are not part of its documented interface.
"""

import asyncio
import os
import time
from collections.abc import Awaitable
from functools import partial
from typing import Any, Final, Protocol

import asyncssh
from asyncssh.connection import SSHConnection
from asyncssh.packet import SSHPacket, SSHPacketHandler

from appliance.dissect import ssh_messages as ssh
from appliance.model import Direction
from appliance.relay.leg import Leg
from appliance.relay.recording import Recording

asyncssh.set_log_level("ERROR")

KEXINIT: Final = 20
READ: Final = 128 * 1024  # bytes taken from a leg at once
FULL: Final = 512 * 1024  # unread bytes in a connection above which nothing more is taken; a packet has up to 256 KiB
_SCRATCH: Final = memoryview(bytearray(READ))
_SAID: Final = frozenset(
    (ssh.DISCONNECT, ssh.USERAUTH_FAILURE, ssh.USERAUTH_SUCCESS, ssh.USERAUTH_BANNER, ssh.USERAUTH_INFO_REQUEST)
)  # messages that asyncssh sends and that are on record
_MIN_PADDING: Final = 4  # RFC 4253 section 6


class Talks(Protocol):
    """Who has the connection: told of messages, and when there is room again. May raise `asyncssh.DisconnectError`."""

    def heard(self, direction: Direction, payload: bytes) -> bool:
        """A message of the peer; whether it is dealt with by that, and asyncssh need not see it."""
        ...

    def said(self, direction: Direction, payload: bytes) -> None:
        """asyncssh is about to send a message to `direction`."""
        ...

    def heard_on(self, direction: Direction, channel: int, payload: bytes) -> None:
        """A message of the peer on a channel that is open there."""
        ...

    def balance(self) -> None:
        """Whether to read may have changed."""
        ...


class Carrier(asyncio.Transport):
    """The transport that a connection writes to. Reading is `SshRelay`'s."""

    def __init__(self, leg: Leg, recording: Recording) -> None:
        super().__init__()
        self._leg = leg
        self._recording = recording
        self._closing = False
        self._packets: list[bytes] = []  # that wait for one frame of the journal, and are sent together
        self._sealed = -1

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sockname":
            return self._leg.sock.getsockname()
        if name == "peername":
            return self._leg.sock.getpeername()
        return default

    def write(self, data: Any) -> None:
        if self._closing:
            return
        recording = self._recording
        if self._sealed == recording.sealed:
            self._packets.append(data)
        else:
            self._packets, self._sealed = [data], recording.sealed
            recording.then(partial(self._send, self._packets))

    def _send(self, packets: list[bytes]) -> None:
        self._leg.send(b"".join(packets))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        """What was written still goes out; the leg is closed by its flow."""
        self._closing = True


class _Spoken(SSHConnection):
    """What both kinds of connections do otherwise than asyncssh. `peer`: who is at the other end."""

    peer: Direction
    talks: Talks
    deferred = 0  # bytes of messages that wait for a key exchange

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool | Awaitable[None]:
        if self.talks.heard(self.peer, packet.get_full_payload()):
            return True
        return super().process_packet(pkttype, pktid, packet)

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        if pkttype in _SAID and (self._kex_complete or pkttype == ssh.DISCONNECT):
            self.talks.said(self.peer, bytes([pkttype]) + b"".join(args))
        super().send_packet(pkttype, *args, handler=handler)

    def emit(self, payload: bytes) -> None:
        """Send a message of the connection protocol, behind a key exchange that is under way or due.

        As `send_packet`, without the empty packet that it puts before each one for the sake of ciphers in CBC mode,
        none of which is offered here.
        """
        encryption, transport = self._send_encryption, self._transport
        due = self._rekey_bytes_sent >= self._rekey_bytes or time.monotonic() >= self._rekey_time
        if not self._kex_complete or due or encryption is None or transport is None:
            self.deferred += len(payload)
            self.send_packet(payload[0], payload[1:])
            return
        block = self._send_blocksize
        padding = -(self._send_enchdrlen + len(payload)) % block
        if padding < _MIN_PADDING:
            padding += block
        packet = b"".join((bytes([padding]), payload, os.urandom(padding)))
        size, number = len(packet), self._send_seq
        packet, mac = encryption.encrypt_packet(number, size.to_bytes(4), packet)
        transport.write(packet + mac)
        self._send_seq = (number + 1) & 0xFFFFFFFF
        self._rekey_bytes_sent += size

    def _send_deferred_packets(self) -> None:
        super()._send_deferred_packets()
        if self._kex_complete:
            self.deferred = 0
            self._loop.call_soon(self.talks.balance)

    def _finish_recv_packet(
        self, pkttype: int, seq: int, _task: asyncio.Task[Any] | None = None, is_async: bool = False
    ) -> None:
        super()._finish_recv_packet(pkttype, seq, _task, is_async)
        if is_async:
            self.talks.balance()

    async def settled(self) -> None:
        """Wait until what was taken from the leg is dealt with."""
        while tasks := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(tasks)

    def give_up(self) -> None:
        """The flow is over: nobody waits for anything any more."""
        self.abort()
        for task in list(self._tasks):
            if task is not asyncio.current_task(self._loop):
                task.cancel()

    @property
    def keyed(self) -> bool:
        """Whether there are keys, and no exchange of others is under way."""
        return self._kex_complete

    @property
    def unread(self) -> int:
        """Bytes that were taken from the leg and not looked at yet."""
        return len(self._inpbuf)

    def open_channel(self, number: int) -> None:
        """From now on the peer may speak on this channel."""
        self._channels[number] = _Channel(self, number)  # type: ignore[assignment]

    def close_channel(self, number: int) -> None:
        self._channels.pop(number, None)

    def log_sent_packet(self, pkttype: int, pktid: int | None, packet: Any, note: str = "") -> None:
        """Nothing: packets are on record."""

    def log_received_packet(self, pkttype: int, pktid: int | None, packet: Any, note: str = "") -> None:
        """Nothing: packets are on record."""


class AgentConnection(_Spoken, asyncssh.SSHServerConnection):
    """With the agent."""

    peer = Direction.CLIENT

    async def reload_config(self) -> None:
        """Nothing: there is no configuration that depends on the user."""


class ServerConnection(_Spoken, asyncssh.SSHClientConnection):
    """With the server."""

    peer = Direction.SERVER

    def check_offer(self, payload: bytes) -> None:
        """Of a KEXINIT (RFC 4253 section 7.1). Raises `asyncssh.KeyExchangeFailed` when the server has no host key of
        the kinds that are wanted, at which it would just hang up."""
        reader = ssh.Reader(payload, 17)
        try:
            reader.string()
            offered = reader.string().split(b",")
        except ValueError as error:
            raise asyncssh.ProtocolError("a message does not fit its layout") from error
        if not set(offered) & set(self._server_host_key_algs or ()):
            raise asyncssh.KeyExchangeFailed("no host key of a kind that is wanted")


class _Channel(SSHPacketHandler):
    """What asyncssh finds under a channel's number."""

    def __init__(self, connection: _Spoken, number: int) -> None:
        self._connection = connection
        self._number = number

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool:
        self._connection.talks.heard_on(self._connection.peer, self._number, packet.get_full_payload())
        return True

    def log_received_packet(self, pkttype: int, pktid: int | None, packet: Any, note: str = "") -> None:
        """Nothing: packets are on record."""

    def process_connection_close(self, error: Exception | None) -> None:
        self._connection.close_channel(self._number)

    def close(self) -> None:
        """Nothing is said: the connection ends."""


def read(leg: Leg) -> bytes | None:
    """What there is to read; b"" at the end, None: nothing now. Raises `Failure`."""
    size = leg.read_into(_SCRATCH)
    return None if size < 0 else bytes(_SCRATCH[:size])
