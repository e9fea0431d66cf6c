"""HTTP/1.0 and 1.1 (RFC 9112, semantics RFC 9110): requests and responses of one connection, paired.

Messages
- `request`: attrs method, target, host, version, headers ([name, value] each), content_type, encoding, body_bytes, and
  where there are any trailers, sha256 (of a whole body up to MAX_BODY, as sent), bare_lf, obs_fold, chunk_extensions,
  and smuggling: what of it two parsers may read differently (the cases are in http_head.py).
- `response`: status and reason in place of method, target and host; `informational`: the same for 1xx.
- `event`, `grpc-message`: what a body is made of, as it arrives; see http_events.py and grpc.py.
- `data`: bytes where no message could be found: behind a gap or a malformed message.
Text is the start line, the fields and the decoded body, if that is text. `reply_to` is the request's start.
Flags: truncated, malformed, smuggling, gap, redacted, undecoded. Session attrs: host, user_agent, server, requests,
responses, and degraded once a direction had to be searched for its next message.

Successor: "auto" behind a CONNECT that was granted; behind 101 the protocol switched to ("tls", "websocket", "http2").

Heads and bodies are cut out by the state machine in http_framing.py, but for what is usual, which goes a shorter way
(http_whole.py). Here is what the caller sees: bytes, gaps and ends that come in, and what may follow or was missed.
"""

from typing import Final

from appliance.dissect import Match, Output, Torn
from appliance.dissect.http_framing import Framed, shown_text
from appliance.dissect.http_head import Head, detect, parse_head, usual_head
from appliance.dissect.http_lost import SECRET_LINE, Lost, last_line, mask_fields
from appliance.dissect.http_message import Open
from appliance.dissect.http_secrets import opens_secret_field
from appliance.dissect.http_side import BODY, State
from appliance.dissect.http_whole import Whole, request, response, whole
from appliance.model import Direction, Redaction

_OTHER: Final = {Direction.CLIENT: Direction.SERVER, Direction.SERVER: Direction.CLIENT}
END: Final = 1 << 62  # behind every offset


