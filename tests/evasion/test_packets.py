"""An agent tries to get something past the recorder. What arrives at the server is in the journal all the same."""

import random
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_SSRR, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    PadN,
    fragment6,
)
from scapy.layers.l2 import GRE, Dot1Q, Ether
from scapy.packet import Raw

from appliance.wire.abi import Kind, Reason
from tests.evasion.subnet import (
    FAR_GATEWAY,
    FAR_GATEWAY6,
    GATEWAY,
    GATEWAY6,
    RULED,
    THIEF,
    THIEF6,
    UNRULED,
    Cable,
    Subnet,
    canonical,
    reason,
    recorded,
    refused,
)
from tests.lab.wait import until
from tests.wire.net import AGENT, AGENT6, UPSTREAM, UPSTREAM6, Wire, inside, sh
from tests.wire.sniffer import Sniffer

V4, V6 = IP(src=AGENT, dst=UPSTREAM), IPv6(src=AGENT6, dst=UPSTREAM6)
SYN = TCP(sport=40000, dport=80, flags="S")
UDP53 = UDP(sport=40000, dport=53)


def tiny_fragments(marker: bytes) -> list[Any]:
    """The TCP header itself is cut (RFC 1858)."""
    return list(fragment(V4 / TCP(sport=1, dport=80, flags="PA") / marker, fragsize=8))


def overlapping_fragments(marker: bytes) -> list[Any]:
    body = bytes(UDP(sport=1, dport=53) / (marker * 4))
    first = IP(src=AGENT, dst=UPSTREAM, id=77, proto=17, flags="MF") / Raw(body[:48])
    return [first, IP(src=AGENT, dst=UPSTREAM, id=77, proto=17, frag=2) / Raw(body[16:])]


Build = Callable[[bytes], Any]
EVASIVE: dict[str, tuple[Reason, Build]] = {
    "fragments": (Reason.FRAGMENT, lambda m: fragment(V4 / UDP53 / (m * 100), fragsize=512)),
    "tiny fragments": (Reason.FRAGMENT, tiny_fragments),
    "overlapping fragments": (Reason.FRAGMENT, overlapping_fragments),
    "IPv6 fragments": (Reason.FRAGMENT, lambda m: fragment6(V6 / IPv6ExtHdrFragment(id=9) / UDP53 / (m * 100), 600)),
    "GRE": (Reason.UNREADABLE, lambda m: V4 / GRE() / V4 / UDP53 / m),
    "IPIP": (Reason.UNREADABLE, lambda m: V4 / V4 / UDP53 / m),
    "6in4": (Reason.UNREADABLE, lambda m: V4 / V6 / UDP53 / m),
    "4in6": (Reason.UNREADABLE, lambda m: V6 / V4 / UDP53 / m),
    "ESP": (Reason.UNREADABLE, lambda m: IP(src=AGENT, dst=UPSTREAM, proto=50) / Raw(m)),
    "AH": (Reason.UNREADABLE, lambda m: IPv6(src=AGENT6, dst=UPSTREAM6, nh=51) / Raw(bytes(8) + m)),
    "SCTP": (Reason.PROTOCOL, lambda m: IP(src=AGENT, dst=UPSTREAM, proto=132) / Raw(m)),
    "DCCP": (Reason.PROTOCOL, lambda m: IPv6(src=AGENT6, dst=UPSTREAM6, nh=33) / Raw(m)),
    "UDP-Lite": (Reason.PROTOCOL, lambda m: IP(src=AGENT, dst=UPSTREAM, proto=136) / Raw(bytes(UDP53) + m)),
    "WireGuard": (Reason.TUNNEL, lambda m: V4 / UDP(sport=1, dport=51820) / m),
    "VXLAN": (Reason.TUNNEL, lambda m: V6 / UDP(sport=1, dport=4789) / m),
    "QUIC": (Reason.QUIC, lambda m: V4 / UDP(sport=1, dport=443) / m),
    "QUIC over IPv6": (Reason.QUIC, lambda m: V6 / UDP(sport=1, dport=443) / m),
    "loose source route": (
        Reason.UNREADABLE,
        lambda m: IP(src=AGENT, dst=UPSTREAM, options=[IPOption_LSRR(routers=[GATEWAY])]) / UDP53 / m,
    ),
    "strict source route": (
        Reason.UNREADABLE,
        lambda m: IP(src=AGENT, dst=UPSTREAM, options=[IPOption_SSRR(routers=[UPSTREAM])]) / UDP53 / m,
    ),
    "routing header type 0": (
        Reason.UNREADABLE,
        lambda m: V6 / IPv6ExtHdrRouting(addresses=[UPSTREAM6], segleft=1) / UDP53 / m,
    ),
    "routing header type 2": (Reason.UNREADABLE, lambda m: V6 / IPv6ExtHdrRouting(type=2, segleft=0) / UDP53 / m),
    "SRv6": (
        Reason.UNREADABLE,
        lambda m: V6 / IPv6ExtHdrSegmentRouting(addresses=[UPSTREAM6], segleft=0) / UDP53 / m,
    ),
    "another subnet's source": (Reason.NO_LEASE, lambda m: IP(src="10.91.7.7", dst=UPSTREAM) / UDP53 / m),
    "another subnet's source, IPv6": (Reason.NO_LEASE, lambda m: IPv6(src="fd91:7::7", dst=UPSTREAM6) / UDP53 / m),
    "the gateway's source": (Reason.NO_LEASE, lambda m: IP(src=GATEWAY, dst=UPSTREAM) / UDP53 / m),
    "loopback": (Reason.MALFORMED, lambda m: IP(src="127.0.0.1", dst=UPSTREAM) / UDP53 / m),
    "an IPv4 source in IPv6": (Reason.MALFORMED, lambda m: IPv6(src=f"::ffff:{AGENT}", dst=UPSTREAM6) / UDP53 / m),
    "bytes behind a datagram": (Reason.MALFORMED, lambda m: V4 / UDP(sport=1, dport=53, len=9) / (b"x" + m)),
    "an ICMP error of no flow": (Reason.PROTOCOL, lambda m: V4 / ICMP(type=3, code=3) / IP(src=UPSTREAM) / UDP() / m),
    "an ICMP redirect": (Reason.PROTOCOL, lambda m: V4 / ICMP(type=5, gw=THIEF) / Raw(m)),
    "an echo reply that nobody asked for": (Reason.PROTOCOL, lambda m: V4 / ICMP(type=0) / m),
}


