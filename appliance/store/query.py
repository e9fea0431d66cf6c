# ruff: noqa: S608 - SQL is put together from constants; values are parameters
"""The read side: sessions, messages, findings, events, bytes and search, as JSON-ready dictionaries.

Every value that comes from outside goes into the SQL as a parameter. Times are RFC 3339 in UTC with nanoseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from appliance.errors import MalformedInput
from appliance.store import paging, shapes
from appliance.store.client import Store
from appliance.store.conditions import Conditions, address_range
from appliance.store.paging import Page, When
from appliance.store.search import MAX_HITS, search
from appliance.store.shapes import Json
from appliance.store.streams import chunks, parse_id, plain_stream, stream, within

__all__ = [
    "MAX_HITS",
    "MAX_LIMIT",
    "Page",
    "SessionFilter",
    "When",
    "chunks",
    "events",
    "findings",
    "messages",
    "plain_stream",
    "search",
    "session",
    "sessions",
    "stream",
]

MAX_LIMIT = 10_000  # sessions, messages or events on one page
EXACT = (
    *("protocol", "subject", "issuer", "client", "run_id", "lease_id"),
    *("coverage", "ending", "lane", "source", "node"),
)


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """What sessions must match; empty: anything. Addresses are single ones or networks (10.0.0.0/8, fd00::/8).

    A session is within `since` and `until` if any part of it is: its last packet at or after `since`, its start before
    `until`.
    """

    protocol: str = ""
    address: str = ""  # of either side
    client_address: str = ""
    server_address: str = ""
    port: int | None = None  # of either side
    subject: str = ""
    issuer: str = ""
    client: str = ""
    act: str = ""
    group: str = ""
    run_id: str = ""
    lease_id: str = ""
    coverage: str = ""
    ending: str = ""
    finding: str = ""
    lane: str = ""
    source: str = ""
    node: str = ""
    since: When = None
    until: When = None


def sessions(store: Store, filters: SessionFilter | None = None, limit: int = 100, cursor: str | None = None) -> Page:
    """Sessions, newest start first."""
    filters = filters or SessionFilter()
    size = paging.size(limit, MAX_LIMIT)
    since, until = paging.bounds(filters.since, filters.until)
    inner, outer = Conditions(), Conditions("f")
    inner.add("started < fromUnixTimestamp64Nano({until:Int64})", until=until)
    if cursor is not None:
        before, session_id = paging.key(cursor, int, UUID)
        inner.add(
            "(started, session_id) < (fromUnixTimestamp64Nano({before:Int64}), {below:UUID})",
            before=before,
            below=str(session_id),
        )
    outer.add("ended_ns >= {since:Int64}", since=since)
    for column in EXACT:
        outer.equal(column, getattr(filters, column))
    for column, value in (("act", filters.act), ("groups", filters.group), ("findings", filters.finding)):
        if value:
            outer.add(f"has({column}, {outer.name(value)})")
    for columns, text in (
        (("client_ip",), filters.client_address),
        (("server_ip",), filters.server_address),
        (("client_ip", "server_ip"), filters.address),
    ):
        if text:
            low, high = (outer.name(bound, "IPv6") for bound in address_range(text))
            outer.add(" OR ".join(f"{column} BETWEEN {low} AND {high}" for column in columns))
    if filters.port is not None:
        if not 0 <= filters.port <= 65535:
            raise MalformedInput(f"port {filters.port} is not within 0 to 65535; correct it")
        port = outer.name(filters.port, "UInt16")
        outer.add(f"client_port = {port} OR server_port = {port}")
    found = store.select(
        f"SELECT * FROM (SELECT {shapes.SESSION}, client_ip, server_ip FROM sessions WHERE {inner} "
        "ORDER BY started DESC, session_id DESC, seq DESC LIMIT 1 BY session_id) "
        f"WHERE {outer} ORDER BY started_ns DESC, session_id DESC LIMIT {size + 1}",
        inner.parameters | outer.parameters,
    )
    more = paging.after(found, size, lambda row: [row["started_ns"], str(row["session_id"])])
    return Page([shapes.session(row) for row in found[:size]], more)


def session(store: Store, session_id: UUID | str) -> Json | None:
    """The session's last known state; None if there is no such session."""
    found = store.select(
        f"SELECT {shapes.SESSION} FROM sessions WHERE session_id = {{id:UUID}} ORDER BY seq DESC LIMIT 1",
        {"id": str(parse_id(session_id))},
    )
    return shapes.session(found[0]) if found else None


