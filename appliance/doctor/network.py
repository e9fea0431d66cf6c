"""Sysctls and interfaces: what the kernel does with packets before and after the program.

Values are those of this network namespace (proc_sys_net(5), Documentation/networking/ip-sysctl.rst says how `all` and
an interface's own value combine).
"""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.ethtool import Ethtool

from appliance.config import Settings
from appliance.doctor.finding import Check, Finding, Level
from appliance.overview import Said

SYSCTL = Path("/proc/sys/net")
FAMILIES = {"ipv4": "IPv4", "ipv6": "IPv6"}
FORWARDING = {"IPv4": "ipv4/ip_forward", "IPv6": "ipv6/conf/all/forwarding"}
ETHERNET = 1  # ARPHRD_ETHER
UP = 1  # IFF_UP
MERGING = ("rx-lro",)  # offloads that make other packets of those that came: what is forwarded is not what was sent


@dataclass(frozen=True, slots=True)
class Nic:
    """An interface as rtnetlink shows it. `addresses`: without those of the link."""

    name: str
    index: int
    up: bool
    carrier: bool
    ethernet: bool
    master: int | None
    xdp: bool
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Switch:
    """A sysctl per interface that should not be on. `both`: on only if `all` and the interface's own are."""

    check: Check
    family: str
    name: str
    both: bool
    agents_only: bool
    bad: tuple[int, ...]
    level: Level
    why: str


SWITCHES = (
    Switch(Check.REDIRECTS, "ipv4", "send_redirects", False, True, (1,), Level.WARN,
           "the gateway tells agents of shorter ways, past the record"),
    Switch(Check.REDIRECTS, "ipv4", "accept_redirects", True, False, (1,), Level.WARN,
           "a host may change the gateway's routes"),
    Switch(Check.SOURCE_ROUTE, "ipv4", "accept_source_route", True, False, (1,), Level.WARN,
           "a sender may choose the way of its packets"),
    Switch(Check.SOURCE_ROUTE, "ipv6", "accept_source_route", True, False, (1,), Level.WARN,
           "a sender may choose the way of its packets"),
    Switch(Check.ARP, "ipv4", "proxy_arp", False, True, (1,), Level.WARN,
           "the gateway answers ARP requests for other hosts"),
    Switch(Check.ARP, "ipv4", "arp_accept", False, True, (1, 2), Level.WARN,
           "an agent may put itself into the gateway's ARP table unasked"),
    Switch(Check.ARP, "ipv6", "proxy_ndp", False, True, (1,), Level.WARN,
           "the gateway answers neighbour solicitations for other hosts"),
    Switch(Check.ROUTER_ADVERTISEMENTS, "ipv6", "accept_ra", False, True, (2,), Level.FAIL,
           "an agent may make itself the gateway's router"),
    Switch(Check.LOOPBACK, "ipv4", "route_localnet", False, True, (1,), Level.FAIL,
           "agents reach services on the gateway's loopback addresses"),
)  # fmt: skip


def forwards(settings: Settings) -> bool:
    """May this machine forward what agents send, as far as the kernel's switches go?"""
    own = [f"{family}/conf/{name}/forwarding" for family in FAMILIES for name in _names(settings)]
    return any(_read(SYSCTL / path) not in (None, 0) for path in (*FORWARDING.values(), *own))


def forwarding(settings: Settings, said: Said | None, root: Path = SYSCTL) -> Iterator[Finding]:
    """Off until the wire process runs, on from then on: before, nothing would hold back what is not recorded.

    `said`: what the processes published; None: this user may not see it.
    """
    wire = said.get("wire") if said is not None else None
    for name, path in FORWARDING.items():
        switch = root / path
        if not switch.exists():
            yield Finding(
                Check.FORWARDING, name, Level.WARN, "this kernel has no such protocol", "load it, if agents use it"
            )
        elif switch.read_text("ascii").strip() != "0":
            yield Finding(Check.FORWARDING, name, Level.OK, "on")
        elif said is None:
            text = f"{_key(path)} is off, as it should be until 'verbatim wire' runs; whether it does, cannot be seen"
            yield Finding(Check.FORWARDING, name, Level.UNKNOWN, text, "run it as root")
        elif wire is not None and wire.live:
            text = f"{_key(path)} is off: nothing is forwarded"
            yield Finding(Check.FORWARDING, name, Level.FAIL, text, _turn_on(path))
        else:
            text = f"{_key(path)} is off, as it should be until 'verbatim wire' runs"
            yield Finding(Check.FORWARDING, name, Level.WARN, text, f"start it, then {_turn_on(path)}")
    for interface in _names(settings):
        path = f"ipv4/conf/{interface}/forwarding"
        if _read(root / path) == 0 and _read(root / "ipv4/ip_forward") == 1:
            text = f"{_key(path)} is off"
            yield Finding(Check.FORWARDING, f"IPv4 {interface}", Level.FAIL, text, _turn_on(path))


