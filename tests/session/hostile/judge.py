"""What the recording has of a flow, to be compared with what the Linux end read."""

from dataclasses import dataclass
from typing import Any

from appliance.model import ChunkRow, Direction, FindingRow, SessionRow
from tests.session.hostile.cases import Flow, text
from tests.session.traffic import Recorded


@dataclass(frozen=True)
class Verdict:
    """`stream`: what the recording says that the receiver read: up to the first gap, and without urgent bytes where the
    receiver did not ask for them inline. `whole`: all chunks, copies too."""

    flow: Flow
    session: SessionRow
    stream: bytes
    findings: tuple[str, ...]
    whole: tuple[ChunkRow, ...]

    def unrecorded(self, steps: list[dict[str, Any]]) -> list[bytes]:
        """Texts of the steps of which some byte is neither in the stream nor in a copy."""
        missing = []
        for step in steps:
            data = text(step.get("data", ""))
            if data and "do" not in step and not set(step) & {"ip", "vlans", "tcp"} and not self._has(data):
                missing.append(data)
        return missing

    def _has(self, data: bytes) -> bool:
        kept = {bytes([byte]) for row in self.whole for byte in row.data}
        return all(bytes([byte]) in kept for byte in data)


def judge(flow: Flow, recorded: Recorded) -> Verdict:
    """A forged SYN may have made more than one session: the one with the most bytes is the connection."""
    direction = Direction.SERVER if flow.hostile_server else Direction.CLIENT
    mine = [row for row in recorded.sessions if row.client_port == flow.port]
    session = max(mine, key=lambda row: (len(recorded.stream(direction, row)), row.client_packets))
    findings = [row for one in mine for row in recorded.findings(one)]
    chunks = [row for one in mine for row in recorded.chunks(one) if row.direction is direction]
    return Verdict(
        flow,
        session,
        read(recorded, flow, session, direction),
        tuple(sorted({row.kind for row in findings} - {"unknown-lease"})),
        tuple(chunks),
    )


def read(recorded: Recorded, flow: Flow, session: SessionRow, direction: Direction) -> bytes:
    stream = recorded.stream(direction, session)
    found = [row for row in recorded.findings(session) if row.direction is direction]
    gaps = [row.start for row in found if row.kind == "gap"]
    stream = stream[: min(gaps, default=len(stream))]
    if flow.case.get("server") == "inline":
        return stream
    for start in sorted(urgent(flow, found), reverse=True):
        stream = stream[:start] + stream[start + 1 :]
    return stream


def urgent(flow: Flow, found: list[FindingRow]) -> set[int]:
    """Urgent bytes that a receiver skips: of several that it has not read up to yet, only the last."""
    places = [row.start for row in found if row.kind == "urgent"]
    return set(places) if "reads" in flow.case else set(places[-1:])
