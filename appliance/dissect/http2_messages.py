"""What the frames of HTTP/2 mean: header blocks and bodies to messages, one stream each way; http2.py cuts the frames.

Bounds: `MAX_STREAMS` that are open, `MAX_BODIES` bytes of all bodies that are kept for text, `MAX_UNSETTLED` bytes that
wait for the end of a body that may be a token request; of header blocks see http2_blocks.py.
"""

from typing import Final

import msgspec

from appliance.dissect import Output, Torn
from appliance.dissect.http2_blocks import Blocks, Frame
from appliance.dissect.http2_frames import (
    CONTINUATION,
    GOAWAY,
    HEADER,
    HEADERS,
    LARGEST_FRAME,
    MAX_FRAME_SIZE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    error_name,
)
from appliance.dissect.http2_hpack import Block
from appliance.dissect.http2_side import Pending, Side, State
from appliance.dissect.http2_streams import Stream, StreamMessage, read_head, read_trailers
from appliance.dissect.http_head import Head
from appliance.dissect.http_message import MAX_CREDENTIAL_BODY, Pair, called
from appliance.dissect.raw import printable
from appliance.dissect.websocket_frames import WebSocketSide
from appliance.model import Direction, Message, Redaction

MAX_STREAMS: Final = 1024
MAX_BODIES: Final = 1 << 24
MAX_UNSETTLED: Final = 1 << 20
MAX_REMEMBERED: Final = 1024  # streams that ended early, or whose head was not seen
END: Final = 1 << 62  # behind every offset
_OPEN: Final = 2304  # bytes in memory of a message that is open, beside what it keeps, about

_CLIENT: Final = Direction.CLIENT
_SERVER: Final = Direction.SERVER


