"""Rows of the model as columns of the tables, and columns as one Native block.

The encoding is a function of the rows alone, so that the SHA-256 of the block can name the batch: the same rows sent
again carry the same deduplication token, different rows never do.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec

from appliance.errors import MalformedInput
from appliance.model import ChunkRow, EventRow, FindingRow, MessageRow, Row, SessionRow
from appliance.store import native
from appliance.store.native import FIELDS, NS, NULLABLE, RANGES, STRINGS, Column

MAX_FIELDS = 64  # scalar attributes of one row that can be searched by name
MAX_FIELD = 1024  # characters kept of each; `attrs` keeps all of it

Values = Callable[[Sequence[Any]], list[Any]]  # of some rows


@dataclass(frozen=True, slots=True, eq=False)  # each is itself: to compare or hash two would walk over their columns
class Table:
    """How one class of rows is stored: its table, and (column, type on the wire, values of rows) in order."""

    name: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.columns)


@dataclass(frozen=True, slots=True)
class Block:
    """A batch of one table as it goes over the wire: one Native block, `rows` rows, named by `token`."""

    table: str
    columns: tuple[str, ...]
    rows: int
    body: bytes
    token: str


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Who (subject and issuer) did what (a route's name) to which object (its path and query) through the API."""

    ts_ns: int
    actor: str
    action: str
    object: str


_JSON = msgspec.json.Encoder()


def json_bytes(value: object) -> bytes:
    """Compact JSON. Odd values (integers above 64 bits, lone surrogates) take the slower, more tolerant encoder."""
    try:
        return _JSON.encode(value)
    except (TypeError, ValueError, OverflowError, UnicodeError):
        return json.dumps(value, separators=(",", ":"), default=str).encode()


def searchable(attrs: dict[str, Any]) -> dict[str, str]:
    """The scalar attributes as strings by dotted name, lists of scalars joined by ', '; bounded in number and size."""
    found: dict[str, str] = {}
    waiting = [("", attrs)]
    while waiting:
        prefix, level = waiting.pop()
        room = len(found) + len(level) <= MAX_FIELDS
        for key, value in level.items():
            if not room and len(found) >= MAX_FIELDS:
                return found
            name = prefix + key if prefix else key
            kind = type(value)
            if kind is str:
                found[name] = value if len(value) <= MAX_FIELD else value[:MAX_FIELD]
            elif kind is int:
                found[name] = str(value)[:MAX_FIELD]
            elif value is None or (kind is list and (not value or type(value[0]) in _NESTED)):
                continue
            else:
                _search_more(name, value, found, waiting)
    return found


_NESTED = frozenset((list, tuple, dict, type(None)))


def _search_more(name: str, value: object, found: dict[str, str], waiting: list[tuple[str, dict[str, Any]]]) -> None:
    """The kinds of attributes that are not as frequent."""
    match value:
        case bool():
            found[name] = "true" if value else "false"
        case str():
            found[name] = value[:MAX_FIELD]
        case int() | float():
            found[name] = str(value)[:MAX_FIELD]
        case dict() if name.count(".") < 2:
            waiting.append((f"{name}.", value))
        case list() | tuple() if value and all(isinstance(item, str | int | float) for item in value):
            found[name] = ", ".join(str(item) for item in value)[:MAX_FIELD]


def _of(path: str) -> Values:
    get = attrgetter(path)
    return lambda rows: list(map(get, rows))


def _json(path: str) -> Values:
    get = attrgetter(path)
    return lambda rows: list(map(json_bytes, map(get, rows)))


def _fields(path: str) -> Values:
    get = attrgetter(path)
    return lambda rows: list(map(searchable, map(get, rows)))


def _ends(rows: Sequence[MessageRow]) -> list[int]:
    return [row.message.end_ns or row.message.ts_ns for row in rows]


def _sizes(rows: Sequence[ChunkRow]) -> list[int]:
    return [len(row.data) for row in rows]


def _directions(rows: Sequence[FindingRow]) -> list[str]:
    return [row.direction or "" for row in rows]