def rp_filter(settings: Settings, root: Path = SYSCTL) -> Iterator[Finding]:
    """RFC 3704: agents' addresses must be behind their interface; several ways upstream need the loose mode."""
    everywhere = _read(root / "ipv4/conf/all/rp_filter") or 0
    for interface in _names(settings):
        own = _read(root / f"ipv4/conf/{interface}/rp_filter")
        if own is None:
            continue
        mode, path = max(own, everywhere), f"ipv4/conf/{interface}/rp_filter"
        word = {0: "off", 1: "strict", 2: "loose"}.get(mode, str(mode))
        if interface in settings.wire.agents and mode != 1:
            text = f"{word}: source addresses are checked by leases and the program only"
            yield Finding(Check.RP_FILTER, interface, Level.WARN, text, _set(path, 1) + ", and no 2 in conf.all")
        elif interface in settings.wire.upstream and mode == 1 and len(settings.wire.upstream) > 1:
            text = "strict: answers that come another way than they were asked are dropped"
            yield Finding(Check.RP_FILTER, interface, Level.WARN, text, _set(path, 2))
        else:
            yield Finding(Check.RP_FILTER, interface, Level.OK, word)


def switches(settings: Settings, root: Path = SYSCTL) -> Iterator[Finding]:
    """What must not be on; each that is fine on all interfaces is told once."""
    for switch in SWITCHES:
        names = settings.wire.agents if switch.agents_only else _names(settings)
        if not names:
            continue
        bad = [name for name in names if _effective(switch, name, root) in switch.bad]
        for name in bad:
            path = f"{switch.family}/conf/{name}/{switch.name}"
            text = f"{switch.name} is {_effective(switch, name, root)} for {FAMILIES[switch.family]}: {switch.why}"
            remedy = _set(path, 0)
            if not switch.both and (_read(root / switch.family / "conf/all" / switch.name) or 0) in switch.bad:
                remedy += f", and net.{switch.family}.conf.all.{switch.name}=0"
            yield Finding(switch.check, name, switch.level, text, remedy)
        if not bad:
            yield Finding(switch.check, "", Level.OK, f"{switch.name} is as it should be for {FAMILIES[switch.family]}")


def _effective(switch: Switch, interface: str, root: Path) -> int:
    folder = root / switch.family / "conf"
    own, everywhere = (_read(folder / name / switch.name) for name in (interface, "all"))
    if own is None:
        return 0
    if switch.name == "accept_ra" or everywhere is None:  # `all` has no effect
        return own
    return min(own, everywhere) if switch.both else max(own, everywhere)


def look() -> dict[str, Nic]:
    """The interfaces of this network namespace, by name."""
    with IPRoute() as netlink:
        addresses: dict[int, list[str]] = {}
        for message in netlink.get_addr():
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if address and not ip_address(address).is_link_local:
                addresses.setdefault(message["index"], []).append(address)
        return {nic.name: nic for nic in (_nic(link, addresses) for link in netlink.get_links())}


def _nic(link: Any, addresses: Mapping[int, list[str]]) -> Nic:
    xdp = link.get_attr("IFLA_XDP")
    return Nic(
        name=link.get_attr("IFLA_IFNAME"),
        index=link["index"],
        up=bool(link["flags"] & UP),
        carrier=bool(link.get_attr("IFLA_CARRIER")),
        ethernet=link["ifi_type"] == ETHERNET,
        master=link.get_attr("IFLA_MASTER"),
        xdp=bool(xdp and xdp.get_attr("IFLA_XDP_ATTACHED")),
        addresses=tuple(addresses.get(link["index"], ())),
    )


