"""Which rule decides: the longest network, then the port, then the protocol."""

from dataclasses import dataclass
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6

from appliance.wire.abi import Lane, Reason
from tests.bpf.bench import Bench

A4, S4, A6, S6 = "10.0.1.5", "192.0.2.80", "fd00:1::5", "2001:db8::80"
TCP_, UDP_, ICMP_, ICMP6_ = 6, 17, 1, 58
HTTP = IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags="S")
DNS = IP(src=A4, dst=S4) / UDP(sport=5000, dport=53) / b"x"
QUIC = IP(src=A4, dst=S4) / UDP(sport=5000, dport=443) / b"x"
PING = IP(src=A4, dst=S4) / ICMP()
PING6 = IPv6(src=A6, dst=S6) / ICMPv6EchoRequest()
HTTP6 = IPv6(src=A6, dst=S6) / TCP(sport=40000, dport=80, flags="S")

Rule = tuple[str, Lane, int, int]  # network, lane, protocol, port
TAP, REFUSE, RELAY = Lane.TAP, Lane.REFUSE, Lane.RELAY


@dataclass(frozen=True)
class Case:
    name: str
    rules: tuple[Rule, ...]
    packet: Any
    expected: int | Reason  # number of the deciding rule (from 1), or why not


CASES = [
    Case("default route", (("0.0.0.0/0", TAP, 0, 0),), HTTP, 1),
    Case("host", (("192.0.2.80/32", TAP, 0, 0),), HTTP, 1),
    Case("another host", (("192.0.2.81/32", TAP, 0, 0),), HTTP, Reason.NO_RULE),
    Case("one bit off", (("192.0.2.0/26", TAP, 0, 0),), HTTP, Reason.NO_RULE),
    Case("longer network", (("192.0.0.0/16", REFUSE, 0, 0), ("192.0.2.0/24", TAP, 0, 0)), HTTP, 2),
    Case("longer refusal", (("192.0.0.0/16", TAP, 0, 0), ("192.0.2.0/24", REFUSE, 0, 0)), HTTP, Reason.RULE),
    Case("longer network before port", (("192.0.0.0/16", REFUSE, TCP_, 80), ("192.0.2.0/24", TAP, 0, 0)), HTTP, 2),
    Case("port before protocol", (("192.0.2.0/24", REFUSE, TCP_, 0), ("192.0.2.0/24", TAP, TCP_, 80)), HTTP, 2),
    Case("port before any", (("192.0.2.0/24", REFUSE, 0, 0), ("192.0.2.0/24", TAP, TCP_, 80)), HTTP, 2),
    Case("protocol before any", (("192.0.2.0/24", REFUSE, 0, 0), ("192.0.2.0/24", TAP, TCP_, 0)), HTTP, 2),
    Case("another port", (("192.0.2.0/24", TAP, TCP_, 81),), HTTP, Reason.NO_RULE),
    Case("another protocol", (("192.0.2.0/24", TAP, UDP_, 80),), HTTP, Reason.NO_RULE),
    Case("another family", (("::/0", TAP, 0, 0),), HTTP, Reason.NO_RULE),
    Case("v4 rules are not for v6", (("0.0.0.0/0", TAP, 0, 0),), HTTP6, Reason.NO_RULE),
    Case("v6", (("2001:db8::/32", REFUSE, 0, 0), ("2001:db8::/64", TAP, 0, 0)), HTTP6, 2),
    Case("v6 host", (("2001:db8::80/128", TAP, TCP_, 80),), HTTP6, 1),
    Case("v4-mapped is not v4", (("::ffff:192.0.2.0/120", TAP, 0, 0),), HTTP, Reason.NO_RULE),
    Case("relay", (("192.0.2.0/24", RELAY, TCP_, 80), ("0.0.0.0/0", TAP, 0, 0)), HTTP, Reason.RELAY),
    Case("dns", (("192.0.2.0/24", TAP, UDP_, 53),), DNS, 1),
    Case("quic without a rule", (), QUIC, Reason.QUIC),
    Case("quic by any", (("0.0.0.0/0", TAP, 0, 0),), QUIC, Reason.QUIC),
    Case("quic by udp", (("0.0.0.0/0", TAP, UDP_, 0),), QUIC, Reason.QUIC),
    Case("quic by name", (("0.0.0.0/0", TAP, UDP_, 443),), QUIC, 1),
    Case("quic by name, longer any", (("0.0.0.0/0", TAP, UDP_, 443), ("192.0.2.0/24", TAP, 0, 0)), QUIC, Reason.QUIC),
    Case("quic refused by name", (("0.0.0.0/0", TAP, 0, 0), ("0.0.0.0/0", REFUSE, UDP_, 443)), QUIC, Reason.RULE),
    Case("echo", (("0.0.0.0/0", TAP, ICMP_, 0),), PING, 1),
    Case("echo6", (("::/0", TAP, ICMP6_, 0),), PING6, 1),
    Case("echo by any", (("0.0.0.0/0", TAP, 0, 0),), PING, Reason.NO_RULE),
    Case(
        "echo, refused by a longer any",
        (("0.0.0.0/0", TAP, ICMP_, 0), ("192.0.2.0/24", REFUSE, 0, 0)),
        PING,
        Reason.RULE,
    ),
    Case("echo, longer any opens other things", (("0.0.0.0/0", TAP, ICMP_, 0), ("192.0.2.0/24", TAP, 0, 0)), PING, 1),
    Case("echo refused", (("0.0.0.0/0", REFUSE, ICMP_, 0),), PING, Reason.RULE),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_which_rule_decides(bench: Bench, case: Case) -> None:
    bench.lease(A4)
    bench.lease(A6)
    for number, (network, lane, protocol, port) in enumerate(case.rules, 1):
        bench.rule(network, lane, protocol, port, number=number)
    outcome = bench.send(case.packet)
    if isinstance(case.expected, Reason):
        assert outcome.reason is case.expected
    else:
        assert outcome.verdict == "forward"
        assert bench.flow().rule == case.expected


def test_the_servers_address_decides_for_both_directions(bench: Bench) -> None:
    bench.lease(A4)
    bench.rule("192.0.2.80/32", protocol=TCP_, port=80)
    bench.rule("10.0.0.0/8", REFUSE)
    bench.send(HTTP)
    assert bench.receive(IP(src=S4, dst=A4) / TCP(sport=80, dport=40000, flags="SA")).verdict == "forward"


def answer(flags: str = "A") -> Any:
    return IP(src=S4, dst=A4) / TCP(sport=80, dport=40000, flags=flags)


@pytest.mark.parametrize("opened", ["remembering", "before"])
def test_a_flow_remembers_the_rules_answer_until_they_change(bench: Bench, opened: str) -> None:
    bench.lease(A4)
    bench.rule("192.0.2.0/24", number=3)
    bench.set(rules=0 if opened == "before" else 8)
    bench.send(HTTP)
    bench.set(rules=8)
    assert bench.receive(answer("SA")).verdict == "forward"
    bench.remove_rule("192.0.2.0/24")
    assert bench.receive(answer()).packet.header.lane == TAP
    assert bench.flow().rule == 3
    bench.set(rules=10)
    assert bench.receive(answer()).reason is Reason.NO_RULE


def test_what_a_flow_remembers_says_whether_a_lease_is_needed(bench: Bench) -> None:
    bench.rule("192.0.2.0/24", unbound=True)
    bench.set(rules=8)
    bench.network("10.0.1.0/24", bench.agent)
    bench.send(HTTP)
    assert bench.receive(answer("SA")).verdict == "forward"
    bench.lease(A4)
    bench.rule("192.0.2.0/24")
    assert bench.receive(answer()).verdict == "forward"
    bench.set(rules=10)
    assert bench.receive(answer()).reason is Reason.LEASE_CHANGED


def test_a_refusal_is_not_remembered(bench: Bench) -> None:
    bench.lease(A4)
    bench.rule("192.0.2.0/24")
    bench.set(rules=8)
    bench.send(HTTP)
    bench.set(rules=10)
    bench.rule("192.0.2.0/24", REFUSE)
    assert bench.receive(answer("SA")).reason is Reason.RULE
    bench.rule("192.0.2.0/24")
    assert bench.receive(answer("SA")).verdict == "forward"