SESSIONS = Table(
    "sessions",
    (
        ("session_id", "UUID", _of("session_id")),
        ("seq", "UInt32", _of("seq")),
        ("started", NS, _of("started_ns")),
        ("ended", NS, _of("ended_ns")),
        ("ending", "String", _of("ending")),
        ("node", "String", _of("node")),
        ("source", "String", _of("source")),
        ("client_address", "String", _of("client_address")),
        ("client_port", "UInt16", _of("client_port")),
        ("server_address", "String", _of("server_address")),
        ("server_port", "UInt16", _of("server_port")),
        ("transport", "String", _of("transport")),
        ("protocol", "String", _of("protocol")),
        ("issuer", "String", _of("identity.issuer")),
        ("subject", "String", _of("identity.subject")),
        ("client", "String", _of("identity.client")),
        ("act", STRINGS, _of("identity.act")),
        ("groups", STRINGS, _of("identity.groups")),
        ("run_id", "String", _of("identity.run_id")),
        ("lease_id", "String", _of("identity.lease_id")),
        ("method", "String", _of("identity.method")),
        ("token_sha256", "String", _of("identity.token_sha256")),
        ("coverage", "String", _of("coverage")),
        ("client_bytes", "UInt64", _of("client_bytes")),
        ("server_bytes", "UInt64", _of("server_bytes")),
        ("client_packets", "UInt64", _of("client_packets")),
        ("server_packets", "UInt64", _of("server_packets")),
        ("messages", "UInt64", _of("messages")),
        ("findings", STRINGS, _of("findings")),
        ("lane", "String", _of("lane")),
        ("attrs", "String", _json("attrs")),
        ("fields", FIELDS, _fields("attrs")),
    ),
)
MESSAGES = Table(
    "messages",
    (
        ("session_id", "UUID", _of("session_id")),
        ("seq", "UInt32", _of("seq")),
        ("started", NS, _of("started_ns")),
        ("ts", NS, _of("message.ts_ns")),
        ("end_ts", NS, _ends),
        ("direction", "String", _of("message.direction")),
        ("kind", "String", _of("message.kind")),
        ("protocol", "String", _of("protocol")),
        ("start", "UInt64", _of("message.start")),
        ("end", "UInt64", _of("message.end")),
        ("search_text", "String", _of("message.text")),
        ("attrs", "String", _json("message.attrs")),
        ("fields", FIELDS, _fields("message.attrs")),
        ("reply_to", NULLABLE, _of("message.reply_to")),
        ("flags", STRINGS, _of("message.flags")),
    ),
)
CHUNKS = Table(
    "chunks",
    (
        ("session_id", "UUID", _of("session_id")),
        ("seq", "UInt32", _of("seq")),
        ("started", NS, _of("started_ns")),
        ("direction", "String", _of("direction")),
        ("offset", "UInt64", _of("offset")),
        ("size", "UInt32", _sizes),
        ("ts", NS, _of("ts_ns")),
        ("copy", "UInt32", _of("copy")),
        ("redacted", RANGES, _of("redacted")),
        ("data", "String", _of("data")),
    ),
)
FINDINGS = Table(
    "findings",
    (
        ("session_id", "UUID", _of("session_id")),
        ("seq", "UInt32", _of("seq")),
        ("started", NS, _of("started_ns")),
        ("ts", NS, _of("ts_ns")),
        ("kind", "String", _of("kind")),
        ("direction", "String", _directions),
        ("start", "UInt64", _of("start")),
        ("end", "UInt64", _of("end")),
        ("text", "String", _of("text")),
        ("attrs", "String", _json("attrs")),
    ),
)
EVENTS = Table(
    "events",
    (
        ("stream", "String", _of("stream")),
        ("position", "UInt64", _of("position")),
        ("ts", NS, _of("ts_ns")),
        ("kind", "String", _of("kind")),
        ("address", "String", _of("address")),
        ("text", "String", _of("text")),
        ("attrs", "String", _json("attrs")),
    ),
)
AUDIT = Table(
    "audit",
    (
        ("ts", NS, _of("ts_ns")),
        ("actor", "String", _of("actor")),
        ("action", "String", _of("action")),
        ("object", "String", _of("object")),
    ),
)
TABLES: dict[type, Table] = {
    SessionRow: SESSIONS,
    MessageRow: MESSAGES,
    ChunkRow: CHUNKS,
    FindingRow: FINDINGS,
    EventRow: EVENTS,
    AuditRow: AUDIT,
}
BY_NAME = {table.name: table for table in TABLES.values()}
KEYED = tuple(TABLES[kind].name for kind in (SessionRow, MessageRow, ChunkRow, FindingRow))  # rows of sessions, by seq


def by_table(rows: Iterable[Row | AuditRow]) -> dict[Table, list[Row | AuditRow]]:
    """Rows grouped by table, their order kept."""
    grouped: dict[type, list[Row | AuditRow]] = {}
    for row in rows:
        kind = type(row)
        if kind in grouped:
            grouped[kind].append(row)
        else:
            grouped[kind] = [row]
    return {TABLES[kind]: members for kind, members in grouped.items()}


def encode(table: Table, rows: Sequence[Row | AuditRow]) -> Block:
    """All `rows` of one table as one Native block. Raises `MalformedInput` for a value that its column cannot hold."""
    try:
        body = native.block(table.columns, rows)
    except native.Misfit as error:
        raise MalformedInput(
            f"a value for column {error.column} of {table.name} is not of type {error.wire}; the rows are not stored"
        ) from error
    digest = hashlib.sha256(b"%s\0" % table.name.encode())
    digest.update(body)
    return Block(table.name, table.names, len(rows), body, digest.hexdigest())