def test_nothing_evasive_arrives_and_each_attempt_is_told(net: Subnet, wire: Wire, agent: Cable) -> None:
    before = Counter(refused(wire))
    markers = {name: secrets.token_bytes(16) for name in EVASIVE}
    expected: Counter[str] = Counter()
    control = secrets.token_bytes(16)
    with Sniffer(net.upstream) as tap:
        for name, (why, build) in EVASIVE.items():
            packets = build(markers[name])
            for packet in packets if isinstance(packets, list) else [packets]:
                agent.send(packet)
                expected[reason(why)] += 1
        agent.send(V4 / UDP(sport=4, dport=53) / control)
        until(lambda: tap.has(control), "what is allowed arrives")
        assert [name for name, marker in markers.items() if tap.has(marker[:8])] == []
    until(lambda: not expected - (Counter(refused(wire)) - before), "all are counted")
    assert Counter(refused(wire)) - before == expected
    until(lambda: wire.client.status()["ring"]["fill"] == 0, "the journal has them")
    told = {reason(Reason(record.reason)) for record, _ in wire.records() if record.kind == Kind.REFUSAL}
    assert set(expected) <= told


def test_what_looks_odd_but_is_whole_is_recorded_as_it_is(net: Subnet, wire: Wire, agent: Cable) -> None:
    """Atomic fragments (RFC 6946), options and other extension headers pass, and are in the record byte for byte."""
    marker = secrets.token_bytes(16)
    odd = [
        V6 / IPv6ExtHdrFragment(id=5) / UDP53 / marker,
        V6 / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / UDP53 / marker,
        V6 / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"1234")]) / UDP53 / marker,
        V4 / ICMP(id=7) / (marker * 20),
        V6 / ICMPv6EchoRequest(id=7, data=marker * 20),
    ]
    with Sniffer(net.upstream) as tap:
        for packet in odd:
            agent.send(packet)
        until(lambda: sum(marker in packet for packet in list(tap.packets)) == len(odd), "all arrive")
        arrived = [packet for packet in tap.packets if marker in packet]
    until(lambda: wire.client.status()["ring"]["fill"] == 0, "the journal has them")
    assert {canonical(packet) for packet in arrived} <= recorded(wire)


