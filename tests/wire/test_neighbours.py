"""Routes and neighbour entries of a real namespace."""

import ctypes
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Unavailable
from appliance.wire.neighbours import Neighbours
from tests.lab.wait import until
from tests.wire.net import CLONE_NEWNET, Net, inside, sh

HERE, THERE, HERE6, THERE6 = "10.91.1.1", "10.91.1.2", "fd91:1::1", "fd91:1::2"


class Resident:
    """`Neighbours` in a thread that stays in the gateway's namespace: netlink sockets belong to their thread."""

    def __init__(self, netns: str) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=lambda: self._enter(netns))
        self._made = self._thread.submit(Neighbours).result()

    @staticmethod
    def _enter(netns: str) -> None:
        with Path("/run/netns", netns).open("rb") as file:
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) == 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args: self._thread.submit(getattr(self._made, name), *args).result()

    def end(self) -> None:
        self.close()
        self._thread.shutdown()


@pytest.fixture
def neighbours(net: Net) -> Iterator[Resident]:
    made = Resident(net.gateway)
    yield made
    made.end()


def index(net: Net, name: str = "agents0") -> int:
    return int(sh("ip", "-o", "link", "show", "dev", name, netns=net.gateway).split(":")[0])


def listed(net: Net) -> str:
    return sh("ip", "neigh", "show", "dev", "agents0", netns=net.gateway)


def speak(net: Net) -> None:
    for family, to in ((socket.AF_INET, HERE), (socket.AF_INET6, HERE6)):
        with socket.socket(family) as sock:
            sock.settimeout(1)
            sock.connect_ex((to, 9))


def test_networks_are_those_of_the_routes_and_follow_them(net: Net, neighbours: Resident) -> None:
    agents, upstream = index(net), index(net, "upstream0")
    found = neighbours.networks()
    assert found[ip_network("10.91.1.0/24")] == found[ip_network("fd91:1::/64")] == agents
    assert found[ip_network("10.91.2.0/24")] == upstream
    assert ip_network("fe80::/64") not in found
    assert neighbours.networks() is found, "nothing changed, nothing is read"
    sh("ip", "route", "add", "10.99.0.0/16", "via", THERE, netns=net.gateway)
    sh("ip", "route", "add", "default", "via", "10.91.2.2", netns=net.gateway)
    try:
        found = until(lambda: n if ip_network("10.99.0.0/16") in (n := neighbours.networks()) else None, "the news")
        assert (found[ip_network("10.99.0.0/16")], found[ip_network("0.0.0.0/0")]) == (agents, upstream)
    finally:
        sh("ip", "route", "del", "10.99.0.0/16", netns=net.gateway)
        sh("ip", "route", "del", "default", netns=net.gateway)


def test_the_link_layer_address_of_who_has_spoken(net: Net, neighbours: Resident) -> None:
    at = index(net)
    with pytest.raises(
        Unavailable, match=r"10\.91\.1\.9: its link-layer address is not known; let the agent ask again"
    ):
        neighbours.link("10.91.1.9", at)
    mac = sh("ip", "-o", "link", "show", "dev", "eth0", netns=net.agent).split("link/ether ")[1].split()[0]

    def both() -> list[str] | None:
        inside(net.agent, lambda: speak(net))
        try:
            return [neighbours.link(address, at).hex(":") for address in (THERE, THERE6)]
        except Unavailable:
            return None

    assert until(both, "both are known") == [mac, mac]


def test_who_is_behind_a_router_has_none(net: Net, neighbours: Resident) -> None:
    sh("ip", "route", "add", "10.98.0.0/16", "via", THERE, netns=net.gateway)
    try:
        assert neighbours.link("10.98.1.1", index(net)) == b""
    finally:
        sh("ip", "route", "del", "10.98.0.0/16", netns=net.gateway)


def test_entries_are_held_put_back_and_let_go(net: Net, neighbours: Resident) -> None:
    at, link = index(net), bytes.fromhex("020000000007")
    places = [(at, "10.91.1.7"), (at, "fd91:1::7")]
    for place in places:
        neighbours.hold(place, link)
        assert f"{place[1]} lladdr 02:00:00:00:00:07 PERMANENT" in listed(net)
    sh("ip", "neigh", "add", "10.91.1.8", "lladdr", "02:00:00:00:00:08", "dev", "agents0", netns=net.gateway)
    sh("ip", "neigh", "del", "fd91:1::7", "dev", "agents0", netns=net.gateway)
    neighbours.reconcile({places[1]: link})
    assert "fd91:1::7 lladdr" in listed(net)
    assert "10.91.1.7 " not in listed(net)
    assert "10.91.1.8 lladdr" in listed(net), "an entry of somebody else stays"
    neighbours.free(places[1])
    neighbours.free(places[1])
    assert "fd91:1::7" not in listed(net)


LINK, OTHER = bytes.fromhex("020000000007"), bytes.fromhex("020000000099")


@pytest.fixture
def pinned(net: Net) -> Iterator[list[str]]:
    """Addresses with a permanent entry of the administrator's (LINK)."""
    addresses = ["10.91.1.7", "fd91:1::7"]
    for address in addresses:
        sh("ip", "neigh", "replace", address, "lladdr", LINK.hex(":"), "dev", "agents0", netns=net.gateway)
    yield addresses
    for address in addresses:
        subprocess.run(
            ["nsenter", f"--net=/run/netns/{net.gateway}", "ip", "neigh", "del", address, "dev", "agents0"],
            check=False,
            capture_output=True,
        )


