"""What is not forwarded, why, and what is told and recorded about it."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import truediv
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_Router_Alert, IPOption_SSRR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
)
from scapy.layers.l2 import ARP, GRE, Dot1Q, Ether

from appliance.wire import abi
from appliance.wire.abi import Reason
from tests.bpf.bench import AGENT_MAC, PEER_MAC, Bench

A4, B4, S4 = "10.0.1.5", "10.0.1.9", "192.0.2.80"  # an agent, one without a lease, a server
A6, S6 = "fd00:1::5", "2001:db8::80"
ETHERNET = Ether(dst=AGENT_MAC, src=PEER_MAC)
SYN = TCP(sport=40000, dport=80, flags="S", seq=1000)
TAGGED = ETHERNET / Dot1Q(vlan=0)  # gives a priority only
NOPS = [IPOption_NOP()] * 4
V4, V6 = IP(src=A4, dst=S4), IPv6(src=A6, dst=S6)


def _frame(packet: Any, at: int = 0, value: bytes = b"") -> bytes:
    """The frame, with bytes of the IP packet replaced from offset `at`."""
    whole = bytearray(bytes(ETHERNET / packet))
    whole[14 + at : 14 + at + len(value)] = value
    return bytes(whole)


@dataclass(frozen=True)
class Case:
    name: str
    reason: Reason
    packet: Any
    upstream: bool = False


OUTER = IP(src="198.51.100.1", dst=A4)
UNKNOWN = bytes(IP(src=A4, dst=S4) / TCP(sport=1, dport=2))[:28]
SEVEN_HEADERS = reduce(truediv, [IPv6ExtHdrDestOpt() for _ in range(7)])

CASES = [
    Case("no lease", Reason.NO_LEASE, IP(src=B4, dst=S4) / SYN),
    Case("no lease, udp", Reason.NO_LEASE, IP(src=B4, dst=S4) / UDP(sport=5, dport=53)),
    Case("ipv4 header length", Reason.MALFORMED, _frame(V4 / SYN, 0, b"\x44")),
    Case("ipv4 header longer than the packet", Reason.MALFORMED, _frame(V4, 0, b"\x4f")),
    Case("ipv4 version", Reason.MALFORMED, _frame(V4 / SYN, 0, b"\x65")),
    Case("ipv6 version", Reason.MALFORMED, _frame(V6 / SYN, 0, b"\x40")),
    Case("ipv4 longer than the frame", Reason.MALFORMED, _frame(V4 / SYN, 2, b"\0\x29")),
    Case("ipv4 length 0 without GSO", Reason.MALFORMED, _frame(V4 / SYN, 2, b"\0\0")),
    Case("ipv4 length below its header", Reason.MALFORMED, _frame(V4 / SYN, 2, b"\0\x13")),
    Case("ipv6 longer than the frame", Reason.MALFORMED, _frame(V6 / SYN, 4, b"\0\x15")),
    Case("ipv6 length 0 without GSO", Reason.MALFORMED, _frame(V6 / SYN, 4, b"\0\0")),
    Case("ipv4 cut", Reason.MALFORMED, bytes(TAGGED / V4)[: 18 + 19]),  # untagged, the test run takes none so short
    Case("ipv6 cut", Reason.MALFORMED, bytes(TAGGED / V6)[: 18 + 39]),
    Case("ipv4 checksum", Reason.MALFORMED, _frame(V4 / SYN, 10, b"\x12\x34")),
    Case("ipv4 checksum with options", Reason.MALFORMED, _frame(IP(src=A4, dst=S4, options=NOPS) / SYN, 10, b"\1\2")),
    Case("router alert", Reason.UNREADABLE, IP(src=A4, dst=S4, options=[IPOption_Router_Alert()]) / SYN),
    Case("tcp cut", Reason.MALFORMED, IP(bytes(IP(src=A4, dst=S4, proto=6) / bytes(19)))),
    Case("tcp offset too small", Reason.MALFORMED, _frame(V4 / SYN, 20 + 12, b"\x40")),
    Case("tcp offset beyond the packet", Reason.MALFORMED, _frame(V4 / SYN, 20 + 12, b"\x60")),
    Case("tcp header in the padding", Reason.MALFORMED, _frame(V4 / SYN, 2, b"\0\x27")),
    Case("udp cut", Reason.MALFORMED, IP(bytes(IP(src=A4, dst=S4, proto=17) / bytes(7)))),
    Case("udp length below its header", Reason.MALFORMED, V4 / UDP(len=7) / b"x"),
    Case("udp longer than the packet", Reason.MALFORMED, V4 / UDP(len=10) / b"x"),
    Case("bytes behind the datagram", Reason.MALFORMED, V4 / UDP(len=9) / b"xy"),
    Case("bytes behind the datagram6", Reason.MALFORMED, V6 / UDP(len=9) / b"xy"),
    Case("an IPv4 address as IPv6 source", Reason.MALFORMED, IPv6(src=f"::ffff:{A4}", dst=S6) / SYN),
    Case("an IPv4 address as IPv6 destination", Reason.MALFORMED, IPv6(src=A6, dst=f"::ffff:{S4}") / SYN),
    Case("loopback source", Reason.MALFORMED, IP(src="127.0.0.1", dst=S4) / SYN),
    Case("loopback destination", Reason.MALFORMED, IP(src=A4, dst="127.0.0.53") / SYN),
    Case("loopback source6", Reason.MALFORMED, IPv6(src="::1", dst=S6) / SYN),
    Case("loopback destination6", Reason.MALFORMED, IPv6(src=A6, dst="::1") / SYN),
    Case("icmp error with much in it", Reason.MALFORMED, V4 / ICMP(type=3) / bytes(576 - 27)),
    Case("icmpv6 error with much in it", Reason.MALFORMED, V6 / ICMPv6DestUnreach() / bytes(1280 - 47)),
    Case("icmp cut", Reason.MALFORMED, IP(bytes(IP(src=A4, dst=S4, proto=1) / bytes(7)))),
    Case("icmp error cut", Reason.MALFORMED, V4 / ICMP(type=3) / bytes(10), True),
    Case("extension header beyond the packet", Reason.MALFORMED, V6 / IPv6ExtHdrDestOpt(len=3)),
    Case("first fragment", Reason.FRAGMENT, IP(src=A4, dst=S4, flags="MF") / SYN),
    Case("later fragment", Reason.FRAGMENT, IP(src=A4, dst=S4, frag=5, proto=6) / bytes(40)),
    Case("later fragment from upstream", Reason.FRAGMENT, IP(src=S4, dst=A4, frag=5, proto=6) / bytes(40), True),
    Case("first fragment6", Reason.FRAGMENT, V6 / IPv6ExtHdrFragment(m=1) / SYN),
    Case("later fragment6", Reason.FRAGMENT, V6 / IPv6ExtHdrFragment(offset=9, nh=6) / bytes(40)),
    Case("fragment6 behind options", Reason.FRAGMENT, V6 / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(m=1) / SYN),
    Case("sctp", Reason.PROTOCOL, IP(src=A4, dst=S4, proto=132) / bytes(20)),
    Case("no next header", Reason.PROTOCOL, IPv6(src=A6, dst=S6, nh=59)),
    Case("icmp timestamp", Reason.PROTOCOL, V4 / ICMP(type=13)),
    Case("icmp redirect", Reason.PROTOCOL, V4 / ICMP(type=5) / bytes(20)),
    Case("reply to no echo", Reason.PROTOCOL, V4 / ICMP(type=0)),
    Case("reply6 to no echo", Reason.PROTOCOL, V6 / ICMPv6EchoReply()),
    Case("icmp of the wrong family", Reason.PROTOCOL, IP(src=A4, dst=S4, proto=58) / bytes(20)),
    Case("neighbour solicitation, routed", Reason.PROTOCOL, V6 / ICMPv6ND_NS()),
    Case("error about no flow", Reason.PROTOCOL, OUTER / ICMP(type=3) / UNKNOWN, True),
    Case("gre", Reason.UNREADABLE, V4 / GRE() / V4),
    Case("ip in ip", Reason.UNREADABLE, V4 / V4 / SYN),
    Case("esp", Reason.UNREADABLE, IP(src=A4, dst=S4, proto=50) / bytes(20)),
    Case("authentication header", Reason.UNREADABLE, IPv6(src=A6, dst=S6, nh=51) / bytes(40)),
    Case(
        "loose source route",
        Reason.UNREADABLE,
        IP(src=A4, dst=S4, options=[IPOption_LSRR(routers=["192.0.2.9"])]) / SYN,
    ),
    Case(
        "strict source route behind padding",
        Reason.UNREADABLE,
        IP(src=A4, dst=S4, options=[IPOption_NOP()] * 33 + [IPOption_SSRR(routers=["192.0.2.9"])]) / SYN,
    ),
    Case("segments left", Reason.UNREADABLE, V6 / IPv6ExtHdrRouting(addresses=["2001:db8::9"], segleft=1) / SYN),
    Case("routing header that is over", Reason.UNREADABLE, V6 / IPv6ExtHdrRouting(segleft=0) / SYN),
    Case("routing header type 4, SRv6", Reason.UNREADABLE, V6 / IPv6ExtHdrSegmentRouting(segleft=1) / SYN),
    Case("routing header behind options", Reason.UNREADABLE, V6 / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting() / SYN),
    Case("too many headers", Reason.UNREADABLE, V6 / SEVEN_HEADERS / SYN),
    Case("inbound syn", Reason.INBOUND, IP(src=S4, dst=A4) / SYN, True),
    Case("inbound udp", Reason.INBOUND, IP(src=S4, dst=A4) / UDP(), True),
    Case("inbound echo", Reason.INBOUND, IP(src=S4, dst=A4) / ICMP(), True),
    Case("inbound echo6", Reason.INBOUND, IPv6(src=S6, dst=A6) / ICMPv6EchoRequest(), True),
    Case("answer to no flow", Reason.NO_FLOW, IP(src=S4, dst=A4) / TCP(flags="SA"), True),
    Case("data of no flow", Reason.NO_FLOW, IP(src=S4, dst=A4) / TCP(flags="PA") / b"x", True),
    Case("reset of no flow", Reason.NO_FLOW, V4 / TCP(flags="R")),
    Case("quic", Reason.QUIC, V4 / UDP(sport=5000, dport=443) / b"x"),
    Case("wireguard", Reason.TUNNEL, V4 / UDP(sport=5000, dport=51820) / b"x"),
    Case("vxlan", Reason.TUNNEL, V6 / UDP(sport=5000, dport=4789) / b"x"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused(open_bench: Bench, case: Case) -> None:
    outcome = (open_bench.receive if case.upstream else open_bench.send)(case.packet)
    assert outcome.reason is case.reason
    assert outcome.verdict == ("refuse" if case.reason > 15 else "drop")
    assert open_bench.counters() == {case.reason.name.lower(): 1}
    assert list(open_bench.flows()) == []
    (record,) = outcome.records
    assert record.header.count == 1
    assert record.header.ifindex == (open_bench.upstream if case.upstream else open_bench.agent)


def _no_rule(bench: Bench) -> None:
    bench.lease(A4)


def _rule(lane: abi.Lane) -> Callable[[Bench], None]:
    def apply(bench: Bench) -> None:
        bench.lease(A4)
        bench.rule("192.0.2.0/24", lane, number=9)

    return apply


def _expired(bench: Bench) -> None:
    bench.lease(A4, 5, seconds=-0.001)
    bench.rule("192.0.2.0/24")


@pytest.mark.parametrize(
    ("state", "reason", "lease"),
    [
        (_no_rule, Reason.NO_RULE, 0),
        (_rule(abi.Lane.REFUSE), Reason.RULE, 0),
        (_expired, Reason.LEASE_EXPIRED, 5),
    ],
    ids=["no rule", "refuse", "expired"],
)
def test_refused_by_state(bench: Bench, state: Callable[[Bench], None], reason: Reason, lease: int) -> None:
    state(bench)
    outcome = bench.send(V4 / SYN)
    assert (outcome.reason, outcome.verdict) == (reason, "refuse")
    assert outcome.records[0].header.lease == lease


@pytest.mark.parametrize("lasting", [False, True], ids=["before", "meanwhile"])
def test_whose_lease_is_behind_another_interface_is_spoofed(bench: Bench, lasting: bool) -> None:
    bench.rule("192.0.2.0/24")
    if lasting:
        bench.lease(A4, 5, ifindex=bench.agent)
        assert bench.send(V4 / SYN).verdict == "forward"
    bench.lease(A4, 5, ifindex=bench.upstream)
    outcome = bench.send(V4 / SYN)
    assert (outcome.reason, outcome.verdict) == (Reason.SPOOFED, "drop")


def test_a_stalled_journal_refuses_everything_silently(open_bench: Bench) -> None:
    open_bench.send(V4 / SYN)
    open_bench.set(stalled=1)
    for packet in (V4 / SYN, V4 / TCP(sport=1), IP(src=B4, dst=S4) / SYN):
        assert open_bench.send(packet).verdict == "drop"
    assert open_bench.counters()["journal_full"] == 3
    open_bench.set(stalled=0)
    assert open_bench.send(V4 / SYN).verdict == "forward"


def test_a_full_table_of_flows_refuses_new_ones(open_bench: Bench) -> None:
    room = open_bench.settings.max_flows
    open_bench.set(max_flows=10**6)  # the map is smaller: no share is too large
    verdicts = [open_bench.send(V4 / TCP(sport=port, flags="S")).verdict for port in range(1000, 1000 + room + 3)]
    assert verdicts == ["forward"] * room + ["drop"] * 3
    assert open_bench.counters()["flows_full"] == 3
    assert open_bench.send(V4 / TCP(sport=1000, flags="A", seq=1)).verdict == "forward"


def test_revocation_and_expiry_cut_live_flows_both_ways(open_bench: Bench) -> None:
    there = V4 / TCP(sport=40000, dport=80, flags="A", seq=1001) / b"hello"
    back = IP(src=S4, dst=A4) / TCP(sport=80, dport=40000, flags="A") / b"hi"
    flow = open_bench.send(V4 / SYN).packet.header.flow
    changes: list[tuple[Callable[[], None], Reason]] = [
        (lambda: open_bench.revoke(A4), Reason.NO_LEASE),
        (lambda: open_bench.lease(A4, 7, -1), Reason.LEASE_EXPIRED),
        (lambda: open_bench.lease(A4, 8), Reason.LEASE_CHANGED),
    ]
    for change, reason in changes:
        change()
        for outcome in (open_bench.send(there), open_bench.receive(back)):
            assert (outcome.verdict, outcome.reason) == ("refuse", reason)
            assert outcome.records[0].header.flow == flow
    sides = open_bench.flow()
    assert (sides.client.refused, sides.client.refused_bytes) == (3, 15)
    assert (sides.server.refused, sides.server.refused_bytes) == (3, 6)
    open_bench.lease(A4, 7)
    assert open_bench.send(there).verdict == open_bench.receive(back).verdict == "forward"


def test_removing_the_rule_cuts_live_flows(bench: Bench) -> None:
    bench.lease(A4)
    bench.rule("192.0.2.0/24")
    bench.send(V4 / SYN)
    bench.remove_rule("192.0.2.0/24")
    assert bench.receive(IP(src=S4, dst=A4) / TCP(sport=80, dport=40000, flags="SA")).reason is Reason.NO_RULE


def test_an_unbound_flow_outlives_leases_but_not_its_rule(bench: Bench) -> None:
    bench.rule("192.0.2.0/24", unbound=True)
    bench.send(V4 / SYN)
    bench.lease(A4)
    assert bench.send(V4 / TCP(sport=40000, dport=80, flags="A", seq=1001)).verdict == "forward"
    bench.rule("192.0.2.0/24", unbound=False)
    assert bench.send(V4 / TCP(sport=40000, dport=80, flags="A", seq=1001)).reason is Reason.LEASE_CHANGED


def test_a_bound_flow_through_an_unbound_rule_is_cut_with_its_lease(bench: Bench) -> None:
    bench.lease(A4)
    bench.rule("192.0.2.0/24", unbound=True)
    bench.send(V4 / SYN)
    bench.lease(A4, seconds=-1)
    assert bench.send(V4 / TCP(sport=40000, dport=80, flags="A", seq=1001)).reason is Reason.LEASE_EXPIRED


def test_icmp_errors_carry_nothing_elsewhere(open_bench: Bench) -> None:
    """The quoted packet must be one of the addressee's: else an error could smuggle bytes to any destination."""
    sent = V4 / SYN
    open_bench.send(sent)
    smuggled = IP(src=A4, dst="203.0.113.9") / ICMP(type=3) / bytes(sent)
    assert open_bench.send(smuggled).reason is Reason.PROTOCOL


