"""From the frames of one journal stream to the rows of its sessions and events.

Pure and picklable: no clock, no file. Recorded time only moves forward; everything that waits for time is looked at by
`_tick`, at most each `TICK_NS` of recorded time and always before the record that moved it, so rows don't depend on how
records were cut into frames.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Any

from appliance import config
from appliance.errors import DamagedEvidence, MalformedInput
from appliance.identity.leases import identity_from_json
from appliance.journal import Damage, Frame, FrameKind, Layout
from appliance.model import UNBOUND, Ending, Identity, Row
from appliance.session import events
from appliance.session.datagrams import DatagramSession
from appliance.session.fragments import Fragments
from appliance.session.identifiers import frame_position, session_id
from appliance.session.packets import ICMP, ICMP6, TCP, UDP, network, transport, window_scale
from appliance.session.session import ENDINGS, Birth
from appliance.session.sessions import AnySession, Key, Sessions, choose, key_of
from appliance.session.tcp import ACK, SYN, Segment, TcpSession
from appliance.wire.abi import RECORD_F_FRAGMENT, RECORD_F_RELATED, Flow, FlowEnd, Kind, Lane, Record, unpack_address
from appliance.wire.clock import CLOCK
from appliance.wire.records import records

VERSION = 2  # of the pickled state
TICK_NS = 100_000_000
MAX_IDENTITIES = 65536  # leases remembered
LANES = frozenset(Lane)
FLOW_ENDS = frozenset(FlowEnd)
_WELL_KNOWN = 1024


class Assembler:
    """`feed` takes frames in order and gives back rows in order; a row's `seq` is gapless in its table and session."""

    def __init__(self, stream: bytes, settings: config.Record, node: str) -> None:
        self.version = VERSION
        self.stream = stream
        self.settings = settings
        self.node = node
        self.source = "wire"
        self.rows = 0
        self.damaged = 0  # journal gaps and ring losses so far
        self.now = 0  # recorded time, ns: like boottime, but never going back
        self._name = stream.hex()
        self._boot = ""
        self._base: int | None = 0  # recorded time minus a record's time; None: to be set by the next CLOCK
        self._left_ns = 0  # wall time when a boot ended
        self._offset: int | None = None  # wall time minus a record's time
        self._ring = ""
        self._ring_end: int | None = None
        self._identity = UNBOUND
        self._identities: OrderedDict[int, Identity] = OrderedDict()
        self._sessions = Sessions(settings)
        self._fragments = Fragments()
        self._next_tick = 0

    # -- what the recorder asks ------------------------------------------------------------------------------------

    @property
    def sessions_open(self) -> int:
        return len(self._sessions)

    @property
    def held_bytes(self) -> int:
        """Captured bytes held in memory outside of dissectors; walks over all sessions."""
        return sum(session.held_bytes for session in self._sessions)

    @property
    def wall_ns(self) -> int:
        """Wall time of the last record."""
        return self.now - (self._base or 0) + (self._offset or 0)

    def feed(self, frame: Frame | Damage) -> list[Row]:
        """Take the next frame, or the news that frames are missing."""
        out: list[Row] = []
        if isinstance(frame, Damage):
            self._damage(frame, out)
        elif frame.kind is FrameKind.SPAN:
            self._span(frame, out)
        elif frame.kind is FrameKind.CLOCK:
            self._clock(frame, out)
        else:
            said = events.decode(frame)
            out.append(events.of_frame(self._name, frame, said))
            if frame.kind is FrameKind.LEASE:
                self._lease(said)
            elif frame.kind is FrameKind.OPEN:
                self._open(frame, said, out)
            elif frame.kind is FrameKind.CLOSE and self.source != "wire":
                self._fragments.give_up()
                self._tell_fragments(frame_position(frame.number), out)
                self._sessions.end_all(Ending.EOF, self.now, out)
        self.rows += len(out)
        return out

    # -- frames ----------------------------------------------------------------------------------------------------

    def _span(self, frame: Frame, out: list[Row]) -> None:
        start = 0
        if frame.layout is Layout.RING:
            seen = self._ring_end
            if seen is not None and frame.ring_end <= seen:
                return  # written again after a crash
            if seen is not None and frame.ring_start < seen:
                start = seen - frame.ring_start
            elif seen is not None and frame.ring_start > seen:
                self._ring_gap(frame, {"from": seen, "to": frame.ring_start}, out)
            self._ring_end = frame.ring_end
        try:
            for position, record, data in records(frame, start):
                if self._offset is None:
                    self._offset = frame.time_ns - record.time
                self._record(position, record, data, out)
        except DamagedEvidence as error:
            self._damage(Damage(frame.number, None, str(error)), out)

    def _clock(self, frame: Frame, out: list[Row]) -> None:
        if len(frame.payload) != CLOCK.size:
            return
        boottime, unix = CLOCK.unpack(frame.payload)
        if self._base is None:  # the first one after a boot: recorded time goes on by what passed on the wall
            self._base = self.now + max(0, unix - self._left_ns) - boottime
        self._offset = unix - boottime
        if boottime:
            self._advance(boottime + self._base, frame_position(frame.number), out)

    def _lease(self, said: dict[str, Any]) -> None:
        try:
            number = int(events.text_of(said, "id"), 16)
        except ValueError:
            return
        try:
            identity = identity_from_json(said.get("identity") or {})
        except MalformedInput:
            identity = Identity()
        self._identities[number] = replace(identity, lease_id=f"{number:016x}", method="lease")
        self._identities.move_to_end(number)
        if len(self._identities) > MAX_IDENTITIES:
            self._identities.popitem(last=False)

    def _open(self, frame: Frame, said: dict[str, Any], out: list[Row]) -> None:
        self.node = events.text_of(said, "node") or self.node
        self.source = events.text_of(said, "source") or self.source
        if said.get("identity"):
            try:
                self._identity = replace(identity_from_json(said["identity"]), method="ingest")
            except MalformedInput:
                self._identity = UNBOUND
        boot, ring, position = events.text_of(said, "boot"), events.text_of(said, "ring"), said.get("position")
        if self._boot and boot != self._boot and self._base is not None:
            self._left_ns, self._base = self.wall_ns, None
        if self._ring and ring != self._ring:
            self._ring_gap(frame, {"ring": self._ring, "from": self._ring_end, "new_ring": ring}, out)
            self._ring_end = None
        if self._ring_end is None and isinstance(position, int):
            self._ring_end = position
        self._boot, self._ring = boot, ring

    def _ring_gap(self, frame: Frame, attrs: dict[str, Any], out: list[Row]) -> None:
        bounds = attrs | {"last_record_ns": self.wall_ns}
        out.append(events.ring_lost(self._name, frame, bounds))
        self._blame("ring-lost", "records were lost between the kernel and the journal", attrs, out)

    def _damage(self, damage: Damage, out: list[Row]) -> None:
        out.append(events.journal_gap(self._name, damage, self.wall_ns))
        attrs = {"first_frame": damage.first_frame, "frames": damage.frames}
        self._blame("journal-gap", "a part of the journal can't be read", attrs, out)

    def _blame(self, kind: str, text: str, attrs: dict[str, Any], out: list[Row]) -> None:
        """Something was lost while these sessions were open."""
        self.damaged += 1
        for session in self._sessions:
            session.damaged = True
            session.finding(kind, None, 0, 0, session.last_ns, text, out, attrs)

    # -- records ---------------------------------------------------------------------------------------------------

    def _record(self, position: int, record: Record, data: memoryview, out: list[Row]) -> None:
        now = record.time + (self._base or 0)
        if now > self.now:
            self._advance(now, position, out)
        wall_ns = record.time + (self._offset or 0)
        kind = record.kind
        if kind == Kind.PACKET:
            if record.flags & (RECORD_F_FRAGMENT | RECORD_F_RELATED):
                self._special(position, record, data, wall_ns, out)
            elif record.protocol == TCP:
                self._tcp(position, record, data, wall_ns, out)
            else:
                self._datagram(position, record, data, wall_ns, out)
        elif kind == Kind.REFUSAL:
            out.append(events.refusal(self._name, position, wall_ns, record))
        elif kind == Kind.FLOW_END:
            self._flow_end(position, record, data, wall_ns, out)

    def _special(self, position: int, record: Record, data: memoryview, wall_ns: int, out: list[Row]) -> None:
        if record.flags & RECORD_F_RELATED:
            found = self._sessions.find(key_of(record))
            if found is not None and not found[0].closed and len(data) >= record.header >= 8:
                kind, code = data[record.header - 8], data[record.header - 7]
                found[0].icmp_error(found[1], kind, code, len(data), wall_ns, self.now, out)
                self._sessions.touched(found[0])
                return
            self._datagram(
                position, replace(record, protocol=ICMP if record.family == 4 else ICMP6), data, wall_ns, out
            )
            return
        part = network(data)
        if part is None or not (part.offset or part.more):
            take = self._tcp if record.protocol == TCP else self._datagram
            take(position, record, data, wall_ns, out)
            return
        whole = self._fragments.add(record.source, record.destination, part, data, self.now)
        if whole is None:
            return
        head = transport(part.protocol, whole.data)
        if head is None:
            self._fragments.lost += 1
            return
        record = replace(
            record,
            flags=record.flags & ~RECORD_F_FRAGMENT,
            protocol=part.protocol,
            source_port=head.source_port,
            destination_port=head.destination_port,
            seq=head.seq,
            ack=head.ack,
            tcp_flags=head.flags,
            window=head.window,
            payload=len(whole.data) - head.payload,
            header=head.payload,
        )
        take = self._tcp if part.protocol == TCP else self._datagram
        take(position, record, memoryview(whole.data), wall_ns, out)
        if whole.conflicting:
            self._overlapping(record, whole.conflicting, wall_ns, out)

    def _overlapping(self, record: Record, size: int, wall_ns: int, out: list[Row]) -> None:
        found = self._sessions.find(key_of(record))
        if found is not None:
            text = f"IP fragments overlap with different content ({size} bytes); the first were taken"
            found[0].finding("overlap", found[1], 0, 0, wall_ns, text, out, {"fragments": True, "bytes": size})

    # -- TCP -------------------------------------------------------------------------------------------------------

    def _tcp(self, position: int, record: Record, data: memoryview, wall_ns: int, out: list[Row]) -> None:
        flags, payload, header = record.tcp_flags, record.payload, record.header
        segment = Segment(
            record.seq,
            record.ack,
            flags,
            record.window,
            payload,
            bytes(data[header : header + payload]) if payload else b"",
            window_scale(data) if flags & SYN else None,
        )
        key = key_of(record)
        found = self._sessions.find(key)
        session: TcpSession | None = None
        side = 0
        if found is not None:
            known = found[0]
            assert isinstance(known, TcpSession)  # the protocol is part of the key
            session, side = choose(known, found[1], segment)
            if session is None and known.closed and not payload and not flags & SYN:
                return  # the last acknowledgement of a closed session
            if session is known and record.flow:
                known.flow = record.flow
        if session is None:
            if record.flow:
                side = record.side & 1
            elif flags & SYN:
                side = 1 if flags & ACK else 0
            else:
                side = int(record.source_port < record.destination_port)
            session = TcpSession(
                self._birth(position, record, side, wall_ns), self.settings.max_body, self.settings.max_buffer
            )
            self._begin(session, key, record, side, out)
        session.packet(side, segment, wall_ns, self.now, out)
        self._sessions.touched(session)

    # -- other protocols -------------------------------------------------------------------------------------------

    def _datagram(self, position: int, record: Record, data: memoryview, wall_ns: int, out: list[Row]) -> None:
        start, payload = record.header, record.payload
        if record.protocol in (ICMP, ICMP6):
            start, payload = max(0, start - 8), len(data) - max(0, start - 8)
        key = key_of(record)
        found = self._sessions.find(key)
        if found is not None and isinstance(found[0], DatagramSession) and not found[0].closed:
            session, side = found[0], found[1]
        else:
            side = int(record.protocol == UDP and record.source_port < _WELL_KNOWN <= record.destination_port)
            if record.flow:
                side = record.side & 1
            session = DatagramSession(self._birth(position, record, side, wall_ns), self.settings.max_body)
            self._begin(session, key, record, side, out)
        size = record.gso_size if record.protocol == UDP and record.gso_size else payload  # several joined by GRO
        for at in range(start, start + payload, size) if payload > size > 0 else (start,):
            length = min(size, start + payload - at)
            session.packet(side, bytes(data[at : at + length]), length, wall_ns, self.now, out)
        self._sessions.touched(session)

    # -- the first and the last record of a session ----------------------------------------------------------------

    def _birth(self, position: int, record: Record, side: int, wall_ns: int) -> Birth:
        """A session begins with this record, sent by `side`."""
        sender = (unpack_address(record.source), record.source_port)
        receiver = (unpack_address(record.destination), record.destination_port)
        client, server = (receiver, sender) if side else (sender, receiver)
        identity = self._identity
        if record.lease:
            unknown = Identity(lease_id=f"{record.lease:016x}", method="lease")
            identity = self._identities.get(record.lease, unknown)
        return Birth(
            session_id(self.stream, position, wall_ns),
            wall_ns,
            self.node,
            self.source,
            *client,
            *server,
            events.transport_name(record.protocol),
            identity,
            Lane(record.lane).name.lower() if record.lane in LANES else str(record.lane),
            record.flow,
        )

    def _begin(self, session: AnySession, key: Key, record: Record, side: int, out: list[Row]) -> None:
        self._sessions.begin(session, key, side, self.now, out)
        if record.lease and record.lease not in self._identities:
            text = "the journal that is left does not say whose lease this is"
            session.finding("unknown-lease", None, 0, 0, session.last_ns, text, out)

    def _flow_end(self, position: int, record: Record, data: memoryview, wall_ns: int, out: list[Row]) -> None:
        """The kernel's counters of a flow, and its opinion on how it ended."""
        if len(data) < Flow.SIZE:
            return
        flow = Flow.unpack(data)
        session = self._sessions.of_flow(record.flow, key_of(record))
        if session is None:
            if flow.client.packets or flow.server.packets:
                out.append(events.unknown_flow(self._name, position, wall_ns, record, flow))
        elif session.closed:
            session.flow_end(flow)
            session.revise(out)
        else:
            ending = ENDINGS.get(FlowEnd(flow.end), Ending.IDLE) if flow.end in FLOW_ENDS else Ending.IDLE
            session.kernel_end(flow, ending, self.now)
            session.flush(out)
            self._sessions.touched(session)

    # -- time ------------------------------------------------------------------------------------------------------

    def _advance(self, now: int, position: int, out: list[Row]) -> None:
        """Recorded time moves on to `now`."""
        self.now = max(self.now, now)
        if self.now < self._next_tick:
            return
        self._next_tick = self.now + TICK_NS
        self._sessions.tick(self.now, self.wall_ns, out)
        self._fragments.expire(self.now)
        self._tell_fragments(position, out)

    def _tell_fragments(self, position: int, out: list[Row]) -> None:
        if self._fragments.lost:
            out.append(events.fragments_lost(self._name, position, self.wall_ns, self._fragments.lost))
            self._fragments.lost = 0
