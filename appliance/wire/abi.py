"""Mirror of `bpf/wire.h`: the record in the ring and the values of the maps, packed and unpacked.

Little-endian, as on every machine that the appliance supports. The names are those of the C header, which documents
each field. `tests/wire/test_abi.py` compares names, offsets and sizes with what the C compiler makes of the header.
"""

import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, ClassVar, Self

ABI = 1


class Kind(IntEnum):
    PACKET = 1
    REFUSAL = 2
    FLOW_END = 3


class Lane(IntEnum):
    REFUSE = 0
    TAP = 1
    RELAY = 2


class Side(IntEnum):
    CLIENT = 0
    SERVER = 1


class Role(IntEnum):
    AGENT = 1
    UPSTREAM = 2


class Reason(IntEnum):
    NONE = 0
    RING_FULL = 1
    JOURNAL_FULL = 2
    FLOWS_FULL = 3
    NO_FLOW = 4
    MALFORMED = 5
    FRAGMENT = 6
    IMPOSTOR = 7
    FLOW_SHARE = 8
    RING_SHARE = 9
    SPOOFED = 10
    GATEWAY = 11
    RELAY = 12
    NO_NAME = 13
    NO_LEASE = 16
    LEASE_EXPIRED = 17
    LEASE_CHANGED = 18
    NO_RULE = 19
    RULE = 20
    RELAY_LOST = 21
    QUIC = 22
    PROTOCOL = 23
    INBOUND = 24
    UNREADABLE = 25
    TUNNEL = 26


class Counter(IntEnum):
    """Indices of the map `counters` that are no `Reason`."""

    PACKETS = 32
    BYTES = 33
    LOCAL = 34
    FOREIGN = 35
    NO_ROLE = 36
    UNREPORTED = 37
    CLAMPED = 38
    HELD = 39
    UNTOLD = 40
    TOLD = 72


COUNTER_COUNT = 104


class MapIndex(IntEnum):
    """How the program numbers its maps; the lower-case names are those of `Program.maps` and of the pins."""

    LEASES = 0
    RULES = 1
    INTERFACES = 2
    LOCALS = 3
    FLOWS = 4
    COUNTERS = 5
    REFUSALS = 6
    SETTINGS = 7
    RING = 8
    SCRATCH = 9
    META = 10
    QUOTAS = 11
    RELEASED = 12
    BUDGET = 13
    NETWORKS = 14
    HELD = 15
    PRESSURE = 16
    RELAYS = 17
    LEGS = 18
    ANSWERS = 19


class FlowEnd(IntEnum):
    LIVE = 0
    FIN = 1
    RST = 2
    IDLE = 3
    CUT = 4


RECORD_F_VLAN = 0x01
RECORD_F_GSO = 0x02
RECORD_F_FRAGMENT = 0x04
RECORD_F_UNBOUND = 0x08
RECORD_F_CUT = 0x10
RECORD_F_RELATED = 0x20
RECORD_F_UNVERIFIED = 0x40

SIDE_F_SYN = 0x01
SIDE_F_FIN = 0x02
SIDE_F_RST = 0x04
SIDE_F_ACKED = 0x08
SIDE_F_SEEN = 0x10

MARK_RECORDED = 0x56420001
MARK_REFUSED = 0x56420002
MARK_STEERED = 0x56420003

RELAYS_MAX = 64
ANSWER_BYTES = 1232

LEG_F_TRANSPARENT = 0x01
LEG_F_UNBOUND = 0x02


def pack_address(address: str | IPv4Address | IPv6Address) -> bytes:
    """16 bytes in network order; IPv4 as v4-mapped IPv6 (RFC 4291 §2.5.5.2)."""
    parsed = ip_address(address) if isinstance(address, str) else address
    return parsed.packed if parsed.version == 6 else b"\0" * 10 + b"\xff\xff" + parsed.packed


def unpack_address(packed: bytes) -> str:
    """The usual text form; a v4-mapped address as dotted IPv4."""
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address)


class Packed:
    """A dataclass whose fields are those of a C struct without padding, in order."""

    LAYOUT: ClassVar[struct.Struct]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        return cls(*cls.LAYOUT.unpack_from(data, offset))

    def pack(self) -> bytes:
        return self.LAYOUT.pack(*(getattr(self, field.name) for field in fields(self)))


@dataclass(slots=True)
class Record(Packed):
    """struct record. What follows it: `length` bytes."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<8BIIQQQQ16s16sHHIIHBBIHHHHI")

    version: int
    kind: int
    lane: int
    side: int
    family: int
    protocol: int
    reason: int
    flags: int
    ifindex: int
    length: int
    time: int
    lease: int
    flow: int
    count: int
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    seq: int
    ack: int
    window: int
    tcp_flags: int
    reserved: int
    payload: int
    gso_size: int
    gso_segs: int
    header: int
    vlan: int
    spare: int = 0


@dataclass(slots=True)
class SideState(Packed):
    """struct side_state."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQQQIIIBBH")

    packets: int = 0
    bytes: int = 0
    refused: int = 0
    refused_bytes: int = 0
    isn: int = 0
    next: int = 0
    acked: int = 0
    flags: int = 0
    scale: int = 0
    reserved: int = 0


