"""The nftables table: its text, and what it does to a kernel that is asked to forward."""

import os
import select
import socket
from collections.abc import Iterator

import pytest

from appliance.errors import MalformedInput, Unavailable
from appliance.wire import interlock
from appliance.wire.interlock import Interlock, api_ports, remove, ruleset
from tests.wire.net import Net, inside, sh

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces and nftables")


def test_only_recorded_packets_are_forwarded() -> None:
    text = ruleset("verbatim", ["agents0", "agents1"], ["upstream0"], [8443])
    assert "hook forward priority filter; policy drop;" in text
    all_three = '{ "agents0", "agents1", "upstream0" }'
    assert f"iifname {all_three} oifname {all_three} meta mark 0x56420001 accept" in text
    assert 'iifname { "agents0", "agents1" } goto agents' in text
    assert "tcp dport { 8443 } goto callers" in text


@pytest.mark.parametrize("name", ["", 'a"b', "a b", "a*", "a\\b", "x" * 16, "a\n"])
def test_names_that_nft_would_misread_are_malformed(name: str) -> None:
    with pytest.raises(MalformedInput):
        ruleset("verbatim", [name], [], [])


def test_ports_of_the_api() -> None:
    assert api_ports(["0.0.0.0:8443", "[::]:8443", "127.0.0.1:0", "gw:443"]) == (443, 8443)
    for wrong in ("8443x", "host:", "host:65536", "host"):
        with pytest.raises(MalformedInput):
            api_ports([wrong])


def test_without_nft_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interlock, "nft_path", lambda: None)
    with pytest.raises(Unavailable, match="install"):
        interlock.remove("verbatim")


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as net:
        yield net


@needs_root
def test_the_table_is_set_up_again_watched_and_removed(net: Net) -> None:
    def story() -> None:
        lock = Interlock("verbatim", ["agents0"], ["upstream0"], [8443])
        try:
            lock.establish()
            lock.establish()
            assert lock.verify()
            assert not select.select([lock], [], [], 0)[0]  # verify took the news
            for change in (
                "delete table inet verbatim",
                "flush ruleset",
                "insert rule inet verbatim forward accept",
                "flush chain inet verbatim agents",
                "add chain inet verbatim forward { policy accept; }",
                "add table inet verbatim { flags dormant; }",
            ):
                sh("nft", change)
                assert select.select([lock], [], [], 5)[0], change
                assert not lock.verify(), change
                lock.establish()
                assert lock.verify(), change
            sh("nft", "add table inet other")
            assert lock.verify()
        finally:
            lock.close()
        assert "verbatim" in sh("nft", "list", "tables")  # closing leaves it
        remove("verbatim")
        remove("verbatim")
        assert "verbatim" not in sh("nft", "list", "tables")

    inside(net.gateway, story)


@needs_root
def test_forwarding_needs_the_mark_and_refusals_are_answered(net: Net) -> None:
    def lock() -> None:
        lock = Interlock("verbatim", ["agents0"], ["upstream0"], [])
        lock.establish()
        lock.close()

    def mark(value: str) -> None:
        rule = f"add rule inet marks pre meta mark set {value}"
        chain = "add chain inet marks pre { type filter hook prerouting priority -310; }"
        sh(
            "nft",
            f"add table inet marks; delete table inet marks; add table inet marks; {chain}; {rule}",
            netns=net.gateway,
        )

    with net.listen() as listener:
        port = listener.getsockname()[1]
        net.connect(port).close()
        inside(net.gateway, lock)
        with pytest.raises(TimeoutError):
            net.connect(port, timeout=0.3)
        mark("0x56420001")
        net.connect(port).close()
        mark("0x56420002")
        with pytest.raises(ConnectionRefusedError):
            net.connect(port)
        with inside(net.agent, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as datagrams:
            datagrams.settimeout(5)
            datagrams.connect(listener.getsockname())
            datagrams.send(b"x")
            with pytest.raises(OSError, match="No route to host"):
                datagrams.recv(1)
