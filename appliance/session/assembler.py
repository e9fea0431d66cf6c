"""From the frames of one journal stream to the rows of its sessions and events.

Pure and picklable: no clock, no file. Recorded time only moves forward; everything that waits for time is looked at at
most each `TICK_NS` of it and always before the record that moved it (`Arrivals.advance`), so rows don't depend on how
records were cut into frames.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from appliance import config
from appliance.errors import DamagedEvidence, MalformedInput
from appliance.identity.leases import identity_from_json
from appliance.journal import Damage, Frame, FrameKind, Layout
from appliance.model import UNBOUND, Identity, Row
from appliance.session import events
from appliance.session.arrivals import Arrivals
from appliance.session.bypassed import KIND as UNGUARDED
from appliance.session.identifiers import UNREADABLE, frame_position
from appliance.session.place import Place
from appliance.session.stream_assembler import StreamAssembler
from appliance.wire.abi import Record
from appliance.wire.clock import CLOCK
from appliance.wire.records import SIZE, scan

VERSION = 5  # of the pickled state
PART_BYTES = 1 << 17  # of a span, that the rows of one part come from
TOLD_STEP_NS = 10_000_000
MAX_IDENTITIES = 65536  # leases remembered
_LENGTH, _TIME = 9, 10  # places among a record's fields


class Assembler(StreamAssembler):
    """Of the wire's stream, and of those of capture files."""

    FORM = f"{VERSION}"

    def __init__(self, stream: bytes, settings: config.Record, node: str) -> None:
        super().__init__(stream)
        self._boot = ""
        self._place = Place()
        self._arrivals = Arrivals(stream, settings, node)

    # -- what the recorder asks ------------------------------------------------------------------------------------

    @property
    def settings(self) -> config.Record:
        return self._arrivals.settings

    @property
    def source(self) -> str:
        """`wire`, or the capture file."""
        return self._arrivals.source

    @property
    def sessions_open(self) -> int:
        return len(self._arrivals)

    @property
    def weight(self) -> int:
        return self._arrivals.weight

    @property
    def relieved(self) -> int:
        return self._arrivals.relieved

    @property
    def held_bytes(self) -> int:
        return self._arrivals.held_bytes

    @property
    def wall_ns(self) -> int:
        return self._arrivals.time.wall_ns

    def use(self, settings: config.Record) -> None:
        self._arrivals.use(settings)

    # -- frames ----------------------------------------------------------------------------------------------------

    def _told(self, frame: Frame | Damage, out: list[Row]) -> None:
        if isinstance(frame, Damage):
            self._damage(frame, out)
        elif frame.kind is FrameKind.CLOCK:
            self._clock(frame, out)
        else:
            said = events.decode(frame)
            out.append(events.of_frame(self._name, frame, said))
            if frame.kind is FrameKind.LEASE:
                self._lease(said)
            elif frame.kind is FrameKind.OPEN:
                self._open(frame, said, out)
            elif frame.kind is FrameKind.EVENT and said.get("kind") == UNGUARDED:
                self._arrivals.unguarded(said, out)
            elif frame.kind is FrameKind.CLOSE and self.source != "wire":
                self._arrivals.end(frame_position(frame.number), out)

    def _span(self, frame: Frame, out: list[Row]) -> Iterator[None]:
        """Yields each time that `PART_BYTES` were read."""
        arrivals, first = self._arrivals, frame_position(frame.number)
        start: int | None = 0
        if frame.layout is Layout.RING:
            start, lost = self._place.span(frame.ring_start, frame.ring_end)
            if lost is not None:
                self._ring_gap(frame, {"from": lost, "to": frame.ring_start}, out)
        if start is None:
            return
        at = start
        try:
            payload, pause = frame.payload, PART_BYTES
            view = memoryview(payload)
            for at, fields in scan(frame, start):
                if arrivals.time.offset is None:
                    arrivals.time.offset = frame.time_ns - fields[_TIME]
                arrivals.passed(fields[_LENGTH], first + at, out)
                if at >= pause:
                    pause = at + PART_BYTES
                    yield
                if arrivals.usual(first + at, fields, payload, at + SIZE, out):
                    continue
                record = Record(*fields)
                arrivals.record(first + at, record, view[at + SIZE : at + SIZE + record.length], out)
        except DamagedEvidence as error:
            self._damage(Damage(frame.number, None, str(error)), out, first + at + UNREADABLE)

    def _clock(self, frame: Frame, out: list[Row]) -> None:
        if len(frame.payload) != CLOCK.size:
            return
        boottime, unix = CLOCK.unpack(frame.payload)
        time = self._arrivals.time
        known = time.known
        step = time.set_clock(boottime, unix)
        if step is not None:
            if known and abs(step) >= TOLD_STEP_NS:
                out.append(events.clock_stepped(self._name, frame, step, unix))
            self._arrivals.set_clock(step)
        if boottime:
            self._arrivals.advance(boottime + (time.base or 0), frame_position(frame.number), out)

    def _lease(self, said: dict[str, Any]) -> None:
        try:
            number = int(events.text_of(said, "id"), 16)
        except ValueError:
            return
        try:
            identity = identity_from_json(said.get("identity") or {})
        except MalformedInput:
            identity = Identity()
        identities = self._arrivals.identities
        identities[number] = replace(identity, lease_id=f"{number:016x}", method="lease")
        identities.move_to_end(number)
        if len(identities) > MAX_IDENTITIES:
            identities.popitem(last=False)

    def _open(self, frame: Frame, said: dict[str, Any], out: list[Row]) -> None:
        arrivals, place = self._arrivals, self._place
        arrivals.node = events.text_of(said, "node") or arrivals.node
        arrivals.source = events.text_of(said, "source") or arrivals.source
        if said.get("identity"):
            try:
                arrivals.identity = replace(identity_from_json(said["identity"]), method="ingest")
            except MalformedInput:
                arrivals.identity = UNBOUND
        boot, ring = events.text_of(said, "boot"), events.text_of(said, "ring")
        former = {"former_ring": place.ring, "former_position": place.end}
        lost = place.opened(ring, said)
        if lost is not None:
            self._ring_gap(frame, lost, out)
        if self._boot and boot != self._boot:
            bounds = {"boot": boot, "former_boot": self._boot, "last_ns": self.wall_ns, "first_ns": frame.time_ns}
            places = {"ring": ring, "position": said.get("position"), **former}
            out.append(events.rebooted(self._name, frame, bounds | places))
            arrivals.interrupt(out)
            arrivals.time.end_boot()
        self._boot = boot

    # -- what is missing -------------------------------------------------------------------------------------------

    def _ring_gap(self, frame: Frame, attrs: dict[str, Any], out: list[Row]) -> None:
        bounds = attrs | {"last_record_ns": self.wall_ns}
        out.append(events.ring_lost(self._name, frame, bounds))
        self.damaged += 1
        self._blame("ring-lost", "records were lost between the kernel and the journal", attrs, out)

    def _blame(self, kind: str, text: str, attrs: dict[str, Any], out: list[Row]) -> None:
        self._arrivals.blame(kind, text, attrs, out)
