"""Bodies of MySQL packets as plain values. Pure functions of the bytes behind a packet's header.

Layouts: MySQL source code documentation, "Connection Phase Packets", "OK_Packet", "ERR_Packet"; MariaDB Knowledge Base,
"Client/Server Protocol". A body that does not fit its layout raises `ValueError`, `IndexError` or `struct.error`.
"""

import re
import struct
from typing import Any, Final, NamedTuple

from appliance.dissect import Match
from appliance.dissect import mysql_session as session
from appliance.dissect.mysql_frames import HEADER
from appliance.dissect.mysql_half import SSL_REQUEST
from appliance.dissect.mysql_types import lenenc, string
from appliance.dissect.sql_text import text

OK, ERR, EOF, LOCAL_FILE, MORE_DATA = 0x00, 0xFF, 0xFE, 0xFB, 0x01
PROGRESS = 0xFFFF  # "error" of MariaDB that only tells how far a statement is
MORE_RESULTS, CURSOR, SESSION_CHANGED = 0x0008, 0x0040, 0x4000  # bits of a status
MAX_ATTRIBUTES = 128  # of a client, and changes of a session, that a message tells
MAX_GREETING = 1024
MAX_RESPONSE = 65535
STATUS: Final = {
    0x0001: "transaction",
    0x0002: "autocommit",
    0x0040: "cursor",
    0x0080: "last row sent",
    0x0200: "no backslash escapes",
    0x2000: "read-only transaction",
}

_FIXED = struct.Struct("<IIB19sI")  # capabilities, largest packet, collation, zeros, MariaDB's capabilities
_OLD = struct.Struct("<H3s")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_PROGRESS = struct.Struct("<BBB")
_VERSION = re.compile(rb"[ -~]{1,255}")


class Greeting(NamedTuple):
    version: str
    connection: int
    capabilities: int
    plugin: str


class Response(NamedTuple):
    """What a client says to log in. `secret`: where its authentication response is, in the body."""

    capabilities: int
    collation: int
    user: str
    database: str
    plugin: str
    attributes: dict[str, str]
    secret: tuple[int, int]


class Ok(NamedTuple):
    affected: int
    inserted: int
    status: int
    warnings: int
    info: str
    changes: dict[str, Any]


class Error(NamedTuple):
    code: int
    sqlstate: str
    message: str


def nul(body: bytes, at: int) -> tuple[bytes, int]:
    """The string up to the next NUL, and the place behind that."""
    end = body.find(0, at)
    if end < 0:
        raise ValueError("a string without its NUL")
    return body[at:end], end + 1


def until_nul(body: bytes, at: int) -> tuple[bytes, int]:
    """The same, where the packet's end will do."""
    end = body.find(0, at)
    return (body[at:], len(body)) if end < 0 else (body[at:end], end + 1)


# -- log-in ------------------------------------------------------------------------------------------------------------


def greeting(body: bytes) -> Greeting:
    """HandshakeV10."""
    version, at = nul(body, 1)
    (connection,) = _U32.unpack_from(body, at)
    (low,) = _U16.unpack_from(body, at + 13)
    at += 15
    if body[0] != 10 or body[at - 3]:
        raise ValueError("a greeting of another version")
    if len(body) < at + 16:
        return Greeting(text(version), connection, low, "")
    (high,) = _U16.unpack_from(body, at + 3)
    capabilities = low | high << 16
    if not low & session.MYSQL:
        capabilities |= _U32.unpack_from(body, at + 12)[0] << 32
    plugin = b""
    if capabilities & session.PLUGIN_AUTH:
        plugin, _ = until_nul(body, at + 16 + max(13, body[at + 5] - 8))
    return Greeting(text(version), connection, capabilities, text(plugin))


def capabilities(body: bytes) -> int:
    """Those of SSLRequest and of a handshake response."""
    flags, _, _, _, more = _FIXED.unpack_from(body)
    return int(flags | (0 if flags & session.MYSQL else more << 32))