class Multiplexed(Blocks):
    """The part of `Http2` that knows of streams."""

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        super().__init__(client_offset, server_offset)
        self._streams: dict[int, Stream] = {}  # the oldest first
        self._holding: dict[Direction, dict[int, StreamMessage]] = {_CLIENT: {}, _SERVER: {}}  # bodies not settled
        self._kept = 0  # bytes of bodies, at least those that are kept
        self._strays: dict[tuple[Direction, int], int] = {}  # bytes of bodies without a head, by stream

    # -- what the caller asks --------------------------------------------------------------------------------------

    def settled(self, direction: Direction) -> int:
        side = self._sides[direction]
        settled = side.offset
        if side.block is not None and not side.block.broken:
            settled = min(settled, side.block.start)
        for message in self._holding[direction].values():  # the first to begin comes first
            if message.held_from is not None:
                return min(settled, message.held_from)
        return settled

    def guarded(self, direction: Direction) -> int:
        """Everything may hold a credential but the rest of a body's frame that is none."""
        side = self._sides[direction]
        if side.state is State.DATA:
            stream = self._streams.get(side.stream)
            message = stream.message(direction) if stream is not None else None
            if message is not None and not message.guarded:
                return side.received + side.remaining + side.padding
        return side.offset

    def torn(self, direction: Direction) -> Torn:
        """Header blocks may follow anywhere, and can't be told from other bytes without the frames before."""
        return Torn(upto=END)

    @property
    def held(self) -> int:
        held = 256 * len(self._streams) + 64 * len(self._strays)
        for side in self._sides.values():
            held += len(side.buffer) + side.decoder.held
            held += len(side.block.data) + side.block.spans.held if side.block is not None else 0
        for stream in self._streams.values():
            held += len(stream.pair.path) if stream.pair is not None else 0
            for message in (stream.client, stream.server):
                held += message.held + _OPEN if message is not None else 0
        return held

    def shed(self) -> Output:
        """Bodies are not read for text any more; what may be a credential is still looked for."""
        for stream in self._streams.values():
            for message in (stream.client, stream.server):
                if message is not None:
                    message.shed()
        return []

    # -- frames ----------------------------------------------------------------------------------------------------

    def _control(self, direction: Direction, side: Side, frame: Frame, payload: bytes, out: Output) -> None:
        """A whole frame that is not DATA."""
        kind, _, stream, start = frame
        if kind in (HEADERS, PUSH_PROMISE, CONTINUATION):
            self._fragment(direction, side, frame, payload, out)
        elif kind == SETTINGS:
            self._settings(direction, payload)
        elif kind == RST_STREAM:
            self._reset(direction, side, stream, start, int.from_bytes(payload), out)
        elif kind == GOAWAY:
            last, code = int.from_bytes(payload[:4]) & 0x7FFFFFFF, int.from_bytes(payload[4:8])
            attrs = {"error": error_name(code), "last_stream": last}
            text = f"GOAWAY {attrs['error']} {printable(payload[8:])}".rstrip()
            self._say(direction, side, "goaway", start, start + HEADER + len(payload), text, attrs, out)

    def _settings(self, direction: Direction, payload: bytes) -> None:
        for place in range(0, len(payload), 6):
            value = int.from_bytes(payload[place + 2 : place + 6])
            other = self._sides[direction.other]
            if int.from_bytes(payload[place : place + 2]) == MAX_FRAME_SIZE and other.limit is not None:
                other.limit = max(other.limit, min(value, LARGEST_FRAME))

    def _reset(self, direction: Direction, side: Side, number: int, start: int, code: int, out: Output) -> None:
        error = error_name(code)
        stream = self._streams.pop(number, None)
        pair = stream.pair if stream is not None else None
        for whose in Direction:
            message = stream.message(whose) if stream is not None else None
            if message is not None:
                message.reset = error
                message.flags.add("reset")
                self._close(whose, message, message.end, side.last_ns, out, whole=False)
        if pair is not None and not pair.credential:  # what is still on its way needs no care
            self._remember(_SERVER, number, MAX_CREDENTIAL_BODY)
            self._remember(_CLIENT, number, MAX_CREDENTIAL_BODY)
        attrs = {"error": error, "stream": number}
        text = f"RST_STREAM {error}"
        self._say(direction, side, "reset", start, start + HEADER + 4, text, attrs, out)

    # -- header blocks ---------------------------------------------------------------------------------------------

    def _block(self, direction: Direction, side: Side, pending: Pending, end: int, out: Output) -> None:
        """A header block is whole."""
        read = side.decoder.decode(bytes(pending.data))
        for first, last, what in read.secrets:
            for start, stop in pending.spans.ranges(first, last):
                out.append(Redaction(direction, start, stop, what))
        flags = {"malformed"} if read.unread < len(pending.data) else set()
        if flags:
            self.attrs["degraded"] = True
            for start, stop in pending.spans.ranges(read.unread, len(pending.data)):
                self._hide(direction, start, stop, out)
            flags.add("redacted")
        if pending.promised:
            self._promise(direction, side, pending, read, flags, end, out)
        elif direction is _CLIENT:
            self._request(side, pending, read, flags, end, out)
        else:
            self._response(side, pending, read, flags, end, out)

    def _request(self, side: Side, pending: Pending, read: Block, flags: set[str], end: int, out: Output) -> None:
        number = pending.stream
        stream = self._streams.get(number)
        if stream is not None and stream.client is not None:
            self._trailers(_CLIENT, stream.client, pending, read, flags, end, side.last_ns, out)
            return
        if not number & 1 or number <= side.last_stream:  # RFC 9113 §5.1.1
            flags.add("malformed")
        side.last_stream = max(side.last_stream, number)
        head, pseudo, shown = read_head(read, request=True)
        head.flags |= flags
        if stream is not None:
            self._forget(number, side.last_ns, out)
        pair = Pair(head.method, pending.start, path=called(head))
        stream = self._opened(number, pair, side.last_ns, out)
        stream.protocol = pseudo.get(":protocol", "")
        message = StreamMessage(_CLIENT, head, shown, pending.start, pending.ts_ns, pair, number)
        message.scheme, message.protocol = pseudo.get(":scheme", ""), stream.protocol
        self.attrs["requests"] += 1
        self._about("host", head.first("host"))
        self._about("user_agent", head.first("user-agent"))
        self._begin(_CLIENT, stream, message, pending, end, side.last_ns, out)

    def _response(self, side: Side, pending: Pending, read: Block, flags: set[str], end: int, out: Output) -> None:
        number = pending.stream
        stream = self._streams.get(number)
        if stream is not None and stream.server is not None:
            self._trailers(_SERVER, stream.server, pending, read, flags, end, side.last_ns, out)
            return
        head, _, shown = read_head(read, request=False)
        head.flags |= flags
        if stream is None:
            stream = self._opened(number, None, side.last_ns, out)
        elif _SERVER in stream.ended:
            head.flags.add("malformed")
        message = StreamMessage(_SERVER, head, shown, pending.start, pending.ts_ns, stream.pair, number)
        if 100 <= head.status < 200 and not pending.end_stream:
            message.finish(end, side.last_ns, out, whole=True, kind="informational")
            return
        if stream.pair is not None:
            stream.pair.answered = True
        self.attrs["responses"] += 1
        self._about("server", head.first("server"))
        if stream.protocol == "websocket" and 200 <= head.status < 300 and not pending.end_stream:
            extensions = ", ".join(head.values("sec-websocket-extensions"))
            for whose, one in ((_CLIENT, stream.client), (_SERVER, message)):
                if one is not None:
                    one.parts = WebSocketSide(whose, extensions)
        self._begin(_SERVER, stream, message, pending, end, side.last_ns, out)

    def _promise(
        self,
        direction: Direction,
        side: Side,
        pending: Pending,
        read: Block,
        flags: set[str],
        end: int,
        out: Output,
    ) -> None:
        head, pseudo, shown = read_head(read, request=True)
        head.flags |= flags | ({"malformed"} if direction is _CLIENT or pending.promised & 1 else set())
        message = StreamMessage(_CLIENT, head, shown, pending.start, pending.ts_ns, None, pending.promised)
        message.scheme = pseudo.get(":scheme", "")
        said: Output = []
        message.finish(end, side.last_ns, said, whole=True, kind="push")
        out += [msgspec.structs.replace(one, direction=direction) for one in said if isinstance(one, Message)]

    def _about(self, name: str, value: str) -> None:
        """What a message says of itself; of the session that is what its first one said."""
        if name not in self.attrs:
            self.attrs[name] = value

    # -- streams ---------------------------------------------------------------------------------------------------

    def _opened(self, number: int, pair: Pair | None, ts_ns: int, out: Output) -> Stream:
        if len(self._streams) >= MAX_STREAMS:
            self._forget(next(iter(self._streams)), ts_ns, out)
        stream = self._streams[number] = Stream(pair)
        for direction in Direction:
            self._strays.pop((direction, number), None)
        return stream

    def _forget(self, number: int, ts_ns: int, out: Output) -> None:
        """Too many are open, or its number is used again."""
        stream = self._streams.pop(number)
        for direction in Direction:
            message = stream.message(direction)
            if message is not None:
                self._close(direction, message, message.end, ts_ns, out, whole=False)

    def _begin(
        self,
        direction: Direction,
        stream: Stream,
        message: StreamMessage,
        pending: Pending,
        end: int,
        ts_ns: int,
        out: Output,
    ) -> None:
        """The head of `message` was read."""
        message.end = end
        stream.open(message, direction)
        if pending.end_stream:
            self._end_stream(direction, pending.stream, end, ts_ns, out)
            return
        parts = message.parts
        message.expect_body(end)
        message.parts = parts or message.parts
        head = message.head
        named = head.method if direction is _CLIENT else head.status
        hidden = "undecoded" in head.flags and "content-type" not in head.named
        if (hidden or not named) and (direction is _CLIENT or stream.pair is None):
            message.withhold()
        if message.held_from is not None:
            self._holding[direction][pending.stream] = message

    def _trailers(
        self,
        direction: Direction,
        message: StreamMessage,
        pending: Pending,
        read: Block,
        flags: set[str],
        end: int,
        ts_ns: int,
        out: Output,
    ) -> None:
        trailers: Head = read_trailers(read)
        message.add_trailers(trailers)
        message.flags |= flags | ({"redacted"} if read.secrets else set()) | ({"undecoded"} if read.unknown else set())
        message.end = end
        if pending.end_stream:
            self._end_stream(direction, pending.stream, end, ts_ns, out)
        else:  # RFC 9113 §8.1
            message.flags.add("malformed")

    def _end_stream(self, direction: Direction, number: int, end: int, ts_ns: int, out: Output) -> None:
        stream = self._streams.get(number)
        message = stream.message(direction) if stream is not None else None
        if stream is None or message is None:
            return
        self._close(direction, message, end, ts_ns, out, whole=True)
        stream.open(None, direction)
        stream.ended = (*stream.ended, direction)
        if len(stream.ended) > 1 or (direction is _SERVER and stream.pair is None):
            del self._streams[number]

    def _close(
        self, direction: Direction, message: StreamMessage, end: int, ts_ns: int, out: Output, *, whole: bool
    ) -> None:
        self._holding[direction].pop(message.stream, None)
        message.finish(end, ts_ns, out, whole=whole)

    def _finish_all(self, direction: Direction, side: Side, out: Output) -> None:
        """The direction has ended."""
        for number, stream in [*self._streams.items()]:
            message = stream.message(direction)
            if message is not None:
                self._close(direction, message, message.end, side.last_ns, out, whole=False)
                stream.open(None, direction)
                stream.ended = (*stream.ended, direction)
                if len(stream.ended) > 1:
                    del self._streams[number]

    # -- bodies ----------------------------------------------------------------------------------------------------

    def _touch(self, direction: Direction, side: Side, end: int) -> None:
        """A frame of the open stream `side.stream` goes up to `end`, so far."""
        stream = self._streams.get(side.stream)
        message = stream.message(direction) if stream is not None else None
        if message is not None:
            message.end = end

    def _body(self, direction: Direction, side: Side, data: bytes, offset: int, out: Output) -> None:
        stream = self._streams.get(side.stream)
        message = stream.message(direction) if stream is not None else None
        if message is None:
            self._stray(direction, side.stream, offset, len(data), out)
            return
        self._kept += len(data)
        message.take(data, len(data), offset, side.last_ns, out)
        message.end = offset + len(data)
        if message.held_from is None:
            self._holding[direction].pop(message.stream, None)

    def _stray(self, direction: Direction, number: int, offset: int, length: int, out: Output) -> None:
        """A body whose head was not seen may be a token request, or its answer, if it is short enough for one."""
        known = self._strays.get((direction, number), 0)
        self._hide(direction, offset, offset + min(length, MAX_CREDENTIAL_BODY - known), out)
        self._remember(direction, number, min(known + length, MAX_CREDENTIAL_BODY))

    def _remember(self, direction: Direction, number: int, size: int) -> None:
        if len(self._strays) >= MAX_REMEMBERED and (direction, number) not in self._strays:
            del self._strays[next(iter(self._strays))]
        self._strays[direction, number] = size

    def _lose_body(self, direction: Direction, side: Side, length: int, out: Output) -> None:
        """`length` bytes of the body that passes are missing."""
        stream = self._streams.get(side.stream)
        message = stream.message(direction) if stream is not None else None
        if message is not None:
            message.lose(length, out, side.last_ns)
            message.end = side.received + length
            self._holding[direction].pop(message.stream, None)

    def _lose_messages(self, direction: Direction, side: Side, out: Output) -> None:
        """Bytes are missing that may be of any stream."""
        for stream in self._streams.values():
            message = stream.message(direction)
            if message is not None:
                message.lose(0, out, side.last_ns)
        self._holding[direction].clear()

    def _bound(self, direction: Direction, side: Side, start: int, out: Output) -> None:
        """Before each frame: what waits or is kept for too long, or is too much, is given up."""
        holding = self._holding[direction]
        while holding:  # the first to begin comes first
            number, message = next(iter(holding.items()))
            if message.held_from is not None and start - message.held_from <= MAX_UNSETTLED:
                break
            message.release(out, "cut")
            del holding[number]
        if self._kept > MAX_BODIES:
            messages = [one for stream in self._streams.values() for one in (stream.client, stream.server) if one]
            self._kept = sum(len(one.kept) for one in messages)
            if self._kept > MAX_BODIES:
                self.shed()
                self._kept = 0
