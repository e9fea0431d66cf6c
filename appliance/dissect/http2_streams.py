"""Requests and responses of HTTP/2 streams (RFC 9113 §8): heads from fields, messages, what is wrong with them.

`smuggling` names in attrs what a server that translates to HTTP/1.x may be led astray by: `connection-field` (§8.2.2),
`line-break` and `field-name` (§8.2.1), `pseudo-field` (§8.3), `authority` (Host says something else), `cl-conflict`,
`cl-invalid`, `cl-mismatch` (§8.1.1: the body is not as long as said).
"""

import re
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

from appliance.dissect import Output
from appliance.dissect.grpc import GrpcBody, status_name
from appliance.dissect.http2_hpack import UNKNOWN, Block
from appliance.dissect.http_head import MAX_FIELDS, Head
from appliance.dissect.http_message import Open, Pair
from appliance.model import Direction

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_BREAK: Final = re.compile(r"[\r\n\x00]")
_ESCAPES: Final = {"\r": "\\r", "\n": "\\n", "\x00": "\\0"}
_REQUEST: Final = frozenset((":method", ":scheme", ":authority", ":path", ":protocol"))
_RESPONSE: Final = frozenset((":status",))
_CONNECTION: Final = frozenset(("connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"))
_STATUS: Final = re.compile(r"[1-9][0-9]{2}")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")


def read_head(block: Block, *, request: bool) -> tuple[Head, dict[str, str], str]:
    """The head, its pseudo-fields, and it as text: a start line as in HTTP/1.x, and a field a line."""
    head = Head(version="2")
    known = _REQUEST if request else _RESPONSE
    pseudo: dict[str, str] = {}
    for name, value in block.fields:
        if name[:1] == ":":
            if name not in known or name in pseudo or head.fields:
                head.cases.add("pseudo-field")
            pseudo.setdefault(name, value)
            continue
        _judge(name, value, head)
        head.fields.append([name, value])
        head.named.setdefault(name.lower(), []).append(value)
    if request:
        _request(head, pseudo)
    elif _STATUS.fullmatch(pseudo.get(":status", "")):
        head.status = int(pseudo[":status"])
    elif not block.unknown:
        head.flags.add("malformed")
    if head.cases:
        head.flags.add("malformed")
    if block.unknown:
        head.flags.add("undecoded")
    if block.truncated:
        head.flags.add("truncated")
    if block.secrets:
        head.flags.add("redacted")
    start = f"{head.method or UNKNOWN} {head.target or UNKNOWN} HTTP/2" if request else f"HTTP/2 {head.status}"
    lines = [start]
    lines += [f"{name}: {value}" for name, value in pseudo.items() if name in (":authority", ":scheme", ":protocol")]
    return head, pseudo, "\n".join([_plain(line) for line in lines] + shown_fields(head.fields))


def shown_fields(fields: list[list[str]]) -> list[str]:
    return [_plain(f"{name}: {value}") for name, value in fields]


def read_trailers(block: Block) -> Head:
    head = Head()
    for name, value in block.fields:
        if name[:1] == ":":
            head.cases.add("pseudo-field")
        _judge(name, value, head)
        head.fields.append([name, value])
    return head


def _request(head: Head, pseudo: dict[str, str]) -> None:
    head.method, authority = pseudo.get(":method", ""), pseudo.get(":authority", "")
    tunnel = head.method == "CONNECT" and ":protocol" not in pseudo
    head.target = authority if tunnel else pseudo.get(":path", "")
    hosts = head.named.get("host", [])
    if authority and any(host.lower() != authority.lower() for host in hosts):
        head.cases.add("authority")
    if authority or not hosts:
        head.named["host"] = [authority]
    if not head.method or not head.target or (":scheme" not in pseudo and not tunnel):
        head.flags.add("malformed")


def _judge(name: str, value: str, head: Head) -> None:
    if not _is_name(name) and name != UNKNOWN:
        head.cases.add("line-break" if _BREAK.search(name) else "field-name")
    if _BREAK.search(value):
        head.cases.add("line-break")
    if name in _CONNECTION or (name == "te" and value.strip().lower() != "trailers"):
        head.cases.add("connection-field")


@lru_cache(1024)
def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def _plain(line: str) -> str:
    """One line, whatever it holds."""
    return _BREAK.sub(lambda found: _ESCAPES[found.group()], line) if _BREAK.search(line) else line


class StreamMessage(Open):
    """One direction of a stream."""

    def __init__(
        self, direction: Direction, head: Head, shown: str, start: int, ts_ns: int, pair: Pair | None, stream: int
    ) -> None:
        super().__init__(direction, head, shown, start, ts_ns, pair)
        self.stream = stream
        self.scheme = ""
        self.protocol = ""  # of an extended CONNECT, RFC 8441
        self.end = start  # of what came so far
        self.reset = ""  # the error code's name
        self._trailed = False
        self._bodiless = head.status == 304 or (pair is not None and head.status and pair.method == "HEAD")

    def add_trailers(self, trailers: Head) -> None:
        if self._trailed:  # more than one such block is no trailers; the first one is kept
            self.flags.add("malformed")
            return
        self._trailed = True
        self.trailers += trailers.fields
        self.cases |= trailers.cases
        self.flags.update(("malformed",) if trailers.cases else ())
        self.shown = "\n".join([self.shown, *shown_fields(trailers.fields[:MAX_FIELDS])])

    def finish(self, end: int, ts_ns: int, out: Output, *, whole: bool, kind: str = "") -> None:
        if whole and not self._bodiless:
            self._measure()
        super().finish(end, ts_ns, out, whole=whole, kind=kind)

    def _measure(self) -> None:
        """RFC 9113 §8.1.1: Content-Length against what came."""
        lengths = {part.strip() for value in self.head.values("content-length") for part in value.split(",")}
        if not lengths:
            return
        length = lengths.pop()
        if lengths:
            self.cases.add("cl-conflict")
        elif not _LENGTH.fullmatch(length):
            self.cases.add("cl-invalid")
        elif int(length) != self.body_bytes and "gap" not in self.flags:
            self.cases.add("cl-mismatch")
        if self.cases:
            self.flags.add("malformed")

    def _attrs(self) -> dict[str, Any]:
        attrs = super()._attrs()
        attrs.pop("reason", None)
        attrs["stream"] = self.stream
        for name in ("scheme", "protocol", "reset"):
            if value := getattr(self, name):
                attrs[name] = value
        if isinstance(self.parts, GrpcBody) or self.kind.name.startswith("application/grpc"):
            said = {name: value for name, value in [*self.head.fields, *self.trailers] if name.startswith("grpc-")}
            if "grpc-status" in said:
                code = said["grpc-status"]
                attrs["grpc_status"] = status_name(code) or code
            if said.get("grpc-message"):
                attrs["grpc_message"] = unquote(said["grpc-message"])
        return attrs


class Stream:
    """Both directions of one. `pair`: None if the request was not seen."""

    __slots__ = ("client", "ended", "pair", "protocol", "server")

    def __init__(self, pair: Pair | None) -> None:
        self.pair = pair
        self.protocol = ""
        self.client: StreamMessage | None = None  # those that are open
        self.server: StreamMessage | None = None
        self.ended: tuple[Direction, ...] = ()

    def message(self, direction: Direction) -> StreamMessage | None:
        return self.client if direction is Direction.CLIENT else self.server

    def open(self, message: StreamMessage | None, direction: Direction) -> None:
        if direction is Direction.CLIENT:
            self.client = message
        else:
            self.server = message