def test_an_administrators_entry_of_the_same_link_does_and_outlasts_the_lease(
    net: Net, neighbours: Resident, pinned: list[str]
) -> None:
    at, before = index(net), listed(net)
    for address in pinned:
        neighbours.hold((at, address), LINK)
    neighbours.reconcile({(at, address): LINK for address in pinned})
    for address in pinned:
        neighbours.free((at, address))
    neighbours.reconcile({})
    for address in pinned:
        assert f"{address} lladdr {LINK.hex(':')} PERMANENT" in before
        assert f"{address} lladdr {LINK.hex(':')} PERMANENT" in listed(net)


def test_an_administrators_entry_of_another_link_is_named_and_left_alone(
    net: Net, neighbours: Resident, pinned: list[str]
) -> None:
    at = index(net)
    for address in pinned:
        said = rf"{address}: its host is at {LINK.hex(':')} for good, .* bound to {OTHER.hex(':')}; remove or correct"
        with pytest.raises(Unavailable, match=said):
            neighbours.hold((at, address), OTHER)
        with pytest.raises(Unavailable, match=said):
            neighbours.reconcile({(at, address): OTHER})
        neighbours.free((at, address))
        assert f"{address} lladdr {LINK.hex(':')} PERMANENT" in listed(net)


def test_what_cannot_be_held_holds_up_nothing_else(net: Net, neighbours: Resident, pinned: list[str]) -> None:
    at = index(net)
    neighbours.hold((at, "10.91.1.11"), LINK)  # of a lease that is over
    wanted = {(at + 1000, "10.91.1.9"): LINK, (at, pinned[0]): OTHER, (at, "10.91.1.10"): LINK}
    with pytest.raises(Unavailable, match=r"10\.91\.1\.9: .*10\.91\.1\.7: "):
        neighbours.reconcile(wanted)
    try:
        assert "10.91.1.10 lladdr" in listed(net)
        assert "10.91.1.11 lladdr" not in listed(net)
    finally:
        neighbours.free((at, "10.91.1.10"))


def test_routes_over_several_hops_lead_to_the_interface_that_they_share(net: Net, neighbours: Resident) -> None:
    agents = index(net)
    many = {
        "10.97.0.0/16": ["10.91.1.2", "10.91.1.3"],
        "fd97::/32": ["fd91:1::2", "fd91:1::3"],
        "10.96.0.0/16": ["10.91.1.2", "10.91.2.2"],
        "fd96::/32": ["fd91:1::2", "fd91:2::2"],
    }
    try:
        for to, hops in many.items():
            sh("ip", "route", "add", to, *(word for hop in hops for word in ("nexthop", "via", hop)), netns=net.gateway)
        last = ip_network("fd96::/32")
        found = until(lambda: n if last in (n := neighbours.networks()) else None, "the news")
        assert [found[ip_network(to)] for to in many] == [agents, agents, 0, 0]
        sh("ip", "link", "set", "upstream0", "down", netns=net.gateway)
        until(lambda: neighbours.networks()[ip_network("10.96.0.0/16")] == agents, "the hop is gone")
    finally:
        net.remove()
        net.create()


def test_routes_that_go_with_a_link_are_forgotten(net: Net, neighbours: Resident) -> None:
    """Without IPv6, of whose routes the kernel does tell."""
    sh("ip", "link", "add", "v4only0", "type", "veth", "peer", "name", "v4only1", netns=net.gateway)
    sh(
        "sysctl",
        "-qw",
        "net.ipv6.conf.v4only0.disable_ipv6=1",
        "net.ipv6.conf.v4only1.disable_ipv6=1",
        netns=net.gateway,
    )
    sh("ip", "addr", "add", "10.95.0.1/24", "dev", "v4only0", netns=net.gateway)
    sh("ip", "link", "set", "v4only0", "up", netns=net.gateway)
    there = ip_network("10.95.0.0/24")
    try:
        until(lambda: there in neighbours.networks(), "the route is there")
        until(lambda: neighbours.networks() is neighbours.networks(), "that was all")
        sh("ip", "link", "set", "v4only0", "down", netns=net.gateway)
        until(lambda: there not in neighbours.networks(), "the route is gone", 5)
    finally:
        sh("ip", "link", "del", "v4only0", netns=net.gateway)


def test_after_news_the_routes_are_read_twice(net: Net, neighbours: Resident) -> None:
    """The kernel tells of a link that goes down before it takes the routes away."""
    first = neighbours.networks()
    sh("ip", "link", "set", "upstream0", "txqueuelen", "999", netns=net.gateway)
    second = until(lambda: n if (n := neighbours.networks()) is not first else None, "the news")
    third = neighbours.networks()
    assert third is not second
    assert neighbours.networks() is third


def test_a_permanent_entry_is_not_overwritten_by_arp(net: Net, neighbours: Resident) -> None:
    link = bytes.fromhex("020000000007")
    neighbours.hold((index(net), THERE), link)
    try:
        inside(net.agent, lambda: speak(net))
        subprocess.run(["nsenter", f"--net=/run/netns/{net.agent}", "ip", "neigh", "flush", "all"], check=True)
        inside(net.agent, lambda: speak(net))
        assert f"{THERE} lladdr 02:00:00:00:00:07 PERMANENT" in listed(net)
    finally:
        neighbours.free((index(net), THERE))
