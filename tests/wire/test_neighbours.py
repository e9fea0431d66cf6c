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
from tests.wire.net import CLONE_NEWNET, Net, inside, sh, until

HERE, THERE, HERE6, THERE6 = "10.91.1.1", "10.91.1.2", "fd91:1::1", "fd91:1::2"


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    net = Net()
    try:
        yield net.create()
    finally:
        net.remove()


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
        found = until("the news", lambda: n if ip_network("10.99.0.0/16") in (n := neighbours.networks()) else None)
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

    assert until("both are known", both) == [mac, mac]


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
