"""Taking everything out of the kernel: what was recorded is in the journal, that it happened too, and nothing stays."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.journal import FrameKind
from appliance.model import Coverage, EventRow, SessionRow
from appliance.wire import bpf, former, teardown
from appliance.wire.abi import Side
from tests.lab.wait import until
from tests.wire.net import AGENT, ROOT, Net, Wire, sh
from tests.wire.test_daemon import connection, exchange, lease
from tests.wire.test_upgrade import assembled

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces, BPF and nftables")
SIDES = ("agents0", "upstream0")
DIES = """
import os, sys
from pathlib import Path
from appliance import config
from appliance.wire import filters, former, interlock, loader, teardown
where, name = {
    "told": (teardown._Teardown, "_detach"),
    "detached": (former, "empty"),
    "stripped": (filters, "strip"),
    "unpinned": (loader, "unpin"),
    "all-but-the-table": (interlock, "remove"),
}[sys.argv[2]]
really = getattr(where, name)
def dies(*arguments):
    if sys.argv[2] == "detached" and arguments[3] is not None:
        return really(*arguments)
    os._exit(9)
setattr(where, name, dies)
teardown.teardown(config.load(Path(sys.argv[1])), stay_open=True)
"""

BROKEN = """
import sys
from pathlib import Path
from appliance import config
from appliance.errors import DamagedEvidence
from appliance.wire import ring, teardown
def broken(*arguments):
    raise DamagedEvidence("ring: a record is longer than what was written; tear down and start again")
ring.committed_end = broken
teardown.teardown(config.load(Path(sys.argv[1])), stay_open=True)
"""

REPLACED = """
import os, sys
from pathlib import Path
from appliance import config
from appliance.wire import daemon, former
former.drain = lambda *arguments: os._exit(9)
daemon.run(config.load(Path(sys.argv[1])))
"""


@pytest.fixture
def wire(net: Net, tmp_path: Path) -> Iterator[Wire]:
    made = Wire(net, tmp_path / "data")
    try:
        yield made.start()
    finally:
        made.command("run")  # writes the settings
        made.teardown()


def tear(wire: Wire, *options: str) -> subprocess.CompletedProcess[str]:
    """`verbatim wire --teardown` on the gateway."""
    enter = ["nsenter", f"--net=/run/netns/{wire.net.gateway}", sys.executable, "-m", "appliance", "wire"]
    command = [*enter, "--teardown", *options, "--config", str(wire.config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def told(wire: Wire, kind: str) -> list[dict[str, Any]]:
    said = [json.loads(frame.payload) for frame in wire.frames() if frame.kind is FrameKind.EVENT]
    return [event for event in said if event["kind"] == kind]


def left(wire: Wire) -> list[str]:
    """What of ours is in the kernel."""
    gateway = wire.net.gateway
    found = [str(wire.bpffs)] if wire.bpffs.exists() else []
    found += [line for name in SIDES for line in sh("tc", "qdisc", "show", "dev", name, netns=gateway).splitlines()]
    found += sh("nft", "list", "tables", netns=gateway).splitlines()
    found += sh("ip", "neigh", "show", "nud", "permanent", netns=gateway).splitlines()
    return [line for line in found if "noqueue" not in line]


def is_closed(net: Net) -> bool:
    with net.listen() as listener:
        try:
            net.connect(listener.getsockname()[1], timeout=0.3).close()
        except OSError:
            return True
    return False


def test_while_the_kernel_forwards_it_is_refused(net: Net, wire: Wire) -> None:
    assert wire.stop() == 0
    refused = tear(wire)
    assert refused.returncode == 1
    for word in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding=0", "--open"):
        assert word in refused.stderr
    assert (wire.bpffs / "ring").exists()
    assert is_closed(net)
    assert not told(wire, "torn-down")


def test_what_the_ring_held_is_journaled_and_both_ends_of_the_time_without_record(net: Net, wire: Wire) -> None:
    id = lease(wire)
    with connection(net) as (agent, upstream, port):
        assert exchange(agent, upstream, b"while it ran")
        assert wire.stop() == 0
        assert exchange(agent, upstream, b", and while it did not")
        before = time.time_ns()
        done = tear(wire, "--open", "--json")
        assert done.returncode == 0, done.stderr
        assert wire.stream(port, Side.CLIENT) == b"while it ran, and while it did not"
        (event,) = told(wire, "torn-down")
        assert before < event["since_ns"] < time.time_ns()
        assert event["forwarding"] == ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]
        assert 0 < event["drained"] <= json.loads(done.stdout)["drained_bytes"]
        assert exchange(agent, upstream, b"nobody hears this")
        again = time.time_ns()
        wire.start()
    (resumed,) = told(wire, "unguarded")
    assert resumed["since_ns"] == event["since_ns"]
    assert again < resumed["until_ns"] < time.time_ns()
    assert 0 < resumed["since_boottime_ns"] < resumed["until_boottime_ns"] < time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    opened = [json.loads(frame.payload) for frame in wire.frames() if frame.kind is FrameKind.OPEN]
    assert opened[-1]["after"] == opened[0]["ring"] != opened[-1]["ring"]
    assert opened[-1]["until"] > 0
    last = {row.session_id: row for row in assembled(wire) if isinstance(row, SessionRow)}
    assert [(row.findings.count("unguarded"), row.coverage) for row in last.values()][:1] == [(1, Coverage.PARTIAL)]
    assert not [row for row in assembled(wire) if isinstance(row, EventRow) and row.kind in ("ring-lost", "rebooted")]
    assert teardown.recall(wire.data) is None
    wire.client.revoke(id)
    wire.stop()
    wire.start()
    assert len(told(wire, "unguarded")) == 1


@pytest.fixture
def stranger() -> Iterator[str]:
    """Somebody else's program, as tc(8) takes it."""
    pin = Path("/sys/fs/bpf") / f"vb-stranger-{os.getpid()}"
    bpf.pin(bpf.load_program(bytes.fromhex("b700000000000000 9500000000000000"), "stranger"), pin)
    yield str(pin)
    pin.unlink()


