"""A stored session as a pcapng file, read back by the ingest: the same streams come out.

    transport, ending, address family, ports; then chunks: direction, how far behind the one before, bytes

What holds: whatever a session consists of, its export can be read, and gives the same bytes at the same offsets, but
for what looks like a credential.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from appliance.ingest.capture import Capture
from appliance.ingest.link import LINKS
from appliance.ingest.packet import record
from appliance.model import ChunkRow, Direction
from appliance.replay import pcapng
from tests.fuzz.script import Script
from tests.fuzz.targets import Target
from tests.session.traffic import T0, Recorded, feed, ingest

SESSION: Final = UUID("01890000-0000-7000-8000-000000000000")
MAX_CHUNKS: Final = 24
MAX_JUMP: Final = 4096
SIDES: Final = (Direction.CLIENT, Direction.SERVER)


def exported(session: dict[str, Any], chunks: Sequence[ChunkRow]) -> Recorded:
    """What the ingest makes of the export."""
    written = io.BytesIO()
    pcapng.write_header(written)
    count = pcapng.write_session(written, session, T0, T0 + 10**9, chunks)
    file = os.memfd_create("export")
    try:
        os.write(file, written.getvalue())
        with Capture(Path(f"/proc/self/fd/{file}")) as capture:
            packed = []
            for time_ns, link, wire, frame in capture:
                network = LINKS[link](frame)
                assert network is not None, "a packet without IP"
                made = record(frame, network.start, wire, time_ns, network.tag)
                assert isinstance(made, bytes), f"a packet that is no record: {made}"
                packed.append(made)
            assert not capture.fault, capture.fault
    finally:
        os.close(file)
    assert len(packed) == count, "other packets than were written"
    return Recorded(feed(ingest(packed)))


def check(data: bytes) -> None:
    script = Script(data)
    transport = ("tcp", "tcp", "udp", "icmp", "132")[script.below(5)]
    six, ending = script.flag(), ("fin", "rst", "idle", "interrupted", "cut")[script.below(5)]
    ports = (1 + script.number(2) % 65535, 1 + script.number(2) % 65535) if transport in ("tcp", "udp") else (0, 0)
    hosts = ("fd00::1", "fd00::2") if six else ("192.0.2.1", "198.51.100.2")
    who = script.piece(32).decode("utf-8", "replace")
    chunks: list[ChunkRow] = []
    ends = [0, 0]
    for number in range(MAX_CHUNKS):
        if not script.more:
            break
        side, gap, content = (
            script.below(2),
            script.number(2) % MAX_JUMP if script.byte() & 7 == 7 else 0,
            script.piece(),
        )
        if not content or (transport == "icmp" and len(content) < 8):
            continue  # shorter ICMP messages are never recorded
        offset = ends[side] + gap
        ends[side] = offset + len(content)
        chunks.append(ChunkRow(SESSION, number, T0, SIDES[side], offset, T0 + number * 1000, content))
    session = {
        "session_id": str(SESSION), "transport": transport, "ending": ending, "coverage": "complete", "findings": [],
        "client": {"address": hosts[0], "port": ports[0]}, "server": {"address": hosts[1], "port": ports[1]},
        "identity": {"issuer": "https://idp", "subject": who, "client": who, "run_id": ""},
    }  # fmt: skip
    again = exported(session, chunks)
    if transport != "tcp" or ports[0] == ports[1]:
        return
    assert len(again.sessions) == 1, "one session became several"
    for whose, end in zip(SIDES, ends, strict=True):
        stream = bytearray(end)
        for chunk in chunks:
            if chunk.direction is whose:
                stream[chunk.offset : chunk.offset + len(chunk.data)] = chunk.data
        for made in again.chunks():
            for begin, until in made.redacted if made.direction is whose and not made.copy else ():
                stream[made.offset + begin : made.offset + until] = b"*" * (until - begin)
        assert again.stream(whose) == bytes(stream), "another stream than the one that was exported"


def seeds() -> list[bytes]:
    chunks = b"\0\0\5hello\1\0\6world!\0\7\x10\0\4more\1\7\0\1\3end"
    heads = [(transport, six, ending) for transport in range(5) for six in (0, 1) for ending in range(2)]
    return [bytes([*head, 80, 0, 1, 0, 5]) + b"alice" + chunks for head in heads]


TARGETS: Final = {"export": Target(check, seeds, size=1024)}
