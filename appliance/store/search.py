# ruff: noqa: S608 - SQL is put together from constants; values are parameters
"""Search: messages that match a query, newest first, with who spoke to whom."""

import time
from collections.abc import Collection
from uuid import UUID

from appliance.store import language, paging, shapes
from appliance.store.client import Store
from appliance.store.conditions import Conditions
from appliance.store.paging import Page, When
from appliance.store.shapes import Json

MAX_HITS = 1000  # results on one page
MAX_HIT_TEXT = 16_384  # characters of a result's text; the message itself has all of it
SNIPPET_BEFORE = 60  # characters
SNIPPET_LENGTH = 240


def search(
    store: Store,
    query: str,
    since: When = None,
    until: When = None,
    limit: int = 100,
    cursor: str | None = None,
    now_ns: int | None = None,
) -> Page:
    """Messages that match a query (see `appliance.store.language`), newest first.

    Each is the JSON of a message with `session` (its identity, addresses and state) and `snippet` (the first match and
    what surrounds it). Texts longer than 16,384 characters are cut and `text_cut` is true.
    """
    size = paging.size(limit, MAX_HITS)
    low, high = paging.bounds(since, until, now_ns)
    compiled = language.compile_query(query, time.time_ns() if now_ns is None else now_ns)
    where = Conditions()
    where.add("ts >= fromUnixTimestamp64Nano({since:Int64}) AND ts < fromUnixTimestamp64Nano({until:Int64})")
    where.add("started < fromUnixTimestamp64Nano({until:Int64})", since=low, until=high)
    where.add(compiled.sql)
    if cursor is not None:
        before, below, seq = paging.key(cursor, int, UUID, int)
        where.add(
            "(ts, session_id, seq) < (fromUnixTimestamp64Nano({before:Int64}), {below:UUID}, {seq:UInt32})",
            before=before,
            below=str(below),
            seq=seq,
        )
    parameters = where.parameters | compiled.parameters
    places = []
    for at, needle in enumerate(compiled.needles):
        parameters[f"needle{at}"] = needle
        places.append(f"positionUTF8(lowerUTF8(search_text), {{needle{at}:String}})")
    place = f"arrayFirst(x -> x > 0, [{', '.join(places)}])" if places else "toUInt64(0)"
    order = "ORDER BY ts DESC, session_id DESC, seq DESC"
    found = store.select(
        f"SELECT {shapes.MESSAGE}, {place} AS place, lengthUTF8(search_text) AS length, "
        f"substringUTF8(search_text, 1, {MAX_HIT_TEXT}) AS search_text_cut, "
        f"substringUTF8(search_text, greatest(1, toInt64(place) - {SNIPPET_BEFORE}), {SNIPPET_LENGTH}) AS snippet "
        "FROM messages WHERE (started, session_id, seq) IN "
        f"(SELECT started, session_id, seq FROM messages WHERE {where} {order} LIMIT {size + 1}) "
        f"{order} LIMIT {size + 1}",
        parameters,
    )
    more = paging.after(found, size, lambda row: [row["ts_ns"], str(row["session_id"]), row["seq"]])
    about = _summaries(store, {row["session_id"] for row in found[:size]})
    return Page([_hit(row, about.get(row["session_id"])) for row in found[:size]], more)


def _summaries(store: Store, ids: Collection[UUID]) -> dict[UUID, Json]:
    if not ids:
        return {}
    found = store.select(
        f"SELECT {shapes.SESSION} FROM sessions WHERE session_id IN {{ids:Array(UUID)}} "
        "ORDER BY seq DESC LIMIT 1 BY session_id",
        {"ids": sorted(str(session) for session in ids)},
    )
    return {row["session_id"]: shapes.summary(shapes.session(row)) for row in found}


def _hit(row: Json, about: Json | None) -> Json:
    return shapes.message(row, row["search_text_cut"]) | {
        "text_cut": row["length"] > MAX_HIT_TEXT,
        "snippet": row["snippet"],
        "session": about,
    }
