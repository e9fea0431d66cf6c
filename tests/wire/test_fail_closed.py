"""Locks broken by others, one or two at once: nothing unrecorded passes, with the watchdog stopped and with it awake.

What passed is told by a packet socket on the upstream host; what is recorded, by the journal.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance import config, status
from appliance.errors import Unavailable
from appliance.journal import Frame, FrameKind
from appliance.model import Coverage, Ending, SessionRow
from appliance.session.assembler import Assembler
from appliance.wire import bpf
from tests.lab.wait import until
from tests.wire.net import AGENT, AGENT6, Net, Wire, inside, sh
from tests.wire.sniffer import Seen, Sniffer, unrecorded
from tests.wire.storm import CLOSED, RULES, Storm
from tests.wire.test_daemon import lease

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces, BPF and nftables")

MARKS = (
    "add table inet marks; add chain inet marks pre {{ type filter hook {hook} priority {priority}; }}; "
    "add rule inet marks pre meta mark set {mark}"
)
FORGED = MARKS.format(hook="prerouting", priority=-310, mark="0x56420001")
FLUSHED = MARKS.format(hook="prerouting", priority=-310, mark="0")
ACCEPT = "add table inet friendly; add chain inet friendly f { type filter hook forward priority 10; policy accept; }"
PAST = (  # agents' frames go to the upstream side past routing and the forward hook
    "add table netdev fast; add chain netdev fast in { type filter hook ingress device agents0 priority 0; }; "
    "add rule netdev fast in fwd to upstream0"
)
NO_FILTER = [f"tc filter del dev {name} ingress" for name in ("agents0", "upstream0")]
NO_CLSACT = [f"tc qdisc del dev {name} clsact" for name in ("agents0", "upstream0")]
NO_RULES = ["nft flush ruleset"]
GATEWAY, GATEWAY6 = "10.91.1.1", "fd91:1::1"
ELSEWHERE = "filter replace dev agents0 ingress pref 1 handle {handle} bpf da object-pinned {stranger}"


@dataclass(frozen=True)
class Fault:
    """Commands on the gateway. `repairs`: what the watchdog counts; `faults`: what it can only name. `unguarded`: the
    interface from which packets could go back there."""

    commands: list[str]
    repairs: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    unguarded: tuple[str, ...] = ()


ONE = {
    "filter-deleted": Fault(NO_FILTER, ("filter-restored",)),
    "gate-deleted": Fault(["tc filter del dev upstream0 egress"], ("gate-restored",)),
    "qdiscs-deleted": Fault(NO_CLSACT, ("filter-restored", "gate-restored")),
    "program-replaced": Fault(["tc " + ELSEWHERE.replace("{handle}", "1")], ("filter-restored",)),
    "program-before-ours": Fault(["tc " + ELSEWHERE.replace("{handle}", "2")], ("filter-restored",)),
    "table-removed": Fault(["nft delete table inet verbatim"], ("interlock-restored",)),
    "ruleset-flushed": Fault(NO_RULES, ("interlock-restored",)),
    "chain-flushed": Fault(["nft flush chain inet verbatim forward"], ("interlock-restored",)),
    "policy-changed": Fault(
        ["nft add chain inet verbatim forward { policy accept; }", "nft flush chain inet verbatim forward"],
        ("interlock-restored",),
    ),
    "accept-inserted": Fault(["nft insert rule inet verbatim forward accept"], ("interlock-restored",)),
    "second-table-accepts": Fault([f"nft {ACCEPT}"]),
    "marks-forged": Fault([f"nft {FORGED}"], faults=("ruleset-foreign",)),
    "marks-flushed": Fault([f"nft {FLUSHED}"], faults=("ruleset-foreign",)),
    "past-the-interlock": Fault([f"nft {PAST}"], faults=("ruleset-foreign",)),
}
TWO = {
    "filters-and-table": Fault([*NO_FILTER, *NO_RULES], ("filter-restored", "interlock-restored")),
    "one-side-and-table": Fault(
        [NO_CLSACT[0], *NO_RULES], ("filter-restored", "interlock-restored"), unguarded=("agents0",)
    ),
    "qdiscs-under-an-accept": Fault([f"nft {ACCEPT}", *NO_CLSACT], ("filter-restored", "gate-restored")),
    "filters-under-forged-marks": Fault([f"nft {FORGED}", *NO_FILTER], ("filter-restored",), ("ruleset-foreign",)),
    "filters-and-past-the-interlock": Fault([f"nft {PAST}", *NO_FILTER], ("filter-restored",), ("ruleset-foreign",)),
}
ALL = {**ONE, **TWO}


@pytest.fixture(scope="module")
def stranger(net: Net) -> Iterator[str]:
    """A program that lets everything pass."""
    pin = Path("/sys/fs/bpf") / f"{net.prefix}-stranger"
    bpf.pin(bpf.load_program(bytes.fromhex("b700000000000000 9500000000000000"), "stranger"), pin)
    yield str(pin)
    pin.unlink()


@pytest.fixture(scope="module")
def running(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    wire = Wire(net, tmp_path_factory.mktemp("wire"), rules=RULES)
    try:
        yield wire.start()
    finally:
        wire.teardown()


@pytest.fixture
def wire(running: Wire) -> Iterator[Wire]:
    """With leases of both families, and without other tables afterwards."""
    for address, gateway in ((AGENT, GATEWAY), (AGENT6, GATEWAY6)):
        until(lambda a=address, g=gateway: introduce(running, g) and given(running, a), "a lease")  # type: ignore[misc]
    yield running
    for table in ("inet marks", "inet friendly", "netdev fast"):
        sh("nft", f"add table {table}; delete table {table}", netns=running.net.gateway)
    until(lambda: not faults(running), "nothing is wrong any more")
    for held in running.client.list():
        running.client.revoke(held.id)


def introduce(wire: Wire, gateway: str) -> bool:
    """The gateway learns the agent's link-layer address from what the agent asks for."""
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    with inside(wire.net.agent, lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
        return bool(sock.sendto(b"hello", (gateway, 9)))


def given(wire: Wire, address: str) -> str:
    try:
        return lease(wire, address=address)
    except Unavailable:
        return ""


def faults(wire: Wire) -> dict[str, str]:
    found: dict[str, str] = wire.client.status()["faults"]
    return found


def repairs(wire: Wire) -> dict[str, int]:
    found: dict[str, int] = wire.client.status()["repairs"]
    return found


def strike(wire: Wire, fault: Fault, stranger: str) -> None:
    for command in fault.commands:
        program, _, rest = command.replace("{stranger}", stranger).partition(" ")
        words = [rest] if program == "nft" else rest.split()
        sh(program, *words, netns=wire.net.gateway)


@contextmanager
def asleep(wire: Wire) -> Iterator[None]:
    """The wire process does nothing meanwhile."""
    assert wire.process is not None
    wire.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        wire.process.send_signal(signal.SIGCONT)


def missing(wire: Wire, sniffer: Sniffer) -> list[Seen]:
    """What arrived upstream and is not on record, once everything that the ring holds is in the journal."""
    until(lambda: wire.client.status()["ring"]["fill"] == 0, "the ring is drained")
    seen = sniffer.seen({AGENT, AGENT6})
    assert seen, "nothing was observed: the test proves nothing"
    return unrecorded(seen, wire.records())


@pytest.mark.parametrize("name", ALL)
def test_broken_locks_let_nothing_unrecorded_pass_and_are_put_back_or_named(
    net: Net, wire: Wire, name: str, stranger: str
) -> None:
    before, events, told, fault = repairs(wire), len(wire.events()), len(unguarded(wire)), ALL[name]
    with Sniffer(net.upstream) as sniffer, Storm(net) as storm:
        until(lambda: storm.passes(0.1), "traffic flows")
        with asleep(wire):  # first nobody watches
            strike(wire, fault, stranger)
            storm.rage(0.2)
        for kind in fault.repairs:
            until(lambda kind=kind: repairs(wire).get(kind, 0) > before.get(kind, 0), f"{kind} counts")  # type: ignore[misc]
        for kind in fault.faults:
            until(lambda kind=kind: kind in faults(wire), f"{kind} is named")  # type: ignore[misc]
        if not fault.faults:
            until(lambda: storm.passes(0.1), "traffic flows again")
    assert missing(wire, sniffer) == []
    assert storm.got[CLOSED] == 0
    until(lambda: {*fault.repairs, *fault.faults} <= set(wire.events()[events:]), "it is on record")
    bare = [said["interfaces"] for said in unguarded(wire)[told:]]
    assert bare == ([list(fault.unguarded)] if fault.unguarded else []), "elsewhere one lock held"
    until(lambda: set(fault.faults) <= set(status.read(wire.data)["wire"].faults), "and published")


def test_the_observer_sees_what_is_not_recorded(net: Net, wire: Wire) -> None:
    """Else the tests above would pass with an observer that is blind."""
    with Sniffer(net.upstream) as sniffer, Storm(net) as storm, asleep(wire):
        for command in (*NO_CLSACT, *NO_RULES):
            sh(*command.split(), netns=net.gateway)
        until(lambda: storm.got[CLOSED], "what is closed arrives")
    assert missing(wire, sniffer)


def test_a_time_without_any_lock_is_on_record_and_on_the_sessions_that_were_open(net: Net, wire: Wire) -> None:
    known = len(unguarded(wire))
    before = {name: repairs(wire).get(name, 0) for name in ("filter-restored", "gate-restored", "interlock-restored")}
    with net.listen() as listener, net.connect(listener.getsockname()[1]) as client, listener.accept()[0] as server:
        client.sendall(b"before")
        assert server.recv(100) == b"before"
        with Storm(net) as storm, asleep(wire):
            stopped = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            for command in (*NO_CLSACT, *NO_RULES):
                sh(*command.split(), netns=net.gateway)
            until(lambda: storm.got[CLOSED], "what is closed arrives")
            woken = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        until(lambda: len(unguarded(wire)) > known, "it is on record")
        until(lambda: all(repairs(wire).get(name, 0) > count for name, count in before.items()), "all are back")
    (said,) = unguarded(wire)[known:]
    assert said["since_boottime_ns"] < stopped < woken < said["until_boottime_ns"] < woken + 10**9
    lasted = said["until_boottime_ns"] - said["since_boottime_ns"]
    assert said["until_ns"] - said["since_ns"] == pytest.approx(lasted, abs=10**7)
    assert said["interfaces"] == ["agents0", "upstream0"]
    restored = [one for one in map(_said, wire.frames()) if one.get("kind") in before][-len(before) :]
    assert all(one["since_boottime_ns"] < stopped for one in restored)
    with net.listen() as listener, net.connect(listener.getsockname()[1]) as client, listener.accept()[0] as server:
        client.sendall(b"after")
        assert server.recv(100) == b"after"
    until(lambda: {5, 6} <= closed(wire).keys(), "both sessions are over")
    first, second = closed(wire)[6], closed(wire)[5]
    assert (first.coverage, first.findings) == (Coverage.PARTIAL, ("unguarded",))
    assert (second.coverage, second.findings) == (Coverage.COMPLETE, ())


def test_locks_that_went_while_no_wire_process_ran_were_gone_since_an_unknown_time(net: Net, wire: Wire) -> None:
    known = len(unguarded(wire))
    for commands in ((), (*NO_CLSACT, *NO_RULES)):
        wire.stop(signal.SIGKILL)
        for command in commands:
            sh(*command.split(), netns=net.gateway)
        wire.start()
        told = unguarded(wire)[known:]
        assert [said["interfaces"] for said in told] == ([["agents0", "upstream0"]] if commands else [])
    assert [(said["since_ns"], said["since_boottime_ns"]) for said in told] == [(None, 0)]


def _said(frame: Frame) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(frame.payload) if frame.kind is FrameKind.EVENT else {}
    return said


def unguarded(wire: Wire) -> list[dict[str, Any]]:
    return [said for said in map(_said, wire.frames()) if said.get("kind") == "unguarded"]


def closed(wire: Wire) -> dict[int, SessionRow]:
    """Last rows of the TCP sessions that are over, as a recorder reads the journal, by bytes of the client."""
    machine = Assembler(bytes(16), config.Record(), "gw")
    rows = [row for frame in wire.frames() for row in machine.feed(frame)]
    over = [row for row in rows if isinstance(row, SessionRow) and row.ending is not Ending.OPEN]
    return {row.client_bytes: row for row in over if row.transport == "tcp"}


def test_all_locks_removed_at_once_are_back_within_a_blink(net: Net, wire: Wire) -> None:
    before = repairs(wire).get("interlock-restored", 0)
    with Storm(net) as storm:
        until(lambda: storm.passes(0.1), "traffic flows")
        with asleep(wire):
            for command in (*NO_CLSACT, *NO_RULES):
                sh(*command.split(), netns=net.gateway)
            until(lambda: storm.got[CLOSED], "what is closed arrives")
        woken = time.monotonic()
        until(lambda: repairs(wire).get("interlock-restored", 0) > before, "the last lock is back")
    window = storm.last[CLOSED] - woken
    print(f"the last unrecorded datagram came {window * 1000:.1f} ms after the wire process could hear of it")
    assert window < 0.2, "who polls each second would need half of one"
