r"""SSH as a relay records it: the connection protocol in clear, without packets, key exchange and padding.

# Format, version 1

Each direction's stream begins with the line

    SSH-RELAYED-1\r\n

and goes on with messages: a `uint32` (big-endian) that says how many bytes follow, and the payload of an SSH message as
the RFC has it, its number first. `ssh_messages` writes and reads these. The stream MUST hold, as they were said by
the agent (client) and to it (server):

    50 USERAUTH_REQUEST         RFC 4252 §5; a password is as many asterisks as it has bytes
    51 USERAUTH_FAILURE, 52 USERAUTH_SUCCESS, 53 USERAUTH_BANNER
    60 USERAUTH_INFO_REQUEST, 61 USERAUTH_INFO_RESPONSE   RFC 4256 §3; answers are asterisks too
    80 GLOBAL_REQUEST, 81 REQUEST_SUCCESS, 82 REQUEST_FAILURE
    90 CHANNEL_OPEN, 91 OPEN_CONFIRMATION, 92 OPEN_FAILURE
    94 DATA, 95 EXTENDED_DATA, 96 EOF, 97 CLOSE, 98 CHANNEL_REQUEST, 99 CHANNEL_SUCCESS, 100 CHANNEL_FAILURE
    1 DISCONNECT

It MAY hold 93 WINDOW_ADJUST. It SHOULD hold, behind the last byte of a file, the direction's other messages aside,

    192 FILE                    string path, string direction ("upload" or "download"), uint64 bytes, string sha256

where sha256 is that of the bytes as they passed, in 64 hexadecimal digits; "" where they were not passed in order.
A message MUST NOT be longer than 1 MiB. Channel numbers are those of the agent's leg.

    53 53 48 2d 52 45 4c 41 59 45 44 2d 31 0d 0a    SSH-RELAYED-1
    00 00 00 0c                                     12 bytes
    5e 00 00 00 00 00 00 00 03 6c 73 0a             DATA, channel 0, 3 bytes: ls\n

# Messages

`authentication` (attrs user, method), `authentication-failed` (methods, partial), `authenticated`, `banner`; `open`
(type, address, port), `opened`, `refused` (reason, description); `terminal` (term, columns, rows), `environment`,
`shell`, `exec` (command), `subsystem` (name), `resize`, `signal`, `exit` (status or signal), `request`;
`global-request`; `success` and `failure` of these, by `reply_to`; `eof`, `close`, `disconnect`; `file` (path,
direction, bytes, sha256); `malformed`, `undissected`. What is said on channels: see `ssh_channels`, `ssh_sftp` and
`ssh_scp`.
Session attrs: user, method, authenticated.
"""

from typing import Any, Final

from appliance.dissect import Match, Output, Torn
from appliance.dissect import ssh_messages as ssh
from appliance.dissect.ssh_connection import Connection
from appliance.model import Direction, Message, Redaction

START: Final = b"SSH-RELAYED-1\r\n"
MAX_MESSAGE: Final = 1 << 20


class _Side:
    """One direction: the message in progress."""

    def __init__(self, offset: int) -> None:
        self.received = offset
        self.buffer = bytearray()
        self.ts_ns = 0
        self.need = len(START)
        self.begun = False  # START was there
        self.broken = False  # it is no such stream: nothing is read any more
        self.lost_from: int | None = None
        self.lost_ns = 0
        self.torn = 0  # bytes that are the rest of a message, or of START
        self.hidden = 0  # bytes that are redacted at most until a message is found

    @property
    def offset(self) -> int:
        return self.received - len(self.buffer)


def frame(payload: bytes) -> bytes:
    """A message as it lies in the stream."""
    return len(payload).to_bytes(4) + payload