def test_icmp_errors_end_with_the_lease(open_bench: Bench) -> None:
    sent = V4 / SYN
    open_bench.send(sent)
    open_bench.revoke(A4)
    assert open_bench.receive(OUTER / ICMP(type=3) / bytes(sent)).reason is Reason.NO_LEASE


def test_a_clients_packets_come_from_agents(open_bench: Bench) -> None:
    open_bench.send(V4 / SYN)
    assert open_bench.receive(V4 / TCP(sport=40000, dport=80, flags="A", seq=1001)).reason is Reason.NO_FLOW


@pytest.mark.parametrize("held", ["by nobody", "behind another interface", "no longer"])
def test_nobody_answers_for_a_server_that_he_is_not(open_bench: Bench, held: str) -> None:
    open_bench.send(V4 / SYN)
    forged = IP(src=S4, dst=A4) / TCP(sport=80, dport=40000, flags="SA", seq=1, ack=1001)
    if held == "behind another interface":
        open_bench.lease(S4, 9, ifindex=open_bench.upstream)
    elif held == "no longer":
        open_bench.lease(S4, 9, seconds=-1)
    outcome = open_bench.send(forged)
    assert (outcome.verdict, outcome.reason) == ("drop", Reason.IMPOSTOR)
    assert open_bench.receive(forged).verdict == "forward"
    open_bench.lease(S4, 9, ifindex=open_bench.agent)
    assert open_bench.send(forged).verdict == "forward"


