"""Bodies of PostgreSQL messages as plain values. Pure functions of the bytes behind a message's length.

Layouts: PostgreSQL 18 documentation, 54.7 "Message Formats" and 54.8 "Error and Notice Message Fields". A body that
does not fit its layout raises `ValueError` or `struct.error`. Where `cut` is given and true, only the first bytes of
the body are there, and what they hold is returned.
"""

import re
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from appliance.dissect import Match
from appliance.dissect.postgres_frames import CANCEL, CLIENT_TYPES, HEADER, MAX_STARTUP, SERVER_TYPES, sane
from appliance.dissect.sql_text import text

SSL: Final = struct.pack("!I", 80877103)
GSS: Final = struct.pack("!I", 80877104)

ERROR_FIELDS: Final = {
    "V": "severity",
    "C": "sqlstate",
    "M": "message",
    "D": "detail",
    "H": "hint",
    "P": "position",
    "p": "internal_position",
    "q": "internal_query",
    "W": "where",
    "s": "schema",
    "t": "table",
    "c": "column",
    "d": "datatype",
    "n": "constraint",
    "F": "file",
    "L": "line",
    "R": "routine",
}
_SASL_FIRST = re.compile(
    rb"(SCRAM-SHA-256(?:-PLUS)?)\0[\0-\xff]{4}(?:[ny]|p=[A-Za-z0-9.-]+),[^,]*,n=[^,]*,r=[!-+\--~]+"
)
_SASL_FINAL = re.compile(rb"c=[A-Za-z0-9+/=]+,r=[!-+\--~]+,p=[A-Za-z0-9+/=]+")
_U16 = struct.Struct("!H")
AUTHENTICATED: Final = b"R\0\0\0\x08\0\0\0\0"  # AuthenticationOk
_I32 = struct.Struct("!i")


class Bind(NamedTuple):
    portal: str
    statement: str
    formats: tuple[int, ...]
    parameters: list[bytes | None]
    results: tuple[int, ...]
    complete: bool


class Call(NamedTuple):
    function: int
    formats: tuple[int, ...]
    arguments: list[bytes | None]
    binary: bool
    complete: bool


def cstring(body: bytes, at: int, codec: str, cut: bool = False) -> tuple[str, int]:
    """The string at `at`, and the place behind its NUL."""
    end = body.find(0, at)
    if end < 0:
        if not cut:
            raise ValueError("a string without its NUL")
        return text(body[at:], codec), len(body)
    return text(body[at:end], codec), end + 1


def startup(rest: bytes) -> dict[str, str]:
    """Parameters of a StartupMessage, from behind its version."""
    return {text(name): text(value) for name, value in pairs(rest)}


def pairs(rest: bytes) -> list[tuple[bytes, bytes]]:
    """The same as they came."""
    if not rest.endswith(b"\0"):
        raise ValueError("start-up parameters without their end")
    parts = rest[:-1].split(b"\0")
    if parts.pop() != b"" or len(parts) % 2:
        raise ValueError("start-up parameters that are not pairs")
    return list(zip(parts[0::2], parts[1::2], strict=True))


def scram(body: bytes) -> str | None:
    """A SASL message of SCRAM, which never holds the password: the mechanism's name, or "" later on; None: another."""
    first = _SASL_FIRST.fullmatch(body)
    if first is not None:
        return text(first[1])
    return "" if _SASL_FINAL.fullmatch(body) else None


def strings(body: bytes, codec: str) -> list[str]:
    """A list of strings that an empty one ends."""
    found: list[str] = []
    at = 0
    while at < len(body) and body[at]:
        item, at = cstring(body, at, codec)
        found.append(item)
    return found


def error_fields(body: bytes, codec: str, cut: bool) -> dict[str, str]:
    """ErrorResponse and NoticeResponse. `severity` is the one that is not localized, where the server sends it."""
    fields: dict[str, str] = {}
    at = 0
    while at < len(body) and body[at]:
        code = chr(body[at])
        value, at = cstring(body, at + 1, codec, cut)
        if code == "S":
            fields.setdefault("severity", value)
        else:
            fields[ERROR_FIELDS.get(code) or f"field_{ord(code)}"] = value
    if not fields or (at >= len(body) and not cut):
        raise ValueError("error fields without their end")
    return fields


def types(body: bytes, at: int) -> tuple[int, ...]:
    """A counted list of type OIDs: ParameterDescription, and the end of Parse."""
    (count,) = _U16.unpack_from(body, at)
    found: tuple[int, ...] = struct.unpack_from(f"!{count}I", body, at + 2)
    return found


def _codes(body: bytes, at: int) -> tuple[tuple[int, ...], int]:
    (count,) = _U16.unpack_from(body, at)
    found: tuple[int, ...] = struct.unpack_from(f"!{count}H", body, at + 2)
    return found, at + 2 + 2 * count


def values(body: bytes, at: int, count: int, cut: bool) -> tuple[list[bytes | None], int, bool]:
    """`count` values, each behind its length (-1: NULL); the place behind; whether all are whole."""
    found: list[bytes | None] = []
    unpack = _I32.unpack_from
    size = len(body)
    for _ in range(count):
        if cut and at + 4 > size:
            return found, size, False
        (length,) = unpack(body, at)
        at += 4
        if length < 0:
            found.append(None)
            continue
        if at + length > size:
            if not cut:
                raise ValueError("a value longer than its message")
            found.append(body[at:])
            return found, size, False
        found.append(body[at : at + length])
        at += length
    return found, at, True