def _mixture(seed: int) -> Iterator[Any]:
    """Packets of all sorts, some of them broken anywhere."""
    draw = random.Random(seed)
    sources = [*[AGENT] * 12, THIEF, GATEWAY, UPSTREAM, "10.91.7.7", "127.0.0.1", "224.0.0.9", "0.0.0.0"]
    sources6 = [*[AGENT6] * 12, THIEF6, GATEWAY6, UPSTREAM6, "fd91:7::7", "::1", "fe80::7", "::"]
    targets = [*[UPSTREAM] * 12, GATEWAY, FAR_GATEWAY, "255.255.255.255", "10.91.1.255", "10.91.2.9"]
    targets6 = [*[UPSTREAM6] * 12, GATEWAY6, FAR_GATEWAY6, "ff02::1", "fe80::1", "fd91:2::9"]
    while True:
        v6 = draw.random() < 0.5
        outer: Any = (
            IPv6(src=draw.choice(sources6), dst=draw.choice(targets6), hlim=draw.choice([1, 2, 64]))
            if v6
            else IP(src=draw.choice(sources), dst=draw.choice(targets), ttl=draw.choice([1, 2, 64]))
        )
        if v6:
            for _ in range(draw.randrange(3)):
                outer = outer / draw.choice([IPv6ExtHdrDestOpt(), IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment(id=3)])
        body = draw.choice(
            [
                UDP(sport=draw.randrange(40000, 40008), dport=draw.choice([53, 443, 4789, 9999])),
                TCP(
                    sport=draw.randrange(65536),
                    dport=draw.choice([22, 80]),
                    flags=draw.choice(["S", "A", "PA", "R", "SF"]),
                ),
                ICMPv6EchoRequest(id=draw.randrange(9)) if v6 else ICMP(id=draw.randrange(9)),
                GRE(),
                Raw(b""),
            ]
        )
        packet = bytearray(bytes(outer / body / draw.randbytes(draw.randrange(200))))
        for _ in range(draw.choice([0, 0, 0, 1, 3])):
            packet[draw.randrange(min(len(packet), 60))] = draw.randrange(256)
        if draw.random() < 0.05:
            del packet[draw.randrange(len(packet)) :]
        yield bytes(packet)


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_arrives_is_recorded(net: Subnet, wire: Wire, agent: Cable, seed: int) -> None:
    draw, mixture = random.Random(seed), _mixture(seed)
    last = secrets.token_bytes(16)
    sources = {socket.inet_pton(socket.AF_INET, AGENT), socket.inet_pton(socket.AF_INET6, AGENT6)}
    with Sniffer(net.upstream) as tap:
        for _ in range(1200):
            packet = next(mixture)
            kind = (
                draw.choice([0x0800, 0x86DD]) if draw.random() < 0.1 else (0x86DD if packet[:1] >= b"\x60" else 0x0800)
            )
            head = Ether(dst=agent.gateway, src=agent.mac, type=kind)
            tag = Ether(dst=agent.gateway, src=agent.mac) / Dot1Q(vlan=0, type=kind)
            agent.send(bytes(tag if draw.random() < 0.05 else head) + packet)
        agent.send(V4 / UDP(sport=5, dport=53) / last)
        until(lambda: tap.has(last), "the last arrives")
        arrived = {canonical(packet) for packet in tap.packets}
    until(lambda: wire.client.status()["ring"]["fill"] == 0, "the journal has them")
    known = recorded(wire)
    forwarded = [
        packet
        for packet in arrived
        if (packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]) in sources  # else the gateway's own, as its ND
    ]
    assert len(forwarded) > 60, "the mixture lost its point"
    assert [packet.hex() for packet in forwarded if packet not in known] == []
    strangers = [packet for packet in arrived - known if packet not in forwarded]
    assert [packet.hex() for packet in strangers if not _is_neighbour_discovery(packet)] == []


