"""The short way for nearly all of HTTP/1.x: a head, whole in one piece, with nothing odd about its lines.

`request` and `response` give the very message that the state machine in http_framing.py would, if its body came with
it, or None. What they take: each field's name once, no transfer or content coding, no upgrade, a usual Connection, a
body of known length up to `MAX_CREDENTIAL_BODY` that can't hold a credential. Of any other message `Whole` spares the
state machine to look for the head's end, for credentials and for oddities in it.
"""

import hashlib
import re
from functools import lru_cache
from typing import Final

import msgspec

from appliance.dissect.grpc import is_grpc
from appliance.dissect.http_body import MediaType, media_type, text_of
from appliance.dissect.http_head import MAX_FIELDS, MAX_HEAD, Field, usual_fields
from appliance.dissect.http_message import FORM, MAX_CREDENTIAL_BODY, Pair
from appliance.dissect.http_secrets import Range, field_secrets, mask
from appliance.model import Direction, Message

_REQUEST: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}+) ([\x21-\x7e]++) HTTP/(1\.[0-9])")
_RESPONSE: Final = re.compile(r"HTTP/(1\.[0-9]) ([2-9][0-9]{2})(?: ([\t\x20-\x7e]*+))?")
_ODD: Final = frozenset(("transfer-encoding", "content-encoding", "upgrade", "content_length", "transfer_encoding"))
_CONNECTION: Final = frozenset(("", "keep-alive", "Keep-Alive", "close"))
_CLIENT: Final = Direction.CLIENT
_SERVER: Final = Direction.SERVER


class Whole(msgspec.Struct, frozen=True, gc=False):
    """A head and what came behind it. Its credentials are masked; `secrets`: where they are in what came."""

    line: str  # the start line; it may be none
    fields: list[Field]
    listed: list[list[str]]
    named: dict[str, str]  # the last value of each name
    size: int  # bytes
    body: bytes
    shown: str
    secrets: list[Range]


def whole(data: bytes) -> Whole | None:
    """None: something is odd."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    head = data[:end]
    if end < 0 or not head.isascii():
        return None
    lines = head.decode("ascii").split("\r\n")
    if len(lines) == 1:
        return None
    secrets: list[Range] = []
    try:
        fields = usual_fields(lines[1:], end, masked=False)
    except ValueError:
        secrets = field_secrets(data[: end + 4])
        if not secrets:
            return None
        lines = mask(head, secrets).decode("ascii").split("\r\n")
        try:
            fields = usual_fields(lines[1:], end, masked=True)
        except ValueError:
            return None
    listed: list[list[str]] = []
    named: dict[str, str] = {}
    for name, value, both in fields:
        listed.append(both)
        named[name] = value
    return Whole(lines[0], fields, listed, named, end + 4, data[end + 4 :], "\n".join(lines), secrets)


def request(came: Whole, start: int, ts_ns: int) -> tuple[Message, Pair] | None:
    """`came` is all that came, at `start` of the client's stream."""
    named, body, shown = came.named, came.body, came.shown
    kind = _usual_kind(named, len(came.listed), len(body), "0")
    if kind is None:
        return None
    found = _REQUEST.fullmatch(came.line)
    if found is None or kind.name == FORM or is_grpc(kind.name) or b'"grant_type"' in body:
        return None
    method, target, version = found.groups()
    if method == "CONNECT" or named.get("connection", "") not in _CONNECTION:
        return None
    attrs = {
        "method": method,
        "target": target,
        "host": named.get("host", ""),
        "version": version,
        "headers": came.listed,
        "content_type": kind.name,
        "encoding": "",
        "body_bytes": len(body),
    }
    if body:
        attrs["sha256"] = hashlib.sha256(body).hexdigest()
        shown = _with_body(shown, body, kind)
    end, flags = start + came.size + len(body), ("redacted",) if came.secrets else ()
    return Message(_CLIENT, "request", ts_ns, start, end, shown, attrs, None, flags, ts_ns), Pair(method, start)


def response(came: Whole, start: int, ts_ns: int, pair: Pair) -> Message | None:
    """The same for the server's stream; `pair`: what it answers."""
    if pair.credential or pair.upgrade or pair.method == "HEAD":
        return None
    line, body, shown = came.line, came.body, came.shown
    kind = _usual_kind(came.named, len(came.listed), len(body), "")
    if kind is None:
        return None
    opening = _usual_opening(line) if len(line) < 64 else _opening(line)
    if opening is None or kind.name == "text/event-stream" or is_grpc(kind.name):
        return None
    version, status, reason = opening
    attrs = {
        "status": status,
        "reason": reason,
        "version": version,
        "headers": came.listed,
        "content_type": kind.name,
        "encoding": "",
        "body_bytes": len(body),
    }
    if body:
        attrs["sha256"] = hashlib.sha256(body).hexdigest()
        shown = _with_body(shown, body, kind)
    end, flags = start + came.size + len(body), ("redacted",) if came.secrets else ()
    return Message(_SERVER, "response", ts_ns, start, end, shown, attrs, pair.start, flags, ts_ns)


def _usual_kind(named: dict[str, str], fields: int, size: int, length: str) -> MediaType | None:
    """Of a body that came to its end. `length`: what a missing Content-Length means; "": the end is not known."""
    length = named.get("content-length", length)
    if (
        len(named) < fields
        or fields > MAX_FIELDS
        or not _ODD.isdisjoint(named)
        or not length.isdigit()
        or len(length) > 15
        or int(length) != size
        or size > MAX_CREDENTIAL_BODY
    ):
        return None
    return media_type(named.get("content-type", ""))


def _opening(line: str) -> tuple[str, int, str] | None:
    """Version, status and reason of a final answer that has a body, "" where there is no reason."""
    found = _RESPONSE.fullmatch(line)
    if found is None or found[2] in ("204", "304"):
        return None
    return found[1], int(found[2]), found[3] or ""


_usual_opening = lru_cache(256)(_opening)


def _with_body(shown: str, body: bytes, kind: MediaType) -> str:
    said = text_of(body, kind)
    return shown if said is None else f"{shown}\n\n{said}"