def bind(body: bytes, codec: str, cut: bool) -> Bind:
    portal, at = cstring(body, 0, codec)
    statement, at = cstring(body, at, codec)
    formats, at = _codes(body, at)
    (count,) = _U16.unpack_from(body, at)
    parameters, at, complete = values(body, at + 2, count, cut)
    results: tuple[int, ...] = ()
    if complete and not cut:
        results, at = _codes(body, at)
        if at != len(body):
            raise ValueError("bytes behind a Bind")
    return Bind(portal, statement, formats, parameters, results, complete)


def call(body: bytes, cut: bool) -> Call:
    (function,) = struct.unpack_from("!I", body)
    formats, at = _codes(body, 4)
    (count,) = _U16.unpack_from(body, at)
    arguments, at, complete = values(body, at + 2, count, cut)
    binary = complete and not cut and _U16.unpack_from(body, at)[0] == 1
    return Call(function, formats, arguments, binary, complete)


def is_binary(formats: tuple[int, ...], number: int) -> bool:
    """Format codes apply to each value, or one to all, or none: text."""
    if len(formats) == 1:
        return formats[0] == 1
    return number < len(formats) and formats[number] == 1


def affected(tag: str) -> int | None:
    """The count at the end of a command tag: `INSERT 0 5`, `SELECT 3`, `COPY 7`; None where there is none."""
    last = tag.rpartition(" ")[2]
    return int(last) if last.isdecimal() and len(last) < 20 else None


def detect(client: bytes, server: bytes) -> Match:
    """A start-up packet; or, where the start was not seen, a whole request and the begin of its answer.

    Each side is judged by its first messages, so what comes behind them never changes a verdict.
    """
    if client[:1] == b"\0":
        return _detect_start(client)
    if _is_copy(client) or server.startswith(AUTHENTICATED):
        return Match.YES
    asked, answered = _detect_request(client), _detect_reply(server)
    if Match.NO in (asked, answered):
        return Match.NO
    if asked is answered is Match.YES:
        return Match.YES
    return Match.MORE if max(len(client), len(server)) < 4096 else Match.NO


def _detect_start(client: bytes) -> Match:
    length = int.from_bytes(client[:4].ljust(4, b"\0"), "big")
    if client[:2] not in (b"\0", b"\0\0") or length > MAX_STARTUP:
        return Match.NO
    if len(client) < 8:
        fits = len(client) <= 4 or client[4:6] in (b"\0", b"\0\3", b"\x04", b"\x04\xd2")
        return Match.MORE if fits else Match.NO
    code = client[4:8]
    if code in (SSL, GSS):
        return Match.YES if length == 8 else Match.NO
    if code == CANCEL:
        return Match.YES if 16 <= length <= 12 + 256 else Match.NO
    if code[:2] != b"\0\3" or length < 9:
        return Match.NO
    if len(client) < min(length, 9):
        return Match.MORE
    first = client[8:9]
    return Match.YES if first == b"\0" or first.isalpha() or first == b"_" else Match.NO


def _detect_request(data: bytes) -> Match:
    """A Query: text up to its NUL; or messages of the extended protocol up to a Sync. What follows is not looked at.

    Where the start was not seen, the first may be a password.
    """
    if data and data[0] not in b"QPBDECp":
        return Match.NO
    at = 0
    while at + HEADER <= len(data):
        kind, end = data[at], at + 1 + int.from_bytes(data[at + 1 : at + HEADER], "big")
        if not sane(data, at, CLIENT_TYPES):
            return Match.NO
        if end > len(data):
            return Match.MORE
        body = data[at + HEADER : end]
        if at == 0 and kind == 0x51:
            return Match.YES if len(body) > 1 and body.find(0) == len(body) - 1 else Match.NO
        if kind in b"SH" and body:
            return Match.NO
        if at == 0 and kind == 0x70:
            return Match.YES if body else Match.NO
        if kind == 0x53:
            return Match.YES
        at = end
    return Match.MORE


def _is_copy(data: bytes) -> bool:
    """Whether it begins with three messages of a COPY, or two and its end: no answer comes for long."""
    at = 0
    for number in range(3):
        if (
            at + HEADER > len(data)
            or data[at] not in (b"d" if number < 2 else b"dc")
            or not sane(data, at, CLIENT_TYPES)
        ):
            return False
        at += 1 + int.from_bytes(data[at + 1 : at + HEADER], "big")
    return True


def _detect_reply(data: bytes) -> Match:
    """The server's first message, whole, and of a type that answers."""
    if data and data[0] not in _REPLIES:
        return Match.NO
    if len(data) < HEADER:
        return Match.MORE
    end = 1 + int.from_bytes(data[1:HEADER], "big")
    if not sane(data, 0, SERVER_TYPES):
        return Match.NO
    if end > len(data):
        return Match.MORE
    return Match.YES if _REPLIES[data[0]](data[HEADER:end]) else Match.NO


_REPLIES: Final[dict[int, Callable[[bytes], bool]]] = {
    0x5A: lambda body: body in (b"I", b"T", b"E"),
    0x43: lambda body: body.endswith(b"\0"),
    **dict.fromkeys(b"123nsI", lambda body: not body),
    0x52: lambda body: len(body) >= 4 and body[:3] == bytes(3) and body[3] <= 12,
    **dict.fromkeys(b"EN", lambda body: body[:1] == b"S" and body.endswith(b"\0\0")),
    **dict.fromkeys(b"TD", lambda body: len(body) >= 2),
}
