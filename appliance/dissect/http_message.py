"""One HTTP/1.x message while it passes: what is kept of its body, what of it is a credential, what it says at the end.

The body is kept up to `MAX_BODY` bytes as it was sent (transfer coding undone, content coding not), and read for text
when it has ended. A body that may hold credentials is *held*: its bytes are not settled until it has ended or grown
past `MAX_CREDENTIAL_BODY`, so that its redactions come before anything of it is stored.
"""

import hashlib
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from appliance.dissect import Output
from appliance.dissect.http_body import Decoded, codings, decode, media_type, text_of
from appliance.dissect.http_head import MAX_FIELDS, Head
from appliance.dissect.http_secrets import Range, form_secrets, json_secrets, mask
from appliance.model import Direction, Message, Redaction

MAX_BODY: Final = 1 << 20  # bytes kept of one body
MAX_TEXT: Final = 1 << 20  # characters of one message's text
MAX_CREDENTIAL_BODY: Final = 1 << 16
MAX_EVENT: Final = 1 << 16  # bytes of one server-sent event
FORM: Final = "application/x-www-form-urlencoded"
_FIELD: Final = 320  # bytes in memory of one field, about
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_EVENT_END: Final = re.compile(b"|".join(_EVENT_ENDS))


class Spans:
    """Positions in a body, which chunks may have cut up, to offsets in the stream."""

    def __init__(self) -> None:
        self.length = 0
        self._places: list[int] = []
        self._offsets: list[int] = []

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        return 64 * len(self._places)

    def add(self, offset: int, length: int) -> None:
        if not self._places or offset != self._offsets[-1] + self.length - self._places[-1]:
            self._places.append(self.length)
            self._offsets.append(offset)
        self.length += length

    def ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        """The stream ranges of body positions `start` to `end`."""
        found: list[tuple[int, int]] = []
        entry = max(bisect_right(self._places, start) - 1, 0)
        while start < end:
            stop = self._places[entry + 1] if entry + 1 < len(self._places) else self.length
            step = min(stop, end) - start
            offset = self._offsets[entry] + start - self._places[entry]
            if step <= 0:
                break
            found.append((offset, offset + step))
            start += step
            entry += 1
        return found


class Pair(msgspec.Struct):
    """A request that waits for its answer."""

    method: str
    start: int
    upgrade: bool = False  # CONNECT, or asks for another protocol
    credential: bool = False  # a token request, or not known yet
    answered: bool = False


@dataclass(slots=True)
class _Events:
    """The events of a text/event-stream body (WHATWG HTML §9.2) that is still open."""

    data: bytearray = field(default_factory=bytearray)
    spans: Spans = field(default_factory=Spans)
    ts_ns: int = 0
    scanned: int = 0
    count: int = 0


