"""Which rule a flow is of."""

import pytest

from appliance.config import Rule
from appliance.relay.route import Routes


def rule(to: str | None = None, **more: object) -> Rule:
    return Rule.model_validate({"to": to, "lane": "relay", **more})


@pytest.mark.parametrize(
    ("host", "name", "does"),
    [
        ("db.example.com", "db.example.com", True),
        ("db.example.com", "DB.Example.COM.", True),
        ("db.example.com", "a.db.example.com", False),
        ("*.example.com", "db.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "badexample.com", False),
        ("*.example.com", "", False),
    ],
)
def test_what_a_host_means(host: str, name: str, does: bool) -> None:
    assert Rule(host=host).is_about(name) is does


def test_the_closest_rule_wins() -> None:
    rules = [
        rule("0.0.0.0/0"),
        rule("10.0.0.0/8"),
        rule("10.1.0.0/16", port=443, protocol="tcp"),
        rule("10.1.0.0/16"),
        rule(host="*.example.com"),
        rule("10.0.0.0/8", host="*.db.example.com"),
        rule(host="api.example.com", port=443, protocol="tcp"),
        rule("10.9.0.0/16", protocol="udp", lane="tap"),
    ]
    routes = Routes(rules)

    def number(address: str, port: int, name: str = "") -> int:
        match = routes.choose(address, port, name)
        return 0 if match is None else match.number

    assert number("192.0.2.1", 80) == 1
    assert number("10.2.0.1", 80) == 2
    assert number("10.1.0.1", 443) == 3
    assert number("10.1.0.1", 80) == 4
    assert number("10.1.0.1", 443, "www.example.com") == 5, "a host wins over any network"
    assert number("10.1.0.1", 443, "a.db.example.com") == 6, "the longer end first"
    assert number("10.1.0.1", 443, "api.example.com") == 7, "the whole name before an end"
    assert number("10.1.0.1", 80, "api.example.com") == 5
    assert number("10.9.0.1", 53) == 2, "rules of other transports are not asked"
    assert number("2001:db8::1", 80) == 0
    assert number("2001:db8::1", 443, "api.example.com") == 7


def test_candidates_are_all_that_a_name_may_decide_between() -> None:
    routes = Routes([rule("10.0.0.0/8"), rule(host="a.example.com"), rule("10.0.0.0/8", port=80, protocol="tcp")])
    assert [match.number for match in routes.candidates("10.0.0.1", 443)] == [1, 2]
    assert [match.number for match in routes.candidates("192.0.2.1", 443)] == [2]
