"""HTTP/1.0 and 1.1 (RFC 9112, semantics RFC 9110): requests and responses of one connection, paired.

Messages
- `request`: attrs method, target, host, version, headers ([name, value] each), content_type, encoding, body_bytes, and
  where there are any trailers, sha256 (of a whole body up to MAX_BODY, as sent), bare_lf, obs_fold, chunk_extensions.
- `response`: status and reason in place of method, target and host; `informational`: the same for 1xx.
- `event`: server-sent events that arrived together, before the response they belong to ends.
- `data`: bytes where no message could be found: behind a gap or a malformed message.
Text is the start line, the fields and the decoded body, if that is text. `reply_to` is the request's start.
Flags: truncated, malformed, smuggling, gap, redacted, undecoded. Session attrs: host, user_agent, server, requests,
responses, and degraded once a direction had to be searched for its next message.

Successor: "auto" behind a CONNECT that was granted; behind 101 the protocol switched to ("tls", "websocket", ...).

    state of one direction    what comes                                      goes to
    HEAD                      a start line and fields                         FIXED, CHUNK_SIZE, UNTIL_CLOSE; HEAD, WAIT
    HEAD                      no start line, or more than MAX_HEAD            LOST
    FIXED                     the last byte of the body                       HEAD, WAIT
    UNTIL_CLOSE               the end of the direction                        (ended)
    CHUNK_SIZE                a size; 0; no size                              CHUNK_DATA; TRAILERS; LOST
    CHUNK_DATA                the last byte of the chunk                      CHUNK_END
    CHUNK_END                 a line end; anything else                       CHUNK_SIZE; LOST
    TRAILERS                  the empty line                                  HEAD, WAIT
    WAIT                      (client, behind CONNECT or Upgrade) a refusal   HEAD
    LOST                      a line that is a start line                     HEAD
    any                       a gap within a body of known length             the same; otherwise LOST
"""

import re
from collections import deque
from typing import Any, Final

from appliance.dissect import Match, Output, Torn
from appliance.dissect.http_head import (
    MAX_HEAD,
    Framing,
    Head,
    detect,
    is_start_line,
    parse_fields,
    parse_head,
    request_framing,
    response_framing,
    text_of,
    usual_head,
)
from appliance.dissect.http_lost import SECRET_LINE, Lost, last_line, mask_fields, mask_stray
from appliance.dissect.http_message import MAX_CREDENTIAL_BODY, Open, Pair
from appliance.dissect.http_secrets import opens_secret_field
from appliance.dissect.http_side import BODY, Side, State
from appliance.dissect.http_whole import Whole, request, response, whole
from appliance.dissect.raw import printable
from appliance.model import Direction, Message, Redaction

MAX_CHUNK_LINE: Final = 1 << 13  # bytes of a chunk-size line
MAX_WAIT: Final = 1 << 16  # bytes that a client sends ahead of the answer to CONNECT or Upgrade
MAX_PIPELINE: Final = 1024  # requests that wait for their answers

_OTHER: Final = {Direction.CLIENT: Direction.SERVER, Direction.SERVER: Direction.CLIENT}
END: Final = 1 << 62  # behind every offset

_HEAD_END = re.compile(rb"\n\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[^\r\n]*)?\r?\n")


