"""HTTP/2 (RFC 9113): requests and responses of interleaved streams, in cleartext or behind TLS.

Begins with the client's preface, or behind an Upgrade to h2c, whose request is stream 1.

Messages, with ranges from their first frame to the end of their last one, frames of other streams in between:
- `request`, `response`, `informational`: as in HTTP/1.x (see http1.py), with stream, scheme, protocol (of an extended
  CONNECT, RFC 8441), reset (the error, where the stream was) and, of gRPC, grpc_status and grpc_message.
- `push`: the request that a PUSH_PROMISE announces. `reset`, `goaway`: attrs error, stream, last_stream.
- `event`, `grpc-message`, WebSocket's kinds: what bodies are made of, see http_events.py, grpc.py, websocket.py.
- `frame`: a frame that breaks a rule (attrs type, fault) or is not whole. `data`: bytes from a gap to the next frame.
Flags as in HTTP/1.x; undecoded where fields refer to header blocks that were not seen; reset.

Credentials: a header block is settled once END_HEADERS was dissected; see http2_hpack.py. Bytes that may be part of a
credential and can't be read (behind a gap, of a header block that is too long or broken, of a stream whose head was not
seen) are redacted.

    state of one direction   what comes                                           goes to
    PREFACE (client)         the 24 bytes; anything else                          FRAME; LOST
    FRAME                    DATA's header (and length of padding)                DATA
    FRAME                    any other frame that is small, as a whole            FRAME
    FRAME                    the header of one that is unknown or too long        SKIP
    FRAME                    a length that the peer does not take                 LOST
    DATA, SKIP               the last byte of the frame                           FRAME
    LOST                     a frame, and behind it another one's header          FRAME
    any                      a gap within DATA or SKIP: the same; any other gap   LOST
"""

from typing import Any, Final

from appliance.dissect import Match, Output, Torn
from appliance.dissect.http2_blocks import MAX_BLOCK
from appliance.dissect.http2_frames import (
    CONTINUATION,
    DATA,
    HEADER,
    HEADERS,
    LARGEST_FRAME,
    OPENING,
    PADDED,
    PREFACE,
    PUSH_PROMISE,
    fault_of,
    name_of,
    plausible,
)
from appliance.dissect.http2_messages import Multiplexed
from appliance.dissect.http2_side import Side, State
from appliance.dissect.http2_streams import Stream
from appliance.dissect.http_message import Pair
from appliance.dissect.resync import resync
from appliance.model import Direction, Message, Redaction

MAX_CONTROL: Final = 1 << 14  # bytes of a frame other than DATA and header blocks that is read
CHAIN: Final = 2  # headers in a row that make bytes behind a gap frames
END: Final = 1 << 62  # behind every offset
_BLOCKS: Final = frozenset((HEADERS, PUSH_PROMISE, CONTINUATION))