@dataclass(slots=True)
class FlowKey(Packed):
    """struct flow_key."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<16s16sHHBBH")

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    protocol: int
    family: int
    reserved: int = 0


@dataclass(slots=True)
class Flow:
    """struct flow: the head, then one `SideState` per side."""

    HEAD: ClassVar[struct.Struct] = struct.Struct("<QQQIBBBB")
    SIZE: ClassVar[int] = 32 + 2 * SideState.LAYOUT.size

    start: int
    last: int
    lease: int
    rule: int
    lane: int
    end: int
    flags: int
    client: SideState
    server: SideState
    reported: int = 0

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        start, last, lease, rule, lane, end, flags, reported = cls.HEAD.unpack_from(data, offset)
        first = offset + cls.HEAD.size
        client, server = SideState.unpack(data, first), SideState.unpack(data, first + SideState.LAYOUT.size)
        return cls(start, last, lease, rule, lane, end, flags, client, server, reported)

    def pack(self) -> bytes:
        head = (self.start, self.last, self.lease, self.rule, self.lane, self.end, self.flags, self.reported)
        return self.HEAD.pack(*head) + self.client.pack() + self.server.pack()


@dataclass(slots=True)
class Window(Packed):
    """struct window. In map `flows` two of them follow the `Flow`."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIIIIHBB")

    edge: int
    promised: int
    tick: int
    recent: int
    before: int
    mss: int
    flags: int
    reserved: int = 0


TRACKED_BYTES = Flow.SIZE + 2 * Window.LAYOUT.size + 8  # struct tracked, the value of map `flows`


@dataclass(slots=True)
class Held(Packed):
    """struct held."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IHHHH120s")

    seq: int
    window: int
    length: int
    transport: int
    reserved: int
    header: bytes


@dataclass(slots=True)
class Pressure(Packed):
    """struct pressure."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIIIQ")

    tick: int
    now: int
    before: int
    pressed: int
    held: int


@dataclass(slots=True)
class LeaseValue(Packed):
    """struct lease. `expires` in ns of CLOCK_BOOTTIME."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQI6sHI")

    id: int
    expires: int
    ifindex: int = 0
    link: bytes = bytes(6)
    reserved: int = 0
    spare: int = 0


@dataclass(slots=True)
class RelayValue(Packed):
    """struct relay."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QH6s")

    worker: int
    port: int
    reserved: bytes = bytes(6)


@dataclass(slots=True)
class Leg:
    """struct leg: the head, then one `SideState` per side; the relay is the client."""

    HEAD: ClassVar[struct.Struct] = struct.Struct("<QQQII")
    SIZE: ClassVar[int] = HEAD.size + 2 * SideState.LAYOUT.size

    start: int
    last: int
    worker: int
    flags: int
    client: SideState
    server: SideState

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        start, last, worker, flags, _ = cls.HEAD.unpack_from(data, offset)
        first = offset + cls.HEAD.size
        client, server = SideState.unpack(data, first), SideState.unpack(data, first + SideState.LAYOUT.size)
        return cls(start, last, worker, flags, client, server)

    def pack(self) -> bytes:
        head = self.HEAD.pack(self.start, self.last, self.worker, self.flags, 0)
        return head + self.client.pack() + self.server.pack()


@dataclass(slots=True)
class RuleKey(Packed):
    """struct rule_key. `port` is two bytes in network order; `prefixlen` counts the 32 bits before the address and, for
    IPv4, the 96 bits of the v4-mapped prefix."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IBB2s16s")

    prefixlen: int
    family: int
    protocol: int
    port: bytes
    network: bytes


@dataclass(slots=True)
class RuleValue(Packed):
    """struct rule."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IBBBB")

    id: int
    lane: int
    unbound: int
    prefix: int
    reserved: int = 0


@dataclass(slots=True)
class RefusalKey(Packed):
    """struct refusal_key."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<16sII")

    source: bytes
    reason: int
    reserved: int = 0


@dataclass(slots=True)
class RefusalValue(Packed):
    """struct refusal."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQ")

    recorded: int
    count: int


@dataclass(slots=True)
class Owner(Packed):
    """struct owner."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<16s")

    name: bytes


@dataclass(slots=True)
class Quota(Packed):
    """struct quota."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQQQ")

    opened: int
    mark: int = 0
    before: int = 0
    since: int = 0


@dataclass(slots=True)
class NetworkKey(Packed):
    """struct network_key."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<I16s")

    prefixlen: int
    network: bytes


@dataclass(slots=True)
class Budget(Packed):
    """struct budget."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQ")

    second: int
    used: int


@dataclass(slots=True)
class Meta(Packed):
    """struct meta."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<II16s32s")

    abi: int
    reserved: int
    ring: bytes
    program: bytes


@dataclass(slots=True)
class SettingsValue(Packed):
    """struct settings."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIQII16sIIII16s")

    stalled: int
    refusal_rate: int
    refusal_interval: int
    max_flows: int
    max_flows_per_lease: int
    ports: bytes = bytes(16)
    ring: int = 0
    clamp: int = 0
    rules: int = 0
    names: int = 0
    proxies: bytes = bytes(16)
