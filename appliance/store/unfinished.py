# ruff: noqa: S608 - SQL is put together from constants; values are parameters
"""Sessions that are stored as open: what a recorder that lost its state has to close."""

import json

from appliance.errors import Refused
from appliance.model import Coverage, Ending, Identity, SessionRow
from appliance.store.client import IDS_PER_QUERY, Store
from appliance.store.shapes import SESSION, Json
from appliance.store.times import LAST_NS, SECOND

DAY_NS = 86400 * SECOND
SHORTEST_NS = SECOND  # of the windows of starts that one query looks through

# The names that a node had: those that its journal told of when recording began, and the one that it has now.
_OURS = """ AND (node = {node:String} OR node IN
(SELECT JSONExtractString(attrs, 'node') FROM events WHERE stream = {stream:String} AND kind = 'open'))"""
_WITHIN = """source = {source:String} AND started >= fromUnixTimestamp64Nano({first:Int64})
AND started <= fromUnixTimestamp64Nano({last:Int64})"""
_DAYS = f"""SELECT DISTINCT intDiv(toUnixTimestamp64Nano(started), {DAY_NS}) AS day FROM sessions
WHERE source = {{source:String}} ORDER BY day"""
_IDS = f"""SELECT session_id FROM sessions WHERE {_WITHIN}%s
GROUP BY session_id HAVING argMax(ending = 'open', seq)"""
_ROWS = f"""SELECT {SESSION} FROM sessions WHERE {_WITHIN} AND session_id IN {{ids:Array(UUID)}}
AND (session_id, seq) IN (SELECT session_id, max(seq) FROM sessions
WHERE {_WITHIN} AND session_id IN {{ids:Array(UUID)}} GROUP BY session_id) LIMIT 1 BY session_id"""


def open_sessions(store: Store, source: str, among: tuple[str, str] | None = None) -> list[SessionRow]:
    """The last revision of every session of this source that has no end, oldest first.

    `among`: journal stream and node name, in a store that other nodes use too; a node's former names count.

    A store holds revisions of years, so what the engine has to hold at once is bounded: numbers of sessions by the day
    that they began on, or by less than a day if that is too much, and whole rows of few. Raises `Refused` when even
    the sessions of `SHORTEST_NS` are too many for one query.
    """
    stream, node = among or ("", "")
    parameters = {"source": source, "stream": stream, "node": node}
    found: list[SessionRow] = []
    days = [int(row["day"]) for row in store.select(_DAYS, parameters)]
    windows = [(day * DAY_NS, min((day + 1) * DAY_NS - 1, LAST_NS)) for day in reversed(days)]
    while windows:
        first, last = windows.pop()
        bounded = parameters | {"first": first, "last": last}
        try:
            ids = [str(row["session_id"]) for row in store.select(_IDS % (_OURS if among else ""), bounded)]
        except Refused:
            if last - first < SHORTEST_NS:
                raise
            middle = (first + last) // 2
            windows += [(middle + 1, last), (first, middle)]
            continue
        for at in range(0, len(ids), IDS_PER_QUERY):
            found += map(_row, store.select(_ROWS, bounded | {"ids": ids[at : at + IDS_PER_QUERY]}))
    return sorted(found, key=lambda row: (row.started_ns, row.session_id))


def _row(row: Json) -> SessionRow:
    return SessionRow(
        session_id=row["session_id"],
        seq=int(row["seq"]),
        started_ns=int(row["started_ns"]),
        ended_ns=int(row["ended_ns"]),
        ending=Ending(row["ending"]),
        node=row["node"],
        source=row["source"],
        client_address=row["client_address"],
        client_port=int(row["client_port"]),
        server_address=row["server_address"],
        server_port=int(row["server_port"]),
        transport=row["transport"],
        protocol=row["protocol"],
        identity=Identity(
            row["issuer"],
            row["subject"],
            row["client"],
            tuple(row["act"]),
            tuple(row["groups"]),
            row["run_id"],
            row["lease_id"],
            row["method"],
            row["token_sha256"],
        ),
        coverage=Coverage(row["coverage"]),
        client_bytes=int(row["client_bytes"]),
        server_bytes=int(row["server_bytes"]),
        client_packets=int(row["client_packets"]),
        server_packets=int(row["server_packets"]),
        messages=int(row["messages"]),
        findings=tuple(row["findings"]),
        lane=row["lane"],
        attrs=json.loads(row["attrs"]),
    )