def test_a_server_of_an_unbound_rule_needs_no_lease_behind_an_agents_interface(bench: Bench) -> None:
    bench.rule("192.0.2.0/24", unbound=True)
    bench.send(V4 / SYN)
    assert bench.send(IP(src=S4, dst=A4) / TCP(sport=80, dport=40000, flags="SA")).verdict == "forward"


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=A4, dst="10.0.1.1") / SYN,
        IPv6(src=A6, dst="fd00:1::1") / SYN,
        IP(src=A4, dst="10.0.1.1") / TCP(sport=40000, dport=22, flags="SA"),
        IP(src=A4, dst="10.0.1.1") / ICMP(),
        IP(src=A4, dst="224.0.0.251") / UDP(),
        IP(src=A4, dst="255.255.255.255") / UDP(),
        IPv6(src="fe80::5", dst="ff02::1") / ICMPv6ND_NS(),
        IPv6(src="fe80::5", dst="fe80::1") / ICMPv6ND_NS(),
        IP(src=A4, dst=S4, ttl=1) / SYN,
        IPv6(src=A6, dst=S6, hlim=1) / SYN,
        Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER_MAC) / IP(src=A4, dst=S4) / UDP(),
        Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER_MAC) / ARP(),
        ETHERNET / ARP(),
        ETHERNET / Dot1Q() / Dot1Q() / Dot1Q() / V4 / SYN,
        ETHERNET / Dot1Q(vlan=10) / V4 / SYN,  # the VLAN's own interface sees it again
        ETHERNET / Dot1Q(vlan=0) / Dot1Q(vlan=10) / V4 / SYN,
    ],
    ids=lambda packet: packet.summary(),
)
def test_what_is_not_forwarded_passes_unmarked(open_bench: Bench, packet: Any) -> None:
    for address in ("10.0.1.1", "fd00:1::1"):
        open_bench.local(address)
    open_bench.set(ports=[443, 80])
    outcome = open_bench.send(packet, mark=abi.MARK_RECORDED)
    assert (outcome.verdict, outcome.records) == ("pass", [])
    assert open_bench.counters() == {"local": 1}


