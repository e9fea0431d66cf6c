"""One HTTP/1.x message while it passes: what is kept of its body, what of it is a credential, what it says at the end.

The body is kept up to `MAX_BODY` bytes as it was sent (transfer coding undone, content coding not), and read for text
when it has ended. A body that may hold credentials is *held*: its bytes are not settled until it has ended or grown
past `MAX_CREDENTIAL_BODY`, so that its redactions come before anything of it is stored.
"""

import hashlib
from typing import Any, Final, Protocol

import msgspec

from appliance.dissect import Output
from appliance.dissect.grpc import GrpcBody, is_grpc
from appliance.dissect.http_body import Decoded, codings, decode, media_type, text_of
from appliance.dissect.http_events import Events
from appliance.dissect.http_head import MAX_FIELDS, Head
from appliance.dissect.http_secrets import Range, form_secrets, json_secrets, mask
from appliance.dissect.http_spans import Spans
from appliance.model import Direction, Message, Redaction

MAX_BODY: Final = 1 << 20  # bytes kept of one body
MAX_TEXT: Final = 1 << 20  # characters of one message's text
MAX_CREDENTIAL_BODY: Final = 1 << 16
MAX_PATH: Final = 1 << 10  # characters of a gRPC method's name
FORM: Final = "application/x-www-form-urlencoded"
_FIELD: Final = 320  # bytes in memory of one field, about


class Pair(msgspec.Struct):
    """A request that waits for its answer."""

    method: str
    start: int
    upgrade: bool = False  # CONNECT, or asks for another protocol
    credential: bool = False  # a token request, or not known yet
    answered: bool = False
    path: str = ""  # of a gRPC call


def called(head: Head) -> str:
    """The service and method of a gRPC call, else ""; what answers it is named after it."""
    return head.target[:MAX_PATH] if head.first("content-type").startswith("application/grpc") else ""


class Parts(Protocol):
    """Reads a body that is made of messages of its own, which are said as they come."""

    @property
    def held(self) -> int: ...
    def attrs(self) -> dict[str, Any]: ...
    def take(self, data: bytes | bytearray | memoryview, offset: int, ts_ns: int, out: Output) -> None: ...
    def lose(self, ts_ns: int, out: Output) -> None: ...
    def end(self, ts_ns: int, out: Output) -> None: ...


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
        self.cases = set(head.cases)
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
        self.parts: Parts | None = None

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
            self.parts = Events(self.direction, self.kind.name, self.reply_to)
        if is_grpc(self.kind.name) and not self.encodings:
            coding = self.head.first("grpc-encoding")
            path = self.pair.path if self.pair is not None else ""
            self.parts = GrpcBody(self.direction, self.kind.name, coding, path, self.reply_to)

    def withhold(self) -> None:
        """What its body is was not seen: if it is short enough it may be a token request, or the answer to one."""
        self.held_from = None
        self.frozen = self.redact_rest = self._doubtful = True
        if self.pair is not None and self.direction is Direction.CLIENT:
            self.pair.credential = True

    @property
    def reply_to(self) -> int | None:
        answers = self.direction is Direction.SERVER and self.pair is not None
        return self.pair.start if answers and self.pair is not None else None

    # -- while the body passes -------------------------------------------------------------------------------------

    def take(self, data: bytes | bytearray | memoryview, length: int, offset: int, ts_ns: int, out: Output) -> None:
        """`length` bytes of the body, at the start of `data` and at `offset` of the stream."""
        self.body_bytes += length
        if self.parts is not None:
            self.parts.take(data[:length], offset, ts_ns, out)
            return
        room = MAX_BODY - len(self.kept)
        if room > 0 and not self.frozen:
            self.kept += data[: min(length, room)]
        if self.redact_rest:
            hidden = length
            if self._doubtful and self.body_bytes > MAX_CREDENTIAL_BODY:
                self.redact_rest = False
                hidden = max(length - (self.body_bytes - MAX_CREDENTIAL_BODY), 0)
            if hidden:
                out.append(Redaction(self.direction, offset, offset + hidden, "token"))
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
        waiting = self.parts.held if self.parts is not None else 0
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
        if self.parts is not None:
            self.parts.lose(ts_ns, out)
        self.body_bytes += length
        self.frozen = True
        self.flags.update(("gap", "truncated"))

    def release(self, out: Output, how: str) -> None:
        """Find the credentials of a held body. `how`: `whole`, `cut` (its rest is unknown), `overflow` (too long)."""
        if self.held_from is None:
            return
        self.held_from = None
        spans, self._spans = self._spans, Spans()
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
            for first, last in spans.ranges(start, end):
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
            for first, last in spans.ranges(len(body), spans.length):
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

    # -- at the end ------------------------------------------------------------------------------------------------

    def finish(self, end: int, ts_ns: int, out: Output, *, whole: bool, kind: str = "") -> None:
        """The message itself. `whole` false: its body did not come to its end."""
        self.release(out, "whole" if whole and "gap" not in self.flags else "cut")
        if self.parts is not None:
            self.parts.end(ts_ns, out)
        if not whole:
            self.flags.add("truncated")
        attrs = self._attrs()
        text = self.shown
        if self.parts is not None:
            attrs.update(self.parts.attrs())
        elif self.body_bytes:
            text = self._body_text(attrs, whole)
        if len(text) > MAX_TEXT:
            text = text[:MAX_TEXT]
            self.flags.add("truncated")
        kind = kind or ("request" if self.direction is Direction.CLIENT else "response")
        flags = tuple(sorted(self.flags))
        said = Message(
            self.direction, kind, self.ts_ns, self.start, end, text, attrs, self.reply_to, flags, end_ns=ts_ns
        )
        out.append(said)

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
        if self.cases:
            attrs["smuggling"] = sorted(self.cases)
            self.flags.add("smuggling")
        return attrs