class Http1:
    protocol = "http1"
    opaque = False

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self.attrs: dict[str, Any] = {"requests": 0, "responses": 0}
        self.successor: str | None = None
        self._sides = {Direction.CLIENT: Side(client_offset), Direction.SERVER: Side(server_offset)}
        self._pairs: deque[Pair] = deque()

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
        message, state, torn = side.message, side.state, self.torn(direction)
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
        side = self._sides[direction]
        if side.lost is not None:
            return side.lost.torn(side.buffer)
        if side.message is None or side.state is State.TRAILERS:
            return Torn(line=opens_secret_field(last_line(side.buffer)))
        if not side.message.guarded:
            return Torn()
        return Torn(size=side.remaining) if side.state is State.FIXED else Torn(upto=MAX_CREDENTIAL_BODY)

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
        return buffers + 128 * len(self._pairs) + sum(message.held for message in messages)

    def shed(self) -> Output:
        """Bodies are not read for text any more; what may be a credential is still looked for."""
        for side in self._sides.values():
            if side.message is not None:
                side.message.shed()
        return []

    # -- the loop --------------------------------------------------------------------------------------------------

    def _advance(self, direction: Direction, out: Output) -> None:
        """Consume every whole unit of the buffer."""
        side = self._sides[direction]
        while self.successor is None and side.place < len(side.buffer) and self._step(direction, out):
            side.buffer_ns = side.last_ns  # what is left came last: what was there before was not a whole unit
        del side.buffer[: side.place]
        side.scanned = max(side.scanned - side.place, 0)
        side.place = 0

    def _step(self, direction: Direction, out: Output) -> bool:
        """One unit; false if it is not whole yet."""
        side = self._sides[direction]
        if side.state in BODY:
            with memoryview(side.buffer) as view, view[side.place :] as part:
                taken = self._body(direction, part, side.offset, out)
            side.place += taken
            return taken > 0
        if side.state is State.HEAD:
            return self._head(direction, out)
        if side.state is State.CHUNK_SIZE:
            return self._chunk_size(direction, out)
        if side.state is State.CHUNK_END:
            return self._chunk_end(direction, out)
        if side.state is State.TRAILERS:
            return self._trailers(direction, out)
        if side.state is State.LOST:
            return self._search(direction, out)
        if len(side.buffer) - side.place > MAX_WAIT:
            self._lose_track(direction)
            return True
        return False

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

    def _asked(self, pair: Pair) -> None:
        if len(self._pairs) >= MAX_PIPELINE:
            self._pairs.clear()
        self._pairs.append(pair)

    def _about(self, said: dict[str, str]) -> None:
        """What a message says of itself; of the session that is what its first one said."""
        for name, value in said.items():
            self.attrs.setdefault(name, value)

    # -- heads -----------------------------------------------------------------------------------------------------

    def _head(self, direction: Direction, out: Output) -> bool:
        side = self._sides[direction]
        buffer = side.buffer
        blank = side.place
        while buffer[blank : blank + 1] == b"\n" or buffer[blank : blank + 2] == b"\r\n":
            blank += 1 if buffer[blank] == 10 else 2
        if blank > side.place:  # empty lines before a start line, RFC 9112 §2.2
            side.place = blank
            return True
        if not side.begun and (line := buffer.find(b"\n", side.place, side.place + MAX_HEAD) + 1):
            side.begun = is_start_line(bytes(buffer[side.place : line]), direction)
            if not side.begun:
                self._bad_head(direction, line - side.place, out)
                return True
        end = self._block_end(side)
        if end is None:
            if len(buffer) - side.place < MAX_HEAD:
                return False
            self._bad_head(direction, MAX_HEAD, out)
            return True
        start, block = side.offset, bytes(buffer[side.place : end])
        shown = mask_fields(direction, block, start, out)
        head = parse_head(shown, direction)
        assert head is not None  # its start line was judged before
        if shown is not block:
            head.flags.add("redacted")
        side.place = side.scanned = end
        side.begun = False
        if direction is Direction.CLIENT:
            self._request(head, _show(shown), start, out)
        else:
            self._response(head, _show(shown), start, out)
        return True

    def _block_end(self, side: Side) -> int | None:
        """The position behind the empty line, if that is within MAX_HEAD."""
        found = _HEAD_END.search(side.buffer, max(side.place, side.scanned - 2), side.place + MAX_HEAD)
        side.scanned = len(side.buffer)
        return found.end() if found else None

    def _request(self, head: Head, shown: str, start: int, out: Output) -> None:
        side = self._sides[Direction.CLIENT]
        upgrade = head.method == "CONNECT" or (bool(head.first("upgrade")) and "upgrade" in head.tokens("connection"))
        pair = Pair(head.method, start, upgrade)
        self._asked(pair)
        framing = request_framing(head)
        self.attrs["requests"] += 1
        self._about({"host": head.first("host"), "user_agent": head.first("user-agent")})
        side.message = Open(Direction.CLIENT, head, shown, start, side.buffer_ns, pair)
        self._expect(Direction.CLIENT, framing, out)

    def _response(self, head: Head, shown: str, start: int, out: Output) -> None:
        side = self._sides[Direction.SERVER]
        final = head.status >= 200 or head.status == 101
        pair = self._pairs[0] if self._pairs else None
        message = Open(Direction.SERVER, head, shown, start, side.buffer_ns, pair)
        if not final:
            message.finish(side.offset, side.last_ns, out, whole=True, kind="informational")
            return
        if pair is not None:
            self._pairs.popleft()
            pair.answered = True
        self.attrs["responses"] += 1
        self._about({"server": head.first("server")})
        side.message = message
        granted = pair is not None and pair.method == "CONNECT" and 200 <= head.status < 300
        if granted or head.status == 101:
            self._finish(Direction.SERVER, side.offset, out)
            client = self._sides[Direction.CLIENT]
            if client.lost is not None:
                out += client.lost.pause(client.last_ns)
            self.successor = "auto" if granted else head.first("upgrade").lower().split("/")[0].strip() or "raw"
            return
        self._expect(Direction.SERVER, response_framing(head, pair.method if pair is not None else ""), out)
        client = self._sides[Direction.CLIENT]
        if pair is not None and pair.upgrade and client.state is State.WAIT:
            client.state = State.HEAD
            self._advance(Direction.CLIENT, out)
            out += client.lost.pause(client.last_ns) if client.lost is not None else []

    def _expect(self, direction: Direction, framing: Framing, out: Output) -> None:
        """The head of `side.message` was read: what comes next."""
        side = self._sides[direction]
        message = side.message
        assert message is not None  # the caller made it
        message.flags.update(message.head.flags)
        if framing.broken:
            message.flags.add("malformed")
            self._finish(direction, side.offset, out)
            self._lose_track(direction)
        elif framing.length == 0:
            self._finish(direction, side.offset, out)
        else:
            message.expect_body(side.offset)
            side.remaining = framing.length or 0
            body = State.FIXED if framing.length else State.UNTIL_CLOSE
            side.state = State.CHUNK_SIZE if framing.chunked else body

    # -- bodies ----------------------------------------------------------------------------------------------------

    def _body(self, direction: Direction, data: bytes | memoryview, offset: int, out: Output) -> int:
        """Take what belongs to the body or chunk, from the start of `data`; returns how much."""
        side = self._sides[direction]
        message = side.message
        assert message is not None  # every body state has one
        if side.state is State.UNTIL_CLOSE:
            message.take(data, len(data), offset, side.last_ns, out)
            return len(data)
        taken = min(side.remaining, len(data))
        message.take(data, taken, offset, side.last_ns, out)
        side.remaining -= taken
        if side.remaining == 0:
            self._body_ended(direction, offset + taken, out)
        return taken

    def _body_ended(self, direction: Direction, end: int, out: Output) -> None:
        side = self._sides[direction]
        if side.state is State.CHUNK_DATA:
            side.state = State.CHUNK_END
        else:
            self._finish(direction, end, out)

    def _chunk_size(self, direction: Direction, out: Output) -> bool:
        side = self._sides[direction]
        message = side.message
        assert message is not None  # every body state has one
        end = side.buffer.find(b"\n", side.place, side.place + MAX_CHUNK_LINE) + 1
        if not end:
            return self._too_long(direction, MAX_CHUNK_LINE, out)
        found = _CHUNK_SIZE.fullmatch(side.buffer, side.place, end)
        if found is None:
            self._bad_body(direction, out)
            return True
        if found.group(2):
            message.notes.add("chunk_extensions")
        if side.buffer[end - 2 : end - 1] != b"\r":
            message.notes.add("bare_lf")
        side.remaining = int(found.group(1), 16)
        del found  # it holds the buffer
        side.place = end
        side.state = State.CHUNK_DATA if side.remaining else State.TRAILERS
        return True

    def _chunk_end(self, direction: Direction, out: Output) -> bool:
        side = self._sides[direction]
        opening = bytes(side.buffer[side.place : side.place + 2])
        if opening == b"\r":
            return False
        if opening != b"\r\n" and opening[:1] != b"\n":
            self._bad_body(direction, out)
            return True
        side.place += 2 if opening == b"\r\n" else 1
        side.state = State.CHUNK_SIZE
        return True

    def _trailers(self, direction: Direction, out: Output) -> bool:
        side = self._sides[direction]
        message = side.message
        assert message is not None  # every body state has one
        opening = bytes(side.buffer[side.place : side.place + 2])
        if opening == b"\r":
            return False
        if opening == b"\r\n" or opening[:1] == b"\n":
            end: int | None = side.place + (2 if opening == b"\r\n" else 1)
        else:
            end = self._block_end(side)
        if end is None:
            return self._too_long(direction, MAX_HEAD, out)
        block = bytes(side.buffer[side.place : end])
        shown = mask_fields(direction, block, side.offset, out)
        trailers = Head()
        parse_fields(shown, trailers)
        message.trailers = trailers.fields
        message.flags |= trailers.flags | ({"redacted"} if shown is not block else set())
        side.place = side.scanned = end
        self._finish(direction, side.offset, out)
        return True

    def _finish(self, direction: Direction, end: int, out: Output, *, whole: bool = True) -> None:
        """`side.message` has ended."""
        side = self._sides[direction]
        message = side.message
        assert message is not None  # the caller had one
        message.finish(end, side.last_ns, out, whole=whole)
        side.message = None
        pair = message.pair
        waits = direction is Direction.CLIENT and pair is not None and pair.upgrade and not pair.answered
        side.state = State.WAIT if waits else State.HEAD
        side.begun = False

    # -- what is broken --------------------------------------------------------------------------------------------

    def _too_long(self, direction: Direction, limit: int, out: Output) -> bool:
        side = self._sides[direction]
        if len(side.buffer) - side.place < limit:
            return False
        self._bad_body(direction, out)
        return True

    def _bad_body(self, direction: Direction, out: Output) -> None:
        """The framing of a body breaks off here: say what came so far, and look for the next message."""
        side = self._sides[direction]
        torn = self.torn(direction)
        if side.message is not None:
            side.message.flags.add("malformed")
            self._finish(direction, side.offset, out, whole=False)
        self._lose_track(direction, torn=Torn(size=torn.size, upto=torn.upto))

    def _bad_head(self, direction: Direction, length: int, out: Output) -> None:
        """`length` bytes of the buffer are no head."""
        side = self._sides[direction]
        block, start = bytes(side.buffer[side.place : side.place + length]), side.offset
        shown = mask_stray(direction, block, start, out)
        flags = ("malformed",) if shown is block else ("malformed", "redacted")
        kind = "request" if direction is Direction.CLIENT else "response"
        text = printable(shown)
        end = start + length
        out.append(Message(direction, kind, side.buffer_ns, start, end, text, flags=flags, end_ns=side.last_ns))
        side.place += length
        self._lose_track(direction, last_line(block))

    def _break_off(self, direction: Direction, out: Output, *, gap: bool) -> bytes:
        """The stream ends here, or goes on behind a gap: bring out what is not whole. Returns the line it ends in."""
        side = self._sides[direction]
        inside = last_line(side.buffer) if side.state in (State.HEAD, State.TRAILERS) else b""
        if side.state is State.HEAD and side.buffer:
            block, start = bytes(side.buffer), side.offset
            shown = mask_fields(direction, block, start, out)
            head = parse_head(shown, direction) if b"\n" in shown else None
            message = Open(direction, head or Head(), _show(shown), start, side.buffer_ns, None)
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

    def _lose_track(
        self,
        direction: Direction,
        inside: bytes = b"",
        torn: Torn | None = None,
        *,
        unseen: bool = False,
        head: bool = False,
    ) -> None:
        """From here on look for a start line; see `Lost`."""
        side = self._sides[direction]
        side.state = State.LOST
        side.begun = False
        side.lost = Lost(direction, side.offset, inside, torn, unseen=unseen, head=head)
        self.attrs["degraded"] = True

    def _search(self, direction: Direction, out: Output) -> bool:
        side = self._sides[direction]
        assert side.lost is not None  # LOST has one
        del side.buffer[: side.place]
        side.place = side.scanned = 0
        before = len(side.buffer)
        found = side.lost.search(side.buffer, side.offset, side.last_ns, out)
        if len(side.buffer) < before:
            self.attrs["degraded"] = True
        if found:
            side.state, side.lost = State.HEAD, None
        return found


def _redact(direction: Direction, came: Whole, start: int, out: Output) -> None:
    out += [Redaction(direction, start + first, start + last, what) for first, last, what in came.secrets]


def _show(block: bytes) -> str:
    return text_of(block).replace("\r\n", "\n").rstrip("\r\n")
