"""Heads of HTTP/1.1 messages, read strictly (RFC 9112, RFC 9110 §5): what two readers could take for different things
is not passed on.

A head is everything up to its empty line. `Ambiguous` names the case by the words of the dissector
(dissect/http_head.py), and a few more: `host`, `target`, `field-name`, `connection-field`, `body-forbidden`, `trailer`,
`unasked`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

MAX_HEAD: Final = 64 * 1024
MAX_FIELDS: Final = 256
CRLF: Final = b"\r\n"
CR: Final = 0x0D
REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) ([!-~]+) HTTP/1\.([01])")
STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: ([\t -~\x80-\xff]*))?")
_OTHER_VERSION: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64} [!-~]+(?: HTTP/\d+(?:\.\d+)?)?")
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[\t -~\x80-\xff]*")
_LENGTH: Final = re.compile(rb"\d{1,18}")
_NEVER_NOMINATED: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"authorization"))
_FRAMING: Final = frozenset((b"host", b"content-length", b"transfer-encoding"))
_NOT_IN_TRAILERS: Final = _FRAMING | {b"authorization", b"proxy-authorization", b"connection", b"upgrade", b"te"}


class Malformed(Exception):
    """Not HTTP/1.1. The text says what is wrong, without bytes of it; `status` is what an agent is answered."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Ambiguous(Malformed):
    """A case of request smuggling; `case` names it."""

    def __init__(self, case: str, text: str) -> None:
        super().__init__(text)
        self.case = case


class Framing(Enum):
    """How the body ends (RFC 9112 §6.3)."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3  # with the connection


class Body(NamedTuple):
    framing: Framing
    length: int = 0


NOTHING: Final = Body(Framing.NONE)


class Field(NamedTuple):
    """One field line: name in lower case, value, and where line and value are in the head."""

    name: bytes
    value: bytes
    start: int
    end: int  # behind its CRLF
    value_start: int


@dataclass(frozen=True, slots=True)
class Head:
    """`first`: bytes of the start line with its CRLF. `minor`: of the version, 0 or 1."""

    raw: bytes
    first: int
    minor: int
    fields: tuple[Field, ...]

    def values(self, name: bytes) -> list[bytes]:
        return [field.value for field in self.fields if field.name == name]

    def members(self, name: bytes) -> list[bytes]:
        """The members of a comma-separated list, in lower case."""
        return [part.strip().lower() for value in self.values(name) for part in value.split(b",")]

    @property
    def last(self) -> bool:
        """Does the connection end behind this message and its answer (RFC 9112 §9.3)?"""
        options = self.members(b"connection")
        return b"close" in options or (not self.minor and b"keep-alive" not in options)

    def without(self, drop: Iterable[bytes], first: bytes, add: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The same head with another start line (without CRLF; b"": as it is), without some fields, and with more."""
        parts = [first + CRLF if first else self.raw[: self.first]]
        parts += [self.raw[field.start : field.end] for field in self.fields if field.name not in drop]
        parts += [name + b": " + value + CRLF for name, value in add]
        return b"".join(parts) + CRLF


@dataclass(frozen=True, slots=True)
class Request(Head):
    method: bytes
    target: bytes
    body: Body


@dataclass(frozen=True, slots=True)
class Response(Head):
    status: int


class HeadScan:
    """Finds the end of a head whose bytes come in pieces: each byte is looked at once, each line when it is whole.

    `first`: what the start line must be, REQUEST_LINE or STATUS_LINE.
    """

    def __init__(self, first: re.Pattern[bytes]) -> None:
        self._first = first
        self._reset()

    def _reset(self) -> None:
        self._line = 0  # where the present line begins
        self._seen = 0
        self._lines = 0

    def find(self, data: bytearray) -> int:
        """Bytes of the head that `data` begins with, with its empty line; 0: it is not whole. Raises `Malformed`."""
        while True:
            end = data.find(b"\n", self._seen, MAX_HEAD)
            if end < 0:
                self._seen = len(data)
                if len(data) >= MAX_HEAD:
                    raise Malformed(f"a head of more than {MAX_HEAD} bytes", 431)
                return 0
            if end == self._line or data[end - 1] != CR:
                raise Ambiguous("bare-lf", "a line that ends with LF alone")
            if not self._lines:
                self._start_line(bytes(data[: end - 1]))
            elif end == self._line + 1:
                self._reset()
                return end + 1
            self._lines += 1
            if self._lines > MAX_FIELDS + 1:
                raise Malformed(f"more than {MAX_FIELDS} field lines", 431)
            self._line = self._seen = end + 1

    def _start_line(self, line: bytes) -> None:
        if self._first.fullmatch(line):
            return
        if b"\r" in line:
            raise Ambiguous("bare-cr", "a CR within a line")
        if self._first is REQUEST_LINE and _OTHER_VERSION.fullmatch(line):
            raise Malformed("a version other than HTTP/1.0 and HTTP/1.1", 505)
        raise Malformed("a start line that is none")