def _is_neighbour_discovery(packet: bytes) -> bool:
    """The only thing that the gateway has to say by itself."""
    return packet[0] >> 4 == 6 and (packet[6] == 0 or (packet[6] == 58 and 133 <= packet[40] <= 143))


def test_the_gateway_does_not_complain_upstream_of_who_is_not_there(net: Subnet, wire: Wire, agent: Cable) -> None:
    """Answers to refused packets bear the server's address; when nobody is there to take them, that is not told."""
    nobody, nobody6 = "10.91.1.77", "fd91:1::77"
    last = secrets.token_bytes(16)
    with Sniffer(net.upstream) as tap:
        agent.send(IP(src=nobody, dst=UPSTREAM) / TCP(sport=5, dport=80, flags="S", seq=0x56425642))
        agent.send(IPv6(src=nobody6, dst=UPSTREAM6) / TCP(sport=5, dport=80, flags="S", seq=0x56425642))
        agent.send(IPv6(src="fe80::77", dst=UPSTREAM6) / TCP(sport=5, dport=80, flags="S", seq=0x56425642))

        def given_up() -> bool:
            neighbours = sh("ip", "neigh", "show", "dev", "agents0", netns=net.gateway)
            return all(f"{each} FAILED" in neighbours for each in (nobody, nobody6, "fe80::77"))

        until(given_up, "the gateway has looked for them in vain")
        agent.send(V4 / UDP(sport=5, dport=53) / last)
        until(lambda: tap.has(last), "the last arrives")
    assert not tap.has((0x56425643).to_bytes(4, "big"))


@pytest.mark.parametrize("source", [UPSTREAM, FAR_GATEWAY, "10.91.7.7", UPSTREAM6, FAR_GATEWAY6, "fd91:7::7"])
def test_the_gateway_does_not_carry_words_to_a_made_up_source(
    net: Subnet, wire: Wire, agent: Cable, source: str
) -> None:
    """Its own answers are not recorded: a ping's echo, complaints about hop limits and missing routes, handshakes."""
    marker, before = secrets.token_bytes(16), Counter(refused(wire))
    v6 = ":" in source
    near, far, nowhere = (GATEWAY6, UPSTREAM6, "fd99::9") if v6 else (GATEWAY, UPSTREAM, "10.99.9.9")
    ping = ICMPv6EchoRequest(id=9) if v6 else ICMP(id=9)

    def outer(to: str, hops: int = 64) -> Any:
        return IPv6(src=source, dst=to, hlim=hops) if v6 else IP(src=source, dst=to, ttl=hops)

    with Sniffer(net.upstream) as tap:
        for packet in (
            outer(near) / ping / marker,
            outer(far, 1) / UDP(sport=5, dport=53) / marker,
            outer(nowhere) / UDP(sport=5, dport=53) / marker,
            outer(near) / TCP(sport=5, dport=8443, flags="S", seq=0x56425642),
        ):
            agent.send(packet)
        last = secrets.token_bytes(16)
        agent.send(V4 / UDP(sport=5, dport=53) / last)
        until(lambda: tap.has(last), "the last arrives")
    assert not tap.has(marker)
    assert not tap.has((0x56425643).to_bytes(4, "big"))
    told = Counter(refused(wire)) - before
    assert told == {"spoofed": 3, "no-rule" if v6 else "no-lease": 1}


def test_ipv6_when_only_ipv4_is_ruled(net: Subnet, wire: Wire) -> None:
    before = Counter(refused(wire))
    with Sniffer(net.upstream) as tap, net.listen(RULED) as v4, net.listen(UNRULED) as v6:
        net.connect(v4.getsockname()[1], RULED).close()
        with pytest.raises(ConnectionRefusedError):
            net.connect(v6.getsockname()[1], UNRULED)
        inside(net.agent, lambda: _say(socket.AF_INET6, UNRULED, 53, b"past-the-rules"))
        until(lambda: (Counter(refused(wire)) - before)["no-rule"] == 2, "both are counted")
        wanted = socket.inet_pton(socket.AF_INET6, AGENT6)
        assert [packet for packet in tap.packets if packet[0] >> 4 == 6 and packet[8:24] == wanted] == []


def _say(family: int, address: str, port: int, data: bytes) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(data, (address, port))