@pytest.fixture
def own() -> Iterator[Net]:
    with Net() as net:
        yield net


def test_nothing_stays_and_what_is_others_does(own: Net, tmp_path: Path, stranger: str) -> None:
    wire, gateway = Wire(own, tmp_path / "data", bind=""), own.gateway
    neighbour = ["ip", "neigh", "replace", "dev", "agents0"]
    try:
        wire.start()
        sh(*neighbour, AGENT, "lladdr", address(own), "nud", "reachable", netns=gateway)
        sh(*neighbour, "10.91.1.77", "lladdr", "02:00:00:00:00:77", "nud", "permanent", netns=gateway)
        lease(wire)
        place = ["dev", "agents0", "ingress", "pref", "7", "protocol", "ip"]
        sh("tc", "filter", "add", *place, "bpf", "da", "object-pinned", stranger, netns=gateway)
        assert AGENT in "".join(left(wire))
        wire.stop()
        done = tear(wire, "--open")
        assert done.returncode == 0, done.stderr
        for word in ("filter verbatim of agents0", "filter verbatim_gate of upstream0", AGENT, str(wire.bpffs), "inet"):
            assert word in done.stdout
        assert "clsact qdisc of upstream0" in done.stdout
        assert "clsact qdisc of agents0" not in done.stdout
        clsact, other = left(wire)
        assert clsact.startswith("qdisc clsact")
        assert other.startswith("10.91.1.77")
        again = tear(wire)
        assert (again.returncode, again.stdout.strip()) == (0, "nothing to remove")
        assert len(told(wire, "torn-down")) == 1
    finally:
        wire.teardown()


def address(net: Net) -> str:
    return sh("ip", "-o", "link", "show", "dev", "eth0", netns=net.agent).split("link/ether ")[1].split()[0]


@pytest.mark.parametrize("died", ["told", "detached", "stripped", "unpinned", "all-but-the-table"])
def test_one_that_died_is_closed_loses_nothing_and_is_finished_by_the_next(net: Net, wire: Wire, died: str) -> None:
    lease(wire)
    with connection(net) as (agent, upstream, port):
        assert exchange(agent, upstream, b"before")
        wire.stop()
        assert exchange(agent, upstream, b" and after")
        command = wire.command("teardown")
        at = command.index("-c")
        dead = subprocess.run([*command[:at], "-c", DIES, str(wire.config), died], cwd=ROOT, capture_output=True)
        assert dead.returncode == 9, dead.stderr
        agent.sendall(b" never")
        upstream.settimeout(0.5)
        with pytest.raises(TimeoutError):
            upstream.recv(6)
    assert is_closed(net)
    since = told(wire, "torn-down")[0]["since_ns"]
    done = tear(wire, "--open")
    assert done.returncode == 0, done.stderr
    assert left(wire) == []
    assert wire.stream(port, Side.CLIENT).startswith(b"before and after")
    assert {event["since_ns"] for event in told(wire, "torn-down")} == {since}