class Open:
    """A message whose head was read. `held_from` is set while its body must not be settled."""

    def __init__(self, direction: Direction, head: Head, shown: str, start: int, ts_ns: int, pair: Pair | None) -> None:
        self.direction = direction
        self.head = head
        self.start = start
        self.ts_ns = ts_ns
        self.pair = pair
        self.shown = shown  # start line and fields, masked
        self.flags = set(head.flags)
        self.notes = set(head.notes)
        self.kind = media_type(head.first("content-type"))
        self.encodings = codings(",".join(head.values("content-encoding")))
        if "transfer-encoding" in head.named:
            self.encodings += [one for one in head.tokens("transfer-encoding") if one not in ("chunked", "identity")]
        self.body_bytes = 0
        self.kept = bytearray()
        self.frozen = False  # nothing more is kept: a gap, or credentials
        self.trailers: list[list[str]] = []
        self.held_from: int | None = None
        self.redact_rest = False
        self._doubtful = False  # only up to `MAX_CREDENTIAL_BODY`
        self._spans = Spans()
        self._read: Decoded | None = None  # what a held body said, masked
        self._events: _Events | None = None

    def expect_body(self, offset: int) -> None:
        """A body follows from `offset`: decide how it is looked at."""
        json = self.kind.name == "application/json"
        if self.direction is Direction.CLIENT:
            if self.pair is not None and (json or self.kind.name == FORM):
                self.held_from = offset
                self.pair.credential = True  # until proven otherwise: the answer may come first
        elif self.pair.credential if self.pair is not None else json:
            self.held_from = offset
        elif self.kind.name == "text/event-stream" and not self.encodings:
            self._events = _Events()

    # -- while the body passes -------------------------------------------------------------------------------------

    def take(self, data: bytes | bytearray | memoryview, length: int, offset: int, ts_ns: int, out: Output) -> None:
        """`length` bytes of the body, at the start of `data` and at `offset` of the stream."""
        self.body_bytes += length
        if self._events is not None:
            self._take_events(data[:length], offset, ts_ns, out)
            return
        room = MAX_BODY - len(self.kept)
        if room > 0 and not self.frozen:
            self.kept += data[: min(length, room)]
        if self._doubtful and self.body_bytes > MAX_CREDENTIAL_BODY:
            self.redact_rest = False
        if self.redact_rest:
            out.append(Redaction(self.direction, offset, offset + length, "token"))
            self.flags.update(("redacted", "truncated"))
        elif self.held_from is not None:
            self._spans.add(offset, length)
            if self._spans.length > MAX_CREDENTIAL_BODY:
                self.release(out, "overflow")

    @property
    def guarded(self) -> bool:
        """Whether the rest of its body may hold a credential, as far as is known."""
        if self.held_from is None:
            return self.redact_rest
        answer = self.direction is Direction.SERVER and self.pair is not None
        shown = b'"grant_type"' in self.kept or bool(json_secrets(bytes(self.kept)))
        return self.kind.name == FORM or answer or bool(self.encodings) or shown

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        waiting = len(self._events.data) if self._events is not None else 0
        fields = _FIELD * (len(self.head.fields) + len(self.trailers))
        return len(self.kept) + 2 * len(self.shown) + fields + waiting + self._spans.held

    def shed(self) -> None:
        """Memory is short: the body is not read for text."""
        if self.kept and self.held_from is None:
            self.kept, self.frozen = bytearray(), True
            self.flags.add("truncated")

    def lose(self, length: int, out: Output, ts_ns: int) -> None:
        """`length` bytes of the body were not recorded."""
        if self.held_from is not None:
            self.release(out, "cut")
        self._end_events(ts_ns, out)
        self.body_bytes += length
        self.frozen = True
        self.flags.update(("gap", "truncated"))

    def release(self, out: Output, how: str) -> None:
        """Find the credentials of a held body. `how`: `whole`, `cut` (its rest is unknown), `overflow` (too long)."""
        if self.held_from is None:
            return
        self.held_from = None
        body = bytes(self.kept[:MAX_CREDENTIAL_BODY])
        read = decode(body, self.encodings, whole=how == "whole")
        ranges = self._secrets(read.data, how)
        if ranges is None:
            if self.pair is not None and self.direction is Direction.CLIENT:
                self.pair.credential = False
            return
        unreadable = bool(self.encodings) and ("undecoded" in read.flags or how != "whole")
        self._read = Decoded(b"" if unreadable else mask(read.data, ranges), read.flags)
        places = ranges
        if self.encodings and (ranges or unreadable or self.direction is Direction.SERVER):
            places = [(0, len(body), "token")]
        for start, end, what in places:
            for first, last in self._spans.ranges(start, end):
                out.append(Redaction(self.direction, first, last, what))
        if places:
            self.flags.add("redacted")
        # a gap in a form, or in what a token endpoint says, may have hidden the name of what follows
        suspect = self.kind.name == FORM or (self.direction is Direction.SERVER and self.pair is not None)
        # and one in a JSON request may have hidden that it is a token request, if it is short enough for one
        self._doubtful = how == "cut" and not (places or suspect or b'"grant_type"' in read.data)
        suspect = suspect or self.pair is not None
        if how == "overflow" or (how == "cut" and (places or suspect)):
            self.redact_rest = True
            self.flags.update(("redacted", "truncated") if how == "overflow" else ())
            for first, last in self._spans.ranges(len(body), self._spans.length):
                out.append(Redaction(self.direction, first, last, "token"))
        self.kept = bytearray()
        self.frozen = True

    def _secrets(self, body: bytes, how: str) -> list[Range] | None:
        """None: there is nothing to protect here."""
        if self.direction is Direction.CLIENT:
            # a body that was cut may have hidden its grant_type; so may an encoded one that can't be read to its end
            certain = how == "cut" or (bool(self.encodings) and how != "whole")
            if self.kind.name == FORM:
                return form_secrets(body, certain=certain)
            return json_secrets(body) if certain or b'"grant_type"' in body else None
        if self.kind.name == FORM:
            return form_secrets(body, certain=True)
        if self.pair is None and b'"token_type"' not in body and how != "cut":
            return None  # the request was not seen; RFC 6749 §5.1 requires a token_type
        return json_secrets(body) or (None if how == "overflow" else [])

    # -- server-sent events ----------------------------------------------------------------------------------------

    def _take_events(self, data: bytes | bytearray | memoryview, offset: int, ts_ns: int, out: Output) -> None:
        events = self._events
        assert events is not None  # the caller checked
        if not events.data:
            events.ts_ns = ts_ns
        events.data += data
        events.spans.add(offset, len(data))
        since = max(events.scanned - 3, 0)
        end = max(found + len(mark) if (found := events.data.rfind(mark, since)) >= 0 else 0 for mark in _EVENT_ENDS)
        events.scanned = len(events.data)
        if end:
            self._emit_events(end, ts_ns, out, ())
        while len(events.data) > MAX_EVENT:
            self._emit_events(MAX_EVENT, ts_ns, out, ("truncated",))

    def _end_events(self, ts_ns: int, out: Output) -> None:
        if self._events is not None and self._events.data:
            self._emit_events(len(self._events.data), ts_ns, out, ("truncated",))

    def _emit_events(self, end: int, ts_ns: int, out: Output, flags: tuple[str, ...]) -> None:
        events = self._events
        assert events is not None  # the caller checked
        ranges = events.spans.ranges(0, end)
        events.count += sum(bool(block.strip()) for block in _EVENT_END.split(events.data[:end]))
        text = events.data[:end].decode("utf-8", "replace").replace("\r\n", "\n").strip("\n")
        attrs = {"content_type": self.kind.name}
        reply = self.pair.start if self.pair is not None else None
        first, last = ranges[0][0], ranges[-1][1]
        if text.strip():  # blank lines alone are no event
            out.append(
                Message(self.direction, "event", events.ts_ns, first, last, text, attrs, reply, flags, end_ns=ts_ns)
            )
        rest = Spans()
        for start, stop in events.spans.ranges(end, events.spans.length):
            rest.add(start, stop - start)
        events.spans = rest
        del events.data[:end]
        events.scanned = len(events.data)
        events.ts_ns = ts_ns

    # -- at the end ------------------------------------------------------------------------------------------------

    def finish(self, end: int, ts_ns: int, out: Output, *, whole: bool, kind: str = "") -> None:
        """The message itself. `whole` false: its body did not come to its end."""
        self.release(out, "whole" if whole and "gap" not in self.flags else "cut")
        self._end_events(ts_ns, out)
        if not whole:
            self.flags.add("truncated")
        attrs = self._attrs()
        text = self.shown
        if self._events is not None:
            attrs["events"] = self._events.count
        elif self.body_bytes:
            text = self._body_text(attrs, whole)
        if len(text) > MAX_TEXT:
            text = text[:MAX_TEXT]
            self.flags.add("truncated")
        kind = kind or ("request" if self.direction is Direction.CLIENT else "response")
        reply = self.pair.start if self.pair is not None and self.direction is Direction.SERVER else None
        flags = tuple(sorted(self.flags))
        out.append(Message(self.direction, kind, self.ts_ns, self.start, end, text, attrs, reply, flags, end_ns=ts_ns))

    def _body_text(self, attrs: dict[str, Any], whole: bool) -> str:
        complete = whole and not self.frozen and len(self.kept) == self.body_bytes
        if complete:
            attrs["sha256"] = hashlib.sha256(self.kept).hexdigest()
        read = self._read or decode(bytes(self.kept), self.encodings, whole=complete)
        self.flags.update(read.flags)
        said = text_of(read.data, self.kind) if "undecoded" not in read.flags else None
        if said is None:
            return self.shown
        return f"{self.shown}\n\n{said}"

    def _attrs(self) -> dict[str, Any]:
        head = self.head
        attrs: dict[str, Any] = (
            {"method": head.method, "target": head.target, "host": head.first("host")}
            if self.direction is Direction.CLIENT
            else {"status": head.status, "reason": head.reason}
        )
        attrs["version"] = head.version
        attrs["headers"] = head.fields[:MAX_FIELDS]
        attrs["content_type"] = self.kind.name
        attrs["encoding"] = ", ".join(self.encodings)
        attrs["body_bytes"] = self.body_bytes
        if self.trailers:
            attrs["trailers"] = self.trailers[:MAX_FIELDS]
        if len(head.fields) > MAX_FIELDS or len(self.trailers) > MAX_FIELDS:
            self.flags.add("truncated")
        for note in sorted(self.notes):
            attrs[note] = True
        return attrs
