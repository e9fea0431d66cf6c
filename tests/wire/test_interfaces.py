"""Interfaces by name: which there are, what is behind them, and what is the gateway's own."""

import os
import select
from collections.abc import Iterator

import pytest

from appliance import config
from appliance.errors import MalformedInput, Refused, Unavailable
from appliance.wire import bpf, filters
from appliance.wire.abi import Role
from appliance.wire.filters import ARRIVAL, Filter
from appliance.wire.interfaces import Guarded, Interfaces, interface_index, roles
from tests.lab.wait import until
from tests.wire.net import AGENT, AGENT6, UPSTREAM, Net, inside, sh

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
PASS = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
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
    with Net() as net:
        yield net


@needs_root
def test_addresses_and_who_is_behind_which_interface(net: Net) -> None:
    def story() -> None:
        found = Interfaces(WIRE)
        try:
            found.refresh()
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
        fd = bpf.load_program(PASS, "ours")
        ours = Filter(ARRIVAL, fd, bpf.program_id(fd))

        def attached() -> list[str]:
            return [name for name, index in found.indexes.items() if filters.attached(ours, index, found.netlink)]

        try:
            both = ["agents0", "upstream0"]
            assert found.guard(ours) == Guarded([], both, [], {})
            assert attached() == ["agents0", "upstream0"]
            assert found.guard(ours) == Guarded(both, [], [], {})
            for index in found.indexes.values():
                filters.detach(index, found.netlink)
            assert found.guard(ours) == Guarded([], both, both, {})
            assert attached() == ["agents0", "upstream0"]
            before = found.agents["agents0"]
            until(lambda: not found.news(), "no more news")
            sh("ip", "link", "del", "agents0")
            assert select.select([found], [], [], 5)[0]
            assert found.news()
            assert found.refresh() == []
            assert found.agents == {}
            net.wire_up(net.agent, "agents0", 1)
            until(found.news, "news")
            assert found.refresh() == ["agents0"]
            assert found.agents == {"agents0": interface_index("agents0")}
            assert found.agents["agents0"] != before
            assert found.guard(ours) == Guarded(["upstream0"], ["agents0"], [], {}), (
                "where it never was it is not put back"
            )
            assert attached() == ["agents0", "upstream0"]
        finally:
            found.close()
            os.close(fd)

    inside(net.gateway, story)


@needs_root
def test_a_deleted_filter_is_news(net: Net) -> None:
    def story() -> None:
        sh("tc", "qdisc", "add", "dev", "agents0", "clsact")
        found = Interfaces(WIRE)
        try:
            found.news()
            sh("tc", "qdisc", "del", "dev", "agents0", "clsact")
            assert select.select([found], [], [], 5)[0]
            assert found.news()
        finally:
            found.close()

    inside(net.gateway, story)


@needs_root
def test_what_cannot_be_attached_is_told_unless_it_vanished(net: Net) -> None:
    def story() -> None:
        found = Interfaces(WIRE)
        fd = os.memfd_create("no program")
        try:
            none = Filter(ARRIVAL, fd, 0)
            assert found.guard(none).failing.keys() == {"agents0", "upstream0"}
            sh("ip", "link", "del", "agents0")
            assert found.guard(none).failing.keys() == {"upstream0"}
        finally:
            found.close()
            os.close(fd)

    inside(net.gateway, story)


CHANGES = [
    (["link", "set", "agents0", "down"], "interface-down", ["link", "set", "agents0", "up"]),
    (["link", "set", "agents0", "name", "foo0"], "interface-missing", ["link", "set", "foo0", "name", "agents0"]),
    (
        ["link", "add", "new0", "up", "type", "veth", "peer", "name", "new1"],
        "interface-unknown",
        ["link", "del", "new0"],
    ),
    (
        ["addr", "del", "10.91.1.1/24", "dev", "agents0"],
        "address-missing",
        ["addr", "add", "10.91.1.1/24", "dev", "agents0"],
    ),
]


@needs_root
@pytest.mark.parametrize(("change", "fault", "back"), CHANGES, ids=[fault for _, fault, _ in CHANGES])
def test_what_is_wrong_with_interfaces_has_a_name_while_it_lasts(
    net: Net, change: list[str], fault: str, back: list[str]
) -> None:
    def story() -> None:
        found = Interfaces(WIRE, ["10.91.1.1"])

        def named() -> set[str]:
            found.refresh()
            return {name for name, _ in found.faults()}

        try:
            until(lambda: not named(), "all is well")  # a carrier comes a moment after its interface
            sh("ip", *change)
            until(lambda: fault in named(), fault)
            assert all("; " in text for _, text in found.faults()), "each text ends with a remedy"
            sh("ip", *back)
            until(lambda: named() == set(), "nothing is wrong any more")
        finally:
            found.close()

    inside(net.gateway, story)


@needs_root
def test_other_interfaces_are_known_by_wildcards(net: Net) -> None:
    def story() -> None:
        sh("ip", "link", "add", "docker7", "up", "type", "veth", "peer", "name", "peer7")
        for other, wrong in (((), True), (("dock*",), False)):
            found = Interfaces(WIRE.model_copy(update={"other": other}))
            try:
                found.refresh()
                assert ("interface-unknown" in dict(found.faults())) is wrong
            finally:
                found.close()

    inside(net.gateway, story)
