"""JSON of sessions and messages: the one shape that the command line and the API give out."""

import json
from typing import Any

from appliance.store import times

Json = dict[str, Any]

SESSION = """session_id, seq, toUnixTimestamp64Nano(started) AS started_ns,
toUnixTimestamp64Nano(ended) AS ended_ns, ending, node, source, client_address, client_port, server_address,
server_port, transport, protocol, issuer, subject, client, act, groups, run_id, lease_id, method, token_sha256,
coverage, client_bytes, server_bytes, client_packets, server_packets, messages, findings, lane, attrs"""
MESSAGE = """session_id, seq, toUnixTimestamp64Nano(ts) AS ts_ns, toUnixTimestamp64Nano(end_ts) AS end_ns,
direction, kind, protocol, `start` AS first, `end` AS last, attrs, reply_to, flags"""


def session(row: Json) -> Json:
    """A row of the columns `SESSION`."""
    return {
        "session_id": str(row["session_id"]),
        "node": row["node"],
        "source": row["source"],
        "started": times.rfc3339(row["started_ns"]),
        "ended": times.rfc3339(row["ended_ns"]),
        "ending": row["ending"],
        "client": {"address": row["client_address"], "port": row["client_port"]},
        "server": {"address": row["server_address"], "port": row["server_port"]},
        "transport": row["transport"],
        "protocol": row["protocol"],
        "identity": identity(row),
        "coverage": row["coverage"],
        "bytes": {"client": row["client_bytes"], "server": row["server_bytes"]},
        "packets": {"client": row["client_packets"], "server": row["server_packets"]},
        "messages": row["messages"],
        "findings": list(row["findings"]),
        "lane": row["lane"],
        "attrs": json.loads(row["attrs"]),
    }


def identity(row: Json) -> Json:
    """The identity within a row of the columns `SESSION`."""
    return {
        "issuer": row["issuer"],
        "subject": row["subject"],
        "client": row["client"],
        "act": list(row["act"]),
        "groups": list(row["groups"]),
        "run_id": row["run_id"],
        "lease_id": row["lease_id"],
        "method": row["method"],
        "token_sha256": row["token_sha256"],
    }


def summary(full: Json) -> Json:
    """What a search result tells of its session: who, from where to where, and how well it was recorded."""
    kept = (
        "started",
        "ended",
        "ending",
        "client",
        "server",
        "transport",
        "protocol",
        "identity",
        "coverage",
        "findings",
    )
    return {"session_id": full["session_id"]} | {name: full[name] for name in kept}


def message(row: Json, text: str) -> Json:
    """A row of the columns `MESSAGE`."""
    return {
        "session_id": str(row["session_id"]),
        "seq": row["seq"],
        "direction": row["direction"],
        "kind": row["kind"],
        "protocol": row["protocol"],
        "time": times.rfc3339(row["ts_ns"]),
        "end_time": times.rfc3339(row["end_ns"]),
        "start": row["first"],
        "end": row["last"],
        "text": text,
        "attrs": json.loads(row["attrs"]),
        "reply_to": row["reply_to"],
        "flags": list(row["flags"]),
    }


def finding(row: Json) -> Json:
    """A row of the table `findings`, times and byte range named as in `MESSAGE`."""
    return {
        "session_id": str(row["session_id"]),
        "seq": row["seq"],
        "time": times.rfc3339(row["ts_ns"]),
        "kind": row["kind"],
        "direction": row["direction"] or None,
        "start": row["first"],
        "end": row["last"],
        "text": row["text"],
        "attrs": json.loads(row["attrs"]),
    }


def event(row: Json) -> Json:
    """A row of the table `events`."""
    return {
        "stream": row["stream"],
        "position": row["position"],
        "time": times.rfc3339(row["ts_ns"]),
        "kind": row["kind"],
        "address": row["address"],
        "text": row["text"],
        "attrs": json.loads(row["attrs"]),
    }


def audit(row: Json) -> Json:
    return {
        "time": times.rfc3339(row["ts_ns"]),
        "actor": row["actor"],
        "action": row["action"],
        "object": row["object"],
    }
