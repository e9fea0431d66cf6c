"""One direction of WebSocket (RFC 6455): frames to messages. In: its bytes, wherever in a stream they lie.

    state     what comes                                       goes to
    HEADER    a header                                         PAYLOAD; HEADER if it is empty; LOST if it can't be one
    PAYLOAD   the last byte of it                              HEADER
    LOST      (behind a gap) three headers in a row            HEADER

A message's range is that of its frames, with what lies in between. Its payload is kept up to `MAX_MESSAGE` bytes as
sent; permessage-deflate (RFC 7692) is undone at its end, see websocket_deflate.py.
"""

import re
from enum import Enum
from typing import Any, Final

from appliance.dissect import Output
from appliance.dissect.raw import Raw, printable
from appliance.dissect.resync import resync
from appliance.dissect.websocket_deflate import Inflater
from appliance.model import Direction, Message

MAX_MESSAGE: Final = 1 << 20  # bytes kept of one message
MAX_FAULTS: Final = 64  # messages about frames that can't be one
MAX_CONTROL: Final = 125  # bytes of a control frame, RFC 6455 §5.5

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KINDS: Final = {TEXT: "text", BINARY: "binary", CLOSE: "close", PING: "ping", PONG: "pong"}
FIN, RSV1, RSV = 0x80, 0x40, 0x70
MASKED: Final = 0x80
CHAIN: Final = 3  # headers in a row that make bytes behind a gap frames

# IANA "WebSocket Close Code Number Registry"
CLOSE_CODES: Final = {
    1000: "normal closure", 1001: "going away", 1002: "protocol error", 1003: "unsupported data",
    1007: "invalid frame payload data", 1008: "policy violation", 1009: "message too big", 1010: "mandatory ext.",
    1011: "internal error", 1012: "service restart", 1013: "try again later", 1014: "bad gateway",
}  # fmt: skip


_OPENINGS: Final = {
    Direction.CLIENT: re.compile(rb"[\x00-\x02\x40-\x42\x80-\x82\x88-\x8a\xc0-\xc2][\x80-\xfe]"),
    Direction.SERVER: re.compile(
        rb"[\x00-\x02\x40-\x42\x80-\x82\x88-\x8a\xc0-\xc2](?!\x00)[\x00-\x7e]|[\x01\x02\x41\x42\x81\x82\x88-\x8a\xc1\xc2]\x00"
    ),
}


class _State(Enum):
    HEADER = 0
    PAYLOAD = 1
    LOST = 2


class _Message:
    """A message whose last frame did not end yet. `wire`: bytes of payload, as sent."""

    __slots__ = ("compressed", "data", "end", "flags", "frames", "frozen", "opcode", "start", "ts_ns", "wire")

    def __init__(self, opcode: int, start: int, ts_ns: int, *, compressed: bool) -> None:
        self.opcode = opcode
        self.start = self.end = start
        self.ts_ns = ts_ns
        self.compressed = compressed
        self.frames = 0
        self.wire = 0
        self.data = bytearray()
        self.frozen = False  # nothing more is kept
        self.flags: set[str] = set()