class SshRelayed:
    """One session."""

    protocol = "ssh"
    form = "ssh-relayed"
    opaque = False
    successor: str | None = None

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self._connection = Connection()
        self._sides = {Direction.CLIENT: _Side(client_offset), Direction.SERVER: _Side(server_offset)}

    @property
    def attrs(self) -> dict[str, Any]:
        return self._connection.attrs

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        first = client or server
        if first.startswith(START):
            return Match.YES
        return Match.MORE if first and START.startswith(first) else Match.NO

    # -- input -----------------------------------------------------------------------------------------------------

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        side = self._sides[direction]
        out: Output = []
        data = self._complete(side, data, direction, out)
        side.received += len(data)
        if not data or (side.lost_from is not None and not self._found(side, data, direction, ts_ns, out)):
            return out
        if not side.buffer:
            side.ts_ns = ts_ns
        side.buffer += data
        if len(side.buffer) < side.need:
            return out
        whole = bytes(side.buffer)
        base = side.offset
        at, size = 0, len(whole)
        if not side.begun:
            side.begun = True
            if whole.startswith(START):
                at = len(START)
                side.ts_ns = ts_ns
            else:
                self._malformed(direction, side, base, ts_ns, out)
                return out
        while size - at >= 4:
            length = int.from_bytes(whole[at : at + 4])
            if not 0 < length <= MAX_MESSAGE:
                self._malformed(direction, side, base + at, ts_ns, out)
                return out
            end = at + 4 + length
            if end > size:
                break
            self._connection.take(direction, whole[at + 4 : end], base + at, base + end, (side.ts_ns, ts_ns), out)
            at = end
            side.ts_ns = ts_ns
        side.need = 4 if size - at < 4 else 4 + length
        side.buffer = bytearray(whole[at:])
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        side = self._sides[direction]
        out = self._cut(direction, side, ts_ns)
        side.received += length
        if side.lost_from is None:
            side.lost_from, side.lost_ns = side.received, ts_ns
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        side = self._sides[direction]
        out = self._cut(direction, side, ts_ns)
        if side.lost_from is not None and side.lost_from < side.received:
            out.append(_lost(direction, side.lost_from, side.received, side.lost_ns, ts_ns))
            side.lost_from = side.received
        return out + self._connection.end(direction, side.received, ts_ns)

    def settled(self, direction: Direction) -> int:
        return self._sides[direction].offset

    @property
    def held(self) -> int:
        return self._connection.held + sum(len(side.buffer) for side in self._sides.values())

    def shed(self) -> Output:
        """Runs end here. Answers to what waits have no `reply_to`."""
        return self._connection.shed()

    # -- where it begins and breaks off ----------------------------------------------------------------------------

    def torn(self, direction: Direction) -> Torn:
        """`size`: the rest of a message. `line`: what is typed behind a prompt for a password; what the server says may
        be one, where not all of it is here.
        """
        side, asks = self._sides[direction], self._sides[Direction.SERVER]
        asked = self._connection.prompted or bool(asks.buffer) or asks.torn > 0 or asks.lost_from is not None
        typed = direction is Direction.CLIENT and asked
        if side.torn:
            return Torn(typed, size=side.torn)
        if side.lost_from is not None or 0 < len(side.buffer) < 4 <= side.need:
            return Torn(typed, upto=MAX_MESSAGE)
        return Torn(typed, size=side.need - len(side.buffer) if side.buffer or not side.begun else 0)

    def resume(self, direction: Direction, torn: Torn | None) -> None:
        side = self._sides[direction]
        side.begun, side.need = True, 4
        self._connection.resume(torn is None or torn.line)
        if torn is None or torn.upto:
            side.lost_from, side.hidden = side.received, MAX_MESSAGE
        else:
            side.torn = torn.size

    # -- what is not whole -----------------------------------------------------------------------------------------

    def _malformed(self, direction: Direction, side: _Side, at: int, ts_ns: int, out: Output) -> None:
        out += self._connection.flush(direction)
        flags = ("malformed",)
        out.append(Message(direction, "malformed", side.ts_ns, at, at + 1, "", {}, None, flags, ts_ns))
        side.buffer.clear()
        side.lost_from, side.lost_ns = at + 1, ts_ns
        side.broken = True

    def _cut(self, direction: Direction, side: _Side, ts_ns: int) -> Output:
        out = self._connection.flush(direction)
        if side.buffer:
            start, flags = side.offset, ("truncated",)
            out += self._hide(direction, side)
            out.append(Message(direction, "malformed", side.ts_ns, start, side.received, "", {}, None, flags, ts_ns))
            side.buffer.clear()
        return out

    @staticmethod
    def _hide(direction: Direction, side: _Side) -> Output:
        """A log-in or what is typed may hold a password: of a part of a message it can't be told."""
        if len(side.buffer) <= 5 or direction is Direction.SERVER:
            return []
        return [Redaction(direction, side.offset + 5, side.received, "unread")]

    @staticmethod
    def _complete(side: _Side, data: bytes, direction: Direction, out: Output) -> bytes:
        """What is behind the rest of the message that another session has begun; of that nothing is read."""
        rest = data[: side.torn]
        if rest and direction is Direction.CLIENT and not START[-side.torn :].startswith(rest):
            out.append(Redaction(direction, side.received, side.received + len(rest), "unread"))
        side.torn -= len(rest)
        side.received += len(rest)
        return data[len(rest) :]

    def _found(self, side: _Side, data: bytes, direction: Direction, ts_ns: int, out: Output) -> bool:
        """Whether dissection goes on with these bytes: behind a gap, at what looks like a message."""
        start = side.received - len(data)
        side.lost_ns = side.lost_ns or ts_ns
        length = int.from_bytes(data[:4])
        if side.broken or len(data) < 5 or not 0 < length <= MAX_MESSAGE or data[4] not in ssh.LAYOUTS:
            hidden = min(side.hidden, len(data)) if direction is Direction.CLIENT else 0
            if hidden:
                out.append(Redaction(direction, start, start + hidden, "unread"))
                side.hidden -= hidden
            return False
        if side.lost_from is not None and side.lost_from < start:
            out.append(_lost(direction, side.lost_from, start, side.lost_ns, ts_ns))
        side.lost_from, side.hidden = None, 0
        side.begun, side.need = True, 4
        return True


def _lost(direction: Direction, start: int, end: int, ts_ns: int, end_ns: int) -> Message:
    return Message(direction, "undissected", ts_ns, start, end, "", {}, None, ("undecoded",), end_ns)
