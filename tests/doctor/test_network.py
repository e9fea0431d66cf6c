"""Sysctls, interfaces and offloads of a real network namespace."""

import os
from pathlib import Path

import pytest

from appliance.doctor import network
from appliance.doctor.finding import Check, Finding, Level
from appliance.overview import Said
from appliance.status import Status
from tests.doctor.conftest import gateway, in_namespace, needs_root, sh, worst

pytestmark = needs_root
CONF = Path("/proc/sys/net")


def set_to(value: int, *paths: str) -> None:
    for path in paths:
        (CONF / path).write_text(str(value))


LIVE = {"wire": Status("wire", os.getpid(), 0.0, {})}
DEAD = {"wire": Status("wire", 2**22 + 1, 0.0, {})}
BOTH = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")


@pytest.mark.parametrize(
    ("said", "level", "remedy"),
    [
        ({}, Level.WARN, "start it, then sysctl -w net.ipv4.ip_forward=1, "),
        (DEAD, Level.WARN, "start it, then sysctl -w net.ipv4.ip_forward=1, "),
        (LIVE, Level.FAIL, "sysctl -w net.ipv4.ip_forward=1, "),
        (None, Level.UNKNOWN, "run it as root"),
    ],
    ids=["before the first start", "after the wire process died", "while it runs", "without rights to see it"],
)
def test_forwarding_is_turned_on_when_the_wire_process_runs_and_never_at_boot(
    said: Said | None, level: Level, remedy: str
) -> None:
    def off() -> list[Finding]:
        set_to(0, *BOTH)
        return list(network.forwarding(gateway(), said))

    found = in_namespace(off)
    assert [(one.about, one.level) for one in found] == [("IPv4", level), ("IPv6", level)]
    assert found[0].remedy.startswith(remedy)
    assert ("not in /etc/sysctl.d" in found[0].remedy) == (level is not Level.UNKNOWN)

    def on() -> list[Level]:
        set_to(1, *BOTH)
        return [one.level for one in network.forwarding(gateway(), said)]

    assert in_namespace(on) == [Level.OK, Level.OK]


@pytest.mark.parametrize("switch", ["", *BOTH, "ipv4/conf/eth1/forwarding", "ipv6/conf/eth0/forwarding"])
def test_each_switch_by_which_the_machine_forwards_counts(switch: str) -> None:
    def look() -> bool:
        set_to(0, *BOTH)
        set_to(1, *filter(None, [switch]))
        return network.forwards(gateway())

    assert in_namespace(look) == bool(switch)


def test_forwarding_that_is_off_on_one_interface_only() -> None:
    def off() -> list[str]:
        set_to(0, "ipv6/conf/all/forwarding")
        set_to(1, "ipv4/ip_forward")
        set_to(0, "ipv4/conf/eth1/forwarding")
        return [one.about for one in network.forwarding(gateway(), LIVE) if one.level is Level.FAIL]

    assert in_namespace(off) == ["IPv6", "IPv4 eth1"]


@pytest.mark.parametrize(
    ("everywhere", "own", "level", "word"),
    [(0, 0, Level.WARN, "off"), (0, 1, Level.OK, "strict"), (1, 0, Level.OK, "strict"), (2, 1, Level.WARN, "loose")],
)
def test_the_reverse_path_filter_of_agents_is_strict(everywhere: int, own: int, level: Level, word: str) -> None:
    def look() -> list[Finding]:
        set_to(everywhere, "ipv4/conf/all/rp_filter")
        set_to(own, "ipv4/conf/eth1/rp_filter")
        return list(network.rp_filter(gateway()))

    found = worst(in_namespace(look), "eth1")
    assert (found.level, found.found.partition(":")[0]) == (level, word)


