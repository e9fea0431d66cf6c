"""The short way for nearly all of HTTP/1.x: one message, whole in one piece, with nothing odd or secret about it.

`request` and `response` give the very message that the state machine in http1.py would, or None: then that has to read
it. What they take: field lines in ASCII, each name once, no transfer or content coding, no upgrade, a body of known
length up to `MAX_CREDENTIAL_BODY`, nothing that may be a credential.
"""

import hashlib
import re
from typing import Any, Final, NamedTuple

from appliance.dissect.http_body import MediaType, media_type, text_of
from appliance.dissect.http_head import FIELDS, MAX_FIELDS, PAIR, USUAL_LENGTH
from appliance.dissect.http_message import FORM, MAX_CREDENTIAL_BODY, Pair
from appliance.model import Direction, Message

_REQUEST: Final = re.compile(
    rb"([!#$%%&'*+.^_`|~0-9A-Za-z-]{1,64}+) ([\x21-\x7e]++) HTTP/(1\.[0-9])\r\n(%b)" % FIELDS.pattern
)
_RESPONSE: Final = re.compile(rb"HTTP/(1\.[0-9]) ([2-9][0-9]{2})(?: ([\t\x20-\x7e]*+))?\r\n(%b)" % FIELDS.pattern)
_ODD: Final = frozenset(("transfer-encoding", "content-encoding", "upgrade"))


class _Read(NamedTuple):
    fields: list[list[str]]
    named: dict[str, str]
    kind: MediaType
    body: bytes
    shown: str


def request(data: bytes, start: int, ts_ns: int) -> tuple[Message, Pair] | None:
    found = _REQUEST.match(data)
    if found is None:
        return None
    method = found[1].decode("ascii")
    read = _read(data, found, "0")
    if read is None or method == "CONNECT" or read.kind.name == FORM or b'"grant_type"' in read.body:
        return None
    attrs = {"method": method, "target": found[2].decode("ascii"), "host": read.named.get("host", "")}
    return _message(Direction.CLIENT, read, attrs, found[3], start, len(data), ts_ns, None), Pair(method, start)


def response(data: bytes, start: int, ts_ns: int, pair: Pair) -> Message | None:
    if pair.credential or pair.upgrade or pair.method == "HEAD":
        return None
    found = _RESPONSE.match(data)
    if found is None or found[2] in (b"204", b"304"):
        return None
    read = _read(data, found, "")
    if read is None or read.kind.name == "text/event-stream":
        return None
    attrs = {"status": int(found[2]), "reason": (found[3] or b"").decode("ascii")}
    return _message(Direction.SERVER, read, attrs, found[1], start, len(data), ts_ns, pair.start)


def _read(data: bytes, found: re.Match[bytes], length: str) -> _Read | None:
    """`length`: what a missing Content-Length means; "": that the body's end is not known."""
    end = found.end()
    head = data[:end]
    folded = head.lower()
    if b"authorization" in folded or b"api-key" in folded:
        return None
    fields = [[name, value.strip(" \t")] for name, value in PAIR.findall(found[4].decode("ascii"))]
    named = {name.lower(): value for name, value in fields}
    length = named.get("content-length", length)
    if (
        len(named) < len(fields)
        or len(fields) > MAX_FIELDS
        or not _ODD.isdisjoint(named)
        or not USUAL_LENGTH.fullmatch(length)
        or int(length) != len(data) - end
        or int(length) > MAX_CREDENTIAL_BODY
    ):
        return None
    shown = head.decode("ascii").replace("\r\n", "\n").rstrip("\n")
    return _Read(fields, named, media_type(named.get("content-type", "")), data[end:], shown)


def _message(
    direction: Direction,
    read: _Read,
    attrs: dict[str, Any],
    version: bytes,
    start: int,
    length: int,
    ts_ns: int,
    reply_to: int | None,
) -> Message:
    attrs["version"] = version.decode("ascii")
    attrs["headers"] = read.fields
    attrs["content_type"] = read.kind.name
    attrs["encoding"] = ""
    attrs["body_bytes"] = len(read.body)
    text = read.shown
    if read.body:
        attrs["sha256"] = hashlib.sha256(read.body).hexdigest()
        said = text_of(read.body, read.kind)
        if said is not None:
            text = f"{text}\n\n{said}"
    kind = "request" if direction is Direction.CLIENT else "response"
    return Message(direction, kind, ts_ns, start, start + length, text, attrs, reply_to, (), ts_ns)
