"""An agent tries the gateway itself, and its neighbours: services, addresses, neighbour tables, routes."""

import secrets
import socket
import time
from collections import Counter
from contextlib import closing

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether

from appliance.wire.interlock import BURST, CALLS
from tests.evasion.subnet import (
    EVE,
    FAR_GATEWAY,
    FAR_GATEWAY6,
    GATEWAY,
    GATEWAY6,
    THIEF,
    THIEF6,
    Cable,
    Server,
    Subnet,
    grant,
    refused,
)
from tests.lab.wait import until
from tests.wire.net import AGENT, AGENT6, UPSTREAM, UPSTREAM6, Wire, inside, sh
from tests.wire.sniffer import Sniffer

V4, V6 = IP(src=AGENT, dst=UPSTREAM), IPv6(src=AGENT6, dst=UPSTREAM6)

# ---- the gateway's own services

SERVICES = (22, 8123, 9100)


def _own_services(net: Subnet) -> tuple[list[socket.socket], list[socket.socket]]:
    """On every address of the gateway: TCP listeners as of a shell, a store and metrics, and UDP sockets."""

    def open_all() -> tuple[list[socket.socket], list[socket.socket]]:
        tcp, udp = [], []
        for family in (socket.AF_INET, socket.AF_INET6):
            everywhere = "::" if family == socket.AF_INET6 else ""
            for port in (*SERVICES, 8443):
                tcp.append(socket.create_server((everywhere, port), family=family))
            datagrams = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            datagrams.bind((everywhere, 5353))
            udp.append(datagrams)
        for sock in (*tcp, *udp):
            sock.setblocking(False)
        return tcp, udp

    return inside(net.gateway, open_all)


def test_of_the_gateway_only_the_api_answers(net: Subnet, wire: Wire, agent: Cable) -> None:
    tcp, udp = _own_services(net)
    sh("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1", netns=net.gateway)
    link_local = _link_local(net)
    marker = secrets.token_bytes(16)
    addresses = [GATEWAY, FAR_GATEWAY, GATEWAY6, FAR_GATEWAY6, f"{link_local}%eth0"]
    before = Counter(refused(wire))
    try:
        with Sniffer(net.agent) as answers:
            for number, address in enumerate(
                [GATEWAY, FAR_GATEWAY, "127.0.0.1", GATEWAY6, FAR_GATEWAY6, link_local, "::1"]
            ):
                v6 = ":" in address
                source = _link_local(net, net.agent) if address == link_local else AGENT6 if v6 else AGENT
                outer = IPv6(src=source, dst=address) if v6 else IP(src=source, dst=address)
                for port in SERVICES:
                    agent.send(outer / TCP(sport=41000 + number, dport=port, flags="S"))
                agent.send(outer / UDP(sport=41000, dport=5353) / marker)
            for to in ("255.255.255.255", "10.91.1.255", "224.0.0.1"):
                agent.send(
                    Ether(dst="ff:ff:ff:ff:ff:ff", src=agent.mac) / IP(src=AGENT, dst=to) / UDP(dport=5353) / marker
                )
            agent.send(
                Ether(dst="33:33:00:00:00:01", src=agent.mac)
                / IPv6(src=AGENT6, dst="ff02::1")
                / UDP(dport=5353)
                / marker
            )
            for address in addresses:
                assert inside(net.agent, lambda address=address: _reaches(address, 8443)), address  # type: ignore[misc]
            opened = [packet for packet in answers.packets if packet[0] >> 4 in (4, 6)]
        assert not any(_is_answer(packet, SERVICES) for packet in opened)
        for listener in tcp:
            if listener.getsockname()[1] != 8443:
                with pytest.raises(BlockingIOError):
                    listener.accept()
        for datagrams in udp:
            with pytest.raises(BlockingIOError):
                datagrams.recv(100)
        told = Counter(refused(wire)) - before
        assert told["gateway"] == 5 * (len(SERVICES) + 1)
        assert told["malformed"] == 2 * (len(SERVICES) + 1)  # loopback addresses
    finally:
        sh("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=0", netns=net.gateway)
        for sock in (*tcp, *udp):
            sock.close()


