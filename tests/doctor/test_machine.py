"""What the machine must bring."""

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.config import Store, Wire
from appliance.doctor import machine
from appliance.doctor.finding import Level
from appliance.wire import interlock
from tests.doctor.conftest import gateway, needs_root, worst


@needs_root
def test_what_this_kernel_can_do_is_tried_and_leaves_nothing() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = list(machine.features())
    assert [(one.about, one.level) for one in found] == [
        ("ring buffer with records of exact size", Level.OK),
        ("clsact with eBPF programs", Level.OK),
        ("the interlock's table", Level.OK),
    ]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@needs_root
def test_a_program_that_the_kernel_refuses_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_reserving", lambda ring: b"\x95" + bytes(7))  # exit without a result
    found = next(machine.features())
    assert (found.level, found.remedy) == (Level.FAIL, "use a kernel with CONFIG_BPF_SYSCALL and Linux 5.19 or newer")


def test_headers_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.wire.headers.MODULES", tmp_path)
    assert worst(machine.kernel_headers()).level is Level.OK
    found = worst(machine.kernel_headers(installed=tmp_path))
    assert found.level is Level.FAIL
    assert "apt-get install linux-headers-" in found.remedy


def test_bounds_that_the_machine_cannot_hold() -> None:
    assert worst(machine.memory(gateway())).level is Level.OK
    greedy = gateway(wire=Wire(ring_bytes=1 << 42), store=Store(url="http://db:8123/verbatim"))
    found = worst(machine.memory(greedy))
    assert (found.level, "wire.ring_bytes" in found.remedy) == (Level.FAIL, True)


def test_the_stores_bound_is_the_configured_one() -> None:
    assert machine.bounds(gateway(store=Store(max_memory=3 << 30)))["store"] == 3 << 30
    found = worst(machine.memory(gateway(store=Store(max_memory=1 << 50))))
    assert (found.level, "store.max_memory" in found.remedy) == (Level.FAIL, True)
    elsewhere = gateway(wire=Wire(ring_bytes=1 << 42), store=Store(url="http://db:8123/verbatim", max_memory=1 << 50))
    assert "store.max_memory" not in worst(machine.memory(elsewhere)).remedy


def test_nft_is_found_where_only_root_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not Path("/usr/sbin/nft").exists():
        pytest.skip("nft is elsewhere on this machine")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert worst(machine.nftables()).level is Level.OK
    assert interlock.nft_path() == "/usr/sbin/nft"


def test_the_control_group_counts(tmp_path: Path) -> None:
    group = tmp_path / "verbatim.slice" / "wire.service"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("1048576\n")
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/elsewhere\n0::/verbatim.slice/wire.service\n")
    assert machine.memory_limit(tmp_path, own) == 1 << 20
    own.write_text("0::/\n")
    assert machine.memory_limit(tmp_path, own) > 1 << 20


def test_a_clock_that_was_never_set() -> None:
    found = worst(machine.clock(gateway(), datetime(1970, 1, 2, tzinfo=UTC).timestamp()))
    assert (found.level, found.found) == (Level.FAIL, "it is 1970-01-02 here")


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    written = tmp_path / "state" / "leases.json"
    written.write_text("{}")
    now = written.stat().st_mtime
    assert worst(machine.clock(gateway(tmp_path), now)).level is not Level.FAIL
    found = worst(machine.clock(gateway(tmp_path), now - 3600))
    assert (found.level, "3600 s in the future" in found.found) == (Level.FAIL, True)


@pytest.mark.parametrize(("unsynchronised", "level"), [(True, Level.WARN), (False, Level.OK)])
def test_whether_the_clock_is_synchronised(unsynchronised: bool, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_synchronised", lambda: not unsynchronised)
    assert worst(machine.clock(gateway())).level is level


def test_the_kernel_is_asked_whether_the_clock_is_synchronised() -> None:
    if shutil.which("timedatectl") is None:
        pytest.skip("no timedatectl here")
    said = subprocess.run(["timedatectl", "show", "-p", "NTPSynchronized", "--value"], capture_output=True, text=True)
    if said.stdout.strip() not in ("yes", "no"):
        pytest.skip("timedatectl does not answer here")
    assert machine._synchronised() is (said.stdout.strip() == "yes")


@needs_root
def test_bpffs(tmp_path: Path) -> None:
    assert worst(machine.bpffs(gateway())).level is Level.OK
    (tmp_path / "file").touch()

    def at(folder: Path) -> Level:
        return worst(machine.bpffs(gateway(wire=Wire(bpffs=folder)))).level

    assert at(tmp_path / "verbatim") is Level.FAIL
    assert at(tmp_path) is Level.FAIL
    assert at(tmp_path / "bpf" / "verbatim") is Level.WARN  # is mounted there
