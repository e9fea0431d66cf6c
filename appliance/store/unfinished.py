"""Sessions that are stored as open: what a recorder that lost its state has to close."""

import json

from appliance.model import Coverage, Ending, Identity, SessionRow
from appliance.store.client import Store
from appliance.store.shapes import SESSION

_OPEN = f"""SELECT {SESSION} FROM
(SELECT * FROM sessions WHERE node = {{node:String}} AND source = {{source:String}}
 ORDER BY seq DESC LIMIT 1 BY session_id)
WHERE ending = 'open' ORDER BY started_ns, session_id"""  # noqa: S608  # parameters only, the columns are ours


def open_sessions(store: Store, node: str, source: str) -> list[SessionRow]:
    """The last revision of every session of this node and source that has no end, oldest first."""
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
        for row in store.select(_OPEN, {"node": node, "source": source})
    ]