def test_another_hosts_frames_are_dropped(open_bench: Bench) -> None:
    outcome = open_bench.send(Ether(dst="02:00:00:00:00:77", src=PEER_MAC) / V4 / SYN)
    assert (outcome.verdict, outcome.records) == ("drop", [])
    assert open_bench.counters() == {"foreign": 1}


def test_from_an_interface_without_a_role_nothing_comes_in(open_bench: Bench) -> None:
    open_bench.local("10.0.1.1")
    assert open_bench.map("interfaces").delete(struct.pack("<I", open_bench.agent))
    for destination in (S4, "10.0.1.1", "224.0.0.251"):
        assert open_bench.send(IP(src=A4, dst=destination) / UDP()).verdict == "drop"
    assert open_bench.counters() == {"no_role": 3}


@pytest.mark.parametrize("whole", [TAGGED / V4 / SYN, TAGGED / V6 / UDP(sport=5, dport=53)], ids=["v4", "v6"])
def test_cut_frames_never_pass(open_bench: Bench, whole: Any) -> None:
    frame = bytes(whole)
    open_bench.set(refusal_interval=0)
    for end in range(14, len(frame)):
        outcome = open_bench.send(frame[:end])
        assert (outcome.verdict, outcome.reason) == ("drop", Reason.MALFORMED)
        (record,) = outcome.records
        assert record.data == (frame[18:end] if end >= 18 else frame[14:end])
    assert open_bench.send(frame).verdict == "forward"


