"""A reboot: the kernel forgets program, maps, ring and rules, and the next start tells of the gap.

As near as it comes without one: the pins, filters and nftables table are really gone, and the boot id is another one.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.journal import FrameKind
from appliance.model import Ending, EventRow, SessionRow
from appliance.wire import former
from appliance.wire.abi import Side
from tests.lab.wait import until
from tests.wire.net import ROOT, Net, Wire, sh
from tests.wire.test_daemon import connection, exchange, lease
from tests.wire.test_upgrade import assembled

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces, BPF and nftables")
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass
class Machine(Wire):
    """Its boot id is the file's."""

    boot: Path = Path(BOOT_ID)

    def command(self, function: str) -> list[str]:
        command = super().command(function)
        shell = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c"]
        bind = f'mount --make-rprivate / && mount --bind "{self.boot}" {BOOT_ID} && exec "$@"'
        return [*shell, bind, "sh", *command]


def vanish(machine: Machine) -> None:
    """As a reboot does: filters, pins and table are gone, and so is what the ring held."""
    for name in ("agents0", "upstream0"):
        sh("tc", "qdisc", "del", "dev", name, "clsact", netns=machine.net.gateway)
    former.unpin(machine.bpffs)
    sh("nft", "delete", "table", "inet", "verbatim", netns=machine.net.gateway)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    net = Net()
    boot = tmp_path / "boot_id"
    boot.write_text("11111111-1111-4111-8111-111111111111\n")
    made = Machine(net, tmp_path / "data", boot=boot)
    try:
        net.create()
        yield made
    finally:
        try:
            made.teardown()
        finally:
            net.remove()


def test_a_reboot_is_told_with_its_bounds_and_interrupts_what_was_open(machine: Machine) -> None:
    lease(machine.start())
    with connection(machine.net) as (agent, upstream, port):
        assert exchange(agent, upstream, b"journaled")
        until(lambda: machine.stream(port, Side.CLIENT) == b"journaled", "journaled")
        machine.stop(signal.SIGKILL)
        assert exchange(agent, upstream, b" and lost with the ring")
        vanish(machine)
        assert not machine.bpffs.exists()
        before = time.time_ns()
        machine.boot.write_text("22222222-2222-4222-8222-222222222222\n")
        machine.start()
        lease(machine)  # those of the boot before are not trusted with times of this one, or were restored
        assert exchange(agent, upstream, b" after the reboot")
    until(
        lambda: b" after the reboot" in b"".join(f.payload for f in machine.frames() if f.kind is FrameKind.SPAN),
        "journaled",
    )
    rows = assembled(machine)
    (event,) = [row for row in rows if isinstance(row, EventRow) and row.kind == "rebooted"]
    assert event.attrs["former_boot"] == "11111111-1111-4111-8111-111111111111"
    assert event.attrs["boot"] == "22222222-2222-4222-8222-222222222222"
    assert event.attrs["last_ns"] < before < event.attrs["first_ns"]
    assert event.attrs["former_position"] > 0
    assert event.attrs["position"] == 0
    assert event.attrs["ring"] != event.attrs["former_ring"]
    last: dict[object, SessionRow] = {row.session_id: row for row in rows if isinstance(row, SessionRow)}
    former, *_ = (one for one in last.values() if one.client_bytes == len(b"journaled"))
    assert former.ending is Ending.INTERRUPTED
    assert "ring-lost" in former.findings
    same = [one for one in last.values() if one.client_port == former.client_port]
    assert [one.ending for one in same] == [Ending.INTERRUPTED, Ending.OPEN]  # picked up again


def test_of_two_that_start_at_once_one_runs(machine: Machine) -> None:
    """Each could attach; only one may."""
    commands = [machine.command("run") for _ in range(2)]
    with machine.log.open("ab") as log:
        both = [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) for command in commands]
    try:
        until(lambda: [one for one in both if one.poll() is not None], "one of them gives up", 60)
        (runs,) = [one for one in both if one.poll() is None]
        machine.process = runs
        until(machine.answers, "the other one answers", 60)
        assert "another process has this machine's interfaces" in machine.log.read_text()
        assert [f.kind for f in machine.frames()].count(FrameKind.OPEN) == 1
        text = sh("tc", "filter", "show", "dev", "agents0", "ingress", netns=machine.net.gateway)
        assert text.count("direct-action") == 1
    finally:
        for one in both:
            one.kill()
            one.wait()
        machine.process = None


def test_a_journal_of_another_version_is_set_aside_and_told(machine: Machine) -> None:
    assert machine.start().stop() == 0
    name = machine.data / "journal" / "wire" / "stream"
    name.write_text(name.read_text().replace("verbatim-journal 1", "verbatim-journal 0"))
    machine.start()
    said = [json.loads(f.payload) for f in machine.frames() if f.kind is FrameKind.EVENT]
    (event,) = [one for one in said if one["kind"] == "journal-set-aside"]
    assert event["version"] == "0"
    assert Path(event["path"], "0000000000000001.seg").exists()
    assert machine.frames()[0].number == 1
