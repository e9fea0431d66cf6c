"""Rules about hosts: an agent may reach what the recorded answers of its name server say, and nothing else."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR

from appliance import config
from appliance.identity.leases import Now
from appliance.model import Identity
from appliance.wire import bpf, loader, maps
from appliance.wire.abi import Kind, Lane, Reason, RuleKey, RuleValue, unpack_address
from appliance.wire.names import GRACE, LONGEST, SECOND, SHORTEST, Names, named_rules
from appliance.wire.naming import Answer
from appliance.wire.ring import Ring
from tests.lab.wait import until
from tests.wire.net import AGENT, AGENT6, UPSTREAM, UPSTREAM6, Net, Wire, inside

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces, BPF and nftables")
ANN = Identity(issuer="https://idp.example", subject="ann", client="agent")
RULES = f"""
[[rules]]
to = "{UPSTREAM}/32"
protocol = "udp"
port = 53
[[rules]]
host = "*.example.com"
protocol = "tcp"
[[rules]]
host = "bad.example.com"
protocol = "tcp"
lane = "refuse"
"""


def rule(**more: Any) -> config.Rule:
    to = more.pop("to", None)
    return config.Rule(to=None if to is None else ip_network(to), **more)


class Table:
    """Names on a map of its own, and what it put on record."""

    def __init__(self, *rules: config.Rule) -> None:
        self.fds = loader.create_maps(config.Wire(ring_bytes=65536), frozenset({"rules", "answers"}))
        self.map = bpf.Map(self.fds["rules"])
        self.ring = Ring(self.fds["answers"], loader.ANSWERS_BYTES)
        self.events: list[dict[str, Any]] = []
        self.fixed = maps.rule_entries(rules)
        maps.reconcile(self.map, self.fixed, "rules")
        self.names = Names(named_rules(rules), self.fixed, self.map, self.ring, self.event)

    def event(self, kind: str, text: str, now: Now, **attrs: Any) -> None:
        self.events.append({"kind": kind, **attrs})

    def learn(self, name: str, *addresses: str, ttl: int = 300, at: int = 0) -> None:
        self.names.learn(Answer(name, tuple((ip_address(one), ttl) for one in addresses)), self.now(at))

    @staticmethod
    def now(seconds: int) -> Now:
        return Now(0, seconds * SECOND, "boot")

    def learnt(self) -> dict[str, tuple[int, Lane]]:
        """Address → number and lane of its rule."""
        found = {}
        for key, value in self.map.items():
            if key not in self.fixed:
                entry = RuleValue.unpack(value)
                assert entry.prefix == 128
                assert RuleKey.unpack(key).prefixlen == 160
                found[unpack_address(RuleKey.unpack(key).network)] = entry.id, Lane(entry.lane)
        return found

    def close(self) -> None:
        self.ring.close()
        for fd in self.fds.values():
            os.close(fd)


def test_the_closest_name_decides() -> None:
    rules = (
        rule(host="*.example.com", protocol="tcp"),
        rule(host="bad.example.com", protocol="tcp", lane="refuse"),
        rule(host="*.in.example.com", protocol="tcp", lane="refuse"),
        rule(host="db.example.com", protocol="tcp", to="10.0.0.0/8"),
    )
    with closing(Table(*rules)) as table:
        table.learn("www.example.com", "192.0.2.1", "2001:db8::1")
        table.learn("bad.example.com", "192.0.2.2")
        table.learn("x.in.example.com", "192.0.2.3")
        table.learn("db.example.com", "10.0.0.1", "11.0.0.1")
        table.learn("example.com", "192.0.2.5")
        table.learn("example.com.evil.org", "192.0.2.6")
        table.learn("notexample.com", "192.0.2.7")
        table.learn("www.example.com", "127.0.0.1", "224.0.0.1", "::", "fe80::1")
        assert table.learnt() == {
            "192.0.2.1": (1, Lane.TAP), "2001:db8::1": (1, Lane.TAP), "192.0.2.2": (2, Lane.REFUSE),
            "192.0.2.3": (3, Lane.REFUSE), "10.0.0.1": (4, Lane.TAP), "11.0.0.1": (1, Lane.TAP),
        }  # fmt: skip


def test_an_address_is_the_hosts_as_long_as_the_answer_says() -> None:
    with closing(Table(rule(host="a.example", protocol="tcp"))) as table:
        for ttl, lasts in ((0, SHORTEST), (300, 300), (10**6, LONGEST)):
            table.learn("a.example", "192.0.2.1", ttl=ttl)
            table.names.expire(table.now(lasts + GRACE - 1))
            assert table.learnt()
            table.names.expire(table.now(lasts + GRACE))
            assert not table.learnt()
        table.learn("a.example", "192.0.2.1", ttl=300)
        table.learn("a.example", "192.0.2.1", ttl=300, at=200)
        table.names.expire(table.now(400))
        assert table.learnt()
        assert [one["kind"] for one in table.events] == ["name-learnt"] * 4


def test_what_is_configured_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = (rule(to="192.0.2.1/32", protocol="tcp", lane="refuse"), rule(host="a.example", protocol="tcp"))
    with closing(Table(*rules)) as table:
        table.learn("a.example", "192.0.2.1")
        assert not table.learnt()
        monkeypatch.setattr("appliance.wire.names.MAX_LEARNT", 2)
        for last in (2, 3, 4):
            table.learn("a.example", f"192.0.2.{last}", at=last)
        assert set(table.learnt()) == {"192.0.2.3", "192.0.2.4"}


def test_a_name_that_a_relay_hears_is_not_learnt() -> None:
    rules = [
        rule(host="a.example", port=443, protocol="tcp", lane="relay"),
        rule(host="b.example", port=443, protocol="tcp"),
    ]
    assert named_rules(rules) == ()
    entries = {RuleKey.unpack(key).family: RuleValue.unpack(value) for key, value in maps.rule_entries(rules).items()}
    assert entries == {4: RuleValue(1, Lane.RELAY, 0, 96), 6: RuleValue(1, Lane.RELAY, 0, 0)}


@pytest.fixture(scope="module")
def resolver(net: Net) -> Iterator[dict[str, list[str]]]:
    """A name server on the upstream host: what it answers, by name."""
    told: dict[str, list[str]] = {}

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((UPSTREAM, 53))
        sock.settimeout(0.1)
        return sock

    server, stopping = inside(net.upstream, make), threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            try:
                data, peer = server.recvfrom(2048)
            except TimeoutError:
                continue
            asked = DNS(data)
            name = asked[DNSQR].qname
            answers = [
                DNSRR(rrname=name, type="AAAA" if ":" in address else "A", rdata=address, ttl=60)
                for address in told.get(name.decode().rstrip("."), [])
            ]
            server.sendto(bytes(DNS(id=asked.id, qr=1, qd=[DNSQR(qname=name)], an=answers)), peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield told
    finally:
        stopping.set()
        thread.join()
        server.close()


@pytest.fixture(scope="module")
def wire(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    wire = Wire(net, tmp_path_factory.mktemp("wire"), rules=RULES)
    try:
        wire.start()
        for address in (AGENT, AGENT6):
            wire.client.grant(address, ANN, time.time_ns() + 600 * 10**9)
        yield wire
    finally:
        wire.teardown()


def ask(net: Net, name: str) -> None:
    """Look a name up from the agent's host."""

    def make() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    with inside(net.agent, make) as sock:
        sock.settimeout(5)
        sock.sendto(bytes(DNS(id=7, qd=[DNSQR(qname=name)])), (UPSTREAM, 53))
        assert sock.recv(2048)