class Http1(Framed):
    protocol = "http1"
    opaque = False

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        return detect(client, server)

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        side, lost = self._sides[direction], self._sides[_OTHER[direction]].lost
        side.received += len(data)
        side.last_ns = ts_ns
        out: Output = []
        if lost is not None:
            out += lost.pause(ts_ns)
        if not side.buffer:
            side.buffer_ns = ts_ns
            if side.state is State.HEAD:
                if not out and self.successor is None and self._whole(direction, data, side.received - len(data), out):
                    return out
            elif side.state in BODY and self.successor is None:
                taken = self._body(direction, data, side.received - len(data), out)
                if taken == len(data):
                    return out
                data = data[taken:]
        side.buffer += data
        self._advance(direction, out)
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        side = self._sides[direction]
        side.last_ns = ts_ns
        out: Output = []
        message, state, torn = side.message, side.state, side.torn()
        if message is not None and not side.buffer and state in BODY:
            message.lose(length if state is State.UNTIL_CLOSE else min(length, side.remaining), out, ts_ns)
            if state is State.UNTIL_CLOSE or length <= side.remaining:
                side.received += length
                side.remaining -= length
                if side.remaining == 0 and state is not State.UNTIL_CLOSE:
                    self._body_ended(direction, side.received, out)
                return out
            if state is State.FIXED:
                self._finish(direction, side.received + side.remaining, out)
        head = bool(side.buffer) and state in (State.HEAD, State.TRAILERS)
        inside = self._break_off(direction, out, gap=True)
        side.received += length
        self._pairs.clear()  # requests or answers may have gone with it
        torn = Torn(size=max(0, torn.size - length), upto=torn.upto)
        inside = inside if opens_secret_field(inside) else b""  # else what follows may begin a line
        self._lose_track(direction, inside, torn, unseen=True, head=head)
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        side = self._sides[direction]
        side.last_ns = ts_ns
        out: Output = []
        if side.state is State.UNTIL_CLOSE:
            self._finish(direction, side.received, out)
        self._break_off(direction, out, gap=False)
        return out

    def settled(self, direction: Direction) -> int:
        side = self._sides[direction]
        if side.message is not None and side.message.held_from is not None:
            return side.message.held_from
        return side.received - len(side.buffer)

    def guarded(self, direction: Direction) -> int:
        """Everything may hold a credential but the rest of a body, or chunk, that is none."""
        side = self._sides[direction]
        message = side.message
        if message is None or message.guarded or side.state not in BODY:
            return side.received - len(side.buffer)
        return END if side.state is State.UNTIL_CLOSE else side.received + side.remaining

    def torn(self, direction: Direction) -> Torn:
        return self._sides[direction].torn()

    def resume(self, direction: Direction, torn: Torn | None) -> None:
        side = self._sides[direction]
        inside = SECRET_LINE if torn is not None and torn.line else b""
        side.state = State.LOST
        side.lost = Lost(direction, side.offset, inside, torn, unseen=torn != Torn())

    def rest(self, direction: Direction) -> bytes:
        return bytes(self._sides[direction].buffer)

    @property
    def held(self) -> int:
        messages = (side.message for side in self._sides.values() if side.message is not None)
        buffers = sum(len(side.buffer) for side in self._sides.values())
        pairs = sum(128 + len(pair.path) for pair in self._pairs)
        return buffers + pairs + sum(message.held for message in messages)

    def shed(self) -> Output:
        """Bodies are not read for text any more; what may be a credential is still looked for."""
        for side in self._sides.values():
            if side.message is not None:
                side.message.shed()
        return []

    # -- where it breaks off ---------------------------------------------------------------------------------------

    def _break_off(self, direction: Direction, out: Output, *, gap: bool) -> bytes:
        """The stream ends here, or goes on behind a gap: bring out what is not whole. Returns the line it ends in."""
        side = self._sides[direction]
        inside = last_line(side.buffer) if side.state in (State.HEAD, State.TRAILERS) else b""
        if side.state is State.HEAD and side.buffer:
            block, start = bytes(side.buffer), side.offset
            shown = mask_fields(direction, block, start, out)
            head = parse_head(shown, direction) if b"\n" in shown else None
            message = Open(direction, head or Head(), shown_text(shown), start, side.buffer_ns, None)
            message.flags.update({"gap"} if gap else (), {"redacted"} if shown is not block else ())
            message.finish(side.received, side.last_ns, out, whole=False)
        elif side.message is not None:
            if side.state is State.TRAILERS:
                mask_fields(direction, bytes(side.buffer), side.offset, out)
            side.message.flags.update({"gap"} if gap else ())
            self._finish(direction, side.received, out, whole=False)
        elif side.state is State.WAIT:
            self._lose_track(direction)
        if side.lost is not None:
            said, inside = side.lost.end(side.buffer, side.offset, side.last_ns)
            out += said
        side.buffer.clear()
        side.place = side.scanned = 0
        return inside

    # -- the short way ---------------------------------------------------------------------------------------------

    def _whole(self, direction: Direction, data: bytes, start: int, out: Output) -> bool:
        """The short way for what begins with a whole head, or is a whole message. False: nothing was done."""
        came = whole(data)
        if came is None:
            return False
        ts_ns, attrs = self._sides[direction].last_ns, self.attrs
        if direction is Direction.CLIENT:
            asked = request(came, start, ts_ns)
            if asked is None:
                return self._begun(direction, came, start, out)
            if came.secrets:
                _redact(direction, came, start, out)
            message, pair = asked
            self._asked(pair)
            attrs["requests"] += 1
            if "user_agent" not in attrs:
                self._about({"host": message.attrs["host"], "user_agent": came.named.get("user-agent", "")})
            out.append(message)
        else:
            answer = response(came, start, ts_ns, self._pairs[0]) if self._pairs else None
            if answer is None:
                return self._begun(direction, came, start, out)
            if came.secrets:
                _redact(direction, came, start, out)
            self._pairs.popleft().answered = True
            attrs["responses"] += 1
            if "server" not in attrs:
                self._about({"server": came.named.get("server", "")})
            out.append(answer)
        return True

    def _begun(self, direction: Direction, came: Whole, start: int, out: Output) -> bool:
        """A head is whole, and something else of the message is not as usual."""
        head = usual_head(came.line, came.fields, direction)
        if head is None:
            return False
        side = self._sides[direction]
        side.buffer += came.body
        if came.secrets:
            _redact(direction, came, start, out)
            head.flags.add("redacted")
        if direction is Direction.CLIENT:
            self._request(head, came.shown, start, out)
        else:
            self._response(head, came.shown, start, out)
        self._advance(direction, out)
        return True


def _redact(direction: Direction, came: Whole, start: int, out: Output) -> None:
    out += [Redaction(direction, start + first, start + last, what) for first, last, what in came.secrets]