def response(body: bytes, codec: str) -> Response:
    """HandshakeResponse41, and its predecessor of MySQL 3.20."""
    flags = int.from_bytes(body[:2], "little")
    if not flags & session.PROTOCOL_41:
        _OLD.unpack_from(body)
        user, at = nul(body, _OLD.size)
        secret = len(body)
        database = b""
        if flags & session.CONNECT_WITH_DB and 0 in body[at:]:
            _, secret = nul(body, at)
            database, _ = until_nul(body, secret)
        return Response(flags, 0, text(user, codec), text(database, codec), "mysql_old_password", {}, (at, secret))
    flags = capabilities(body)
    user, at = nul(body, _FIXED.size)
    if flags & session.PLUGIN_AUTH_LENENC:
        size, begin = lenenc(body, at)
    elif flags & session.SECURE_CONNECTION:
        size, begin = body[at], at + 1
    else:
        size, begin = len(until_nul(body, at)[0]), at
    end = begin + size
    if end > len(body):
        raise ValueError("an authentication response that is longer than its packet")
    at = end if flags & (session.PLUGIN_AUTH_LENENC | session.SECURE_CONNECTION) else end + 1
    database = plugin = b""
    if flags & session.CONNECT_WITH_DB:
        database, at = until_nul(body, at)
    if flags & session.PLUGIN_AUTH:
        plugin, at = until_nul(body, at)
    said = attributes(body, at, codec) if flags & session.CONNECT_ATTRS and at < len(body) else {}
    collation = body[8]
    return Response(flags, collation, text(user, codec), text(database, codec), text(plugin), said, (begin, end))


def change_user(body: bytes, known: int, codec: str) -> Response:
    """COM_CHANGE_USER, from its first byte."""
    user, at = nul(body, 1)
    if known & session.SECURE_CONNECTION:
        begin, end = at + 1, at + 1 + body[at]
        at = end
    else:
        begin, end = at, at + len(until_nul(body, at)[0])
        at = end + 1
    if end > len(body):
        raise ValueError("an authentication response that is longer than its packet")
    database, at = until_nul(body, at)
    collation = int.from_bytes(body[at : at + 2], "little")
    plugin = b""
    if known & session.PLUGIN_AUTH and at + 2 < len(body):
        plugin, at = until_nul(body, at + 2)
    else:
        at = len(body)
    said = attributes(body, at, codec) if known & session.CONNECT_ATTRS and at < len(body) else {}
    return Response(known, collation, text(user, codec), text(database, codec), text(plugin), said, (begin, end))


def attributes(body: bytes, at: int, codec: str) -> dict[str, str]:
    """A client's attributes: names and values, behind their length."""
    size, at = lenenc(body, at)
    end = min(at + size, len(body))
    found: dict[str, str] = {}
    while at < end and len(found) < MAX_ATTRIBUTES:
        name, at = string(body, at)
        value, at = string(body, at)
        found[text(name, codec)] = text(value, codec)
    return found


# -- answers -----------------------------------------------------------------------------------------------------------


def ok(body: bytes, codec: str, *, tracked: bool) -> Ok:
    """OK_Packet, whether its first byte is that of OK or of EOF. `tracked`: CLIENT_SESSION_TRACK."""
    affected, at = lenenc(body, 1)
    inserted, at = lenenc(body, at)
    status = warnings = 0
    if at + 4 <= len(body):
        status, warnings = struct.unpack_from("<HH", body, at)
    at += 4
    info = b""
    changes: dict[str, Any] = {}
    if at < len(body):
        if tracked:
            info, at = string(body, at)
            if status & SESSION_CHANGED and at < len(body):
                block, _ = string(body, at)
                changes = _changes(block, codec)
        else:
            info = body[at:]
    return Ok(affected, inserted, status, warnings, text(info, codec), changes)