def test_one_host_cannot_take_all_connections_to_the_api(net: Subnet, wire: Wire, agent: Cable, thief: Cable) -> None:
    """Under any number of addresses. (Nobody listens here: the gateway's resets are counted.)"""

    def resets(tap: Sniffer, port: int) -> int:
        return sum(
            packet[9] == 6 and packet[33] & 4 and packet[22:24] == port.to_bytes(2, "big") for packet in tap.packets
        )

    with Sniffer(net.thief) as answers:
        begun = time.monotonic()
        for number in range(1500):
            thief.send(IP(src=THIEF, dst=GATEWAY) / TCP(sport=2000, dport=8443, flags="S", seq=number))
        thief.send(IP(src=THIEF, dst=GATEWAY) / ICMP(id=3))
        until(lambda: any(packet[9] == 1 for packet in answers.packets), "the gateway is through")
        seconds = time.monotonic() - begun
        assert 0 < resets(answers, 2000) <= BURST + CALLS * (seconds + 1) < 1500
    with Sniffer(net.agent) as answers:
        agent.send(IP(src=AGENT, dst=GATEWAY) / TCP(sport=2001, dport=8443, flags="S"))
        until(lambda: resets(answers, 2001) == 1, "another host is answered")


def _link_local(net: Subnet, host: str = "") -> str:
    link = "eth0" if host else "agents0"
    listed = sh("ip", "-o", "-6", "addr", "show", "dev", link, "scope", "link", netns=host or net.gateway)
    return listed.split("inet6 ")[1].split("/")[0]


def _reaches(address: str, port: int) -> bool:
    with socket.create_connection((address, port), 3):
        return True


def _is_answer(packet: bytes, ports: tuple[int, ...]) -> bool:
    """A SYN-ACK from one of these ports."""
    inner = packet[20:] if packet[0] >> 4 == 4 and packet[9] == 6 else packet[40:] if packet[6] == 6 else b""
    return len(inner) >= 14 and int.from_bytes(inner[:2], "big") in ports and inner[13] & 0x12 == 0x12


# ---- another's address, another's place


def test_a_neighbours_address_cannot_be_borrowed(net: Subnet, wire: Wire, thief: Cable) -> None:
    """Eve takes Bob's address on their own subnet, answers ARP for it, and sends and listens as Bob."""
    secret = secrets.token_hex(16).encode()
    marker = secrets.token_bytes(16)
    before = Counter(refused(wire))
    with net.listen(UPSTREAM) as listener, Sniffer(net.upstream) as tap, Sniffer(net.thief) as eve:
        with net.connect(listener.getsockname()[1], UPSTREAM) as bob, closing(listener.accept()[0]) as server:
            for _ in range(20):
                thief.send(
                    Ether(dst=thief.gateway, src=thief.mac) / ARP(op=2, hwsrc=thief.mac, psrc=AGENT, pdst=GATEWAY)
                )
                thief.send(
                    Ether(dst="ff:ff:ff:ff:ff:ff", src=thief.mac) / ARP(op=1, hwsrc=thief.mac, psrc=AGENT, pdst=AGENT)
                )
                claim = ICMPv6ND_NA(tgt=AGENT6, R=0, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=thief.mac)
                thief.send(Ether(dst=thief.gateway, src=thief.mac) / IPv6(src=AGENT6, dst=GATEWAY6, hlim=255) / claim)
            thief.send(V4 / UDP(sport=40000, dport=53) / marker)
            thief.send(V6 / UDP(sport=40000, dport=53) / marker)
            thief.send(V4 / TCP(sport=40001, dport=80, flags="S"))
            for link in net.mac(net.agent), thief.mac:
                assert (link in sh("ip", "neigh", "show", AGENT, "dev", "agents0", netns=net.gateway)) == (
                    link != thief.mac
                )
                assert (link in sh("ip", "neigh", "show", AGENT6, "dev", "agents0", netns=net.gateway)) == (
                    link != thief.mac
                )
            server.sendall(secret)
            assert bob.recv(100) == secret
            bob.sendall(b"still here")
            server.settimeout(5)
            assert server.recv(100) == b"still here"
        assert not eve.has(secret)
        assert not tap.has(marker)
    until(lambda: (Counter(refused(wire)) - before)["spoofed"] == 3, "it is told")


def test_a_lease_on_a_false_neighbour_is_not_bobs(net: Subnet, wire: Wire, thief: Cable) -> None:
    """What is bound is the address's holder at the time; a host that moves asks again, and the old place is free."""
    grant(wire, net, net.thief, EVE)
    shown = sh("ip", "neigh", "show", THIEF, "dev", "agents0", netns=net.gateway)
    assert thief.mac in shown
    assert "PERMANENT" in shown
    (held,) = (lease for lease in wire.client.list() if lease.address == THIEF)
    wire.client.revoke(held.id)
    assert "PERMANENT" not in sh("ip", "neigh", "show", THIEF, "dev", "agents0", netns=net.gateway)
    (held,) = (lease for lease in wire.client.list() if lease.address == THIEF6)
    wire.client.revoke(held.id)