class WebSocketSide:
    """Reads one direction. `extensions`: the server's Sec-WebSocket-Extensions; None if it was not seen."""

    def __init__(self, direction: Direction, extensions: str | None) -> None:
        self._direction = direction
        self._state = _State.HEADER
        self._buffer = bytearray()  # a header, or what came while LOST
        self._need = 2
        self._start = 0  # offset of the buffer's first byte
        self._ts_ns = 0  # its arrival
        self._left = 0  # bytes of payload to come
        self._key = 0
        self._turn = 0  # bytes of the payload that came, modulo 4
        self._final = True
        self._current: _Message | None = None  # whose payload comes
        self._message: _Message | None = None  # a fragmented one
        self._inflater = Inflater(direction, extensions)
        self._deflates = self._inflater.agreed
        self._count = 0
        self._faults = 0
        self.degraded = False  # it had to be searched for its next frame
        self._raw = Raw()
        self._raw_next = -1  # where it would go on

    @property
    def held(self) -> int:
        messages = {id(one): one for one in (self._current, self._message) if one is not None}
        return (
            len(self._buffer) + self._raw.held + self._inflater.held + sum(len(one.data) for one in messages.values())
        )

    def attrs(self) -> dict[str, Any]:
        return {"websocket_messages": self._count}

    def shed(self) -> None:
        """Memory is short: what came of messages so far is not read for text."""
        for one in (self._current, self._message):
            if one is not None and one.data:
                one.data.clear()
                one.frozen = True
        self._inflater.lose()

    def resume(self) -> None:
        """The first byte may lie anywhere."""
        self._state, self.degraded = _State.LOST, True
        self._inflater.lose()

    # -- bytes -----------------------------------------------------------------------------------------------------

    def take(self, data: bytes | bytearray | memoryview, offset: int, ts_ns: int, out: Output) -> None:
        """The next bytes, at `offset` of the stream."""
        place = 0
        while place < len(data):
            if self._state is _State.PAYLOAD:
                step = min(self._left, len(data) - place)
                self._payload(bytes(data[place : place + step]), offset + place + step, ts_ns, out)
            elif self._state is _State.HEADER:
                if not self._buffer:
                    self._start, self._ts_ns, self._need = offset + place, ts_ns, 2
                step = min(self._need - len(self._buffer), len(data) - place)
                self._buffer += data[place : place + step]
                if len(self._buffer) == self._need:
                    self._header(offset + place + step, ts_ns, out)
            else:
                step = len(data) - place
                self._look(data[place:], offset + place, ts_ns, out)
            place += step

    def lose(self, ts_ns: int, out: Output, length: int = -1) -> None:
        """`length` bytes are missing; -1: nobody knows how many."""
        if self._state is _State.PAYLOAD and 0 <= length <= self._left and self._current is not None:
            self._current.flags.update(("gap", "truncated"))
            self._left -= length
            self._turn = (self._turn + length) % 4
            self._current.wire += length
            if not self._left:
                self._ended(ts_ns, out)
            return
        self.end(ts_ns, out, "gap")
        self._state, self.degraded = _State.LOST, True
        self._inflater.lose()

    def end(self, ts_ns: int, out: Output, *flags: str) -> None:
        """Nothing follows, or a gap does."""
        if self._state is _State.LOST:
            self._look(b"", self._start + len(self._buffer), ts_ns, out, final=not flags)
            if self._state is _State.LOST:
                out += self._drop(len(self._buffer), ts_ns)
            out += self._raw.close(self._direction, ts_ns)
        if self._buffer:
            end = self._start + len(self._buffer)
            out.append(self._frame(end, {}, "truncated", ts_ns))
            self._buffer.clear()
        for one in dict.fromkeys((self._current, self._message)):
            if one is not None:
                one.flags.update(("truncated", *flags))
                self._say(one, ts_ns, out)
        self._current = self._message = None
        self._state = _State.HEADER

    # -- frames ----------------------------------------------------------------------------------------------------

    def _header(self, end: int, ts_ns: int, out: Output) -> None:
        """The buffer holds as much of a header as was needed."""
        buffer = self._buffer
        short = buffer[1] & 0x7F
        size = 2 + {126: 2, 127: 8}.get(short, 0) + (4 if buffer[1] & MASKED else 0)
        if len(buffer) < size:
            self._need = size
            return
        extended = {126: 2, 127: 8}.get(short, 0)
        length = int.from_bytes(buffer[2 : 2 + extended]) if extended else short
        opcode = buffer[0] & 0x0F
        if opcode not in KINDS and opcode != CONTINUATION:
            self._desynchronised(f"opcode {opcode}", ts_ns, out)
            return
        if opcode >= CLOSE and buffer[0] & RSV:
            self._desynchronised("reserved bits", ts_ns, out)
            return
        if length >= 1 << 63:
            self._desynchronised("length", ts_ns, out)
            return
        faults = self._judge(buffer[0], buffer[1], short, length)
        control = opcode >= CLOSE
        final = bool(buffer[0] & FIN)
        compressed = bool(buffer[0] & RSV1) and not control
        if opcode == CONTINUATION and self._message is not None:
            current = self._message
        else:
            if not control and self._message is not None:  # it never ended
                self._message.flags.update(("malformed", "truncated"))
                self._say(self._message, ts_ns, out)
                self._message = None
            current = _Message(opcode or BINARY, self._start, self._ts_ns, compressed=compressed)
            if not control and not final:
                self._message = current
        current.frames += 1
        current.end = end
        current.flags.update(("malformed",) if faults else ())
        self._current, self._final, self._left, self._turn = current, final or control, length, 0
        self._key = int.from_bytes(buffer[size - 4 : size]) if buffer[1] & MASKED else 0
        buffer.clear()
        self._state = _State.PAYLOAD
        if not length:
            self._ended(ts_ns, out)

    def _judge(self, first: int, second: int, short: int, length: int) -> bool:
        """Whether the frame breaks a rule that leaves it readable."""
        opcode = first & 0x0F
        wrong_side = bool(second & MASKED) is not (self._direction is Direction.CLIENT)
        longer = (short == 126 and length < 126) or (short == 127 and length < 1 << 16)
        bits = first & RSV
        if bits == RSV1 and (self._deflates is not False) and opcode in (TEXT, BINARY):
            bits = 0
        control = opcode >= CLOSE and (length > MAX_CONTROL or not first & FIN)
        stray = opcode == CONTINUATION and self._message is None
        torn = opcode in (TEXT, BINARY) and self._message is not None
        return wrong_side or longer or bool(bits) or control or stray or torn

    def _payload(self, part: bytes, end: int, ts_ns: int, out: Output) -> None:
        current = self._current
        assert current is not None  # PAYLOAD has one
        room = MAX_MESSAGE - len(current.data)
        if room > 0 and not current.frozen:
            current.data += unmasked(part[:room], self._key, self._turn) if self._key else part[:room]
        current.wire += len(part)
        current.end = end
        self._turn = (self._turn + len(part)) % 4
        self._left -= len(part)
        if not self._left:
            self._ended(ts_ns, out)

    def _ended(self, ts_ns: int, out: Output) -> None:
        """The payload of a frame is whole."""
        current = self._current
        assert current is not None  # a frame has one
        self._current = None
        self._state = _State.HEADER
        if not self._final:
            return
        if current is self._message:
            self._message = None
        self._say(current, ts_ns, out)

    def _desynchronised(self, fault: str, ts_ns: int, out: Output) -> None:
        """No frame begins like this. What follows is searched for one."""
        if self._faults < MAX_FAULTS:
            self._faults += 1
            end = self._start + len(self._buffer)
            out.append(self._frame(end, {"fault": fault}, "malformed", ts_ns))
        self._buffer.clear()
        self._inflater.lose()
        self._state, self.degraded = _State.LOST, True

    def _frame(self, end: int, attrs: dict[str, Any], flag: str, ts_ns: int) -> Message:
        return Message(self._direction, "frame", self._ts_ns, self._start, end, "", attrs, None, (flag,), ts_ns)

    def _look(
        self, data: bytes | bytearray | memoryview, offset: int, ts_ns: int, out: Output, *, final: bool = False
    ) -> None:
        """LOST: find where frames begin; what comes before is raw."""
        if not self._buffer:
            self._start, self._ts_ns, self._need = offset, ts_ns, 1
        self._buffer += data
        if len(self._buffer) < self._need and not final:
            return
        found = resync(self._buffer, _OPENINGS[self._direction], 2, self._size_at, CHAIN, final=final)
        out += self._drop(found.start, ts_ns)
        self._need = found.need
        if found.frames:
            rest, start = bytes(self._buffer), self._start
            self._buffer.clear()
            self._state = _State.HEADER
            out += self._raw.close(self._direction, ts_ns)
            self.take(rest, start, ts_ns, out)

    def _drop(self, length: int, ts_ns: int) -> Output:
        """The first bytes of the buffer are of no frame."""
        if not length:
            return []
        if self._raw_next != self._start:
            self._raw = Raw(self._start, self._start)
        dropped = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._start += length
        self._raw_next = self._start
        return self._raw.receive(self._direction, dropped, ts_ns)

    def _size_at(self, data: bytes | bytearray, place: int) -> int:
        """For `resync`: of what a peer that follows the rules sends."""
        if len(data) - place < 2:
            return -1
        first, second = data[place], data[place + 1]
        opcode, short = first & 0x0F, second & 0x7F
        masked = bool(second & MASKED)
        if first & (RSV & ~RSV1) or (opcode not in KINDS and opcode != CONTINUATION):
            return 0
        if masked is not (self._direction is Direction.CLIENT) or short == 127:
            return 0
        if opcode >= CLOSE and (short > MAX_CONTROL or first & (FIN | RSV1) != FIN):
            return 0
        if not short and opcode == CONTINUATION:  # zeros would be full of them
            return 0
        if short < 126:
            return 2 + 4 * masked + short
        if len(data) - place < 4:
            return -1
        length = int.from_bytes(data[place + 2 : place + 4])
        return 4 + 4 * masked + length if length > 125 else 0

    # -- messages --------------------------------------------------------------------------------------------------

    def _say(self, one: _Message, ts_ns: int, out: Output) -> None:
        kind, flags = KINDS[one.opcode], one.flags
        data = bytes(one.data)
        attrs: dict[str, Any] = {"bytes": one.wire, "frames": one.frames}
        whole = len(data) == one.wire and "truncated" not in flags
        if not whole:
            flags.add("truncated")
        if one.compressed:
            attrs["compressed"] = True
            if "gap" in flags or one.frozen:
                self._inflater.lose()
                data = b""
                flags.add("undecoded")
            else:
                read = self._inflater.inflate(data, whole=whole)
                data = read.data
                flags.update(read.flags)
            attrs["inflated_bytes"] = len(data)
        if one.opcode < CLOSE:
            self._count += 1
        text = self._text(one.opcode, data, attrs, flags)
        said = tuple(sorted(flags))
        out.append(Message(self._direction, kind, one.ts_ns, one.start, one.end, text, attrs, None, said, ts_ns))

    def _text(self, opcode: int, data: bytes, attrs: dict[str, Any], flags: set[str]) -> str:
        if opcode == CLOSE:
            if len(data) > 1:
                code = attrs["code"] = int.from_bytes(data[:2])
                attrs["reason"] = data[2:].decode("utf-8", "replace")
                return f"{code} {CLOSE_CODES.get(code, '')} {attrs['reason']}".replace("  ", " ").strip()
            flags.update(("malformed",) if data else ())
            return ""
        if opcode == TEXT and "gap" not in flags:
            try:
                return data.decode("utf-8")
            except UnicodeDecodeError:
                flags.update(() if "truncated" in flags else ("malformed",))
                return data.decode("utf-8", "replace")
        return printable(data)


def unmasked(data: bytes, key: int, turn: int) -> bytes:
    """RFC 6455 §5.3, where `turn` bytes of the payload came before."""
    size = len(data)
    turn %= 4
    mask = (key.to_bytes(4) * (size // 4 + 2))[turn : turn + size]
    return (int.from_bytes(data) ^ int.from_bytes(mask)).to_bytes(size)
