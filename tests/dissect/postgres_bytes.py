"""Makes PostgreSQL messages for tests, by their layouts (PostgreSQL documentation, "Message Formats")."""

import struct


def typed(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + struct.pack("!I", len(body) + 4) + body


def packet(code: int, body: bytes = b"") -> bytes:
    return struct.pack("!II", len(body) + 8, code) + body


def z(*strings: str) -> bytes:
    return b"".join(one.encode() + b"\0" for one in strings)


SSL = packet(80877103)
GSS = packet(80877104)
START = packet(196608, z("user", "ada", "database", "shop") + b"\0")
CANCEL = packet(80877102, struct.pack("!I", 4711) + b"KEY!")
OK = typed("R", struct.pack("!I", 0))
KEY = typed("K", struct.pack("!I", 4711) + b"KEY!")
IDLE = typed("Z", b"I")
ASK_CLEAR = typed("R", struct.pack("!I", 3))
PASSWORD = typed("p", z("open sesame"))
LOGGED_IN = OK + KEY + IDLE
SYNC = typed("S")
EXECUTE = typed("E", z("") + struct.pack("!I", 0))
PARSED, BOUND, CLOSED = typed("1"), typed("2"), typed("3")


def query(sql: str) -> bytes:
    return typed("Q", z(sql))


def parse(sql: str, name: str = "", *oids: int) -> bytes:
    return typed("P", z(name, sql) + struct.pack(f"!H{len(oids)}I", len(oids), *oids))


def values(*items: bytes | None) -> bytes:
    parts = [struct.pack("!i", -1) if item is None else struct.pack("!i", len(item)) + item for item in items]
    return struct.pack("!H", len(items)) + b"".join(parts)


def bind(*items: bytes | None, portal: str = "", name: str = "", formats: bytes = b"", results: bytes = b"") -> bytes:
    """`formats` and `results` have one byte a code."""
    codes = [struct.pack(f"!H{len(one)}H", len(one), *one) for one in (formats, results)]
    return typed("B", z(portal, name) + codes[0] + values(*items) + codes[1])


def describe(what: str, name: str = "") -> bytes:
    return typed("D", what.encode() + z(name))


def close(what: str, name: str = "") -> bytes:
    return typed("C", what.encode() + z(name))


def execute(portal: str = "", limit: int = 0) -> bytes:
    return typed("E", z(portal) + struct.pack("!I", limit))


def columns(*names: str, oid: int = 25, code: int = 0) -> bytes:
    described = [z(name) + struct.pack("!IhIhih", 0, 0, oid, -1, -1, code) for name in names]
    return typed("T", struct.pack("!H", len(names)) + b"".join(described))


def row(*items: bytes | None) -> bytes:
    return typed("D", values(*items))


def done(tag: str) -> bytes:
    return typed("C", z(tag))


def error(code: str = "42601", said: str = "syntax error", kind: str = "E") -> bytes:
    return typed(kind, z("SERROR", "VERROR", f"C{code}", f"M{said}") + b"\0")
