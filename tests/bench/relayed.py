"""The same made-up traffic as `journals.py` makes, as a relay would have written it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from appliance.identity.leases import identity_to_json
from appliance.journal import RELAY, FrameKind, JournalKey, Writer
from appliance.journal.relayed import RelayedKind, encode
from appliance.model import Identity
from appliance.wire.abi import Record
from appliance.wire.records import RING_HEADER
from tests.bench.journals import FIN, KINDS, LIMITS, SPAN, SYN, T0, spans

NAME = "relay-0"
ALICE = identity_to_json(Identity(issuer="https://id.example", subject="alice", lease_id="00000000000000ab"))


def records(kind: str, amount: int, flows: int) -> Iterator[tuple[int, bytes]]:
    """Time and record."""
    start = RING_HEADER.size + Record.LAYOUT.size
    sent: dict[int, list[int]] = {}
    for now, one in KINDS[kind](amount, flows):
        record = Record.unpack(one, RING_HEADER.size)
        flow, side, time_ns = record.flow, record.side, T0 + record.time
        at = start + record.header
        if record.tcp_flags & SYN:
            if side == 0:
                said = {
                    "node": "gw", "client_address": "10.0.0.2", "client_port": 40_000, "server_address": "10.250.0.3",
                    "server_port": record.destination_port, "rule": 1, "identity": ALICE, "kernel_flow": flow,
                }  # fmt: skip
                sent[flow] = [0, 0]
                yield now, encode(RelayedKind.OPEN, 0, flow, time_ns, 0, json.dumps(said).encode())
        elif record.tcp_flags & FIN:
            yield now, encode(RelayedKind.EOF, side, flow, time_ns, sent[flow][side], b"")
            if side == 1:
                legs = {"agent": _leg(sent[flow][0]), "upstream": _leg(sent[flow][1])}
                closing = {"ending": "fin", "reason": "", "legs": legs}
                yield now, encode(RelayedKind.CLOSE, 0, flow, time_ns, 0, json.dumps(closing).encode())
        elif record.payload:
            yield now, encode(RelayedKind.DATA, side, flow, time_ns, sent[flow][side], one[at : at + record.payload])
            sent[flow][side] += record.payload


def _leg(size: int) -> dict[str, dict[str, int]]:
    return {"kernel": {"sent": size, "acked": 1, "packets": 9}, "socket": {"received": size, "acked": 1}}


def write(data: Path, kind: str, amount: int, flows: int = 16) -> int:
    """Write a relay's journal named `NAME` below `data`; bytes of records in it."""
    stream = hashlib.sha256(NAME.encode()).digest()[:16]
    with Writer(data / "journal" / NAME, JournalKey.load_or_create(data), stream, settings=LIMITS) as writer:
        writer.append(FrameKind.OPEN, json.dumps({"node": "gw", "source": NAME}).encode(), time_ns=T0)
        total = 0
        for last, payload in spans(records(kind, amount, flows), SPAN[kind]):
            writer.append(FrameKind.SPAN, payload, layout=RELAY, time_ns=T0 + last)
            total += len(payload)
    return total