def test_neighbour_entries_that_went_are_put_back_and_leftovers_removed(net: Subnet, wire: Wire) -> None:
    mac = net.mac(net.agent)
    sh("ip", "neigh", "del", AGENT, "dev", "agents0", netns=net.gateway)
    stale = ("to", "10.91.1.99", "lladdr", mac, "dev", "agents0", "nud", "permanent")
    sh("ip", "neigh", "add", *stale, "protocol", "86", netns=net.gateway)
    sh("ip", "neigh", "add", "to", "10.91.1.98", "lladdr", mac, "dev", "agents0", "nud", "permanent", netns=net.gateway)

    def listed() -> str:
        return sh("ip", "neigh", "show", "dev", "agents0", "nud", "permanent", netns=net.gateway)

    until(lambda: f"{AGENT} " in listed() and "10.91.1.99" not in listed(), "they are as they should be")
    assert "10.91.1.98" in listed(), "an administrator's own entry stays"
    sh("ip", "neigh", "del", "10.91.1.98", "dev", "agents0", netns=net.gateway)


def test_the_gateway_is_not_poisoned(net: Subnet, wire: Wire, thief: Cable) -> None:
    """Eve claims to be the server, the gateway, a router, and a better way; Bob's traffic goes where it did.

    She tells the gateway only: what Bob's own host believes of its subnet is not the gateway's to say.
    """
    own, to_gateway = _link_local(net, net.thief), Ether(dst=thief.gateway, src=thief.mac)
    with Server(net, UPSTREAM) as v4, Server(net, UPSTREAM6) as v6, Sniffer(net.thief) as eve:
        _ask(net, UPSTREAM, v4.port)
        _ask(net, UPSTREAM6, v6.port)
        routes = _routes(net)
        for claimed in (UPSTREAM, GATEWAY, FAR_GATEWAY):
            for op in (1, 2):
                for asked in (claimed, GATEWAY):
                    thief.send(to_gateway / ARP(op=op, hwsrc=thief.mac, psrc=claimed, pdst=asked))
        for claimed in (UPSTREAM6, GATEWAY6, FAR_GATEWAY6):
            claim = ICMPv6ND_NA(tgt=claimed, R=1, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=thief.mac)
            thief.send(to_gateway / IPv6(src=claimed, dst=GATEWAY6, hlim=255) / claim)
            thief.send(to_gateway / IPv6(src=own, dst="ff02::1", hlim=255) / claim)
        router = ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptSrcLLAddr(lladdr=thief.mac)
        router = router / ICMPv6NDOptPrefixInfo(prefix="fd91:2::", prefixlen=64)
        thief.send(to_gateway / IPv6(src=own, dst="ff02::1", hlim=255) / router)
        thief.send(to_gateway / IPv6(src=own, dst=_link_local(net), hlim=255) / router)
        better = ICMP(type=5, code=1, gw=THIEF) / IP(src=GATEWAY, dst=UPSTREAM) / UDP()
        thief.send(IP(src=THIEF, dst=GATEWAY) / better)
        better6 = ICMPv6ND_Redirect(tgt=own, dst=UPSTREAM6) / ICMPv6NDOptDstLLAddr(lladdr=thief.mac)
        thief.send(to_gateway / IPv6(src=own, dst=_link_local(net), hlim=255) / better6)
        _ask(net, UPSTREAM, v4.port)
        _ask(net, UPSTREAM6, v6.port)
        assert _routes(net) == routes
        neighbours = sh("ip", "neigh", "show", "dev", "upstream0", netns=net.gateway)
        assert thief.mac not in neighbours
        for line in sh("ip", "neigh", "show", "dev", "agents0", netns=net.gateway).splitlines():
            assert thief.mac not in line or line.split()[0] in (THIEF, THIEF6, own, UPSTREAM, UPSTREAM6), line
        assert not eve.has(b"question")


def _ask(net: Subnet, address: str, port: int) -> None:
    with net.connect(port, address) as sock:
        sock.sendall(b"question")
        assert sock.recv(100) == b"answer"


def _routes(net: Subnet) -> list[str]:
    return [
        sh("ip", "route", "get", address, netns=net.gateway).split("\n")[0] for address in (UPSTREAM, UPSTREAM6)
    ] + [sh("ip", *family, "route", netns=net.gateway) for family in (["-4"], ["-6"])]
