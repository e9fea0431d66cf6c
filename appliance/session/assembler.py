"""From the frames of one journal stream to the rows of its sessions and events.

Pure and picklable: no clock, no file. Recorded time only moves forward; everything that waits for time is looked at by
`_tick`, at most each `TICK_NS` of recorded time and always before the record that moved it, so rows don't depend on how
records were cut into frames.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterator
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
from appliance.session.memory import LOOK_BYTES
from appliance.session.packets import ICMP, ICMP6, STAMP, TCP, UDP, checksum_holds, network, options, transport
from appliance.session.session import ENDINGS, Birth
from appliance.session.sessions import AnySession, Key, Sessions, choose, key_of
from appliance.session.tcp import ACK, RST, SYN, UNUSUAL, URG, Segment, TcpSession
from appliance.wire.abi import (
    RECORD_F_FRAGMENT,
    RECORD_F_GSO,
    RECORD_F_RELATED,
    RECORD_F_UNVERIFIED,
    Flow,
    FlowEnd,
    Kind,
    Lane,
    Record,
    unpack_address,
)
from appliance.wire.clock import CLOCK
from appliance.wire.records import SIZE, scan

VERSION = 3  # of the pickled state
PART_BYTES = 1 << 17  # of a span, that the rows of one part come from
TICK_NS = 100_000_000
STEP_NS = 1_000_000  # by which wall and boot clock may differ from before without one having been set
TOLD_STEP_NS = 10_000_000
MAX_IDENTITIES = 65536  # leases remembered
PACKET = int(Kind.PACKET)
_SPECIAL = RECORD_F_FRAGMENT | RECORD_F_RELATED | RECORD_F_UNVERIFIED
_BARE = {0x45: 40, **dict.fromkeys(range(0x60, 0x70), 60)}  # bytes of headers without options, by the first byte
_STAMP = struct.Struct(">I")
_LENGTH, _TIME = 9, 10  # places among a record's fields
LANES = frozenset(Lane)
FLOW_ENDS = frozenset(FlowEnd)
_WELL_KNOWN = 1024
_HANDED_OUT = range(32768, 61000)  # ip_local_port_range(7)
MAX_SUMMED = 9216  # bytes of the longest packet on an Ethernet; capture files have longer ones put together by cards


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
        self._clocked = False  # that is what a CLOCK frame of this boot said
        self._ring = ""
        self._ring_end: int | None = None
        self._identity = UNBOUND
        self._identities: OrderedDict[int, Identity] = OrderedDict()
        self._sessions = Sessions(settings)
        self._fragments = Fragments()
        self._next_tick = 0
        self._unseen = 0  # bytes of records since memory was looked at
        self._looked = -1  # position of the record before which it was
        self.relieved = 0  # times that memory had to be given up

    # -- what the recorder asks ------------------------------------------------------------------------------------

    @property
    def sessions_open(self) -> int:
        return len(self._sessions)

    @property
    def weight(self) -> int:
        """Bytes of the sessions' state in memory, about."""
        return self._sessions.weight

    def use(self, settings: config.Record) -> None:
        """Go on within these limits: the state may come from a time when others were set."""
        self.settings = settings
        self._sessions.use(settings)

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
        return [row for part in self.parts(frame) for row in part]

    def parts(self, frame: Frame | Damage) -> Iterator[list[Row]]:
        """The same in parts: a span can hold far more in compressed bodies than its own size. Go on to the end."""
        out: list[Row] = []
        if isinstance(frame, Frame) and frame.kind is FrameKind.SPAN:
            for _ in self._span(frame, out):
                self.rows += len(out)
                yield out[:]
                out.clear()
        else:
            self._told(frame, out)
        self.rows += len(out)
        if out:
            yield out

    def _told(self, frame: Frame | Damage, out: list[Row]) -> None:
        """Everything but spans."""
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
            elif frame.kind is FrameKind.CLOSE and self.source != "wire":
                self._fragments.give_up()
                self._tell_fragments(frame_position(frame.number), out)
                self._sessions.end_all(Ending.EOF, self.now, out)

    # -- frames ----------------------------------------------------------------------------------------------------

    def _span(self, frame: Frame, out: list[Row]) -> Iterator[None]:
        """Yields each time that `PART_BYTES` were read."""
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
            payload, first, pause = frame.payload, frame_position(frame.number), PART_BYTES
            view = memoryview(payload)
            for at, fields in scan(frame, start):
                if self._offset is None:
                    self._offset = frame.time_ns - fields[_TIME]
                self._unseen += fields[_LENGTH]
                if self._unseen >= LOOK_BYTES:
                    self._relieve(first + at, out)
                if at >= pause:
                    pause = at + PART_BYTES
                    yield
                if self._usual(first + at, fields, payload, at + SIZE, out):
                    continue
                record = Record(*fields)
                self._record(first + at, record, view[at + SIZE : at + SIZE + record.length], out)
        except DamagedEvidence as error:
            self._damage(Damage(frame.number, None, str(error)), out)

    def _clock(self, frame: Frame, out: list[Row]) -> None:
        if len(frame.payload) != CLOCK.size:
            return
        boottime, unix = CLOCK.unpack(frame.payload)
        if self._base is None:  # the first one after a boot: recorded time goes on by what passed on the wall
            self._base = self.now + max(0, unix - self._left_ns) - boottime
        self._set_clock(frame, unix, boottime, out)
        if boottime:
            self._advance(boottime + self._base, frame_position(frame.number), out)

    def _set_clock(self, frame: Frame, unix: int, boottime: int, out: list[Row]) -> None:
        """Sessions that are open follow the wall clock forward, never back: their times don't run backwards."""
        offset = unix - boottime
        step = 0 if self._offset is None else offset - self._offset
        if self._clocked and abs(step) < STEP_NS:
            return
        if self._clocked and abs(step) >= TOLD_STEP_NS:
            out.append(events.clock_stepped(self._name, frame, step, unix))
        for session in self._sessions:
            session.ahead = max(0, session.ahead - step)
        self._offset, self._clocked = offset, True

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
        last_ns, last_position = self.wall_ns, self._ring_end
        drained = said.get("after") == self._ring and said.get("until") == self._ring_end
        if self._ring and ring != self._ring and drained:
            self._ring_end = None
        elif self._ring and ring != self._ring:
            self._ring_gap(frame, {"ring": self._ring, "from": self._ring_end, "new_ring": ring}, out)
            self._ring_end = None
        if self._boot and boot != self._boot:
            bounds = {"boot": boot, "former_boot": self._boot, "last_ns": last_ns, "first_ns": frame.time_ns}
            places = {"ring": ring, "position": position, "former_ring": self._ring, "former_position": last_position}
            out.append(events.rebooted(self._name, frame, bounds | places))
            self._sessions.end_all(Ending.INTERRUPTED, self.now, out)
            if self._base is not None:
                self._left_ns, self._base = last_ns, None
            self._clocked = False
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

    def _usual(self, position: int, fields: tuple[Any, ...], span: bytes, start: int, out: list[Row]) -> bool:
        """The short way of `_record` for what makes up nearly all traffic: the next segment of a known connection.

        False: it is something else. Time has moved on then, and nothing else has been done.
        """
        _, kind, _, _, _, protocol, _, flags, _, length, time, _, flow, _, source, destination = fields[:16]
        (source_port, destination_port, seq, ack, window, tcp_flags, _, payload, _, _, header, _, _) = fields[16:]
        if kind != PACKET or protocol != TCP or flags & _SPECIAL or tcp_flags & UNUSUAL != ACK:
            return False
        if not 0 < header + payload <= length:
            return False
        options = header - _BARE.get(span[start], 0)  # other lengths have IP options, or extension headers
        if options == 12 and span[start + header - 12 : start + header - 8] == STAMP:
            (stamp,) = _STAMP.unpack_from(span, start + header - 8)
        elif options:
            return False
        else:
            stamp = None
        now = time + (self._base or 0)
        if now > self.now:
            self._advance(now, position, out)
        found = self._sessions.find((source, destination, source_port, destination_port, protocol))
        if found is None:
            return False
        session, side = found
        assert isinstance(session, TcpSession)  # the protocol is part of the key
        if not flow:
            packet = memoryview(span)[start : start + length]
            if not self._summed(session, side, flags, packet, header + payload):
                return False
        data = span[start + header : start + header + payload] if payload else b""
        wall_ns = time + (self._offset or 0) + session.ahead
        if not session.usual(side, seq, ack, window, stamp, data, wall_ns, self.now, out):
            return False
        if flow:
            session.flow = flow
        self._sessions.touched(session)
        return True

    def _special(self, position: int, record: Record, data: memoryview, wall_ns: int, out: list[Row]) -> None:
        if record.flags & RECORD_F_RELATED:
            found = self._sessions.find(key_of(record))
            if found is not None and not found[0].closed and len(data) >= record.header >= 8:
                kind, code = data[record.header - 8], data[record.header - 7]
                found[0].icmp_error(found[1], kind, code, len(data), wall_ns + found[0].ahead, self.now, out)
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
            length=0,  # there is no IP header any more
        )
        take = self._tcp if part.protocol == TCP else self._datagram
        take(position, record, memoryview(whole.data), wall_ns, out)
        if whole.conflicting:
            self._overlapping(record, whole.conflicting, wall_ns, out)

    def _overlapping(self, record: Record, size: int, wall_ns: int, out: list[Row]) -> None:
        found = self._sessions.find(key_of(record))
        if found is not None:
            text = f"IP fragments overlap with different content ({size} bytes); the first were taken"
            at_ns = wall_ns + found[0].ahead
            found[0].finding("overlap", found[1], 0, 0, at_ns, text, out, {"fragments": True, "bytes": size})

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
            None,
        )
        if flags & (SYN | URG) or header != _BARE.get(data[0] if data else 0, 0):
            segment = _annotated(segment, record, data)
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
                side = int(_is_server(record.source_port, record.destination_port))
            session = TcpSession(
                self._birth(position, record, side, wall_ns), self.settings.max_body, self.settings.max_buffer
            )
            self._begin(session, key, record, side, out)
        if not self._summed(session, side, record.flags, data, header + payload):
            segment = segment._replace(fault="bad-checksum")
        session.packet(side, segment, wall_ns + session.ahead, self.now, out)
        self._sessions.touched(session)

    @staticmethod
    def _summed(session: TcpSession, side: int, flags: int, packet: memoryview, length: int) -> bool:
        """Whether the TCP checksum of a packet is right, as far as it can be known; receivers drop it otherwise.

        On the wire the kernel says what nobody has verified. A capture file may hold what network cards complete or put
        together, or be anonymised: there, only a direction whose checksums were right before is held to it.
        """
        if len(packet) < length or flags & RECORD_F_GSO or (session.flow and not flags & RECORD_F_UNVERIFIED):
            return True
        where = network(packet)
        if where is None or not where.start + 20 <= where.end == len(packet):
            return True
        if not session.flow and length > MAX_SUMMED:
            return True
        if checksum_holds(packet, where.start):
            session.summed[side] = True
            return True
        if session.flow:
            return False
        return not session.summed[side] or checksum_holds(packet, where.start, lenient=True)

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
            session.packet(side, bytes(data[at : at + length]), length, wall_ns + session.ahead, self.now, out)
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
        self._relieve(position, out)
        self._fragments.expire(self.now)
        self._tell_fragments(position, out)

    def _relieve(self, position: int, out: list[Row]) -> None:
        """Keep the sessions' memory within its bound; `position`: of the record that comes next."""
        self._unseen = 0
        if position == self._looked:
            return
        self._looked = position
        relief = self._sessions.relieve(self.now, out)
        if relief is not None:
            self.relieved += 1
            out.append(events.memory_short(self._name, position, self.wall_ns, relief, self.settings.max_memory))

    def _tell_fragments(self, position: int, out: list[Row]) -> None:
        if self._fragments.lost:
            out.append(events.fragments_lost(self._name, position, self.wall_ns, self._fragments.lost))
            self._fragments.lost = 0


def _annotated(segment: Segment, record: Record, data: memoryview) -> Segment:
    """With what stands in the options and behind the flag for urgent data."""
    if record.length != len(data):  # put together from fragments: there is no IP header
        return segment
    found = options(data)
    urgent = None
    where = network(data)
    if segment.flags & URG and where is not None and where.start + 20 <= len(data):
        urgent = int.from_bytes(data[where.start + 18 : where.start + 20], "big")
    long = 18 if segment.flags & RST else 5  # bytes of a list that Linux looks through for MD5 and for AO
    return segment._replace(
        fault="malformed-options" if found.broken >= long else "",
        scale=found.scale if segment.flags & SYN else None,
        stamp=found.stamp,
        urgent=urgent,
        selective=found.selective,
        signed=found.signed,
    )


def _is_server(port: int, other: int) -> bool:
    """Which end of a connection is the server where nobody saw it begin: a guess, by the ports.

    Clients have ports of the range that systems hand out, services others, most of them low.
    """
    if min(port, other) < _WELL_KNOWN or (port in _HANDED_OUT) == (other in _HANDED_OUT):
        return port < other
    return other in _HANDED_OUT
