"""From records to sessions: which session a packet belongs to, who is its client, and what is known of its sender.

Nearly all traffic takes the short way, `usual`; what it leaves goes through `record`.
"""

import struct
from collections import OrderedDict
from dataclasses import replace
from typing import Any

from appliance import config
from appliance.model import UNBOUND, Ending, Identity, Row
from appliance.session import bypassed, events
from appliance.session.bypassed import Bypassed
from appliance.session.datagrams import DatagramSession
from appliance.session.fragments import Fragments
from appliance.session.identifiers import MEMORY, MEMORY_BEFORE, session_id
from appliance.session.memory import LOOK_BYTES
from appliance.session.packets import (
    ICMP,
    ICMP6,
    STAMP,
    TCP,
    UDP,
    WELL_KNOWN,
    checksum_holds,
    is_server,
    network,
    transport,
)
from appliance.session.session import ENDINGS, Birth
from appliance.session.sessions import AnySession, Key, Sessions, choose, key_of
from appliance.session.tcp import TcpSession
from appliance.session.tcp_segment import ACK, SYN, UNUSUAL, URG, Segment, annotated
from appliance.session.timeline import Timeline
from appliance.wire.abi import (
    RECORD_F_FRAGMENT,
    RECORD_F_GSO,
    RECORD_F_RELATED,
    RECORD_F_UNVERIFIED,
    Flow,
    Kind,
    Lane,
    Record,
    unpack_address,
)

PACKET = int(Kind.PACKET)
_SPECIAL = RECORD_F_FRAGMENT | RECORD_F_RELATED | RECORD_F_UNVERIFIED
_BARE = {0x45: 40, **dict.fromkeys(range(0x60, 0x70), 60)}  # bytes of headers without options, by the first byte
_STAMP = struct.Struct(">I")
LANES = frozenset(Lane)
MAX_SUMMED = 9216  # bytes of the longest packet on an Ethernet; capture files have longer ones put together by cards