def test_the_record_of_a_refusal_holds_the_first_bytes(open_bench: Bench) -> None:
    for body, flags in ((b"", 0), (bytes(range(80)), 0), (bytes(range(100)), 0), (bytes(range(101)), abi.RECORD_F_CUT)):
        open_bench.set(refusal_interval=0)
        packet = IP(src=B4, dst=S4) / UDP(sport=5, dport=53) / body
        (record,) = open_bench.send(packet).records
        assert record.data == bytes(packet)[:128]
        assert (record.header.flags, record.header.payload) == (flags, len(body))
        assert abi.unpack_address(record.header.source) == B4
        assert (record.header.source_port, record.header.destination_port) == (5, 53)


def test_refusal_records_are_rate_limited_and_count(open_bench: Bench) -> None:
    refused = IP(src=B4, dst=S4) / SYN
    open_bench.set(refusal_interval=10**15)
    assert len(open_bench.send(refused).records) == 1
    assert [open_bench.send(refused).records for _ in range(4)] == [[]] * 4
    assert len(open_bench.send(IP(src="10.0.1.10", dst=S4) / SYN).records) == 1, "another source has its own limit"
    assert len(open_bench.send(IP(src=B4, dst=S4, flags="MF") / SYN).records) == 1, "another reason too"
    key = abi.RefusalKey(abi.pack_address(B4), Reason.NO_LEASE).pack()
    pending = abi.RefusalValue.unpack(open_bench.map("refusals").lookup(key) or b"")
    assert pending.count == 4
    open_bench.set(refusal_interval=0)
    (record,) = open_bench.send(refused).records
    assert record.header.count == 5
    assert open_bench.counters() == {"no_lease": 7, "fragment": 1}
