"""The rules: which never decide anything, which contradict the rest of the machine; and whether agents reach the API.

For a packet the program takes the longest network among the rules for its protocol and port, its protocol, and any; of
equals the most specific. ICMP echo is opened by a rule of its own protocol only.
"""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance.config import Rule, Settings, endpoint
from appliance.doctor.finding import Check, Finding, Level
from appliance.doctor.network import Nic
from appliance.errors import MalformedInput
from appliance.wire.maps import rule_entries

Network = IPv4Network | IPv6Network
PROTOCOLS = ("tcp", "udp", "icmp")
QUIC = 443
UNREACHABLE = {6: "blackhole", 7: "unreachable", 8: "prohibited"}  # RTN_* (linux/rtnetlink.h)
EXAMPLES = {4: "203.0.113.1", 6: "2001:db8::1"}  # for rules to anywhere: RFC 5737, RFC 3849
OPEN = ("tap", "relay")  # lanes that let something pass


def rules(settings: Settings, nics: Mapping[str, Nic]) -> Iterator[Finding]:
    given = settings.rules
    if not given:
        yield Finding(Check.RULES, "", Level.FAIL, "no rule is configured", "add [[rules]], or everything is refused")
        return
    try:
        rule_entries(given)
    except MalformedInput as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding(Check.RULES, "", Level.FAIL, what.removeprefix("rules: "), remedy)
    found = [finding for number, rule in enumerate(given, 1) for finding in _rule(number, rule, given, nics)]
    yield from found
    if not any(rule.lane in OPEN for rule in given):
        text = "no rule has the lane tap or relay"
        yield Finding(Check.RULES, "", Level.FAIL, text, "add one, or everything is refused")
    versions = {network.version for rule in given if rule.lane in OPEN for network in rule.networks()}
    for version in {4, 6} - versions if versions else ():
        agents = [nic for name, nic in nics.items() if name in settings.wire.agents]
        if any(ip_address(address).version == version for nic in agents for address in nic.addresses):
            text = f"agents have IPv{version}, but no rule opens anything over it: they will see refusals"
            yield Finding(Check.RULES, f"IPv{version}", Level.WARN, text, "add rules, or take the addresses away")
    if not found:
        yield Finding(Check.RULES, "", Level.OK, f"{len(given)} rules, each decides something")


def _rule(number: int, rule: Rule, given: Sequence[Rule], nics: Mapping[str, Nic]) -> Iterator[Finding]:
    about = f"number {number} ({spoken(rule)})"
    others = [other for other in given if other is not rule]
    if shadowed(rule, others):
        text = "never decides: narrower rules decide all that it covers"
        yield Finding(Check.RULES, about, Level.WARN, text, "remove it, or one of those")
    if rule.lane == "refuse" and rule.unbound:
        text = "says refuse and unbound, which contradict each other: it refuses"
        yield Finding(Check.RULES, about, Level.WARN, text, "remove unbound")
    if rule.lane == "tap" and rule.protocol == "udp" and rule.port == QUIC:
        text = "opens UDP 443, but QUIC is refused whatever the rules say"
        yield Finding(Check.RULES, about, Level.WARN, text, "remove it; clients fall back to TCP")
    own = {address for nic in nics.values() for address in nic.addresses}
    if rule.lane in OPEN and rule.to and rule.to.num_addresses == 1 and str(rule.to.network_address) in own:
        text = "leads to the gateway itself, which rules do not decide: agents reach the API, and nothing else"
        yield Finding(Check.RULES, about, Level.WARN, text, "remove it")


def spoken(rule: Rule) -> str:
    port = f" {rule.protocol} {rule.port}" if rule.port else "" if rule.protocol == "any" else f" {rule.protocol}"
    return " ".join(str(part) for part in (rule.host, rule.to) if part) + port


def shadowed(rule: Rule, others: Sequence[Rule]) -> bool:
    """Is everything that `rule` covers decided by others? Rules with a host decide by names, which nobody knows yet."""
    if rule.host:
        return False
    protocols = PROTOCOLS if rule.protocol == "any" else (rule.protocol,)
    return all(_covered(rule, [other for other in others if _beats(other, rule, each)]) for each in protocols)


def _beats(other: Rule, rule: Rule, protocol: str) -> bool:
    """Does `other` decide those of `rule`'s packets of this protocol that go to `other.to`?"""
    if other.host or other.to is None or rule.to is None or other.protocol not in ("any", protocol):
        return False
    if other.to.version != rule.to.version:
        return False
    if other.port and other.port != rule.port:
        return False
    if other.to == rule.to:
        return _narrowness(other) > _narrowness(rule)
    return _within(other.to, rule.to)


