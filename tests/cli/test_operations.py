"""`verbatim doctor` and `verbatim status` as programs: output, exit codes, Ctrl-C."""

import errno
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from appliance import cli
from appliance.cli import operations
from appliance.overview import Look, overview
from appliance.status import Status, publish
from tests.lab.wait import until

VALUES: dict[str, dict[str, Any]] = {
    "wire": {
        "ring": {"bytes": 16 << 20, "fill": 4 << 20},
        "recorded": {"packets": 1000, "bytes": 5_000_000},
        "refusals": {"no-lease": 12},
        "journal": {"bytes": 64 << 20, "room": 1 << 30, "stalled": False},
        "leases": 3,
        "flows": 17,
        "interlock": True,
    },
    "record": {"backlog_bytes": 0, "read_ns": 1, "lag_seconds": 0.5, "rows": 10, "sessions_open": 2},
    "store": {"rows": {"messages": 99}, "bytes": 12345},
    "api": {},
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def living(tmp_path: Path) -> Iterator[Path]:
    """Four processes that publish (this one stands for them all), each time with more packets."""
    code = (
        "import json, sys, time; from pathlib import Path; from appliance.status import publish\n"
        "values = json.loads(sys.argv[2])\n"
        "while True:\n"
        "    values['wire']['recorded']['packets'] += 50\n"
        "    for name, said in values.items(): publish(Path(sys.argv[1]), name, said)\n"
        "    time.sleep(0.25)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), json.dumps(VALUES)])
    try:
        until((tmp_path / "run" / "api.status.json").exists, "they publish")
        yield tmp_path
    finally:
        process.kill()
        process.wait()


def test_status_as_json(living: Path) -> None:
    done = run("status", "--json", "--data", str(living))
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    said = json.loads(line)
    assert said["healthy"] is True
    assert said["ring"]["fill"] == 0.25
    assert 100 < said["recorded"]["packets_per_second"] < 250
    assert said["refusals"] == {"no-lease": {"count": 12, "per_second": 0.0}}
    assert [process["state"] for process in said["processes"].values()] == ["ok"] * 4


def test_status_for_programs_is_one_line_per_process(living: Path) -> None:
    done = run("status", "--data", str(living))
    assert done.returncode == 0
    wire, record, store, api = done.stdout.splitlines()
    assert wire.startswith("wire ok, packets/s ")
    assert "ring 25.0 % of 16.8 MB" in wire
    assert "refusals no-lease 12" in wire
    assert record.startswith("record ok, backlog 0 B, backlog in time 0.0 s, lag to store 0.5 s")
    assert store.startswith("store ok, messages 99")
    assert api == "api ok"


def test_status_of_what_is_dead_says_so(tmp_path: Path) -> None:
    for name in ("wire", "record", "store"):
        publish(tmp_path, name, VALUES[name])
        path = tmp_path / "run" / f"{name}.status.json"
        said = json.loads(path.read_text())
        path.write_text(json.dumps(said | {"pid": 2**22 + 1, "time": time.time() - 30}))
    done = run("status", "--data", str(tmp_path))
    assert done.returncode == 1
    wire, record, _, api = done.stdout.splitlines()
    assert wire.startswith("wire silent, ")
    assert "FAULT silent: silent for 3" in wire
    assert record.startswith("record silent, ")
    assert api.startswith("api stopped, FAULT stopped: not running; start it")


def test_status_claims_no_refusals_that_nobody_counted() -> None:
    ring = (1 << 24, 1 << 20)  # pinned, without a wire process
    wire, *_ = operations.lines(overview(None, Look(time.time(), {}, ring), embedded=True))
    assert "ring 6.2 % of 16.8 MB" in wire
    assert "refusals" not in wire
    said = Status("wire", os.getpid(), 0.0, {"refusals": {"quic": 0}}, time.time())
    wire, *_ = operations.lines(overview(None, Look(time.time(), {"wire": said}), embedded=True))
    assert "refusals none" in wire


def interruptible() -> None:
    """Who starts the tests in the background has SIGINT ignored or blocked in all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def test_status_watches_until_it_is_interrupted(living: Path) -> None:
    command = [sys.executable, "-m", "appliance", "status", "--watch", "0.2", "--json", "--data", str(living)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    assert process.stdout
    said = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert said[0]["recorded"]["packets"] < said[1]["recorded"]["packets"] < said[2]["recorded"]["packets"]


def test_status_on_a_terminal(living: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "appliance", "status", "--watch", "0.2", "--data", str(living)]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        preexec_fn=interruptible,
    )
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 30
    while shown.count(b"lag to store") < 3 and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            shown += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    os.close(ours)
    assert shown.count(b"lag to store") >= 3
    assert b"Traceback" not in shown
    assert b"\x1b[1A" in shown  # it draws over what it drew


def test_doctor_as_json(tmp_path: Path) -> None:
    done = run("doctor", "--json", "--data", str(tmp_path / "data"))
    assert done.returncode == 1, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(set(one) == {"check", "about", "level", "found", "remedy"} for one in found)
    rules = next(one for one in found if one["check"] == "rules")
    assert rules == {
        "check": "rules",
        "about": "",
        "level": "fail",
        "found": "no rule is configured",
        "remedy": "add [[rules]], or everything is refused",
    }
    quiet = run("doctor", "--json", "--quiet", "--data", str(tmp_path / "data"))
    assert quiet.returncode == 1
    assert [json.loads(line) for line in quiet.stdout.splitlines()] == [one for one in found if one["level"] != "ok"]
    assert not (tmp_path / "data").exists()


def test_doctor_for_people(tmp_path: Path) -> None:
    done = run("doctor", "--data", str(tmp_path / "data"))
    assert done.returncode == 1
    assert any(
        line.startswith("fail") and "no rule is configured; add [[rules]]" in line for line in done.stdout.splitlines()
    )


def test_what_is_no_terminal_gets_no_blanks_at_the_end_of_lines(living: Path) -> None:
    for verb in ("doctor", "status"):
        lines = run(verb, "--data", str(living)).stdout.splitlines()
        assert lines
        assert [line for line in lines if line != line.rstrip() or len(line) > 200] == []


@pytest.mark.parametrize(
    ("number", "code", "remedy"),
    [
        (errno.ENOSPC, 3, "make room (df says on which disk)"),
        (errno.EDQUOT, 3, "make room (df says on which disk)"),
        (errno.EROFS, 3, "mount it for writing, and see in the kernel's log why it is not"),
        (errno.EIO, 3, "check the path and who may use it"),
        (errno.ENOENT, 2, "check the path and who may use it"),
    ],
)
def test_a_disk_that_takes_nothing_is_a_part_that_does_not_answer(
    number: int, code: int, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise OSError(number, os.strerror(number), "/data/run")

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert capsys.readouterr().err == f"verbatim: /data/run: {os.strerror(number)}; {remedy}\n"


@pytest.mark.parametrize("verb", ["doctor", "status"])
def test_malformed_settings_are_told_apart(verb: str, tmp_path: Path) -> None:
    config = tmp_path / "verbatim.toml"
    config.write_text("[wire]\nring_bytes = 1000\n")
    done = run(verb, "--config", str(config))
    assert (done.returncode, done.stdout) == (2, "")
    assert "ring_bytes" in done.stderr


def test_what_the_kernel_refuses_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise NetlinkError(1, "Operation not permitted")

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 3
    assert capsys.readouterr().err == (
        "verbatim: the kernel refuses: (1, 'Operation not permitted'); see that it is run as root\n"
    )


@pytest.mark.parametrize("verb", ["doctor", "status"])
def test_malformed_variables_are_told_apart_and_not_shown(verb: str) -> None:
    done = run(verb, VERBATIM_STORE='{"url": "http://me:opensesame@db/x"')
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("verbatim: environment: VERBATIM_STORE is not JSON; ")
    assert "opensesame" not in done.stderr


def test_status_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.touch()
    done = run("status", "--data", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"verbatim: {file}: not a folder; name the appliance's folder as data\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize(("option", "code"), [("--config", 2), ("--data", 3)])
def test_what_this_user_may_not_read_has_a_remedy(option: str, code: int, tmp_path: Path) -> None:
    path = tmp_path / "ours"
    if option == "--config":
        path.touch(mode=0o600)
    else:
        path.mkdir(mode=0o700)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    command = [sys.executable, "-m", "appliance", "status", option, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, user=65534, group=65534, extra_groups=[])
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"verbatim: {path}")
    assert "; " in done.stderr


def test_status_of_values_that_are_none(tmp_path: Path) -> None:
    odd: dict[str, Any] = {
        "refusals": {"quic": "many", "fragment": 2},
        "rows": {"messages": [1]},
        "repairs": {"x": "y"},
    }
    for name in VALUES:
        publish(tmp_path, name, odd)
    for arguments in ((), ("--json",)):
        done = run("status", *arguments, "--data", str(tmp_path))
        assert "Traceback" not in done.stderr
        assert "fragment" in done.stdout
        assert "quic" not in done.stdout
