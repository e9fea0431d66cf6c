"""Rules that decide nothing or contradict; routes and addresses of a real network namespace."""

from typing import Any

import pytest

from appliance.config import Api, Rule
from appliance.doctor import network, rules
from appliance.doctor.finding import Finding, Level
from tests.doctor.conftest import gateway, in_namespace, needs_root, worst


def rule(to: str, protocol: str = "any", port: int = 0, **more: Any) -> Rule:
    return Rule(to=to, protocol=protocol, port=port, **more)


def judged(*given: Rule) -> list[Finding]:
    return list(rules.rules(gateway(rules=given), {}))


def test_no_rule_at_all() -> None:
    assert worst(judged()).level is Level.FAIL


def test_rules_that_all_decide_something_are_fine() -> None:
    found = judged(
        rule("192.0.2.10/32", "tcp", 443, unbound=True),
        rule("192.0.2.53/32", "udp", 53),
        rule("10.0.0.0/8", lane="refuse"),
        rule("0.0.0.0/0", "tcp"),
        rule("::/0", "tcp"),
    )
    assert [(one.level, one.found) for one in found] == [(Level.OK, "5 rules, each decides something")]


@pytest.mark.parametrize(
    ("shadowed", "by"),
    [
        (rule("10.0.0.0/8"), [rule("10.0.0.0/8", protocol) for protocol in ("tcp", "udp", "icmp")]),
        (rule("10.0.0.0/8", "tcp"), [rule("10.0.0.0/9"), rule("10.128.0.0/9", "tcp")]),
        (rule("10.0.0.0/8", "tcp", 443), [rule("10.0.0.0/9", "tcp"), rule("10.128.0.0/9", "tcp", 443)]),
        (rule("2001:db8::/32", "udp"), [rule("2001:db8::/33"), rule("2001:db8:8000::/33")]),
    ],
    ids=["each protocol", "two halves", "a port, by wider ports", "IPv6"],
)
def test_a_rule_that_never_decides(shadowed: Rule, by: list[Rule]) -> None:
    assert rules.shadowed(shadowed, by)
    assert not rules.shadowed(shadowed, by[1:])
    found = worst(judged(shadowed, *by))
    assert (found.level, found.about.startswith("number 1 ")) == (Level.WARN, True)


@pytest.mark.parametrize(
    ("given", "others"),
    [
        (rule("10.0.0.0/8", "tcp"), [rule("0.0.0.0/0")]),
        (rule("10.0.0.0/8"), [rule("10.0.0.0/8", "tcp"), rule("10.0.0.0/8", "udp")]),
        (rule("10.0.0.0/8", "tcp"), [rule("10.0.0.0/8", "tcp", 443)]),
        (rule("10.0.0.0/8", "tcp", 80), [rule("10.0.0.0/8", "tcp")]),
        (rule("10.0.0.0/8", "tcp"), [rule("10.0.0.0/9", "udp"), rule("10.128.0.0/9", "udp")]),
    ],
    ids=["a wider network", "not ICMP", "one port only", "a wider port", "another protocol"],
)
def test_a_rule_that_decides_something(given: Rule, others: list[Rule]) -> None:
    assert not rules.shadowed(given, others)


@pytest.mark.parametrize(
    ("given", "level", "says"),
    [
        ([rule("10.0.0.0/8"), rule("10.0.0.0/8", unbound=True)], Level.FAIL, "repeats an earlier one"),
        ([rule("10.0.0.0/8", lane="refuse", unbound=True), rule("::/0")], Level.WARN, "contradict"),
        ([rule("10.0.0.0/8", "udp", 443), rule("::/0")], Level.WARN, "QUIC"),
        ([rule("10.0.0.0/8", lane="refuse")], Level.FAIL, "no rule has the lane tap or relay"),
    ],
    ids=["repeated", "refuse and unbound", "QUIC", "nothing open"],
)
def test_a_rule_that_contradicts(given: list[Rule], level: Level, says: str) -> None:
    (found,) = [one for one in judged(*given) if says in one.found]
    assert found.level is level
    assert found.remedy


@pytest.mark.parametrize(
    ("given", "opened"),
    [
        ([rule("0.0.0.0/0", "tcp")], False),
        ([rule("0.0.0.0/0", "tcp", unbound=True)], True),
        ([rule("192.0.2.10/32", "tcp", 443, unbound=True)], True),
        ([rule("192.0.2.10/32", "tcp", 443, unbound=True), rule("192.0.2.10/32", "tcp", 444)], True),
        ([rule("0.0.0.0/0", unbound=True), rule("192.0.2.0/24", lane="refuse", unbound=True)], False),
        ([rule("192.0.2.10/32", "udp", 443, unbound=True)], False),
    ],
)
def test_what_an_agent_without_a_lease_reaches(given: list[Rule], opened: bool) -> None:
    assert rules.opens(gateway(rules=given), "192.0.2.10", 443) is opened


@needs_root
def test_rules_against_routes() -> None:
    settings = gateway(
        rules=(rule("198.51.100.7/32"), rule("203.0.113.0/24"), rule("192.0.2.0/24"), rule("0.0.0.0/0", "tcp"))
    )
    commands = (
        "ip link add odd type veth peer name oddp",
        "ip link set odd up",
        "ip link set oddp up",
        "ip route add 203.0.113.0/24 dev odd",
    )
    found = in_namespace(lambda: list(rules.routes(settings, network.look())), *commands)
    assert [(one.level, one.about.split()[1]) for one in found] == [
        (Level.FAIL, "2"),
        (Level.WARN, "3"),
        (Level.FAIL, "4"),  # its example is 203.0.113.1
    ]
    assert "odd" in found[0].found


@needs_root
@pytest.mark.parametrize(
    ("listen", "about", "level"),
    [
        (("10.20.1.1:8443",), "eth1", Level.OK),
        (("0.0.0.0:8443",), "eth1", Level.OK),
        (("127.0.0.1:8443",), "eth1", Level.FAIL),
        (("198.51.100.1:8443",), "eth1", Level.WARN),
        (("192.0.2.200:8443",), "192.0.2.200:8443", Level.FAIL),
        (("10.20.1.1",), "10.20.1.1", Level.FAIL),
    ],
)
def test_whether_agents_reach_the_api(listen: tuple[str, ...], about: str, level: Level) -> None:
    settings = gateway(api=Api(listen=listen))
    found = worst(in_namespace(lambda: list(rules.api(settings, network.look()))), about)
    assert found.level is level
