"""Rows for the store's tests. Each caller takes session numbers of its own, so that one store serves them all."""

from typing import Any
from uuid import UUID

from msgspec.structs import replace

from appliance.model import (
    ChunkRow,
    Coverage,
    Direction,
    Ending,
    EventRow,
    FindingRow,
    Identity,
    Message,
    MessageRow,
    SessionRow,
)

START = 1_763_880_000_123_456_789  # 2025-11-23T06:40:00.123456789Z
SECOND = 10**9
ALICE = Identity(
    issuer="https://idp.example",
    subject="alice@example.com",
    client="cli",
    act=("agent-7", "planner"),
    groups=("dev", "ops"),
    run_id="run-1",
    lease_id="00ff00ff00ff00ff",
    method="lease",
    token_sha256="ab" * 32,
)


def number(session: int) -> UUID:
    return UUID(int=session)


def started(session: int) -> int:
    return START + session * SECOND


def session(of: int, revision: int = 0, **changes: Any) -> SessionRow:
    """Revision 0 is open and undetected, later ones have ended."""
    row = SessionRow(
        session_id=number(of),
        seq=revision,
        started_ns=started(of),
        ended_ns=started(of) + revision,
        ending=Ending.FIN if revision else Ending.OPEN,
        node="gateway",
        source="wire",
        client_address="10.1.0.7",
        client_port=40_000,
        server_address="fd00::5",
        server_port=5432,
        transport="tcp",
        protocol="postgres" if revision else "",
        identity=ALICE,
        coverage=Coverage.COMPLETE,
        client_bytes=2**40,
        server_bytes=2,
        client_packets=3,
        server_packets=4,
        messages=revision,
        findings=("gap",) if revision else (),
        lane="tap",
        attrs={"database": "shop", "user": "app", "nested": {"deep": [1, None]}},
    )
    return replace(row, **changes)


def message(
    of: int, seq: int, text: str, direction: Direction = Direction.CLIENT, kind: str = "query", **attrs: Any
) -> MessageRow:
    first = started(of) + seq
    said = Message(direction, kind, first, seq * 10, seq * 10 + 10, text, attrs, None, ("noted",), first + 5)
    return MessageRow(number(of), seq, started(of), "postgres", said)


def chunk(of: int, seq: int, direction: Direction, offset: int, data: bytes, **changes: Any) -> ChunkRow:
    return replace(ChunkRow(number(of), seq, started(of), direction, offset, started(of) + seq, data), **changes)


def finding(of: int, seq: int, kind: str = "gap") -> FindingRow:
    return FindingRow(number(of), seq, started(of), started(of) + seq, kind, Direction.SERVER, 1, 2, "lost", {"n": seq})


def event(stream: str, position: int, kind: str = "refusal", address: str = "10.1.0.7") -> EventRow:
    return EventRow(stream, position, START + position, kind, address, f"{kind} {position}", {"count": position})