class Arrivals:
    """`identities`: of leases, by number; `identity`: of what has no lease."""

    def __init__(self, stream: bytes, settings: config.Record, node: str) -> None:
        self.stream = stream
        self.settings = settings
        self.node = node
        self.source = "wire"
        self.time = Timeline()
        self.identity = UNBOUND
        self.identities: OrderedDict[int, Identity] = OrderedDict()
        self.relieved = 0  # times that memory had to be given up
        self._name = stream.hex()
        self._sessions = Sessions(settings)
        self._fragments = Fragments()
        self._bypassed = Bypassed()
        self._unseen = 0  # bytes of records since memory was looked at
        self._looked = -1  # position of the event that would have told of that

    def __len__(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    @property
    def weight(self) -> int:
        """Bytes of the sessions' state in memory, about."""
        return self._sessions.weight

    @property
    def held_bytes(self) -> int:
        """Captured bytes held in memory outside of dissectors; walks over all sessions."""
        return sum(session.held_bytes for session in self._sessions)

    def use(self, settings: config.Record) -> None:
        """Work within these limits from now on."""
        self.settings = settings
        self._sessions.use(settings)

    def record(self, position: int, record: Record, data: memoryview, out: list[Row]) -> None:
        now = record.time + (self.time.base or 0)
        if now > self.time.now:
            self.advance(now, position, out)
        wall_ns = record.time + (self.time.offset or 0)
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

    def usual(self, position: int, fields: tuple[Any, ...], span: bytes, start: int, out: list[Row]) -> bool:
        """The short way of `record` for what makes up nearly all traffic: the next segment of a known connection.

        False: it is something else. Time has moved on then, and nothing else has been done.
        """
        (
            _, kind, _, _, _, protocol, _, flags, _, length, time, _, flow, _, source, destination,
            source_port, destination_port, seq, ack, window, tcp_flags, _, payload, _, _, header, _, _,
        ) = fields  # fmt: skip
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
        clock = self.time
        now = time + (clock.base or 0)
        if now > clock.now:
            if now < clock.next_tick:
                clock.now = now
            else:
                self.advance(now, position, out)
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
        wall_ns = time + (clock.offset or 0) + session.ahead
        if not session.usual(side, seq, ack, window, stamp, data, wall_ns, clock.now, out):
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
                found[0].icmp_error(found[1], kind, code, len(data), wall_ns + found[0].ahead, self.time.now, out)
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
        whole = self._fragments.add(record.source, record.destination, part, data, self.time.now)
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
            segment = annotated(segment, record, data)
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
                side = int(is_server(record.source_port, record.destination_port))
            session = TcpSession(
                self._birth(position, record, side, wall_ns), self.settings.max_body, self.settings.max_buffer
            )
            self._begin(session, key, position, record, side, out)
        if not self._summed(session, side, record.flags, data, header + payload):
            segment = segment._replace(fault="bad-checksum")
        session.packet(side, segment, wall_ns + session.ahead, self.time.now, out)
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
            side = int(record.protocol == UDP and record.source_port < WELL_KNOWN <= record.destination_port)
            if record.flow:
                side = record.side & 1
            session = DatagramSession(self._birth(position, record, side, wall_ns), self.settings.max_body)
            self._begin(session, key, position, record, side, out)
        size = record.gso_size if record.protocol == UDP and record.gso_size else payload  # several joined by GRO
        for at in range(start, start + payload, size) if payload > size > 0 else (start,):
            length = min(size, start + payload - at)
            session.packet(side, bytes(data[at : at + length]), length, wall_ns + session.ahead, self.time.now, out)
        self._sessions.touched(session)

    # -- the first and the last record of a session ----------------------------------------------------------------

    def _birth(self, position: int, record: Record, side: int, wall_ns: int) -> Birth:
        """A session begins with this record, sent by `side`."""
        sender = (unpack_address(record.source), record.source_port)
        receiver = (unpack_address(record.destination), record.destination_port)
        client, server = (receiver, sender) if side else (sender, receiver)
        identity = self.identity
        if record.lease:
            unknown = Identity(lease_id=f"{record.lease:016x}", method="lease")
            identity = self.identities.get(record.lease, unknown)
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

    def _begin(self, session: AnySession, key: Key, position: int, record: Record, side: int, out: list[Row]) -> None:
        if self._sessions.full:
            self._relieve(position + MEMORY, out)
        self._sessions.begin(session, key, side, self.time.now, out)
        if record.lease and record.lease not in self.identities:
            text = "the journal that is left does not say whose lease this is"
            session.finding("unknown-lease", None, 0, 0, session.last_ns, text, out)
        session.began = record.time + (self.time.base or 0)
        if (bounds := self._bypassed.at(session.began)) is not None:
            session.bypassed = True
            session.blame(bypassed.KIND, bypassed.TEXT, bounds.attrs, out)

    def _flow_end(self, position: int, record: Record, data: memoryview, wall_ns: int, out: list[Row]) -> None:
        """The kernel's counters of a flow, and its opinion on how it ended."""
        if len(data) < Flow.SIZE:
            return
        flow = Flow.unpack(data)
        session = self._sessions.of_flow(record.flow, key_of(record))
        if session is None:
            if (flow.client.packets or flow.server.packets) and not self._sessions.knew(record.flow):
                tell = events.relayed_flow if flow.lane == Lane.RELAY else events.unknown_flow
                out.append(tell(self._name, position, wall_ns, record, flow))
        elif session.closed:
            session.flow_end(flow)
            session.revise(out)
        else:
            session.kernel_end(flow, ENDINGS.get(flow.end, Ending.IDLE), self.time.now)
            session.flush(out)
            self._sessions.touched(session)

    # -- time ------------------------------------------------------------------------------------------------------

    def advance(self, now: int, position: int, out: list[Row]) -> None:
        """Recorded time moves on to `now`, before the record or frame at `position`."""
        if not self.time.advance(now):
            return
        self._sessions.tick(self.time.now, self.time.wall_ns, out)
        self._relieve(position + MEMORY_BEFORE, out)
        self._fragments.expire(self.time.now)
        self._tell_fragments(position, out)

    def passed(self, size: int, position: int, out: list[Row]) -> None:
        """A record of `size` bytes comes next, at `position`: look at memory from time to time."""
        self._unseen += size
        if self._unseen >= LOOK_BYTES:
            self._relieve(position + MEMORY_BEFORE, out)

    def end(self, position: int, out: list[Row]) -> None:
        """Nothing will come any more."""
        self._fragments.give_up()
        self._tell_fragments(position, out)
        self._sessions.end_all(Ending.EOF, self.time.now, out)

    def interrupt(self, out: list[Row]) -> None:
        """A boot ended: so did all sessions."""
        self._sessions.end_all(Ending.INTERRUPTED, self.time.now, out)

    def set_clock(self, step_ns: int) -> None:
        """The wall clock was set by so much. Open sessions follow it forward, never back: their times only grow."""
        for session in self._sessions:
            session.ahead = max(0, session.ahead - step_ns)

    def blame(self, kind: str, text: str, attrs: dict[str, Any], out: list[Row]) -> None:
        """Something was lost while these sessions were open."""
        for session in self._sessions:
            session.damaged = True
            session.blame(kind, text, attrs, out)

    def unguarded(self, said: dict[str, Any], out: list[Row]) -> None:
        """Packets may have passed without a record, between bounds that the event says."""
        bounds = self._bypassed.add(said, self.time.base or 0)
        if bounds is not None:
            for session in self._sessions.within(bounds.since, bounds.until):
                session.bypassed = True
                session.blame(bypassed.KIND, bypassed.TEXT, bounds.attrs, out)

    def _relieve(self, position: int, out: list[Row]) -> None:
        """Keep the sessions' memory within its bound; `position`: of the event that tells of it."""
        self._unseen = 0
        if position == self._looked:
            return
        self._looked = position
        relief = self._sessions.relieve(self.time.now, out)
        if relief is not None:
            self.relieved += 1
            out.append(events.memory_short(self._name, position, self.time.wall_ns, relief, self.settings.max_memory))

    def _tell_fragments(self, position: int, out: list[Row]) -> None:
        if self._fragments.lost:
            out.append(events.fragments_lost(self._name, position, self.time.wall_ns, self._fragments.lost))
            self._fragments.lost = 0