@pytest.mark.parametrize(
    ("path", "value", "check", "level"),
    [
        ("ipv4/conf/eth1/send_redirects", 1, Check.REDIRECTS, Level.WARN),
        ("ipv4/conf/eth1/proxy_arp", 1, Check.ARP, Level.WARN),
        ("ipv4/conf/eth1/arp_accept", 1, Check.ARP, Level.WARN),
        ("ipv6/conf/eth1/proxy_ndp", 1, Check.ARP, Level.WARN),
        ("ipv6/conf/eth1/accept_ra", 2, Check.ROUTER_ADVERTISEMENTS, Level.FAIL),
        ("ipv4/conf/eth1/route_localnet", 1, Check.LOOPBACK, Level.FAIL),
    ],
)
def test_a_switch_by_which_hosts_find_a_way_around(path: str, value: int, check: Check, level: Level) -> None:
    def look() -> list[Finding]:
        set_to(0, "ipv4/conf/all/send_redirects", "ipv4/conf/eth1/send_redirects", "ipv4/conf/all/accept_redirects")
        set_to(0, "ipv4/conf/all/accept_source_route")
        before = list(network.switches(gateway()))
        assert {one.level for one in before} == {Level.OK}, before
        set_to(value, path)
        return list(network.switches(gateway()))

    found = worst(in_namespace(look))
    assert (found.check, found.about, found.level) == (check, "eth1", level)
    assert f"net.{path.replace('/', '.')}=0" in found.remedy


def test_redirects_are_accepted_only_where_both_switches_are_on() -> None:
    def look() -> list[str]:
        set_to(0, "ipv4/conf/all/send_redirects", "ipv4/conf/eth1/send_redirects", "ipv4/conf/eth0/accept_redirects")
        set_to(1, "ipv4/conf/all/accept_redirects", "ipv4/conf/eth1/accept_redirects")
        return [one.about for one in network.switches(gateway()) if "accept_redirects is 1" in one.found]

    assert in_namespace(look) == ["eth1"]


@pytest.mark.parametrize(
    ("command", "level", "says"),
    [
        ("ip link set eth1 down", Level.FAIL, "down"),
        ("ip addr flush dev eth1", Level.WARN, "no address"),
        ("ip link set eth1p down", Level.WARN, "no carrier"),
        ("ip link del eth1", Level.FAIL, "missing"),
        ("ip link set eth1 master br0", Level.FAIL, "a port of br0"),
        ("true", Level.OK, "up, 10.20.1.1"),
    ],
)
def test_an_interface_that_cannot_be_used(command: str, level: Level, says: str) -> None:
    bridge = "ip link add br0 type bridge"
    found = in_namespace(lambda: list(network.interfaces(gateway(), network.look())), bridge, command)
    about = worst(found, "wire.agents eth1")
    assert about.level is level
    assert says in about.found
    assert bool(about.remedy) == (level is not Level.OK)


def test_an_interface_without_a_role_is_named() -> None:
    found = worst(in_namespace(lambda: list(network.interfaces(gateway(), network.look()))), "others")
    assert (found.level, "eth0p" in found.found) == (Level.WARN, True)


def test_offloads_of_real_interfaces_are_told() -> None:
    found = in_namespace(lambda: list(network.offloads(gateway(), network.look())))
    assert [one.about for one in found] == ["eth1", "eth0"]
    assert {one.level for one in found} == {Level.OK}
    assert all("LRO off, GRO o" in one.found for one in found)


def test_gro_that_is_off_shows() -> None:
    found = in_namespace(
        lambda: list(network.offloads(gateway(), network.look())), "ethtool -K eth1 gro off", "ethtool -K eth0 tso off"
    )
    assert "GRO off" in found[0].found
    assert "TSO off" in found[1].found


def test_names_with_dots_are_written_as_sysctl_reads_them() -> None:
    def look() -> str:
        sh("ip link add eth1.10 type veth peer name other")
        settings = gateway(wire=gateway().wire.model_copy(update={"agents": ("eth1.10",)}))
        remedy = worst(network.rp_filter(settings), "eth1.10").remedy
        sh(*[part for part in [remedy.partition(",")[0]] if part])
        return worst(network.rp_filter(settings), "eth1.10").found

    assert in_namespace(look, "sysctl -w net.ipv4.conf.all.rp_filter=0") == "strict"
