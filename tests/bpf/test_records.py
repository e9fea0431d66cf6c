"""What is forwarded, and what is recorded of it: header and bytes."""

import struct
from dataclasses import dataclass, field
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from appliance.wire import abi
from tests.bpf.bench import AGENT_MAC, PEER_MAC, Bench

A4, S4 = "10.0.1.5", "192.0.2.80"
A6, S6 = "fd00:1::5", "2001:db8::80"
ETHERNET = Ether(dst=AGENT_MAC, src=PEER_MAC)
SYN = TCP(sport=40000, dport=80, flags="S", seq=1000, window=64000)


@dataclass(frozen=True)
class Case:
    name: str
    packet: Any  # without the Ethernet header
    header: int  # bytes up to the payload
    payload: int
    ports: tuple[int, int]
    fields: dict[str, int] = field(default_factory=dict)
    tags: Any = None


CASES = [
    Case("tcp", IP(src=A4, dst=S4) / SYN, 40, 0, (40000, 80), {"seq": 1000, "window": 64000, "tcp_flags": 2}),
    Case("tcp6", IPv6(src=A6, dst=S6) / SYN, 60, 0, (40000, 80), {"seq": 1000}),
    Case("tcp options", IP(src=A4, dst=S4) / TCP(options=[("MSS", 1460), ("WScale", 7)]) / b"x", 48, 1, (20, 80)),
    Case(
        "tcp data", IP(src=A4, dst=S4) / TCP(seq=7, ack=9, flags="PA") / b"hello", 40, 5, (20, 80), {"seq": 7, "ack": 9}
    ),
    Case("udp", IP(src=A4, dst=S4) / UDP(sport=5000, dport=53) / b"query", 28, 5, (5000, 53), {"protocol": 17}),
    Case("udp6", IPv6(src=A6, dst=S6) / UDP(sport=5000, dport=53) / b"query", 48, 5, (5000, 53), {"family": 6}),
    Case("udp empty", IP(src=A4, dst=S4) / UDP(sport=5000, dport=53), 28, 0, (5000, 53)),
    Case("echo", IP(src=A4, dst=S4) / ICMP(id=77) / b"ping", 28, 4, (77, 0), {"protocol": 1}),
    Case("echo6", IPv6(src=A6, dst=S6) / ICMPv6EchoRequest(id=77, data=b"ping"), 48, 4, (77, 0), {"protocol": 58}),
    Case("ip options", IP(src=A4, dst=S4, options=[IPOption_NOP()] * 8) / SYN, 48, 0, (40000, 80)),
    Case("hop-by-hop", IPv6(src=A6, dst=S6) / IPv6ExtHdrHopByHop() / SYN, 68, 0, (40000, 80), {"protocol": 6}),
    Case(
        "three extension headers",
        IPv6(src=A6, dst=S6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(id=1) / SYN,
        40 + 8 + 8 + 8 + 20,
        0,
        (40000, 80),
    ),
    Case(
        "priority tag",
        IP(src=A4, dst=S4) / SYN,
        40,
        0,
        (40000, 80),
        {"vlan": 0x2000, "flags": abi.RECORD_F_VLAN | abi.RECORD_F_UNVERIFIED},
        Dot1Q(vlan=0, prio=1),
    ),
    Case(
        "two tags",
        IPv6(src=A6, dst=S6) / SYN,
        60,
        0,
        (40000, 80),
        {"vlan": 0x6000, "flags": abi.RECORD_F_VLAN | abi.RECORD_F_UNVERIFIED},
        Dot1AD(vlan=0, prio=3) / Dot1Q(vlan=0),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forwarded_and_recorded(open_bench: Bench, case: Case) -> None:
    frame = ETHERNET / case.tags / case.packet if case.tags else ETHERNET / case.packet
    outcome = open_bench.send(frame)
    assert outcome.verdict == "forward"
    header, data = outcome.packet.header, outcome.packet.data
    assert data == bytes(case.packet)
    assert (header.version, header.kind, header.lane, header.side) == (abi.ABI, abi.Kind.PACKET, abi.Lane.TAP, 0)
    assert (header.length, header.header, header.payload) == (len(data), case.header, case.payload)
    assert (header.source_port, header.destination_port) == case.ports
    assert abi.unpack_address(header.source) in (A4, A6)
    assert abi.unpack_address(header.destination) in (S4, S6)
    assert header.ifindex == open_bench.agent
    assert header.lease == (7 if header.family == 4 else 9)
    assert header.flow == header.time == open_bench.flow().start
    assert (header.reason, header.reserved, header.spare, header.count) == (0, 0, 0, 0)
    assert {name: getattr(header, name) for name in case.fields} == case.fields
    assert open_bench.counters() == {"packets": 1, "bytes": len(data)}


@pytest.mark.parametrize("size", [*range(140), 255, 256, 257, 511, 512, 1023, 1024, 1460, 2047, 2048, 3000])
def test_every_length_is_recorded_exactly(open_bench: Bench, size: int) -> None:
    body = bytes((i * 7 + size) & 0xFF for i in range(size))
    packet = IP(src=A4, dst=S4) / TCP(flags="A") / body
    assert open_bench.send(packet).packet.data == bytes(packet)


def test_padding_of_the_link_layer_is_not_recorded(open_bench: Bench) -> None:
    for packet in (IP(src=A4, dst=S4) / TCP(flags="A"), IPv6(src=A6, dst=S6) / TCP(flags="A")):
        outcome = open_bench.send(bytes(ETHERNET / packet) + b"\xaa" * 30)
        assert outcome.packet.data == bytes(packet)
        assert outcome.packet.header.payload == 0


@pytest.mark.parametrize("address", [(IP, A4, S4), (IPv6, A6, S6)], ids=["v4", "v6"])
def test_big_tcp_has_length_0(open_bench: Bench, address: tuple[Any, str, str]) -> None:
    layer, source, destination = address
    whole = bytes(layer(src=source, dst=destination) / TCP(flags="A") / bytes(2900))
    at = 2 if layer is IP else 4
    if layer is IP:  # with the checksum that goes with it
        whole = bytes(IP(src=source, dst=destination, proto=6, len=0))[:20] + whole[20:]
    outcome = open_bench.send(bytes(ETHERNET / layer(whole[:at] + b"\0\0" + whole[at + 2 :])), gso=1450)
    header = outcome.packet.header
    assert outcome.verdict == "forward"
    assert (header.payload, header.gso_size, header.gso_segs) == (2900, 1450, 3)
    assert header.flags == abi.RECORD_F_GSO
    assert outcome.packet.data == whole[:at] + b"\0\0" + whole[at + 2 :]


def test_both_directions_belong_to_the_flow(open_bench: Bench) -> None:
    first = open_bench.send(IP(src=A4, dst=S4) / SYN).packet.header
    answer = open_bench.receive(
        IP(src=S4, dst=A4) / TCP(sport=80, dport=40000, flags="SA", seq=5, ack=1001)
    ).packet.header
    assert (answer.flow, answer.side, answer.lease) == (first.flow, abi.Side.SERVER, first.lease)
    assert answer.ifindex == open_bench.upstream
    assert answer.time > first.time


def test_echo_reply_belongs_to_the_flow(open_bench: Bench) -> None:
    for request, reply in (
        (IP(src=A4, dst=S4) / ICMP(id=77), IP(src=S4, dst=A4) / ICMP(type=0, id=77)),
        (IPv6(src=A6, dst=S6) / ICMPv6EchoRequest(id=77), IPv6(src=S6, dst=A6) / ICMPv6EchoReply(id=77)),
    ):
        first = open_bench.send(request).packet.header
        answer = open_bench.receive(reply).packet.header
        assert (answer.flow, answer.side) == (first.flow, abi.Side.SERVER)
        assert (answer.source_port, answer.destination_port) == (0, 77)


def test_agent_to_agent_is_bound_to_the_clients_lease(open_bench: Bench) -> None:
    other = "10.0.1.6"
    open_bench.send(IP(src=A4, dst=other) / SYN)
    answer = open_bench.send(IP(src=other, dst=A4) / TCP(sport=80, dport=40000, flags="SA")).packet.header
    assert (answer.lease, answer.side) == (7, abi.Side.SERVER)


def test_a_mark_that_comes_in_says_nothing(open_bench: Bench) -> None:
    assert open_bench.send(IP(src=A4, dst="224.0.0.251") / UDP(), mark=abi.MARK_RECORDED).verdict == "pass"
    assert open_bench.send(IP(src="10.9.9.9", dst=S4) / SYN, mark=abi.MARK_RECORDED).verdict == "refuse"


def test_unbound_rule_needs_no_lease(bench: Bench) -> None:
    bench.rule("192.0.2.0/24", unbound=True, number=3)
    header = bench.send(IP(src=A4, dst=S4) / SYN).packet.header
    assert (header.flags & ~abi.RECORD_F_UNVERIFIED, header.lease) == (abi.RECORD_F_UNBOUND, 0)
    assert (bench.flow().flags, bench.flow().rule) == (abi.RECORD_F_UNBOUND, 3)


def test_unbound_rule_keeps_the_lease_of_those_who_have_one(bench: Bench) -> None:
    bench.lease(A4, 7)
    bench.rule("192.0.2.0/24", unbound=True)
    header = bench.send(IP(src=A4, dst=S4) / SYN).packet.header
    assert (header.flags & ~abi.RECORD_F_UNVERIFIED, header.lease) == (0, 7)


def _error(kind: int, inner: Any, source: str = "198.51.100.1") -> Any:
    quoted = bytes(inner)[:28]
    return IP(src=source, dst=inner[IP].src) / ICMP(type=kind, code=1) / quoted


@pytest.mark.parametrize("kind", [3, 11, 12])
def test_icmp_errors_about_a_flow_are_recorded_with_it(open_bench: Bench, kind: int) -> None:
    sent = IP(src=A4, dst=S4) / SYN
    flow = open_bench.send(sent).packet.header.flow
    outcome = open_bench.receive(_error(kind, sent))
    header = outcome.packet.header
    assert outcome.verdict == "forward"
    assert (header.flow, header.flags, header.side) == (flow, abi.RECORD_F_RELATED, abi.Side.SERVER)
    assert (abi.unpack_address(header.source), abi.unpack_address(header.destination)) == (S4, A4)
    assert (header.source_port, header.destination_port, header.protocol) == (80, 40000, 6)
    assert (header.payload, header.seq, header.header) == (0, 0, 28)
    assert outcome.packet.data == bytes(_error(kind, sent))
    assert open_bench.flow().server.packets == 0


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_icmpv6_errors_about_a_flow_are_recorded_with_it(open_bench: Bench, kind: int) -> None:
    sent = IPv6(src=A6, dst=S6) / SYN
    open_bench.send(sent)
    error = IPv6(src="2001:db8::1", dst=A6, nh=58) / (struct.pack("!BBHI", kind, 0, 0, 1280) + bytes(sent))
    header = open_bench.receive(error).packet.header
    assert (header.flags, header.side, header.source_port) == (abi.RECORD_F_RELATED, abi.Side.SERVER, 80)


def test_an_agents_error_about_what_it_got(open_bench: Bench) -> None:
    open_bench.send(IP(src=A4, dst=S4) / UDP(sport=5000, dport=53) / b"query")
    got = IP(src=S4, dst=A4) / UDP(sport=53, dport=5000) / b"answer"
    open_bench.receive(got)
    header = open_bench.send(_error(3, got, A4)).packet.header
    assert (header.side, header.source_port, header.destination_port) == (abi.Side.CLIENT, 5000, 53)


def test_an_error_about_an_echo(open_bench: Bench) -> None:
    sent = IP(src=A4, dst=S4) / ICMP(id=77) / b"ping"
    open_bench.send(sent)
    header = open_bench.receive(_error(11, sent)).packet.header
    assert (header.source_port, header.destination_port, header.protocol) == (0, 77, 1)