def interfaces(settings: Settings, nics: Mapping[str, Nic]) -> Iterator[Finding]:
    """Do they exist, are they up, have they addresses, has each one role?"""
    for role, names in (("wire.agents", settings.wire.agents), ("wire.upstream", settings.wire.upstream)):
        if not names:
            remedy = f"set {role} to the names of interfaces"
            yield Finding(Check.INTERFACES, role, Level.FAIL, "no interface is configured", remedy)
        for name in names:
            yield _interface(role, name, nics.get(name))
    for name in sorted(set(settings.wire.agents) & set(settings.wire.upstream)):
        remedy = "leave it in one of wire.agents and wire.upstream"
        yield Finding(Check.INTERFACES, name, Level.FAIL, "it is on both sides", remedy)
    others = [nic.name for nic in nics.values() if nic.up and nic.name != "lo" and not _placed(settings, nic.name)]
    if others:
        text = f"without a role: {', '.join(others)}; what arrives there is not forwarded, nor sent there"
        remedy = "name them in wire.agents, wire.upstream or wire.other"
        yield Finding(Check.INTERFACES, "others", Level.WARN, text, remedy)


def _placed(settings: Settings, name: str) -> bool:
    return name in _names(settings) or any(fnmatchcase(name, pattern) for pattern in settings.wire.other)


def _interface(role: str, name: str, nic: Nic | None) -> Finding:
    about = f"{role} {name}"

    def bad(level: Level, text: str, remedy: str) -> Finding:
        return Finding(Check.INTERFACES, about, level, text, remedy)

    if nic is None:
        return bad(Level.FAIL, "missing", f"correct {role}, or create the interface")
    if not nic.ethernet:
        return bad(Level.FAIL, "not an Ethernet interface", f"name Ethernet interfaces in {role}")
    if nic.master is not None:
        owner = _owner(nic.master)
        return bad(Level.FAIL, f"a port of {owner}, which gets its packets", f"name {owner} in {role}")
    if nic.xdp:
        remedy = f"ip link set dev {name} xdp off"
        return bad(Level.FAIL, "an XDP program takes packets before they can be recorded", remedy)
    if not nic.up:
        return bad(Level.FAIL, "down", f"ip link set {name} up")
    if not nic.addresses:
        return bad(Level.WARN, "has no address: nobody can use it as a router", f"ip addr add ADDRESS dev {name}")
    if not nic.carrier:
        return bad(Level.WARN, "has no carrier", "see cable, switch or hypervisor")
    return Finding(Check.INTERFACES, about, Level.OK, f"up, {', '.join(nic.addresses)}")


def _owner(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"interface {index}"


def offloads(settings: Settings, nics: Mapping[str, Nic]) -> Iterator[Finding]:
    """LRO must be off where packets are forwarded; GRO and TSO may be on: what they merge is taken apart again."""
    for name in _names(settings):
        if name not in nics:
            continue
        try:
            with Ethtool() as tool:
                features = tool.get_features(name).features
        except Exception as error:  # pyroute2 raises bare exceptions for devices without ethtool
            text = f"cannot be asked: {error}"
            yield Finding(Check.OFFLOADS, name, Level.UNKNOWN, text, f"see that 'ethtool -k {name}' says lro off")
            continue
        on = {each for each, feature in features.items() if feature.enable}
        merging = [each for each in MERGING if each in on]
        if merging:
            text = f"{', '.join(merging)} is on: it merges packets for good"
            yield Finding(Check.OFFLOADS, name, Level.FAIL, text, f"ethtool -K {name} lro off")
        elif "hw-tc-offload" in on:
            text = "hw-tc-offload is on: the card may forward flows that the kernel never sees"
            yield Finding(Check.OFFLOADS, name, Level.WARN, text, f"ethtool -K {name} hw-tc-offload off")
        else:
            shown = {"rx-gro": "GRO", "rx-gro-hw": "GRO in hardware", "tx-tcp-segmentation": "TSO"}
            words = [f"{word} {'on' if each in on else 'off'}" for each, word in shown.items()]
            yield Finding(Check.OFFLOADS, name, Level.OK, f"LRO off, {', '.join(words)}")


def _names(settings: Settings) -> list[str]:
    return list(dict.fromkeys((*settings.wire.agents, *settings.wire.upstream)))


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _key(path: str) -> str:
    """As sysctl(8) wants it: with slashes where a name has a dot, as eth0.10 has."""
    return f"net/{path}" if "." in path else f"net.{path.replace('/', '.')}"


def _turn_on(path: str) -> str:
    """Never at boot, when no lock stands."""
    return f"sysctl -w {_key(path)}=1, in ExecStartPost= of its unit, not in /etc/sysctl.d"


def _set(path: str, value: int) -> str:
    return f"sysctl -w {_key(path)}={value}, and in /etc/sysctl.d"
