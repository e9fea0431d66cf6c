# ruff: noqa: S608 - SQL is put together from constants; values are parameters
"""The recorded bytes of a session: one direction by offset, or both by time, in little memory."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar
from uuid import UUID

from appliance.errors import MalformedInput
from appliance.model import ChunkRow, Direction
from appliance.store import times
from appliance.store.client import Store

FETCH_BYTES = 4 * 2**20  # of data held at once (or one chunk, if that is larger)
FETCH_ROWS = 4096
MARGIN_NS = 60 * times.SECOND
Key = TypeVar("Key")


def parse_id(session_id: UUID | str) -> UUID:
    if isinstance(session_id, UUID):
        return session_id
    try:
        return UUID(session_id)
    except ValueError:
        raise MalformedInput("session id is not a UUID; take one from `verbatim sessions`") from None


def within(store: Store, session_id: UUID | str) -> tuple[str, dict[str, Any]]:
    """The condition that finds a session's rows, with its parameters.

    The start leads to the right part of the primary key. It is taken with a margin: a row whose start differs from the
    session's must not get lost.
    """
    wanted = str(parse_id(session_id))
    found = store.select(
        "SELECT toUnixTimestamp64Nano(started) AS started_ns FROM sessions WHERE session_id = {id:UUID} LIMIT 1",
        {"id": wanted},
    )
    if not found:
        return "session_id = {id:UUID}", {"id": wanted}
    start = found[0]["started_ns"]
    return (
        "session_id = {id:UUID} AND started >= fromUnixTimestamp64Nano({from:Int64}) "
        "AND started <= fromUnixTimestamp64Nano({to:Int64})"
    ), {"id": wanted, "from": max(0, start - MARGIN_NS), "to": min(times.LAST_NS, start + MARGIN_NS)}


def stream(
    store: Store, session_id: UUID | str, direction: Direction | str, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Bytes `start` to `end` (excluded; None: all) of one direction as (offset, bytes), rising, in little memory.

    A hole in the recording shows as a jump of the offset: what is missing is never made up.
    """
    try:
        side = Direction(direction)
    except ValueError as error:
        raise MalformedInput("direction is neither client nor server; name one of them") from error
    if start < 0 or (end is not None and end < start):
        raise MalformedInput("byte range is negative or ends before it starts; correct it")
    return _stream(store, parse_id(session_id), side, start, 2**63 - 1 if end is None else end)


def plain_stream(
    store: Store, session_id: UUID | str, direction: Direction | str, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """The bytes of `stream` alone: holes are skipped."""
    return (data for _, data in stream(store, session_id, direction, start, end))


def _stream(store: Store, session_id: UUID, side: Direction, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    key, parameters = within(store, session_id)
    where = (
        f"{key} AND direction = {{side:String}} AND copy = 0 "
        "AND offset < {stop:UInt64} AND offset + size > {start:UInt64}"
    )
    parameters |= {"side": str(side), "start": start, "stop": end}
    at, after = start, -1
    while True:  # by offset, not by seq: bytes that came late lie behind later ones
        index = store.select(
            f"SELECT seq, offset, size FROM chunks WHERE {where} AND offset > {{after:Int64}} "
            f"ORDER BY offset, seq LIMIT {FETCH_ROWS}",
            parameters | {"after": after},
        )
        for first, last in _fetches([(place, row["size"]) for place, row in enumerate(index)]):
            numbers = [row["seq"] for row in index[first : last + 1]]
            for row in store.select(
                f"SELECT offset, data FROM chunks WHERE {where} AND seq BETWEEN {{first:UInt32}} AND {{last:UInt32}} "
                "AND offset BETWEEN {low:UInt64} AND {high:UInt64} ORDER BY offset, seq LIMIT 1 BY seq",
                parameters
                | {"first": min(numbers), "last": max(numbers)}
                | {"low": index[first]["offset"], "high": index[last]["offset"]},
                binary=("data",),
            ):
                skip = max(0, at - row["offset"])
                data = row["data"][skip : max(0, end - row["offset"])]
                if data:
                    at = row["offset"] + skip + len(data)
                    yield row["offset"] + skip, data
        if len(index) < FETCH_ROWS:
            return
        after = index[-1]["offset"]


def chunks(store: Store, session_id: UUID | str) -> Iterator[ChunkRow]:
    """All chunks of a session, both directions and conflicting copies, by time and seq, at most 4 MiB in memory."""
    wanted = parse_id(session_id)
    where, parameters = within(store, wanted)
    key = "(toUnixTimestamp64Nano(ts), seq)"
    after = (-1, -1)
    while True:
        index = store.select(
            f"SELECT toUnixTimestamp64Nano(ts) AS ts_ns, seq, size FROM chunks WHERE {where} "
            f"AND {key} > ({{time:Int64}}, {{seq:Int64}}) ORDER BY ts_ns, seq LIMIT {FETCH_ROWS}",
            parameters | {"time": after[0], "seq": after[1]},
        )
        for first, last in _fetches([((row["ts_ns"], row["seq"]), row["size"]) for row in index]):
            for row in store.select(
                "SELECT seq, toUnixTimestamp64Nano(started) AS started_ns, toUnixTimestamp64Nano(ts) AS ts_ns, "
                f"direction, offset, copy, redacted, data FROM chunks WHERE {where} "
                f"AND {key} >= ({{time:Int64}}, {{seq:Int64}}) "
                f"AND {key} <= ({{until:Int64}}, {{last:Int64}}) ORDER BY ts_ns, seq LIMIT 1 BY seq",
                parameters | {"time": first[0], "seq": first[1], "until": last[0], "last": last[1]},
                binary=("data",),
            ):
                yield ChunkRow(
                    wanted,
                    row["seq"],
                    row["started_ns"],
                    Direction(row["direction"]),
                    row["offset"],
                    row["ts_ns"],
                    row["data"],
                    row["copy"],
                    tuple((low, high) for low, high in row["redacted"]),
                )
            after = last
        if len(index) < FETCH_ROWS:
            return


def _fetches(index: Sequence[tuple[Key, int]]) -> Iterator[tuple[Key, Key]]:
    """First and last key of each run of chunks (key, size) that may be held at once."""
    first = last = None
    held = 0
    for key, size in index:
        if first is not None and last is not None and held + size > FETCH_BYTES:
            yield first, last
            first, held = None, 0
        first = key if first is None else first
        last = key
        held += size
    if first is not None and last is not None:
        yield first, last
