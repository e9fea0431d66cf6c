"""Makes MySQL packets for tests, by their layouts (MySQL source code documentation, "Client/Server Protocol")."""

import struct
from typing import Final

from appliance.dissect import mysql_session as session
from tests.dissect.harness import C, S, Turn

VENDOR = (  # what an ordinary client and server have in common
    session.MYSQL
    | session.CONNECT_WITH_DB
    | session.PROTOCOL_41
    | session.SECURE_CONNECTION
    | session.PLUGIN_AUTH
    | session.PLUGIN_AUTH_LENENC
    | session.CONNECT_ATTRS
    | session.LOCAL_FILES
)
MODERN = VENDOR | session.DEPRECATE_EOF | session.SESSION_TRACK
SCRAMBLE = bytes(range(1, 21))
HASH = b"01234567890123456789"


def packet(number: int, body: bytes = b"") -> bytes:
    return struct.pack("<I", len(body) | number << 24) + body


def command(number: int, body: bytes = b"") -> bytes:
    return packet(0, bytes((number,)) + body)


def answer(*bodies: bytes, first: int = 1) -> bytes:
    """Packets that count on."""
    return b"".join(packet(number & 0xFF, body) for number, body in enumerate(bodies, first))


def lenenc(number: int) -> bytes:
    if number < 251:
        return bytes((number,))
    if number < 1 << 16:
        return b"\xfc" + struct.pack("<H", number)
    return b"\xfd" + number.to_bytes(3, "little") if number < 1 << 24 else b"\xfe" + struct.pack("<Q", number)


def string(data: bytes | str | None) -> bytes:
    if data is None:
        return b"\xfb"
    raw = data.encode() if isinstance(data, str) else data
    return lenenc(len(raw)) + raw


def greeting(capabilities: int = VENDOR, plugin: str = "mysql_native_password", version: str = "8.4.0") -> bytes:
    low, high = capabilities & 0xFFFF, capabilities >> 16 & 0xFFFF
    body = b"\x0a" + version.encode() + b"\0" + struct.pack("<I", 7) + SCRAMBLE[:8] + b"\0"
    body += struct.pack("<HBHHB6xI", low, 45, 2, high, 21, capabilities >> 32)
    return packet(0, body + SCRAMBLE[8:] + b"\0" + plugin.encode() + b"\0")


def fixed(capabilities: int, collation: int = 45) -> bytes:
    return struct.pack("<IIB19xI", capabilities & 0xFFFFFFFF, 1 << 24, collation, capabilities >> 32)


def ssl_request(capabilities: int = VENDOR | session.SSL) -> bytes:
    return packet(1, fixed(capabilities))


def response(
    secret: bytes = HASH,
    capabilities: int = VENDOR,
    *,
    user: str = "ada",
    database: str = "shop",
    plugin: str = "mysql_native_password",
    number: int = 1,
    collation: int = 45,
) -> bytes:
    said = b"".join(string(one) for one in ("program_name", "test", "_os", "Linux"))
    body = fixed(capabilities, collation) + user.encode() + b"\0" + string(secret)
    body += database.encode() + b"\0" + plugin.encode() + b"\0" + string(said)
    return packet(number, body)


def change_user(secret: bytes = HASH) -> bytes:
    said = string(string("program_name") + string("test"))
    body = b"eve\0" + bytes((len(secret),)) + secret + b"store\0" + struct.pack("<H", 45)
    return command(0x11, body + b"mysql_native_password\0" + said)


def ok(affected: int = 0, inserted: int = 0, status: int = 2, info: bytes = b"", first: int = 0) -> bytes:
    return bytes((first,)) + lenenc(affected) + lenenc(inserted) + struct.pack("<HH", status, 0) + info


def eof(status: int = 2) -> bytes:
    return b"\xfe" + struct.pack("<HH", 0, status)


def error(code: int = 1064, state: str = "42000", said: str = "syntax") -> bytes:
    return b"\xff" + struct.pack("<H", code) + b"#" + state.encode() + said.encode()


def column(
    name: str, kind: int = 253, *, charset: int = 45, flags: int = 0, decimals: int = 0, more: bytes = b""
) -> bytes:
    named = b"".join(string(one) for one in ("def", "shop", "t", "t", name, name))
    return named + more + struct.pack("<BHIBHB2x", 12, charset, 80, kind, flags, decimals)


def row(*values: bytes | str | None) -> bytes:
    return b"".join(string(value) for value in values)


def binary_row(nulls: bytes, *values: bytes) -> bytes:
    return b"\0" + nulls + b"".join(values)


def query(sql: str) -> bytes:
    return command(3, sql.encode())


def table(*rows: bytes, names: tuple[str, ...] = ("a",), status: int = 2) -> bytes:
    """An answer to a query, with EOF packets."""
    described = [column(name) for name in names]
    return answer(lenenc(len(names)), *described, eof(status), *rows, eof(status))


def execute(number: int, body: bytes = b"", flags: int = 0) -> bytes:
    return command(0x17, struct.pack("<IBI", number, flags, 1) + body)


def prepared(number: int, columns: int = 0, parameters: int = 0) -> bytes:
    return struct.pack("<BIHHBH", 0, number, columns, parameters, 0, 0)


BEGINNING: list[Turn] = [(S, greeting()), (C, response()), (S, packet(2, ok()))]
MODERN_BEGINNING: list[Turn] = [(S, greeting(MODERN)), (C, response(capabilities=MODERN)), (S, packet(2, ok(status=2)))]
DIALOGUE: Final[list[Turn]] = [
    *BEGINNING,
    (C, query("select 1")),
    (S, table(row("1"), row(None))),
    (C, command(0x16, b"select ?")),
    (S, answer(prepared(1, 1, 1), column("?"), eof(), column("a", 3), eof())),
    (C, execute(1, b"\0\1\x03\0" + b"\x05\0\0\0")),
    (S, answer(b"\1", column("a", 3), eof(), binary_row(b"\0", b"\5\0\0\0"), eof())),
    (C, execute(1, b"\0\0" + b"\x06\0\0\0")),
    (S, answer(b"\1", column("a", 3), eof(), binary_row(b"\0", b"\6\0\0\0"), eof())),
    (C, change_user()),
    (S, packet(1, b"\xfemysql_clear_password\0")),
    (C, packet(2, b"open sesame\0")),
    (S, packet(3, ok())),
    (C, query("load data local infile 'x'")),
    (S, packet(1, b"\xfbx.csv")),
    (C, packet(2, b"a,b\n") + packet(3)),
    (S, packet(4, ok(3, info=b"Records: 3"))),
    (C, query("broken")),
    (S, packet(1, error())),
    (C, command(1)),
]
SECRETS: Final = [HASH, b"open sesame"]
