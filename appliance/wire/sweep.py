"""What the program leaves for user space to finish: flows that nobody ended, and bursts of refusals that stopped.

The program writes FLOW_END and REFUSAL records itself while packets come. A flow that fell silent, or whose lease is
gone, sends none any more; the ring may have had no room for a FLOW_END; and the last refusals of a burst wait in their
map for a next packet. Their records are made here, for the journal's PLAIN layout.

A sweep surveys the maps in small steps, so that the ring can be drained in between, and then ends what seemed over, a
slice at a time: each entry is looked at once more, its records are journaled, and it is deleted if it is still the
same, since a client may use the ports of an ended flow again at any moment.
"""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field

from appliance import config
from appliance.wire.abi import (
    ABI,
    SIDE_F_ACKED,
    SIDE_F_SEEN,
    Flow,
    FlowEnd,
    FlowKey,
    Kind,
    Record,
    RefusalKey,
    RefusalValue,
    Side,
    SideState,
)
from appliance.wire.bpf import Map
from appliance.wire.quotas import Quotas
from appliance.wire.records import plain

LINGER = 5_000_000_000  # ns for which an ended flow stays known, for its last retransmissions
HASTE = 1_000_000_000  # the same while the table is crowded
CROWDED = 4  # is it while more than one part in so many of it is taken
STEP = 1024  # entries looked at in one go
SLICE = 256  # entries ended in one go
CUTS = 64  # flows cut in one go
NOWHERE = bytes(16)
PROTOCOL = 36  # offset of flow_key.protocol
SERVER_SIDE = Flow.HEAD.size + SideState.LAYOUT.size
ANSWERED = SIDE_F_SEEN | SIDE_F_ACKED
TCP = 6


@dataclass(frozen=True, slots=True)
class Terms:
    """When a flow is over. Times in ns of CLOCK_BOOTTIME; `cut`: leases that ended more than `LINGER` ago."""

    now: int
    flow_idle: int
    datagram_idle: int
    unanswered_idle: int
    cut: Set[int] = frozenset()
    linger: int = LINGER


@dataclass(slots=True)
class Swept:
    """Records to journal, in PLAIN layout, and the entries of `flows` and `refusals` to delete afterwards."""

    records: list[bytes] = field(default_factory=list)
    flows: list[tuple[bytes, bytes]] = field(default_factory=list)
    refusals: list[tuple[bytes, bytes]] = field(default_factory=list)

    def spans(self, limit: int) -> Iterator[bytes]:
        """The records as payloads of at most `limit` bytes each."""
        span = bytearray()
        for record in self.records:
            if span and len(span) + len(record) > limit:
                yield bytes(span)
                span.clear()
            span += record
        if span:
            yield bytes(span)


def ending(key: bytes, value: bytes, terms: Terms) -> FlowEnd:
    """How the flow of this entry ended, long enough ago to be forgotten; LIVE: not so."""
    _, last, lease, _, _, end, _, _ = Flow.HEAD.unpack_from(value)
    silence = terms.now - last
    if end != FlowEnd.LIVE:
        return FlowEnd(end) if silence >= terms.linger else FlowEnd.LIVE
    if lease in terms.cut:
        return FlowEnd.CUT
    idle = terms.flow_idle if key[PROTOCOL] == TCP else terms.datagram_idle
    if terms.unanswered_idle <= silence < idle and not is_answered(key, value):
        return FlowEnd.IDLE
    return FlowEnd.IDLE if silence >= idle else FlowEnd.LIVE


def is_answered(key: bytes, value: bytes) -> bool:
    """Whether the server said anything, and a TCP client went on after that: a half-open connection is none."""
    server = SideState.unpack(value, SERVER_SIDE)
    if key[PROTOCOL] != TCP:
        return server.packets > 0
    return server.flags & ANSWERED == ANSWERED


def flow_end(key: bytes, value: bytes, end: FlowEnd, now_ns: int) -> bytes | None:
    """The FLOW_END record that is still owed for this entry; None: the program has written it."""
    named, flow = FlowKey.unpack(key), Flow.unpack(value)
    if flow.reported:
        return None
    flow.end, flow.reported = end, 1
    statement = flow.pack()
    record = _record(Kind.FLOW_END, now_ns, named.source, named.destination)
    record.lane = flow.lane
    record.side = Side.CLIENT
    record.family = named.family
    record.protocol = named.protocol
    record.flags = flow.flags
    record.length = len(statement)
    record.lease = flow.lease
    record.flow = flow.start
    record.source_port = named.source_port
    record.destination_port = named.destination_port
    return plain(record, statement)


def refusals(key: bytes, value: bytes, now_ns: int, interval_ns: int) -> bytes | None:
    """The REFUSAL record of a burst that no further packet carried out; None: there is none. Destination unknown."""
    named, refusal = RefusalKey.unpack(key), RefusalValue.unpack(value)
    if not refusal.count or now_ns - refusal.recorded < 2 * interval_ns:
        return None
    record = _record(Kind.REFUSAL, now_ns, named.source, NOWHERE)
    record.reason = named.reason & 0xFF
    record.count = refusal.count
    return plain(record, b"")


