"""Made-up relayed traffic: records as a relay writes them, in frames."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance import config
from appliance.journal import RELAY, Damage, Frame, FrameKind
from appliance.journal.relayed import RelayedKind, encode
from appliance.model import Row
from appliance.session.relayed import RelayAssembler
from tests.session.traffic import MS, STREAM, T0, Recorded

NAME = "relay-0"
ALICE = {"issuer": "https://id", "subject": "alice", "lease_id": "00000000000000ab", "method": "lease"}


def leg(sent: int, received: int | None = None, packets: int = 3) -> dict[str, Any]:
    """Counts of one leg: `sent` by its peer, of which the relay's socket received `received`, or all."""
    return {
        "kernel": {"sent": sent, "acked": 7, "packets": packets},
        "socket": {"received": sent if received is None else received, "acked": 7},
    }


@dataclass
class Flow:
    """One relayed flow; every method gives the bytes of one record. Times are ns after `T0`."""

    number: int = 1
    client_port: int = 40000
    server_port: int = 5432
    sent: list[int] = field(default_factory=lambda: [0, 0])

    def _record(self, kind: RelayedKind, side: int, offset: int, body: bytes, time: int) -> bytes:
        return encode(kind, side, self.number, T0 + time, offset, body)

    def open(self, time: int = 0, **more: Any) -> bytes:
        said: dict[str, Any] = {
            "node": "gw", "client_address": "10.0.0.2", "client_port": self.client_port, "server_address": "10.0.1.3",
            "server_port": self.server_port, "rule": 4, "identity": ALICE, "kernel_flow": 99,
        }  # fmt: skip
        return self._record(RelayedKind.OPEN, 0, 0, json.dumps(said | more).encode(), time)

    def data(self, side: int, body: bytes, time: int = 0) -> bytes:
        offset = self.sent[side]
        self.sent[side] += len(body)
        return self._record(RelayedKind.DATA, side, offset, body, time)

    def note(self, kind: str, side: int = 0, time: int = 0, text: str = "", **said: Any) -> bytes:
        """`start` and `end` among `said` are its range, the rest are its attributes."""
        places: dict[str, Any] = {name: said.pop(name) for name in ("start", "end") if name in said}
        body = {"kind": kind, "text": text, "attrs": said, **places}
        return self._record(RelayedKind.NOTE, side, 0, json.dumps(body).encode(), time)

    def eof(self, side: int, time: int = 0) -> bytes:
        return self._record(RelayedKind.EOF, side, self.sent[side], b"", time)

    def close(
        self,
        time: int = 0,
        ending: str = "fin",
        agent: dict[str, Any] | None = None,
        upstream: dict[str, Any] | None = None,
    ) -> bytes:
        legs = {"agent": agent or leg(self.sent[0]), "upstream": upstream or leg(self.sent[1])}
        said = {"ending": ending, "reason": "", "legs": legs}
        return self._record(RelayedKind.CLOSE, 0, 0, json.dumps(said).encode(), time)


def span(*records: bytes, time: int = 0) -> Frame:
    return Frame(0, FrameKind.SPAN, T0 + time, b"".join(records), layout=RELAY)


def told(kind: FrameKind, time: int = 0, /, **said: Any) -> Frame:
    return Frame(0, kind, T0 + time, json.dumps({"node": "gw", "source": NAME, **said}).encode())


def clock(time: int) -> Frame:
    return Frame(0, FrameKind.CLOCK, T0 + time, bytes(16))


def stream(*frames: Frame | Damage) -> list[Frame | Damage]:
    """As in a journal: a frame OPEN first, numbers from 1."""
    numbered: list[Frame | Damage] = []
    for number, one in enumerate((told(FrameKind.OPEN), *frames), 1):
        if isinstance(one, Frame):
            numbered.append(Frame(number, one.kind, one.time_ns, one.payload, layout=one.layout))
        else:
            numbered.append(Damage(number, one.frames, one.reason))
    return numbered


def assembler(**settings: Any) -> RelayAssembler:
    return RelayAssembler(STREAM, config.Record(**settings), "gw", NAME)


def feed(frames: Iterable[Frame | Damage], into: RelayAssembler | None = None, **settings: Any) -> list[Row]:
    machine = into or assembler(**settings)
    return [row for one in frames for row in machine.feed(one)]


def run(records: Sequence[bytes], **settings: Any) -> Recorded:
    """What one frame of these records leaves in the store."""
    return Recorded(feed(stream(span(*records)), **settings))


def exchange(flow: Flow, time: int = 0) -> list[bytes]:
    """A short conversation, whole."""
    return [
        flow.open(time),
        flow.data(0, b"hello", time + MS),
        flow.data(1, b"world\n", time + 2 * MS),
        flow.eof(0, time + 3 * MS),
        flow.eof(1, time + 4 * MS),
        flow.close(time + 5 * MS),
    ]
