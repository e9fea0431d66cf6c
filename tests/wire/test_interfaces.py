"""Interfaces by name: which there are, what is behind them, and what is the gateway's own."""

import os
import select
from collections.abc import Iterator

import pytest

from appliance import config
from appliance.errors import MalformedInput, Refused, Unavailable
from appliance.wire.abi import Role
from appliance.wire.interfaces import Filters, Interfaces, interface_index, roles
from tests.wire.net import AGENT, AGENT6, UPSTREAM, Net, inside, sh, until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
WIRE = config.Wire(agents=("agents0",), upstream=("upstream0",))


def test_each_interface_has_one_role() -> None:
    assert roles(WIRE) == {"agents0": Role.AGENT, "upstream0": Role.UPSTREAM}


@pytest.mark.parametrize(("agents", "upstream"), [((), ("b",)), (("a",), ()), (("a", "b"), ("b", "c"))])
def test_sides_without_interface_or_with_the_same_one_are_malformed(
    agents: tuple[str, ...], upstream: tuple[str, ...]
) -> None:
    with pytest.raises(MalformedInput):
        roles(config.Wire(agents=agents, upstream=upstream))


def test_an_interface_that_does_not_exist_is_named() -> None:
    with pytest.raises(Unavailable, match="nowhere0"):
        Interfaces(config.Wire(agents=("lo",), upstream=("nowhere0",)))


@pytest.fixture
def net() -> Iterator[Net]:
    net = Net()
    try:
        yield net.create()
    finally:
        net.remove()


@needs_root
def test_addresses_and_who_is_behind_which_interface(net: Net) -> None:
    def story() -> None:
        found = Interfaces(WIRE)
        try:
            assert {"10.91.1.1", "10.91.2.1", "fd91:1::1", "127.0.0.1", "::1"} <= found.addresses()
            assert "255.255.255.255" in found.addresses()
            assert found.behind(AGENT) == found.behind(AGENT6) == "agents0"
            for elsewhere in (UPSTREAM, "203.0.113.9", "2001:db8::9", "10.91.1.1"):
                with pytest.raises(Refused, match=elsewhere):
                    found.behind(elsewhere)
        finally:
            found.close()

    inside(net.gateway, story)


@needs_root
def test_changes_are_news_and_an_interface_made_anew_is_told_and_attached(net: Net) -> None:
    def story() -> None:
        found = Interfaces(WIRE)
        attached: set[int] = set()
        filters = Filters(attached.add, attached.__contains__)
        try:
            assert found.guard(filters) == ["agents0", "upstream0"]
            assert found.guard(filters) == []
            before = found.agents["agents0"]
            assert not found.news()
            sh("ip", "link", "del", "agents0")
            assert select.select([found], [], [], 5)[0]
            assert found.news()
            assert [fact.kind for fact in found.refresh()] == ["interface-lost"]
            assert found.agents == {}
            net.wire_up(net.agent, "agents0", 1)
            until("news", found.news)
            assert [fact.kind for fact in found.refresh()] == ["interface-found"]
            assert found.agents == {"agents0": interface_index("agents0")}
            assert found.agents["agents0"] != before
            assert found.guard(filters) == ["agents0"]
        finally:
            found.close()

    inside(net.gateway, story)


@needs_root
def test_what_cannot_be_attached_is_unavailable_unless_it_vanished(net: Net) -> None:
    def fail(index: int) -> None:
        raise OSError("no")

    def story() -> None:
        found = Interfaces(WIRE)
        try:
            with pytest.raises(Unavailable, match="agents0"):
                found.guard(Filters(fail, lambda index: False))
            sh("ip", "link", "del", "agents0")
            with pytest.raises(Unavailable, match="upstream0"):
                found.guard(Filters(fail, lambda index: False))
        finally:
            found.close()

    inside(net.gateway, story)
