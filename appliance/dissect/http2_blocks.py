"""The header blocks of one HTTP/2 connection (RFC 9113 §4.3): fragments to whole blocks, of bounded size.

Of a block that is longer than `MAX_BLOCK`, or in more frames than `MAX_CONTINUATIONS`, nothing is read: it becomes a
message that is malformed, its bytes are redacted, and the dynamic table is lost.
"""

from abc import ABC, abstractmethod
from typing import Any, Final

from appliance.dissect import Output
from appliance.dissect.http2_frames import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADERS,
    PADDED,
    PRIORITIZED,
    PUSH_PROMISE,
)
from appliance.dissect.http2_side import Pending, Side, State
from appliance.dissect.http_spans import Spans
from appliance.model import Direction, Message, Redaction

MAX_BLOCK: Final = 1 << 16
MAX_CONTINUATIONS: Final = 256
MAX_FAULTS: Final = 64  # messages about broken rules, of one direction

Frame = tuple[int, int, int, int]  # kind, flags, stream, offset


class Blocks(ABC):
    """The part of `Http2` that puts header blocks together."""

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self.attrs: dict[str, Any] = {"requests": 0, "responses": 0}
        self._sides = {
            Direction.CLIENT: Side(client_offset, State.PREFACE),
            Direction.SERVER: Side(server_offset, State.FRAME),
        }

    @abstractmethod
    def _block(self, direction: Direction, side: Side, pending: Pending, end: int, out: Output) -> None:
        """A block is whole."""

    def _say(
        self,
        direction: Direction,
        side: Side,
        kind: str,
        start: int,
        end: int,
        text: str,
        attrs: dict[str, Any],
        out: Output,
        *flags: str,
    ) -> None:
        out.append(Message(direction, kind, side.buffer_ns, start, end, text, attrs, None, flags, side.last_ns))

    def _fault(
        self, direction: Direction, side: Side, start: int, end: int, attrs: dict[str, Any], out: Output
    ) -> None:
        """A rule is broken."""
        self.attrs["degraded"] = True
        if side.faults < MAX_FAULTS:
            side.faults += 1
            self._say(direction, side, "frame", start, end, "", attrs, out, "malformed")

    def _fragment(self, direction: Direction, side: Side, frame: Frame, payload: bytes, out: Output) -> None:
        """HEADERS, PUSH_PROMISE or CONTINUATION, whole; its place among others was judged."""
        kind, flags, stream, start = frame
        first, last = 0, len(payload)
        if kind != CONTINUATION:
            if flags & PADDED:
                first, last = 1, last - payload[0]
            first += 5 if kind == HEADERS and flags & PRIORITIZED else 4 if kind == PUSH_PROMISE else 0
            promised = int.from_bytes(payload[first - 4 : first]) & 0x7FFFFFFF if kind == PUSH_PROMISE else 0
            end_stream = kind == HEADERS and bool(flags & END_STREAM)
            side.block = Pending(stream, promised, start, side.buffer_ns, end_stream=end_stream)
        else:
            assert side.block is not None  # its place was judged
            side.block.frames += 1
        block = side.block
        offset = start + HEADER + first
        if last < first:
            attrs = {"type": "HEADERS", "stream": stream, "fault": "padding"}
            self._fault(direction, side, start, start + HEADER, attrs, out)
            if len(payload):
                out.append(Redaction(direction, start + HEADER, start + HEADER + len(payload), "unread"))
            self._hide_block(direction, side, out)
            return
        if block.broken:
            self._hide(direction, offset, offset + last - first, out)
        else:
            block.data += payload[first:last]
            block.spans.add(offset, last - first)
            if len(block.data) > MAX_BLOCK or block.frames > MAX_CONTINUATIONS:
                self._break(direction, side, start + HEADER + len(payload), out)
        if flags & END_HEADERS:
            side.block = None
            if not block.broken:
                self._block(direction, side, block, start + HEADER + len(payload), out)

    def _overlong(
        self,
        direction: Direction,
        side: Side,
        kind: int,
        flags: int,
        stream: int,
        length: int,
        start: int,
        out: Output,
    ) -> int:
        """A frame that is a header block of more than MAX_BLOCK by itself; returns what its header takes."""
        if side.block is None:
            side.block = Pending(stream, 0, start, side.buffer_ns, end_stream=bool(flags & END_STREAM))
        if not side.block.broken:
            self._break(direction, side, start + HEADER, out)
        if flags & END_HEADERS:
            side.block = None
        side.state, side.remaining, side.padding, side.hide = State.SKIP, length, 0, True
        side.end_stream = False
        return HEADER

    def _break(self, direction: Direction, side: Side, end: int, out: Output) -> None:
        """The block is too long: say so, and read no more of it."""
        block = side.block
        assert block is not None  # the caller had one
        for first, last in block.spans.ranges(0, block.spans.length):
            self._hide(direction, first, last, out)
        side.decoder.lose()
        self.attrs["degraded"] = True
        kind = "push" if block.promised else "request" if direction is Direction.CLIENT else "response"
        attrs = {"stream": block.stream, "fault": "header block", "frames": block.frames}
        flags = ("malformed", "redacted", "truncated")
        out.append(Message(direction, kind, block.ts_ns, block.start, end, "", attrs, None, flags, side.last_ns))
        block.broken = True
        block.data.clear()
        block.spans = Spans()

    def _hide_block(self, direction: Direction, side: Side, out: Output) -> None:
        """The block that is open never ends."""
        block = side.block
        assert block is not None  # the caller had one
        for first, last in block.spans.ranges(0, block.spans.length):
            self._hide(direction, first, last, out)
        side.decoder.lose()
        side.block = None

    @staticmethod
    def _hide(direction: Direction, first: int, last: int, out: Output) -> None:
        if first < last:
            out.append(Redaction(direction, first, last, "unread"))
