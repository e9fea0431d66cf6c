"""What user space tells the program: rules, leases, local addresses and the stall flag, as entries of kernel maps.

The entries are computed by pure functions and brought into the (pinned) maps by difference: entries that should be
there are written before others are deleted, so that a restart has no moment in which a known flow is refused.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network

from appliance import config
from appliance.errors import MalformedInput, Unavailable
from appliance.identity.leases import Lease
from appliance.wire.abi import (
    Lane,
    LeaseValue,
    NetworkKey,
    Role,
    RuleKey,
    RuleValue,
    pack_address,
)
from appliance.wire.bpf import Map

U32 = struct.Struct("=I")
PRESENT = U32.pack(1)
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
LANES = {"tap": Lane.TAP, "relay": Lane.RELAY, "refuse": Lane.REFUSE}
MAX_RULES = 1024
MAX_NETWORKS = 16384  # routes that are told to the program
REMEDIES = {  # when a map is full
    "leases": "raise wire.max_leases",
    "interfaces": "name fewer interfaces in wire.agents and wire.upstream",
    "locals": "take addresses off the gateway's interfaces",
}
RULE_HEAD_BITS = 32  # bits of struct rule_key between prefixlen and network

Entries = Mapping[bytes, bytes]


def rule_entries(rules: Sequence[config.Rule]) -> dict[bytes, bytes]:
    """Map `rules`: struct rule_key → struct rule, numbered from 1 in the order of the configuration.

    Rules that differ by the host's name only are one entry where one of them is for a relay: it hears the name. The
    entry bears the number of the rule without a name if there is one, and needs no lease if one of those for relays
    needs none; the relay then asks for what each rule says. A name in other lanes has no entry here.

    The longest networks come first: while they are brought into the map, a part that a wider rule leaves out is closed
    before that one is there. Raises `MalformedInput` for two rules about the same destination, host, port and protocol.
    """
    if len(rules) > MAX_RULES:
        raise MalformedInput(f"rules: {len(rules)} are too many; write at most {MAX_RULES}")
    same: dict[bytes, dict[str, tuple[int, config.Rule]]] = {}
    prefixes: dict[bytes, int] = {}
    for number, rule in enumerate(rules, 1):
        for network in rule.networks():
            key, prefix = rule_key(network, rule.protocol, rule.port)
            hosts = same.setdefault(key, {})
            if rule.host in hosts:
                name = rule.to or rule.host
                raise MalformedInput(f"rules: number {number} ({name}) repeats an earlier one; remove one of the two")
            hosts[rule.host] = number, rule
            prefixes[key] = prefix
    entries = {key: value for key, hosts in same.items() if (value := _rule_value(hosts, prefixes[key])) is not None}
    return dict(sorted(entries.items(), key=lambda entry: -U32.unpack_from(entry[0])[0]))


def rule_key(network: IPv4Network | IPv6Network, protocol: str, port: int) -> tuple[bytes, int]:
    """struct rule_key, and the network's prefix among IPv6's."""
    v4 = isinstance(network, IPv4Network)
    numbers = {"any": 0, "tcp": TCP, "udp": UDP, "icmp": ICMP if v4 else ICMPV6}
    prefix = network.prefixlen + (96 if v4 else 0)
    key = RuleKey(
        prefixlen=RULE_HEAD_BITS + prefix,
        family=network.version,
        protocol=numbers[protocol],
        port=port.to_bytes(2, "big"),
        network=pack_address(network.network_address),
    )
    return key.pack(), prefix


def _rule_value(hosts: Mapping[str, tuple[int, config.Rule]], prefix: int) -> bytes | None:
    """struct rule of rules that differ by the host; None: only names, and none for a relay."""
    relayed = [(number, rule) for number, rule in hosts.values() if rule.lane == "relay"]
    if not relayed and "" not in hosts:
        return None
    number, rule = hosts.get("", relayed[0] if relayed else (0, None))
    assert rule is not None
    lane = Lane.RELAY if relayed else LANES[rule.lane]
    unbound = any(one.unbound for _, one in relayed) if relayed else rule.unbound
    return RuleValue(id=number, lane=lane, unbound=unbound, prefix=prefix).pack()


def rules_number(entries: Entries, program: bytes, hosts: Sequence[str] = ()) -> int:
    """Names the content of map `rules` for flows that remember its answer: even, never 0, the same for the same.

    `program`: what judges by them, as `meta` names it; `hosts`: that rules name, whose addresses are learnt.
    """
    parts = [program, *(key + value for key, value in sorted(entries.items())), *map(str.encode, hosts)]
    content = sha256(b"".join(parts)).digest()
    return int.from_bytes(content[:4], "little") & ~1 or 2


def lease_entries(leases: Iterable[Lease], indexes: Mapping[str, int]) -> dict[bytes, bytes]:
    """Map `leases`: address → struct lease with its end in CLOCK_BOOTTIME.

    `indexes`: of the agent-facing interfaces by name; a lease whose interface is not among them is left out.
    """
    return {
        pack_address(lease.address): LeaseValue(
            lease.number, lease.deadline_ns, indexes[lease.interface], bytes.fromhex(lease.link.replace(":", ""))
        ).pack()
        for lease in leases
        if lease.interface in indexes
    }


def local_entries(addresses: Iterable[str]) -> dict[bytes, bytes]:
    """Map `locals`: the gateway's own addresses."""
    return {pack_address(address): PRESENT for address in addresses}


def network_entries(networks: Mapping[IPv4Network | IPv6Network, int]) -> dict[bytes, bytes]:
    """Map `networks`: struct network_key → interface index. The longest prefixes, where there are too many."""
    most = sorted(networks, key=lambda network: -network.prefixlen - 96 * (network.version == 4))[:MAX_NETWORKS]
    return {
        NetworkKey(network.prefixlen + 96 * (network.version == 4), pack_address(network.network_address)).pack():
        U32.pack(networks[network])
        for network in most
    }  # fmt: skip


def interface_entries(indexes: Mapping[int, Role]) -> dict[bytes, bytes]:
    """Map `interfaces`: interface index → role."""
    return {U32.pack(index): U32.pack(role) for index, role in indexes.items()}


def reopening_level(settings: config.Wire) -> int:
    """Bytes in the ring below which windows open again: a little less than where `bpf/clamp.h` holds some, or all."""
    clamp = settings.ring_bytes * settings.clamp
    return int(min(clamp + (settings.ring_bytes - clamp) / 4, settings.ring_bytes * 0.6))


def reconcile(target: Map, wanted: Entries, name: str) -> tuple[bytes, ...]:
    """Make `target` hold exactly `wanted`; gives back the keys that were deleted: last, but where the map is full.

    Raises `Unavailable` when the kernel's map is full all the same.
    """
    there = dict(target.items())
    fresh = {key: value for key, value in wanted.items() if there.get(key) != value}
    stale = tuple(key for key in there if key not in wanted)
    if len(there) + len(fresh.keys() - there.keys()) > target.max_entries:
        _delete(target, stale)
    for key, value in fresh.items():
        put(target, key, value, name)
    _delete(target, stale)
    return stale


def _delete(target: Map, keys: Iterable[bytes]) -> None:
    for key in keys:
        target.delete(key)


def put(target: Map, key: bytes, value: bytes, name: str) -> None:
    """Set an entry. Raises `Unavailable` when the map is full."""
    try:
        target.update(key, value)
    except OSError as error:
        remedy = REMEDIES.get(name, "let it hold less")
        room = f"it has room for {target.max_entries} entries"
        raise Unavailable(f"kernel map {name}: {error.strerror or error}, {room}; {remedy}") from error