def eof(body: bytes) -> Ok:
    """EOF_Packet."""
    warnings, status = struct.unpack_from("<HH", body, 1) if len(body) >= 5 else (0, 0)
    return Ok(0, 0, status, warnings, "", {})


def _changes(block: bytes, codec: str) -> dict[str, Any]:
    """How a session's state changed ("Session State Information")."""
    found: dict[str, Any] = {}
    variables: dict[str, str] = {}
    at = 0
    while at < len(block) and len(found) + len(variables) < MAX_ATTRIBUTES:
        kind = block[at]
        data, at = string(block, at + 1)
        if kind == 0:
            place = 0
            while place < len(data) and len(variables) < MAX_ATTRIBUTES:
                name, place = string(data, place)
                value, place = string(data, place)
                variables[text(name, codec)] = text(value, codec)
        elif kind == 1:
            found["schema"] = text(string(data, 0)[0], codec)
        elif kind == 3:
            found["gtids"] = text(string(data, 1)[0], codec)
        elif kind == 4:
            found["characteristics"] = text(string(data, 0)[0], codec)
        elif kind == 5:
            found["transaction"] = text(string(data, 0)[0], codec)
    if variables:
        found["variables"] = variables
    return found


def error(body: bytes, codec: str) -> Error:
    """ERR_Packet; before log-in and up to MySQL 4.0 without SQLSTATE."""
    (code,) = _U16.unpack_from(body, 1)
    if body[3:4] == b"#":
        return Error(code, text(body[4:9], "ascii"), text(body[9:], codec))
    return Error(code, "", text(body[3:], codec))


def progress(body: bytes, codec: str) -> dict[str, Any]:
    """MariaDB's progress report."""
    _, stage, stages = _PROGRESS.unpack_from(body, 3)
    thousandths = int.from_bytes(body[6:9], "little")
    info, _ = string(body, 9)
    return {"stage": stage, "stages": stages, "percent": thousandths / 1000, "info": text(info, codec)}


def status_names(status: int) -> list[str]:
    return [name for bit, name in STATUS.items() if status & bit]


# -- detection ---------------------------------------------------------------------------------------------------------


def detect(client: bytes, server: bytes) -> Match:
    """A greeting, or the error in its place; where only the client was seen, a handshake response."""
    if server:
        return _detect_server(server)
    return _detect_client(client) if client else Match.MORE


def _detect_server(data: bytes) -> Match:
    length = int.from_bytes(data[:3].ljust(3, b"\0"), "little")
    if (len(data) >= 3 and not 8 <= length <= MAX_GREETING) or data[3:4] not in (b"", b"\0"):
        return Match.NO
    first = data[4:5]
    if first not in (b"", b"\n", b"\xff"):
        return Match.NO
    if len(data) < HEADER + 12:
        return Match.MORE
    if first == b"\xff":
        (code,) = _U16.unpack_from(data, 5)
        said = data[7 : HEADER + length]
        if not 1000 <= code < 5000 or not _VERSION.match(said):
            return Match.NO
        return Match.YES if _VERSION.fullmatch(said) else Match.NO
    found = _VERSION.match(data, 5)
    if found is None or found.end() > HEADER + length - 31:
        return Match.NO
    if len(data) < min(HEADER + length, found.end() + 14):
        return Match.MORE
    at = found.end()
    return Match.YES if data[at] == 0 and data[at + 13] == 0 else Match.NO


def _detect_client(data: bytes) -> Match:
    if len(data) < HEADER:
        return Match.MORE if len(data) < 3 or not data[2] else Match.NO
    length = int.from_bytes(data[:3], "little")
    if data[3] not in (1, 2) or not SSL_REQUEST <= length <= MAX_RESPONSE:
        return Match.NO
    if (len(data) > 5 and not data[5] & session.PROTOCOL_41 >> 8) or data[13:32].strip(b"\0"):
        return Match.NO
    if len(data) < HEADER + SSL_REQUEST:
        return Match.MORE
    return Match.YES