def parse_request(raw: bytes) -> Request:
    """`raw`: a whole head. Raises `Malformed`."""
    line, fields = _lines(raw)
    found = REQUEST_LINE.fullmatch(line)
    if found is None:
        raise Malformed("a start line that is none")
    head = Head(raw, len(line) + 2, int(found[3]), fields)
    for name in head.members(b"connection"):
        if name in _NEVER_NOMINATED:
            raise Ambiguous("connection-field", "a Connection that takes away a field that decides")
    hosts = head.values(b"host")
    if len(hosts) > 1 or (head.minor and not hosts):
        raise Ambiguous("host", "several Host fields, or none")
    chunked, length = _framed(head)
    body = Body(Framing.CHUNKED) if chunked else Body(Framing.LENGTH, length) if length else NOTHING
    return Request(raw, head.first, head.minor, fields, found[1], found[2], body)


def parse_response(raw: bytes) -> Response:
    """`raw`: a whole head. Raises `Malformed`."""
    line, fields = _lines(raw)
    found = STATUS_LINE.fullmatch(line)
    if found is None:
        raise Malformed("a start line that is none")
    return Response(raw, len(line) + 2, int(found[1]), fields, int(found[2]))


def response_body(head: Response, method: bytes) -> Body:
    """Of the answer to a request with this method (RFC 9112 §6.3). Raises `Malformed`."""
    chunked, length = _framed(head)
    if head.status < 200 or head.status == 204:
        if chunked or length:
            raise Ambiguous("body-forbidden", "a body where there can be none")
        return NOTHING
    if head.status == 304 or method == b"HEAD":
        return NOTHING
    if chunked:
        return Body(Framing.CHUNKED)
    return Body(Framing.CLOSE) if length is None else Body(Framing.LENGTH, length)


def check_trailer(line: bytes) -> None:
    """A field line behind a chunked body, without its CRLF. Raises `Malformed`."""
    name, _ = _field(line)
    if name.lower() in _NOT_IN_TRAILERS:
        raise Ambiguous("trailer", "a field that decides, behind the body")


def _framed(head: Head) -> tuple[bool, int | None]:
    """Chunked? Else the length, if one is given."""
    codings, lengths = head.values(b"transfer-encoding"), head.values(b"content-length")
    if codings and lengths:
        raise Ambiguous("cl-te", "both Content-Length and Transfer-Encoding")
    if codings:
        if not head.minor:
            raise Ambiguous("te-version", "a Transfer-Encoding in HTTP/1.0")
        if len(codings) > 1:
            raise Ambiguous("te-repeated", "several Transfer-Encoding fields")
        if codings[0].lower() != b"chunked":
            raise Ambiguous("te-unknown", "a Transfer-Encoding other than chunked")
        return True, None
    if not lengths:
        return False, None
    if len(lengths) > 1 or b"," in lengths[0]:
        raise Ambiguous("cl-conflict", "several Content-Length values")
    if not _LENGTH.fullmatch(lengths[0]):
        raise Ambiguous("cl-invalid", "a Content-Length that is no number")
    return False, int(lengths[0])


def _lines(raw: bytes) -> tuple[bytes, tuple[Field, ...]]:
    """The start line, and the field lines, of a head that `HeadScan` found."""
    lines = raw[: -2 * len(CRLF)].split(CRLF)
    at, fields = len(lines[0]) + 2, []
    for line in lines[1:]:
        name, value = _field(line)
        inner = value.strip(b" \t")
        begin = at + len(name) + 1 + (len(value) - len(value.lstrip(b" \t")))
        fields.append(Field(name.lower(), inner, at, at + len(line) + 2, begin))
        at += len(line) + 2
    return lines[0], tuple(fields)


def _field(line: bytes) -> tuple[bytes, bytes]:
    """Name and value of a field line. Raises `Malformed`."""
    if line[:1] in (b" ", b"\t"):
        raise Ambiguous("obs-fold", "a field line that goes on in the next one")
    if b"\r" in line:
        raise Ambiguous("bare-cr", "a CR within a line")
    if b"\0" in line:
        raise Ambiguous("nul", "a NUL within a line")
    name, colon, value = line.partition(b":")
    if name != name.rstrip(b" \t"):
        raise Ambiguous("space-before-colon", "a blank between a field's name and its colon")
    if not colon or not _TOKEN.fullmatch(name):
        raise Ambiguous("name-invalid", "a field line without a name")
    if b"_" in name and name.replace(b"_", b"-").lower() in _FRAMING:
        raise Ambiguous("field-name", "a field that some read as one that decides")
    if not _VALUE.fullmatch(value):
        raise Malformed("a control character in a field's value")
    return name, value