class Http2(Multiplexed):
    protocol = "http2"
    opaque = False
    successor: str | None = None

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        if client:
            if client.startswith(PREFACE):
                return Match.YES
            return Match.MORE if PREFACE.startswith(client) else Match.NO
        if len(server) < HEADER:
            return Match.MORE if server[:1] in (b"", b"\0") and server[3:4] in (b"", b"\4") else Match.NO
        settings = server[3] == 4 and server[4:HEADER] == bytes(5) and plausible(server, 0) > 0
        return Match.MORE if settings else Match.NO

    def inherit(self, legacy: dict[str, Any]) -> None:
        """RFC 7540 §3.2: the HTTP/1.1 request is stream 1, and settings came with it."""
        if legacy.get("start") is not None:
            stream = Stream(Pair(legacy["method"], legacy["start"]))
            stream.ended = (Direction.CLIENT,)
            self._streams[1] = stream
        for side in self._sides.values():
            side.limit = None

    def resume(self, direction: Direction, torn: Torn | None) -> None:
        self._lose_track(direction, self._sides[direction])

    # -- bytes in --------------------------------------------------------------------------------------------------

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        side = self._sides[direction]
        side.received += len(data)
        side.last_ns = ts_ns
        if side.buffer:
            side.buffer += data
            if len(side.buffer) < side.need:
                return []
            data = bytes(side.buffer)
            side.buffer.clear()
        else:
            side.buffer_ns = ts_ns
        out: Output = []
        side.need = 0
        taken = self._advance(direction, side, data, side.received - len(data), out)
        if taken < len(data):
            side.buffer += data[taken:]
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        side = self._sides[direction]
        side.last_ns = ts_ns
        out: Output = []
        inside = side.remaining + side.padding
        if side.state in (State.DATA, State.SKIP) and length <= inside:
            part = min(length, side.remaining)
            if side.state is State.DATA:
                self._lose_body(direction, side, part, out)
            side.remaining -= part
            side.padding -= length - part
            side.received += length
            if length == inside:
                self._frame_ended(direction, side, side.received, out)
            return out
        self._break_off(direction, side, "gap", out)
        side.received += length
        self._lose_messages(direction, side, out)
        self._lose_track(direction, side)
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        side = self._sides[direction]
        side.last_ns = ts_ns
        out: Output = []
        if side.state is State.LOST and side.buffer:
            data = bytes(side.buffer)
            found = resync(data, OPENING, HEADER, size_at, CHAIN, final=True)
            self._pass_over(direction, side, side.offset, found.start, out)
            del side.buffer[: found.start]
            if found.frames:
                self._found(direction, side, side.offset, out)
                taken = self._advance(direction, side, bytes(side.buffer), side.offset, out)
                del side.buffer[:taken]
        self._break_off(direction, side, "truncated", out)
        self._finish_all(direction, side, out)
        return out

    # -- the loop --------------------------------------------------------------------------------------------------

    def _advance(self, direction: Direction, side: Side, data: bytes, base: int, out: Output) -> int:
        """Consume every whole unit of `data`, which begins at offset `base`; returns how much."""
        place, size = 0, len(data)
        while place < size or (side.state is State.DATA and not side.remaining + side.padding):
            state = side.state
            if state is State.FRAME:
                step = self._frame(direction, side, data, place, base + place, out)
            elif state is State.DATA or state is State.SKIP:
                step = self._payload(direction, side, data, place, base + place, out)
            elif state is State.PREFACE:
                step = self._preface(direction, side, data, place, base + place, out)
            else:
                step = self._search(direction, side, data, place, base + place, out)
            if step < 0:
                break
            place += step
            side.buffer_ns = side.last_ns  # what is left came last: what was there before was not a whole unit
        return place

    def _wait(self, side: Side, need: int) -> int:
        side.need = need
        return -1

    def _preface(self, direction: Direction, side: Side, data: bytes, place: int, start: int, out: Output) -> int:
        if len(data) - place < len(PREFACE):
            return self._wait(side, len(PREFACE))
        if data.startswith(PREFACE, place):
            side.state = State.FRAME
            return len(PREFACE)
        self._fault(direction, side, start, start + len(PREFACE), {"type": "preface", "fault": "preface"}, out)
        self._lose_track(direction, side)
        return 0

    def _frame(self, direction: Direction, side: Side, data: bytes, place: int, start: int, out: Output) -> int:
        """A frame's header, with its payload where that is not passed on piece by piece."""
        have = len(data) - place
        if have < HEADER:
            return self._wait(side, HEADER)
        length = data[place] << 16 | data[place + 1] << 8 | data[place + 2]
        kind, flags = data[place + 3], data[place + 4]
        stream = int.from_bytes(data[place + 5 : place + HEADER]) & 0x7FFFFFFF
        self._bound(direction, side, start, out)
        if length > (LARGEST_FRAME if side.limit is None else side.limit):
            self._fault(direction, side, start, start + HEADER, _attrs(kind, stream, "size"), out)
            self._lose_track(direction, side)
            return 0
        fault = fault_of(kind, flags, stream, length) or self._misplaced(side, kind, stream)
        if fault:
            self._fault(direction, side, start, start + HEADER, _attrs(kind, stream, fault), out)
            if side.block is not None:
                self._hide_block(direction, side, out)
            hide = kind in _BLOCKS or kind == DATA
            if kind in _BLOCKS:
                side.decoder.lose()
            return self._skip(direction, side, length, start + HEADER, out, hide=hide)
        if kind == DATA:
            return self._data(direction, side, data, place, (length, flags, stream, start), out)
        if kind in _BLOCKS and length > MAX_BLOCK:
            return self._overlong(direction, side, kind, flags, stream, length, start, out)
        if kind not in _BLOCKS and (kind > CONTINUATION or length > MAX_CONTROL):
            return self._skip(direction, side, length, start + HEADER, out, hide=False)
        if have < HEADER + length:
            return self._wait(side, HEADER + length)
        payload = data[place + HEADER : place + HEADER + length]
        self._control(direction, side, (kind, flags, stream, start), payload, out)
        return HEADER + length

    @staticmethod
    def _misplaced(side: Side, kind: int, stream: int) -> str:
        """A header block is one unit, RFC 9113 §4.3."""
        block = side.block
        if block is None:
            return "continuation" if kind == CONTINUATION else ""
        return "" if kind == CONTINUATION and stream == block.stream else "interrupted"

    def _data(
        self, direction: Direction, side: Side, data: bytes, place: int, head: tuple[int, int, int, int], out: Output
    ) -> int:
        length, flags, stream, start = head
        taken, padding = HEADER, 0
        if flags & PADDED:
            if len(data) - place <= HEADER:
                return self._wait(side, HEADER + 1)
            padding = data[place + HEADER]
            taken += 1
            length -= 1
            if padding > length:
                self._fault(direction, side, start, start + HEADER, _attrs(DATA, stream, "padding"), out)
                return self._skip(direction, side, length, start + taken, out, hide=True) + 1
        side.state = State.DATA
        side.stream, side.end_stream = stream, bool(flags & 1)
        side.remaining, side.padding = length - padding, padding
        self._touch(direction, side, start + taken)
        return taken

    def _payload(self, direction: Direction, side: Side, data: bytes, place: int, start: int, out: Output) -> int:
        """What belongs to the frame, DATA or one that is passed over."""
        step = min(side.remaining, len(data) - place)
        if step:
            if side.state is State.DATA:
                self._body(direction, side, data[place : place + step], start, out)
            elif side.hide:
                out.append(Redaction(direction, start, start + step, "unread"))
            side.remaining -= step
        pad = min(side.padding, len(data) - place - step)
        side.padding -= pad
        if not side.remaining and not side.padding:
            self._frame_ended(direction, side, start + step + pad, out)
        return step + pad

    def _skip(self, direction: Direction, side: Side, length: int, start: int, out: Output, *, hide: bool) -> int:
        """Pass over `length` bytes of payload; returns what the header takes."""
        side.state, side.remaining, side.padding, side.hide = State.SKIP, length, 0, hide
        side.end_stream = False
        if not length:
            self._frame_ended(direction, side, start, out)
        return HEADER

    def _frame_ended(self, direction: Direction, side: Side, end: int, out: Output) -> None:
        if side.state is State.DATA:
            self._touch(direction, side, end)
            if side.end_stream:
                self._end_stream(direction, side.stream, end, side.last_ns, out)
        side.state = State.FRAME

    # -- where it breaks off ---------------------------------------------------------------------------------------

    def _search(self, direction: Direction, side: Side, data: bytes, place: int, start: int, out: Output) -> int:
        """LOST: frames begin somewhere; what comes before may be anything."""
        found = resync(data[place:], OPENING, HEADER, size_at, CHAIN, final=False)
        self._pass_over(direction, side, start, found.start, out)
        if found.frames:
            self._found(direction, side, start + found.start, out)
            return found.start
        side.need = found.need
        return found.start if found.start else -1

    def _pass_over(self, direction: Direction, side: Side, start: int, length: int, out: Output) -> None:
        if length:
            if side.lost_from < 0:
                side.lost_from, side.lost_ns = start, side.buffer_ns
            out.append(Redaction(direction, start, start + length, "unread"))

    def _found(self, direction: Direction, side: Side, end: int, out: Output) -> None:
        """What was passed over ends here."""
        side.state = State.FRAME
        if side.lost_from >= 0:
            flags = ("redacted", "undecoded")
            out.append(Message(direction, "data", side.lost_ns, side.lost_from, end, flags=flags, end_ns=side.last_ns))
            side.lost_from = -1

    def _lose_track(self, direction: Direction, side: Side) -> None:
        """From here on look for frames."""
        side.state = State.LOST
        side.remaining = side.padding = 0
        side.need = 0
        side.decoder.lose()
        for both in self._sides.values():  # settings may be among what was lost
            both.limit = None
        self.attrs["degraded"] = True

    def _break_off(self, direction: Direction, side: Side, flag: str, out: Output) -> None:
        """The stream ends here, or goes on behind a gap: what is not whole is not read."""
        start, end = side.offset, side.received
        if side.state is State.LOST:
            self._pass_over(direction, side, start, len(side.buffer), out)
            self._found(direction, side, end, out)
        elif side.buffer or side.block is not None:
            attrs: dict[str, Any] = {"type": "preface"}
            kind = -1
            if side.state is not State.PREFACE:
                kind = side.buffer[3] if len(side.buffer) > 3 else -1
                attrs = {"type": name_of(kind)} if kind >= 0 else {}
            hidden = max(start + HEADER, start) if side.state is State.FRAME else end
            flags = ["truncated"] if flag == "truncated" else [flag, "truncated"]
            if side.block is not None:
                start = min(start, side.block.start)
                flags.append("redacted")
                self._hide_block(direction, side, out)
            if kind in _BLOCKS and hidden < end:
                out.append(Redaction(direction, hidden, end, "unread"))
                flags.append("redacted")
            said = tuple(sorted(set(flags)))
            out.append(Message(direction, "frame", side.buffer_ns, start, end, "", attrs, None, said, side.last_ns))
        side.buffer.clear()


def size_at(data: bytes | bytearray, place: int) -> int:
    """For `resync`."""
    return plausible(data, place) if len(data) - place >= HEADER else -1


def _attrs(kind: int, stream: int, fault: str) -> dict[str, Any]:
    return {"type": name_of(kind), "stream": stream, "fault": fault}