def test_where_the_journal_takes_no_more_nothing_is_removed(net: Net, wire: Wire) -> None:
    lease(wire)
    with connection(net) as (agent, upstream, port):
        wire.stop()
        assert exchange(agent, upstream, b"kept")
        roomy = wire.config.read_text()
        wire.config.write_text(roomy.replace("min_free_bytes = 1048576", f"min_free_bytes = {2**60}"))
        failed = tear(wire, "--open")
        assert failed.returncode == 3
        for word in ("bytes of the ring are not in the journal", "nothing was removed", "free disk space"):
            assert word in failed.stderr
        assert not told(wire, "torn-down")
        assert teardown.recall(wire.data) is None
        assert exchange(agent, upstream, b" and goes on")  # recorded into the ring, as before
        wire.config.write_text(roomy)
        assert tear(wire, "--open").returncode == 0
    assert wire.stream(port, Side.CLIENT) == b"kept and goes on"


def test_a_ring_that_was_being_replaced_goes_first(net: Net, wire: Wire) -> None:
    lease(wire)
    with connection(net) as (agent, upstream, port):
        wire.stop()
        assert exchange(agent, upstream, b"former")
        wire.ring *= 2
        command = wire.command("run")
        at = command.index("-c")
        dead = subprocess.run([*command[:at], "-c", REPLACED, str(wire.config)], cwd=ROOT, capture_output=True)
        assert dead.returncode == 9, dead.stderr
        assert exchange(agent, upstream, b" and new")
        assert tear(wire, "--open").returncode == 0
    assert left(wire) == []
    assert not former.folders(wire.bpffs)
    assert wire.stream(port, Side.CLIENT) == b"former and new"
    wire.start()
    kinds = {row.kind for row in assembled(wire) if isinstance(row, EventRow)}
    assert "torn-down" in kinds
    assert "ring-lost" not in kinds


def test_a_ring_that_cannot_be_read_is_told_and_goes(net: Net, wire: Wire) -> None:
    """To tear down is the remedy that is named for it."""
    lease(wire)
    with connection(net) as (agent, upstream, _):
        wire.stop()
        assert exchange(agent, upstream)
        command = wire.command("teardown")
        at = command.index("-c")
        done = subprocess.run(
            [*command[:at], "-c", BROKEN, str(wire.config)], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert left(wire) == []
    (event,) = told(wire, "ring-lost")
    assert event["to"] > event["from"]


def test_switches_are_those_that_are_on(tmp_path: Path) -> None:
    for path, value in (
        ("ipv4/ip_forward", "0"),
        ("ipv4/conf/eth0.7/forwarding", "1"),
        ("ipv4/conf/eth1/forwarding", "0"),
        ("ipv6/conf/all/forwarding", "0"),
        ("ipv6/conf/eth1/force_forwarding", "1"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{value}\n")
    assert teardown.switches(["eth0.7", "eth1"], tmp_path) == [
        "net/ipv4/conf/eth0.7/forwarding",
        "net.ipv6.conf.eth1.force_forwarding",
    ]
    (tmp_path / "ipv4/ip_forward").write_text("1\n")
    assert teardown.switches(["eth0.7"], tmp_path) == ["net.ipv4.ip_forward"]


def test_an_open_gateway_needs_no_leave_when_forwarding_is_off(net: Net, wire: Wire) -> None:
    wire.stop()
    switches = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
    try:
        sh("sysctl", "-qw", *(f"{name}=0" for name in switches), netns=net.gateway)
        assert tear(wire).returncode == 0
    finally:
        sh("sysctl", "-qw", *(f"{name}=1" for name in switches), netns=net.gateway)
    assert told(wire, "torn-down")[0]["forwarding"] == []
    until(lambda: not is_closed(net), "it is open")
