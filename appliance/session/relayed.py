"""From the frames of a relay's stream (`journal/relayed.py`) to the rows of its sessions and events.

Pure and picklable: no clock, no file. Here recorded time is the sum of what passed from frame to frame, as their times
say; a clock that was set back makes it stand still for one frame. Everything that waits for time is looked at between
two frames.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

from appliance import config
from appliance.errors import DamagedEvidence
from appliance.journal import Damage, Frame, FrameKind, Layout
from appliance.journal.relayed import Relayed, RelayedKind, scan
from appliance.model import Ending, Row
from appliance.session import events
from appliance.session.assembler import PART_BYTES
from appliance.session.identifiers import MEMORY, UNREADABLE, frame_position, relayed_id
from appliance.session.memory import LOOK_BYTES
from appliance.session.relayed_flows import RelayedFlows
from appliance.session.relayed_session import LANE, NOWHERE, RelayedSession, identity_of, number_of
from appliance.session.session import Birth
from appliance.session.stream_assembler import StreamAssembler
from appliance.session.timeline import TICK_NS

VERSION = 1  # of the pickled state
GONE = "relay-gone"
GONE_TEXT = "the relay's process ended while the session was open; what it had not recorded it had not passed on"


class RelayAssembler(StreamAssembler):
    """`source`: the stream's name, `relay-` and a number."""

    FORM = f"relay-{VERSION}"

    def __init__(self, stream: bytes, settings: config.Record, node: str, source: str) -> None:
        super().__init__(stream)
        self._settings = settings
        self._node = node
        self._source = source
        self._flows = RelayedFlows(settings)
        self._relieved = 0
        self._now = 0  # recorded time
        self._next_tick = 0
        self._frame_ns = 0  # when the last frame was written
        self._wall_ns = 0
        self._unseen = 0  # bytes of records since memory was looked at
        self._looked = -1  # position of the event that would have told of that

    # -- what the recorder asks ------------------------------------------------------------------------------------

    @property
    def settings(self) -> config.Record:
        return self._settings

    def use(self, settings: config.Record) -> None:
        self._settings = settings
        self._flows.use(settings)

    @property
    def source(self) -> str:
        return self._source

    @property
    def sessions_open(self) -> int:
        return len(self._flows)

    @property
    def weight(self) -> int:
        return self._flows.weight

    @property
    def relieved(self) -> int:
        return self._relieved

    @property
    def held_bytes(self) -> int:
        return sum(session.held_bytes for session in self._flows)

    @property
    def wall_ns(self) -> int:
        return self._wall_ns

    # -- frames ----------------------------------------------------------------------------------------------------

    def _told(self, frame: Frame | Damage, out: list[Row]) -> None:
        if isinstance(frame, Damage):
            self._damage(frame, out)
            return
        self._pass(frame, out)
        if frame.kind is FrameKind.CLOCK:
            self._relieve(frame_position(frame.number) + MEMORY, out)
            return
        said = events.decode(frame)
        out.append(events.of_frame(self._name, frame, said))
        if frame.kind is FrameKind.OPEN:
            self._node = events.text_of(said, "node") or self._node
        if frame.kind in (FrameKind.OPEN, FrameKind.CLOSE):
            for session in self._flows:
                session.finding(GONE, None, 0, 0, session.last_ns, GONE_TEXT, out)
            self._flows.interrupt(out)

    def _span(self, frame: Frame, out: list[Row]) -> Iterator[None]:
        """Yields each time that `PART_BYTES` were read."""
        first, at, pause = frame_position(frame.number), 0, PART_BYTES
        ticked = self._pass(frame, out)
        self._unseen += len(frame.payload)
        if ticked or self._unseen >= LOOK_BYTES:
            self._relieve(first + MEMORY, out)
        try:
            if frame.layout is not Layout.RELAY:
                raise DamagedEvidence(f"a span of layout {frame.layout.name} in a relay's stream")
            for record in scan(frame.payload):
                at = record.at
                if at >= pause:
                    pause = at + PART_BYTES
                    yield
                self._record(first + at, record, out)
        except DamagedEvidence as error:
            self._damage(Damage(frame.number, None, str(error)), out, first + at + UNREADABLE)

    def _record(self, position: int, record: Relayed, out: list[Row]) -> None:
        flows, kind = self._flows, record.kind
        if record.time_ns > self._wall_ns:
            self._wall_ns = record.time_ns
        session = flows.find(record.flow)
        if kind is RelayedKind.OPEN or session is None:
            session = self._begin(position, record, session, out)
        if kind is RelayedKind.DATA:
            session.data(record, self._now, out)
        elif kind is RelayedKind.NOTE:
            session.note(record, self._now, out)
        elif kind is RelayedKind.EOF:
            session.ended(record, self._now, out)
        elif kind is RelayedKind.CLOSE:
            flows.end(session, session.told(record, self._now), out)
            return
        flows.touched(session)

    # -- the first record of a session -----------------------------------------------------------------------------

    def _begin(self, position: int, record: Relayed, former: RelayedSession | None, out: list[Row]) -> RelayedSession:
        if former is not None:
            former.damaged = True
            former.finding(GONE, None, 0, 0, former.last_ns, GONE_TEXT, out)
            self._flows.end(former, Ending.INTERRUPTED, out)
        if self._flows.full:
            self._relieve(position + MEMORY, out)
        left = self._flows.left(record.flow)
        if record.kind is RelayedKind.OPEN:
            said = record.said()
            birth = self._birth(relayed_id(self.stream, record.flow, record.time_ns), record, said)
            relay = {"flow": record.flow, "rule": number_of(said, "rule"), "kernel_flow": birth.flow}
        elif left is not None:
            name = relayed_id(self.stream, record.flow, record.time_ns, position)
            birth = replace(left.birth, session_id=name, started_ns=record.time_ns)
            relay = left.relay
        else:
            name = relayed_id(self.stream, record.flow, record.time_ns, position)
            birth, relay = self._birth(name, record, {}), {"flow": record.flow}
        session = RelayedSession(birth, self._settings.max_body, relay)
        self._flows.begin(record.flow, session, self._now, out)
        if record.kind is not RelayedKind.OPEN:
            session.resume(left, record.time_ns, out)
        return session

    def _birth(self, name: UUID, record: Relayed, said: dict[str, Any]) -> Birth:
        return Birth(
            name,
            record.time_ns,
            events.text_of(said, "node") or self._node,
            self._source,
            events.text_of(said, "client_address") or NOWHERE,
            number_of(said, "client_port"),
            events.text_of(said, "server_address") or NOWHERE,
            number_of(said, "server_port"),
            "tcp",
            identity_of(said.get("identity"), events.text_of(said, "lease_id")),
            LANE,
            number_of(said, "kernel_flow"),
        )

    # -- time, memory, damage --------------------------------------------------------------------------------------

    def _pass(self, frame: Frame, out: list[Row]) -> bool:
        """Recorded time moves on to a frame. Whether what waits for time was looked at."""
        if self._frame_ns:
            self._now += max(0, frame.time_ns - self._frame_ns)
        self._frame_ns = frame.time_ns
        if self._now < self._next_tick:
            return False
        self._next_tick = self._now + TICK_NS
        self._flows.tick(self._now, self._wall_ns, out)
        return True

    def _relieve(self, position: int, out: list[Row]) -> None:
        """Keep the sessions' memory within its bound; `position`: of the event that tells of it."""
        self._unseen = 0
        if position == self._looked:
            return
        self._looked = position
        relief = self._flows.relieve(self._now, out)
        if relief is not None:
            self._relieved += 1
            out.append(events.memory_short(self._name, position, self._wall_ns, relief, self._settings.max_memory))

    def _blame(self, kind: str, text: str, attrs: dict[str, Any], out: list[Row]) -> None:
        for session in self._flows:
            session.damaged = True
            session.blame(kind, text, attrs, out)
