"""The framing of HTTP/1.x (RFC 9112): a state machine that cuts both directions into heads and bodies.

In: bytes, those of a body as they came, others in a side's buffer. Out: messages and redactions, requests paired with
their answers.

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

from appliance.dissect import Output, Torn
from appliance.dissect.http_head import (
    MAX_HEAD,
    Framing,
    Head,
    check_trailers,
    is_start_line,
    parse_fields,
    parse_head,
    request_framing,
    response_framing,
    text_of,
)
from appliance.dissect.http_lost import Lost, last_line, mask_fields, mask_stray
from appliance.dissect.http_message import Open, Pair, called
from appliance.dissect.http_side import BODY, Side, State
from appliance.dissect.raw import printable
from appliance.model import Direction, Message

MAX_CHUNK_LINE: Final = 1 << 13  # bytes of a chunk-size line
MAX_WAIT: Final = 1 << 16  # bytes that a client sends ahead of the answer to CONNECT or Upgrade
MAX_PIPELINE: Final = 1024  # requests that wait for their answers

_NAMES: Final = {"h2c": "http2"}  # protocols of an Upgrade whose dissector has another name
_HEAD_END = re.compile(rb"\n\r?\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*)(;[^\r\n]*)?\r?\n")


class Framed:
    """The part of `Http1` that knows where heads and bodies begin and end."""

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self.attrs: dict[str, Any] = {"requests": 0, "responses": 0}
        self.successor: str | None = None
        self.legacy: dict[str, Any] = {}
        self._sides = {Direction.CLIENT: Side(client_offset), Direction.SERVER: Side(server_offset)}
        self._pairs: deque[Pair] = deque()

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
            self._request(head, shown_text(shown), start, out)
        else:
            self._response(head, shown_text(shown), start, out)
        return True

    def _block_end(self, side: Side) -> int | None:
        """The position behind the empty line, if that is within MAX_HEAD."""
        found = _HEAD_END.search(side.buffer, max(side.place, side.scanned - 2), side.place + MAX_HEAD)
        side.scanned = len(side.buffer)
        return found.end() if found else None

    def _request(self, head: Head, shown: str, start: int, out: Output) -> None:
        side = self._sides[Direction.CLIENT]
        upgrade = head.method == "CONNECT" or (bool(head.first("upgrade")) and "upgrade" in head.tokens("connection"))
        pair = Pair(head.method, start, upgrade, path=called(head))
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
            named = head.first("upgrade").lower().split("/")[0].strip()
            self.successor = "auto" if granted else _NAMES.get(named, named) or "raw"
            self.legacy = {
                "method": pair.method if pair is not None else "",
                "start": pair.start if pair is not None else None,
                "extensions": ", ".join(head.values("sec-websocket-extensions")),
                "protocol": head.first("sec-websocket-protocol"),
            }
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
        message.cases.update(message.head.cases)
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
            message.cases.add("chunk-size")
            self._bad_body(direction, out)
            return True
        if found.group(3):
            message.notes.add("chunk_extensions")
        if found.group(2):
            message.cases.add("chunk-space")
        if side.buffer[end - 2 : end - 1] != b"\r":
            message.notes.add("bare_lf")
            message.cases.add("bare-lf")
        side.remaining = int(found.group(1), 16)
        del found  # it holds the buffer
        side.place = end
        side.state = State.CHUNK_DATA if side.remaining else State.TRAILERS
        return True

    def _chunk_end(self, direction: Direction, out: Output) -> bool:
        side = self._sides[direction]
        message = side.message
        assert message is not None  # every body state has one
        opening = bytes(side.buffer[side.place : side.place + 2])
        if opening == b"\r":
            return False
        if opening != b"\r\n":
            message.cases.add("bare-lf" if opening[:1] == b"\n" else "chunk-end")
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
        check_trailers(trailers)
        message.trailers = trailers.fields
        message.cases |= trailers.cases
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
        torn = side.torn()
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


def shown_text(block: bytes) -> str:
    """A head, credentials masked, as the text of its message."""
    return text_of(block).replace("\r\n", "\n").rstrip("\r\n")