def _narrowness(rule: Rule) -> tuple[bool, bool]:
    return rule.protocol != "any", rule.port != 0


def _within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network) and isinstance(outer, IPv4Network):
        return inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def _covered(rule: Rule, by: Sequence[Rule]) -> bool:
    if rule.to is None:
        return False
    if isinstance(rule.to, IPv4Network):
        return rule.to in collapse_addresses(other.to for other in by if isinstance(other.to, IPv4Network))
    return rule.to in collapse_addresses(other.to for other in by if isinstance(other.to, IPv6Network))


def routes(settings: Settings, nics: Mapping[str, Nic]) -> Iterator[Finding]:
    """Do the kernel's routes lead where rules open, over an interface that has a role?"""
    names = {nic.index: name for name, nic in nics.items()}
    known = {*settings.wire.agents, *settings.wire.upstream}
    seen: set[Network] = set()
    with IPRoute() as netlink:
        for number, rule in enumerate(settings.rules, 1):
            if rule.lane not in OPEN or rule.to is None or rule.to in seen:
                continue
            seen.add(rule.to)
            about = f"number {number} ({spoken(rule)})"
            out = _way(netlink, rule.to)
            if out is None:
                text = "the gateway has no route there"
                yield Finding(Check.RULES, about, Level.WARN, text, f"ip route add {rule.to} via …, or remove the rule")
            elif (name := names.get(out, "")) not in known and name != "lo":
                text = f"leads out of {name or out}, which has no role: answers will not be forwarded"
                yield Finding(Check.RULES, about, Level.FAIL, text, "name it in wire.upstream, or correct the routes")


def _way(netlink: Any, network: Network) -> int | None:
    """Index of the interface that packets to this network leave by; of the first of its hosts, to be exact."""
    whole = network.prefixlen == 0
    first = network.network_address if network.num_addresses <= 2 else network.network_address + 1
    try:
        for message in netlink.route("get", dst=EXAMPLES[network.version] if whole else str(first)):
            if message["type"] not in UNREACHABLE:
                out = message.get_attr("RTA_OIF")
                return int(out) if out is not None else None
    except NetlinkError:
        pass
    return None


def api(settings: Settings, nics: Mapping[str, Nic]) -> Iterator[Finding]:
    """Can agents ask for leases: does the API listen on an address of theirs side?"""
    own = {address for nic in nics.values() for address in nic.addresses}
    listening = []
    for text in settings.api.listen:
        try:
            address, _ = endpoint(text)
        except ValueError:
            remedy = "write 10.0.0.1:8443 or [fd00::1]:8443"
            yield Finding(Check.API, text, Level.FAIL, "not an address and port", remedy)
            continue
        if not (address.is_loopback or address.is_unspecified or str(address) in own):
            remedy = "choose an address of this machine in api.listen"
            yield Finding(Check.API, text, Level.FAIL, "not an address of this machine", remedy)
        listening.append(address)
    for name in settings.wire.agents:
        if (nic := nics.get(name)) is None:
            continue
        served = [
            address
            for address in map(ip_address, nic.addresses)
            if any(address == each or (each.is_unspecified and each.version == address.version) for each in listening)
        ]
        if served:
            yield Finding(Check.API, name, Level.OK, f"agents take leases at {', '.join(map(str, served))}")
        elif any(str(each) in own and not each.is_loopback for each in listening):
            text = "not on this interface's addresses: agents there need another way to an address of api.listen"
            yield Finding(Check.API, name, Level.WARN, text, "add one of its addresses to api.listen")
        else:
            text = "listens where no agent gets: nobody can take a lease"
            yield Finding(Check.API, name, Level.FAIL, text, f"add an address of {name} to api.listen")


def opens(settings: Settings, address: str, port: int) -> bool:
    """May agents without a lease reach this TCP port?"""
    target = ip_network(address)
    fitting = [
        rule
        for rule in settings.rules
        if rule.to is not None and not rule.host and _within(target, rule.to)
        if rule.protocol in ("any", "tcp") and rule.port in (0, port)
    ]
    best = max(fitting, key=lambda rule: (rule.to.prefixlen if rule.to else 0, _narrowness(rule)), default=None)
    return best is not None and best.lane in OPEN and best.unbound