class Sweeper:
    """Sweeps the kernel's maps `flows` and `refusals`. `alive`: flows that the last survey found."""

    def __init__(self, flows: Map, refusals: Map, quotas: Quotas, settings: config.Wire) -> None:
        self._flows = flows
        self._refusals = refusals
        self._quotas = quotas
        self._found = 0  # by the last survey
        self._max_flows = settings.max_flows
        self._flow_idle = int(settings.flow_idle * 1e9)
        self._datagram_idle = int(settings.datagram_idle * 1e9)
        self._unanswered_idle = int(settings.unanswered_idle * 1e9)
        self._interval = int(settings.refusal_interval * 1e9)
        self._gone: dict[int, int] = {}  # leases not in force that flows bear: since when
        self._over: list[bytes] = []  # keys of flows, from the end on
        self._bursts: list[bytes] = []  # keys of refusals
        self._orphans: list[bytes] = []  # live TCP flows whose lease is not in force
        self.alive = 0

    @property
    def crowded(self) -> bool:
        """Whether the table of flows is so full that it should be looked through more often."""
        return self._found * CROWDED > self._max_flows

    def survey(self, live: Set[int], now_ns: int) -> Iterator[None]:
        """Find what seems over, `STEP` entries from one yield to the next. `live`: numbers of the leases in force."""
        terms = self._terms(now_ns)
        leases: set[int] = set()
        self._over.clear()
        self._orphans.clear()
        self._bursts.clear()
        count = 0
        self._quotas.begin(now_ns)
        for count, (key, value) in enumerate(self._flows.items(), 1):
            if ending(key, value, terms) is not FlowEnd.LIVE:
                self._over.append(key)
            start, _, lease, _, _, end, _, _ = Flow.HEAD.unpack_from(value)
            self._quotas.seen(key, lease, start)
            leases.add(lease)
            if lease and lease not in live and end == FlowEnd.LIVE and key[PROTOCOL] == TCP:
                self._orphans.append(key)
            if count % STEP == 0:
                yield
        self._quotas.settle()
        self._found = count
        self.alive = count - len(self._over)
        self._gone = {lease: self._gone.get(lease, now_ns) for lease in leases - live - {0}}
        for seen, (key, value) in enumerate(self._refusals.items(), 1):
            if refusals(key, value, now_ns, self._interval):
                self._bursts.append(key)
            if seen % STEP == 0:
                yield

    def cut(self, live: Callable[[], Set[int]], reset: Callable[[FlowKey, Flow], None]) -> Iterator[None]:
        """`reset` what lost its lease, as the last survey found, `CUTS` flows from one yield to the next.

        `live`: numbers of the leases in force by now; a flow of one that came since is left alone.
        """
        for start in range(0, len(self._orphans), CUTS):
            yield
            spared = live()
            for key in self._orphans[start : start + CUTS]:
                value = self._flows.lookup(key)
                if value is not None and (flow := Flow.unpack(value)).lease not in spared and not flow.end:
                    reset(FlowKey.unpack(key), flow)

    @property
    def unfinished(self) -> bool:
        """Whether the last survey found more than was finished since."""
        return bool(self._over or self._bursts)

    def finish(self, now_ns: int) -> Swept:
        """Look again at a slice of what seemed over; when the ring is drained, so that a flow's end comes last."""
        terms = self._terms(now_ns)
        swept = Swept()
        for key in _taken(self._over):
            value = self._flows.lookup(key)
            if value is None or (end := ending(key, value, terms)) is FlowEnd.LIVE:
                continue
            swept.flows.append((key, value))
            if record := flow_end(key, value, end, now_ns):
                swept.records.append(record)
        for key in _taken(self._bursts):
            value = self._refusals.lookup(key)
            if value is not None and (record := refusals(key, value, now_ns, self._interval)):
                swept.refusals.append((key, value))
                swept.records.append(record)
        return swept

    def forget(self, swept: Swept) -> None:
        """Delete what was journaled, but for what has gone on meanwhile."""
        gone = []
        for key, value in swept.flows:
            if self._flows.lookup(key) == value and self._flows.delete(key):
                gone.append((key, int(Flow.HEAD.unpack_from(value)[2])))
        self._quotas.release(gone)
        for key, value in swept.refusals:
            if self._refusals.lookup(key) == value:
                self._refusals.delete(key)

    def _terms(self, now_ns: int) -> Terms:
        cut = frozenset(lease for lease, since in self._gone.items() if now_ns - since >= LINGER)
        linger = HASTE if self.crowded else LINGER
        return Terms(now_ns, self._flow_idle, self._datagram_idle, self._unanswered_idle, cut, linger)


def _taken(keys: list[bytes]) -> list[bytes]:
    """The next slice, which is gone from `keys` then."""
    slice_, keys[-SLICE:] = keys[-SLICE:], []
    return slice_


def _record(kind: Kind, time: int, source: bytes, destination: bytes) -> Record:
    return Record(
        version=ABI, kind=kind, lane=0, side=0, family=0, protocol=0, reason=0, flags=0, ifindex=0, length=0,
        time=time, lease=0, flow=0, count=0, source=source, destination=destination, source_port=0,
        destination_port=0, seq=0, ack=0, window=0, tcp_flags=0, reserved=0, payload=0, gso_size=0, gso_segs=0,
        header=0, vlan=0,
    )  # fmt: skip
