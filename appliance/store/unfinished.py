"""Sessions that are stored as open: what a recorder that lost its state has to close."""

import json

from appliance.model import Coverage, Ending, Identity, SessionRow
from appliance.store.client import Store
from appliance.store.shapes import SESSION

# The names that a node had: those that its journal told of when recording began, and the one that it has now.
_OURS = """ AND (node = {node:String} OR node IN
(SELECT JSONExtractString(attrs, 'node') FROM events WHERE stream = {stream:String} AND kind = 'open'))"""
_OPEN = """SELECT %s FROM
(SELECT * FROM sessions WHERE source = {source:String}%s
 ORDER BY seq DESC LIMIT 1 BY session_id)
WHERE ending = 'open' ORDER BY started_ns, session_id"""


def open_sessions(store: Store, source: str, among: tuple[str, str] | None = None) -> list[SessionRow]:
    """The last revision of every session of this source that has no end, oldest first.

    `among`: journal stream and node name, in a store that other nodes use too; a node's former names count.
    """
    stream, node = among or ("", "")
    found = store.select(_OPEN % (SESSION, _OURS if among else ""), {"source": source, "stream": stream, "node": node})
    return [
        SessionRow(
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
        for row in found
    ]