def messages(store: Store, session_id: UUID | str, after_seq: int = -1, limit: int = 1000) -> Page:
    """Messages of a session in order, those with a seq above `after_seq`. The cursor is the next `after_seq`."""
    size = paging.size(limit, MAX_LIMIT)
    where, parameters = within(store, session_id)
    found = store.select(
        f"SELECT {shapes.MESSAGE}, search_text FROM messages WHERE {where} AND seq > {{after:Int64}} "
        f"ORDER BY seq LIMIT 1 BY seq LIMIT {size + 1}",
        parameters | {"after": after_seq},
    )
    more = str(found[size - 1]["seq"]) if len(found) > size else None
    return Page([shapes.message(row, row["search_text"]) for row in found[:size]], more)


def findings(store: Store, session_id: UUID | str) -> list[Json]:
    """Findings of a session in order."""
    where, parameters = within(store, session_id)
    found = store.select(
        "SELECT session_id, seq, toUnixTimestamp64Nano(ts) AS ts_ns, kind, direction, `start` AS first, "
        f"`end` AS last, text, attrs FROM findings WHERE {where} ORDER BY seq LIMIT 1 BY seq LIMIT {MAX_LIMIT}",
        parameters,
    )
    return [shapes.finding(row) for row in found]


def events(
    store: Store,
    kind: str = "",
    address: str = "",
    since: When = None,
    until: When = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Page:
    """What happened outside of sessions, newest first. `kind`: a whole one, or the first words of several (`lease`)."""
    where = Conditions("f")
    if kind:
        wanted = where.name(kind)
        where.add(f"kind = {wanted} OR startsWith(kind, concat({wanted}, '-'))")
    where.equal("address", address)
    columns = "stream, position, toUnixTimestamp64Nano(ts) AS ts_ns, kind, address, text, attrs"
    key = {"stream": str, "position": int}
    found, more = _by_time(store, f"{columns} FROM events", where, key, since, until, limit, cursor, once=True)
    return Page([shapes.event(row) for row in found], more)


def audit(
    store: Store,
    actor: str = "",
    since: When = None,
    until: When = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Page:
    """Who read what through the API, newest first."""
    where = Conditions("f")
    where.equal("actor", actor)
    columns = "toUnixTimestamp64Nano(ts) AS ts_ns, actor, action, object"
    key = {"actor": str, "object": str}
    found, more = _by_time(store, f"{columns} FROM audit", where, key, since, until, limit, cursor)
    return Page([shapes.audit(row) for row in found], more)


def _by_time(
    store: Store,
    what: str,
    where: Conditions,
    key: Mapping[str, type],
    since: When,
    until: When,
    limit: int,
    cursor: str | None,
    *,
    once: bool = False,
) -> tuple[list[Json], str | None]:
    """Rows of a table by their `ts`, newest first, and the cursor behind them.

    `key`: the columns that tell rows of one moment apart. `once`: of rows with the same, the first only.
    """
    size = paging.size(limit, MAX_LIMIT)
    low, high = paging.bounds(since, until)
    where.add(
        "ts >= fromUnixTimestamp64Nano({since:Int64}) AND ts < fromUnixTimestamp64Nano({until:Int64})",
        since=low,
        until=high,
    )
    names = ", ".join(key)
    if cursor is not None:
        before, *rest = paging.key(cursor, int, *key.values())
        places = [where.name(value, "UInt64" if isinstance(value, int) else "String") for value in rest]
        moment = f"fromUnixTimestamp64Nano({where.name(before, 'Int64')})"
        where.add(f"(ts, {names}) < ({moment}, {', '.join(places)})")
    order = ", ".join(f"{name} DESC" for name in ("ts", *key))
    distinct = f"LIMIT 1 BY {names}" if once else ""
    found = store.select(f"SELECT {what} WHERE {where} ORDER BY {order} {distinct} LIMIT {size + 1}", where.parameters)
    return found[:size], paging.after(found, size, lambda row: [row["ts_ns"], *(row[name] for name in key)])
