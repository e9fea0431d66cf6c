"""Rows of the model as columns of the tables, and columns as one Native block.

The encoding is a function of the rows alone, so that the SHA-256 of the block can name the batch: the same rows sent
again carry the same deduplication token, different rows never do.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from appliance.errors import MalformedInput
from appliance.model import ChunkRow, EventRow, FindingRow, MessageRow, Row, SessionRow

MAX_FIELDS = 64  # scalar attributes of one row that can be searched by name
MAX_FIELD = 1024  # characters kept of each; `attrs` keeps all of it
LAST_NS = 2**63 - 1  # 2262-04-11, the last moment of DateTime64(9)

NS = "DateTime64(9, 'UTC')"
STRINGS = "Array(String)"
FIELDS = "Map(String, String)"

Column = tuple[str, str, Callable[[Any], Any]]


@dataclass(frozen=True, slots=True)
class Table:
    """How one class of rows is stored: its table, and (column, type on the wire, value of a row) in order."""

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


def json_text(value: object) -> str:
    """Compact JSON. Odd values (integers above 64 bits, lone surrogates) take the slower, more tolerant encoder."""
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, UnicodeError):
        return json.dumps(value, separators=(",", ":"), default=str)


def searchable(attrs: dict[str, Any]) -> dict[str, str]:
    """The scalar attributes as strings by dotted name, lists of scalars joined by ', '; bounded in number and size."""
    found: dict[str, str] = {}
    waiting = [("", attrs)]
    while waiting:
        prefix, level = waiting.pop()
        for key, value in level.items():
            if len(found) >= MAX_FIELDS:
                return found
            name = f"{prefix}{key}"
            match value:
                case bool():
                    found[name] = "true" if value else "false"
                case str():
                    found[name] = value[:MAX_FIELD]
                case int() | float():
                    found[name] = str(value)[:MAX_FIELD]
                case dict() if prefix.count(".") < 2:
                    waiting.append((f"{name}.", value))
                case list() | tuple() if value and all(isinstance(item, str | int | float) for item in value):
                    found[name] = ", ".join(str(item) for item in value)[:MAX_FIELD]
    return found


def _ns(value: int) -> int:
    return min(max(value, 0), LAST_NS)


SESSIONS = Table(
    "sessions",
    (
        ("session_id", "UUID", lambda r: r.session_id),
        ("seq", "UInt32", lambda r: r.seq),
        ("started", NS, lambda r: _ns(r.started_ns)),
        ("ended", NS, lambda r: _ns(r.ended_ns)),
        ("ending", "String", lambda r: str(r.ending)),
        ("node", "String", lambda r: r.node),
        ("source", "String", lambda r: r.source),
        ("client_address", "String", lambda r: r.client_address),
        ("client_port", "UInt16", lambda r: r.client_port),
        ("server_address", "String", lambda r: r.server_address),
        ("server_port", "UInt16", lambda r: r.server_port),
        ("transport", "String", lambda r: r.transport),
        ("protocol", "String", lambda r: r.protocol),
        ("issuer", "String", lambda r: r.identity.issuer),
        ("subject", "String", lambda r: r.identity.subject),
        ("client", "String", lambda r: r.identity.client),
        ("act", STRINGS, lambda r: r.identity.act),
        ("groups", STRINGS, lambda r: r.identity.groups),
        ("run_id", "String", lambda r: r.identity.run_id),
        ("lease_id", "String", lambda r: r.identity.lease_id),
        ("method", "String", lambda r: r.identity.method),
        ("token_sha256", "String", lambda r: r.identity.token_sha256),
        ("coverage", "String", lambda r: str(r.coverage)),
        ("client_bytes", "UInt64", lambda r: r.client_bytes),
        ("server_bytes", "UInt64", lambda r: r.server_bytes),
        ("client_packets", "UInt64", lambda r: r.client_packets),
        ("server_packets", "UInt64", lambda r: r.server_packets),
        ("messages", "UInt64", lambda r: r.messages),
        ("findings", STRINGS, lambda r: r.findings),
        ("lane", "String", lambda r: r.lane),
        ("attrs", "String", lambda r: json_text(r.attrs)),
        ("fields", FIELDS, lambda r: searchable(r.attrs)),
    ),
)
MESSAGES = Table(
    "messages",
    (
        ("session_id", "UUID", lambda r: r.session_id),
        ("seq", "UInt32", lambda r: r.seq),
        ("started", NS, lambda r: _ns(r.started_ns)),
        ("ts", NS, lambda r: _ns(r.message.ts_ns)),
        ("end_ts", NS, lambda r: _ns(r.message.end_ns or r.message.ts_ns)),
        ("direction", "String", lambda r: str(r.message.direction)),
        ("kind", "String", lambda r: r.message.kind),
        ("protocol", "String", lambda r: r.protocol),
        ("start", "UInt64", lambda r: r.message.start),
        ("end", "UInt64", lambda r: r.message.end),
        ("search_text", "String", lambda r: r.message.text),
        ("attrs", "String", lambda r: json_text(r.message.attrs)),
        ("fields", FIELDS, lambda r: searchable(r.message.attrs)),
        ("reply_to", "Nullable(UInt64)", lambda r: r.message.reply_to),
        ("flags", STRINGS, lambda r: r.message.flags),
    ),
)
CHUNKS = Table(
    "chunks",
    (
        ("session_id", "UUID", lambda r: r.session_id),
        ("seq", "UInt32", lambda r: r.seq),
        ("started", NS, lambda r: _ns(r.started_ns)),
        ("direction", "String", lambda r: str(r.direction)),
        ("offset", "UInt64", lambda r: r.offset),
        ("size", "UInt32", lambda r: len(r.data)),
        ("ts", NS, lambda r: _ns(r.ts_ns)),
        ("copy", "UInt32", lambda r: r.copy),
        ("redacted", "Array(Tuple(UInt32, UInt32))", lambda r: r.redacted),
        ("data", "String", lambda r: bytes(r.data)),
    ),
)
FINDINGS = Table(
    "findings",
    (
        ("session_id", "UUID", lambda r: r.session_id),
        ("seq", "UInt32", lambda r: r.seq),
        ("started", NS, lambda r: _ns(r.started_ns)),
        ("ts", NS, lambda r: _ns(r.ts_ns)),
        ("kind", "String", lambda r: r.kind),
        ("direction", "String", lambda r: str(r.direction or "")),
        ("start", "UInt64", lambda r: r.start),
        ("end", "UInt64", lambda r: r.end),
        ("text", "String", lambda r: r.text),
        ("attrs", "String", lambda r: json_text(r.attrs)),
    ),
)
EVENTS = Table(
    "events",
    (
        ("stream", "String", lambda r: r.stream),
        ("position", "UInt64", lambda r: r.position),
        ("ts", NS, lambda r: _ns(r.ts_ns)),
        ("kind", "String", lambda r: r.kind),
        ("address", "String", lambda r: r.address),
        ("text", "String", lambda r: r.text),
        ("attrs", "String", lambda r: json_text(r.attrs)),
    ),
)
AUDIT = Table(
    "audit",
    (
        ("ts", NS, lambda r: _ns(r.ts_ns)),
        ("actor", "String", lambda r: r.actor),
        ("action", "String", lambda r: r.action),
        ("object", "String", lambda r: r.object),
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


def by_table(rows: Iterable[Row | AuditRow]) -> dict[Table, list[Row | AuditRow]]:
    """Rows grouped by table, their order kept."""
    grouped: dict[Table, list[Row | AuditRow]] = {}
    for row in rows:
        grouped.setdefault(TABLES[type(row)], []).append(row)
    return grouped


def weight(row: Row | AuditRow) -> int:
    """Rough size of a row in bytes, for the bound on a batch."""
    match row:
        case ChunkRow():
            return 100 + len(row.data)
        case MessageRow():
            return 400 + len(row.message.text)
    return 500


def encode(table: Table, rows: Sequence[Row | AuditRow]) -> Block:
    """All `rows` of one table as one Native block. Raises `MalformedInput` for a value that its column cannot hold."""
    columns = [[value(row) for row in rows] for _, _, value in table.columns]
    try:
        body = _native(table, columns)
    except UnicodeError:
        body = _native(table, [[_printable(value) for value in column] for column in columns])
    token = hashlib.sha256(b"%s\0%s" % (table.name.encode(), body)).hexdigest()
    return Block(table.name, table.names, len(rows), body, token)


def _native(table: Table, columns: list[list[Any]]) -> bytes:
    """One block of ClickHouse's Native format: counts, then name, type and values of each column."""
    from clickhouse_connect.datatypes.registry import get_from_name
    from clickhouse_connect.driver.common import write_leb128
    from clickhouse_connect.driver.exceptions import ClickHouseError
    from clickhouse_connect.driver.insert import InsertContext

    types = [get_from_name(wire) for _, wire, _ in table.columns]
    context = InsertContext(table.name, table.names, types)
    body = bytearray()
    write_leb128(len(columns), body)
    write_leb128(len(columns[0]), body)
    for (name, wire, _), kind, values in zip(table.columns, types, columns, strict=True):
        for text in (name, wire):
            write_leb128(len(text), body)
            body += text.encode("ascii")
        context.start_column(name)
        try:
            kind.write_column(values, body, context)
        except (ClickHouseError, TypeError, OverflowError, struct.error) as error:
            raise MalformedInput(
                f"a value for column {name} of {table.name} is not of type {wire}; the rows are not stored"
            ) from error
    return bytes(body)


def _printable(value: object) -> object:
    """Text with lone surrogates cannot be stored; they become question marks. Bytes stay as they are."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_printable(key): _printable(item) for key, item in value.items()}
        case list() | tuple():
            return [_printable(item) for item in value]
    return value