def learnt(wire: Wire) -> int:
    return wire.events().count("name-learnt")


@pytest.mark.parametrize("address", [UPSTREAM, UPSTREAM6])
def test_an_agent_reaches_what_it_looked_up(net: Net, wire: Wire, resolver: dict[str, list[str]], address: str) -> None:
    resolver["www.example.com"] = [address]
    resolver["www.example.org"] = [address]
    with net.listen(address) as listener:
        port = listener.getsockname()[1]
        ask(net, "www.example.org")
        with pytest.raises(TimeoutError):
            net.connect(port, address, timeout=0.3)
        ask(net, "www.example.com")
        with net.connect(port, address), closing(listener.accept()[0]):
            pass
    until(lambda: learnt(wire) == 1 + (address == UPSTREAM6), "it is on record")
    reasons = {record.reason for record, _ in wire.records() if record.kind == Kind.REFUSAL}
    assert reasons == {Reason.NO_NAME}


def test_what_was_learnt_outlasts_the_process(net: Net, wire: Wire, resolver: dict[str, list[str]]) -> None:
    resolver["db.example.com"] = [UPSTREAM]
    ask(net, "db.example.com")
    with net.listen() as listener:
        port = listener.getsockname()[1]
        with net.connect(port):
            wire.stop()
        wire.start()
        net.connect(port, timeout=0.5).close()


def test_a_host_may_be_refused(net: Net, wire: Wire, resolver: dict[str, list[str]]) -> None:
    resolver["bad.example.com"] = ["203.0.113.9"]
    before = learnt(wire)
    ask(net, "bad.example.com")
    until(lambda: learnt(wire) > before, "it is learnt")
    with pytest.raises(ConnectionRefusedError):
        net.connect(80, "203.0.113.9")
