"""Refused packets that no record tells of: each is told once, whoever counted them and whoever ran meanwhile."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP

from appliance.errors import Unavailable
from appliance.journal import FrameKind
from appliance.wire import bpf
from appliance.wire.abi import COUNTER_COUNT, Counter, Kind, Reason
from appliance.wire.untold import Untold
from tests.lab.wait import until
from tests.wire.net import AGENT, UPSTREAM, Net, Wire, inside, sh
from tests.wire.test_daemon import lease
from tests.wire.test_fail_closed import introduce

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces, BPF and nftables")
ROUND = 60  # packets, each from an address of its own


@pytest.fixture
def counters() -> Iterator[bpf.Map]:
    made = bpf.Map(bpf.create_map(bpf.PERCPU_ARRAY, 4, 8, COUNTER_COUNT, "counters"))
    yield made
    os.close(made.fd)


def count(counters: bpf.Map, reason: Reason, *values: int) -> None:
    """As the program counts: each CPU for itself."""
    padded = [*values, *[0] * bpf.possible_cpus()][: bpf.possible_cpus()]
    counters.update(
        (Counter.UNTOLD + reason).to_bytes(4, "little"), b"".join(value.to_bytes(8, "little") for value in padded)
    )


def test_what_is_new_is_told_once(counters: bpf.Map) -> None:
    count(counters, Reason.NO_LEASE, 5)
    untold = Untold(counters)
    assert untold.news() == {Reason.NO_LEASE: 5}
    assert untold.news() == {}
    count(counters, Reason.NO_LEASE, 6, 1)
    count(counters, Reason.QUIC, 2)
    assert untold.news() == {Reason.NO_LEASE: 2, Reason.QUIC: 2}


def test_the_next_one_goes_on_from_what_is_on_record(counters: bpf.Map) -> None:
    first = Untold(counters)
    count(counters, Reason.NO_LEASE, 5, 2)
    assert first.news() == {Reason.NO_LEASE: 7}
    first.keep()
    count(counters, Reason.NO_LEASE, 6, 2)
    assert first.news() == {Reason.NO_LEASE: 1}  # and it died before that was on record
    count(counters, Reason.NO_LEASE, 9, 2)
    assert Untold(counters).news() == {Reason.NO_LEASE: 4}


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    net = Net()
    try:
        made = Wire(net.create(), tmp_path / "data", wire="refusal_rate = 1\n")
        try:
            yield made.start()
        finally:
            made.teardown()
    finally:
        net.remove()


def knock(wire: Wire, number: int) -> None:
    """A round of refused packets."""
    before = refused(wire)
    with inside(wire.net.agent, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as sock:
        for last in range(ROUND):
            packet = IP(src=f"10.91.1.{10 + last}", dst=UPSTREAM) / UDP(sport=9, dport=1000 + number)
            sock.sendto(bytes(packet), (UPSTREAM, 0))
    until(lambda: refused(wire) == before + ROUND, "all were refused")


def refused(wire: Wire) -> int:
    """Packets to which no rule applies, from the kernel itself: a wire process need not run."""
    fd = bpf.get(wire.bpffs / "counters")
    assert fd is not None
    try:
        values = bpf.Map(fd).lookup_percpu(Reason.NO_RULE.to_bytes(4, "little"))
    finally:
        os.close(fd)
    return sum(int.from_bytes(value, "little") for value in values)


def told(wire: Wire) -> int:
    """The same packets as refusal records and events have them."""
    events = [json.loads(frame.payload) for frame in wire.frames() if frame.kind is FrameKind.EVENT]
    counts = [int(event["packets"].get("no-rule", 0)) for event in events if event["kind"] == "refusals-untold"]
    refusals = [record for record, _ in wire.records() if record.kind == Kind.REFUSAL]
    return sum(counts) + sum(record.count for record in refusals if record.reason == Reason.NO_RULE)


def test_restarts_forget_no_refused_packet(wire: Wire) -> None:
    knock(wire, 0)
    assert wire.stop() == 0
    assert told(wire) == refused(wire), "an orderly stop tells of all"
    assert wire.events()[-1] == "wire-stopped"
    knock(wire, 1)  # nobody runs
    wire.start()
    until(lambda: told(wire) == refused(wire), "told")
    knock(wire, 2)
    wire.stop(signal.SIGKILL)
    wire.start()
    until(lambda: told(wire) == refused(wire), "told")
    assert refused(wire) == 3 * ROUND


def test_a_neighbour_that_cannot_be_held_holds_up_no_telling(wire: Wire) -> None:
    """The administrator pins the agent's address elsewhere after it took its lease; that stays so beyond the lease."""
    assert wire.stop() == 0
    wire.bind = "bind_link = true\n"
    wire.start()
    gateway = wire.net.gateway

    def given() -> str:
        introduce(wire, "10.91.1.1")
        with suppress(Unavailable):
            return lease(wire)
        return ""

    id = until(given, "a lease")
    pin = ("lladdr", "02:00:00:00:00:99", "dev", "agents0", "nud", "permanent", "protocol", "static")
    sh("ip", "neigh", "replace", AGENT, *pin, netns=gateway)
    knock(wire, 0)
    until(lambda: told(wire) == refused(wire), "told")
    until(lambda: f"address {AGENT}: its host is at" in wire.log.read_text(), "the conflict is named")
    wire.client.revoke(id)
    assert f"{AGENT} lladdr {pin[1]} PERMANENT" in sh("ip", "neigh", "show", "dev", "agents0", netns=gateway)
