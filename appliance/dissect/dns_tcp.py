"""DNS over TCP (RFC 7766): messages behind a length of two bytes. What they say: see `dns.py`.

After a gap that did not end inside a message it takes the next bytes for a message's start if they can be one; if not,
it reads no further (`undissected`).
"""

from dataclasses import dataclass, field
from typing import Any

from appliance.dissect import Match, Output
from appliance.dissect.dns import HEADER, OPCODES, RESERVED, Exchange, plausible
from appliance.model import Direction, Message

MAX_DETECTED = 4000  # bytes of a first message; a query is far shorter
KEPT = 512  # bytes of an unfinished message when memory is short


class DnsTcp:
    protocol = "dns"
    opaque = False
    successor: str | None = None

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self._received = {Direction.CLIENT: client_offset, Direction.SERVER: server_offset}
        self._exchange = Exchange()
        self._streams = {direction: _Stream() for direction in Direction}

    @property
    def attrs(self) -> dict[str, Any]:
        return self._exchange.attrs

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        response = not client
        data = server if response else client
        if len(data) < 2:
            return Match.MORE
        length = int.from_bytes(data[:2], "big")
        if not HEADER + 5 <= length <= MAX_DETECTED:
            return Match.NO
        return plausible(data[2 : 2 + length], response, whole=len(data) >= 2 + length)

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        stream = self._streams[direction]
        offset = self._received[direction]
        self._received[direction] += len(data)
        if stream.ignored:
            return []
        out: Output = []
        if stream.skip:
            passed = min(stream.skip, len(data))
            out += self._passed(direction, passed, offset, ts_ns)
            data = data[passed:]
            offset += passed
            if not data:
                return out
        if not stream.buffer:
            stream.ts_ns = ts_ns
        base = offset - len(stream.buffer)
        stream.buffer += data
        if len(stream.buffer) < stream.need:
            return out
        ready = bytes(stream.buffer)
        if stream.unsure and not _resumes(ready):
            self._streams[direction] = _Stream(ignored=True)
            end = base + stream.need  # what was looked at, however much came with it
            return [*out, Message(direction, "undissected", ts_ns, base, end, flags=("undecoded",))]
        stream.unsure = False
        at = 0
        while len(ready) - at >= 2:
            end = at + 2 + int.from_bytes(ready[at : at + 2], "big")
            if end > len(ready):
                break
            out.append(
                self._exchange.message(direction, ready[at + 2 : end], base + at, base + end, stream.ts_ns, ts_ns)
            )
            stream.ts_ns = ts_ns
            at = end
        stream.buffer = bytearray(ready[at:])
        stream.need = 2 + int.from_bytes(stream.buffer[:2], "big") if len(stream.buffer) >= 2 else 2
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        stream = self._streams[direction]
        offset = self._received[direction]
        self._received[direction] += length
        if stream.ignored:
            return []
        out: Output = []
        start = offset - len(stream.buffer)
        if len(stream.buffer) >= 2 and not stream.unsure:
            self._skip(stream, start)
        elif stream.buffer:
            out.append(Message(direction, "malformed", stream.ts_ns, start, offset, flags=("truncated",), end_ns=ts_ns))
        stream.buffer.clear()
        inside = min(stream.skip, length)
        if inside:
            out += self._passed(direction, inside, offset, ts_ns)
        if inside < length:
            stream.unsure, stream.need = True, 6
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        stream = self._streams[direction]
        end = self._received[direction]
        self._streams[direction] = _Stream(ignored=True)
        if stream.skip:
            return [self._exchange.message(direction, stream.head, stream.start, end, stream.ts_ns, ts_ns, "truncated")]
        if stream.buffer:
            data, start = bytes(stream.buffer[2:]), end - len(stream.buffer)
            return [self._exchange.message(direction, data, start, end, stream.ts_ns, ts_ns, "truncated")]
        return []

    def settled(self, direction: Direction) -> int:
        return self._received[direction]

    @property
    def held(self) -> int:
        return self._exchange.held + sum(len(one.buffer) + len(one.head) for one in self._streams.values())

    def shed(self) -> Output:
        """What waits for its end is read no further than `KEPT` bytes: it comes out `truncated`."""
        self._exchange.forget()
        for direction, stream in self._streams.items():
            if len(stream.buffer) > KEPT:
                self._skip(stream, self._received[direction] - len(stream.buffer))
            stream.head = stream.head[:KEPT]
        return []

    @staticmethod
    def _skip(stream: "_Stream", start: int) -> None:
        """The message in the buffer, which begins at offset `start`, is passed over; what came of it is its head."""
        stream.start, stream.head = start, bytes(stream.buffer[2:])
        stream.skip = stream.need - len(stream.buffer)
        stream.buffer = bytearray()

    def _passed(self, direction: Direction, size: int, offset: int, ts_ns: int) -> Output:
        """`size` bytes from `offset` on belong to a message that a gap cut."""
        stream = self._streams[direction]
        stream.skip -= size
        if stream.skip:
            return []
        head, stream.head, stream.need = stream.head, b"", 2
        return [self._exchange.message(direction, head, stream.start, offset + size, stream.ts_ns, ts_ns, "truncated")]


@dataclass(slots=True)
class _Stream:
    """One direction of a TCP connection."""

    buffer: bytearray = field(default_factory=bytearray)  # an unfinished message, its length first
    need: int = 2  # bytes of the buffer with which there is something to do
    ts_ns: int = 0  # arrival of the first byte of the message at hand
    skip: int = 0  # bytes that still belong to a message that a gap cut
    head: bytes = b""  # what came of it before the gap
    start: int = 0
    unsure: bool = False  # behind a gap: the next byte may not be a message's first
    ignored: bool = False


def _resumes(data: bytes) -> bool:
    """Whether a message can begin here, by its length and the first 4 bytes behind that."""
    bits = int.from_bytes(data[4:6], "big")
    usual = not bits & RESERVED and bits >> 11 & 15 in OPCODES
    return usual and int.from_bytes(data[:2], "big") >= HEADER
