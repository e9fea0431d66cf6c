"""Settings and leases as entries of the kernel's maps."""

import os
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from appliance import config
from appliance.errors import MalformedInput, Unavailable
from appliance.identity.leases import Lease
from appliance.model import UNBOUND
from appliance.wire import bpf, maps
from appliance.wire.abi import Lane, LeaseValue, Role, RuleKey, RuleValue, pack_address


def rule(to: str, **more: Any) -> config.Rule:
    return config.Rule(to=ip_network(to), **more)


def test_rules_are_numbered_keys_of_a_trie() -> None:
    entries = maps.rule_entries(
        [
            rule("10.0.0.0/8"),
            rule("fd00::/16", lane="refuse", protocol="icmp"),
            rule("10.0.0.7/32", port=443, protocol="tcp", unbound=True),
        ]
    )
    assert [(RuleKey.unpack(key), RuleValue.unpack(value)) for key, value in entries.items()] == [
        (RuleKey(32 + 128, 4, 6, b"\x01\xbb", pack_address("10.0.0.7")), RuleValue(3, Lane.TAP, 1, 128)),
        (RuleKey(32 + 104, 4, 0, b"\0\0", pack_address("10.0.0.0")), RuleValue(1, Lane.TAP, 0, 104)),
        (RuleKey(32 + 16, 6, 58, b"\0\0", pack_address("fd00::")), RuleValue(2, Lane.REFUSE, 0, 16)),
    ]


def test_icmp_is_another_protocol_in_ipv4() -> None:
    (key,) = maps.rule_entries([rule("0.0.0.0/0", protocol="icmp")])
    assert RuleKey.unpack(key).protocol == 1
    assert RuleKey.unpack(key).prefixlen == 32 + 96


def test_two_rules_about_the_same_are_malformed() -> None:
    with pytest.raises(MalformedInput, match="number 2"):
        maps.rule_entries([rule("10.0.0.0/8"), rule("10.0.0.0/8", lane="refuse")])


def test_leases_are_bound_to_their_interface() -> None:
    def lease(address: str, interface: str) -> Lease:
        return Lease("00000000000000ff", address, UNBOUND, 1, 2, 3, "boot", interface)

    entries = maps.lease_entries([lease("10.0.0.1", "agents0"), lease("fd00::1", "agents1")], {"agents0": 4})
    assert {key: LeaseValue.unpack(value) for key, value in entries.items()} == {
        pack_address("10.0.0.1"): LeaseValue(255, 3, 4)
    }


def test_interfaces_have_roles() -> None:
    assert maps.interface_entries({3: Role.AGENT, 4: Role.UPSTREAM}) == {
        b"\3\0\0\0": b"\1\0\0\0",
        b"\4\0\0\0": b"\2\0\0\0",
    }


@pytest.fixture
def kernel() -> Iterator[bpf.Map]:
    if os.geteuid():
        pytest.skip("needs root for BPF maps")
    fd = bpf.create_map(bpf.HASH, 16, 4, 2, "locals")
    yield bpf.Map(fd)
    os.close(fd)


def test_a_map_is_brought_up_to_date_by_difference(kernel: bpf.Map) -> None:
    before = maps.local_entries(["10.0.0.1"])
    assert maps.reconcile(kernel, before, "locals") == ()
    after = maps.local_entries(["10.0.0.2"])
    assert maps.reconcile(kernel, after, "locals") == (pack_address("10.0.0.1"),)
    assert dict(kernel.items()) == after


def test_a_full_map_is_brought_up_to_date_too(kernel: bpf.Map) -> None:
    maps.reconcile(kernel, maps.local_entries(["10.0.0.1", "10.0.0.2"]), "locals")
    after = maps.local_entries(["10.0.0.2", "10.0.0.3"])
    assert maps.reconcile(kernel, after, "locals") == (pack_address("10.0.0.1"),)
    assert dict(kernel.items()) == after


def test_a_full_map_is_told(kernel: bpf.Map) -> None:
    with pytest.raises(Unavailable, match=r"locals: .* room for 2 entries; take addresses off"):
        maps.reconcile(kernel, maps.local_entries(["10.0.0.1", "10.0.0.2", "10.0.0.3"]), "locals")


def test_the_number_of_the_rules_is_that_of_their_content() -> None:
    one, other = {b"a": b"1", b"b": b"2"}, {b"a": b"1", b"b": b"3"}
    numbers = [maps.rules_number(entries, b"p") for entries in (one, dict(reversed(one.items())), other, {})]
    assert numbers[0] == numbers[1]
    assert len({*numbers, maps.rules_number(one, b"q")}) == 4
    assert all(number and not number % 2 for number in numbers)


def test_what_a_wider_rule_leaves_out_is_closed_first() -> None:
    rules = [{"to": "10.0.0.0/8"}, {"to": "fd00::/8"}, {"to": "10.1.0.0/16", "lane": "refuse"}]
    given = maps.rule_entries([config.Rule.model_validate(rule) for rule in rules])
    assert [RuleValue.unpack(value).id for value in given.values()] == [3, 1, 2]


@pytest.mark.parametrize("clamp", [0.25, 0.5, 0.8, 0.99])
def test_windows_open_again_where_the_program_does_not_hold_them_any_more(clamp: float) -> None:
    level = maps.reopening_level(config.Wire(ring_bytes=2**20, clamp=clamp))
    assert level < 2**20 * 2 / 3  # bpf/clamp.h: the brink
    assert level < 2**20 * (clamp + (1 - clamp) / 3)  # and the level from which those who send much are held
