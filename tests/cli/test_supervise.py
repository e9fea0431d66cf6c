"""`verbatim up` after one that was killed: its processes end first."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance import status
from appliance.cli import supervise
from appliance.cli.supervise import Child, Supervisor
from appliance.config import Settings
from tests.lab.wait import until

# A part that publishes its status, and that SIGTERM ends only after a while.
PART = """
import signal, sys, threading, time
from pathlib import Path
from appliance import status
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
status.publish(Path(sys.argv[1]), sys.argv[2], {})
ended.wait()
time.sleep(float(sys.argv[3]))
status.withdraw(Path(sys.argv[1]), sys.argv[2])
"""
UP = """
import sys
from pathlib import Path
from appliance.cli.supervise import Child, Supervisor
from appliance.config import Settings
from tests.lab.wait import until
command = [sys.executable, "-c", sys.argv[2], sys.argv[1], "wire", "0.5"]
sys.exit(Supervisor(Settings(data=Path(sys.argv[1])), [Child("wire", command)]).run(as_json=True))
"""


def wait(data: Path, other_than: int = 0) -> int:
    """The process id of the part once it has published."""

    def published() -> int | None:
        said = status.read(data).get("wire")
        return said.pid if said and said.live and said.pid != other_than else None

    return until(published, "the part publishes")


@pytest.fixture
def up(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", UP, str(tmp_path), PART], stdout=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_next_one_waits_until_the_processes_of_a_killed_one_are_gone(
    up: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    former = wait(tmp_path)
    up.kill()
    up.wait()
    assert not gone(former)  # it takes its time
    following = subprocess.Popen([sys.executable, "-c", UP, str(tmp_path), PART], stdout=subprocess.DEVNULL)
    try:
        found = wait(tmp_path, former)
        assert gone(former)
        os.kill(following.pid, signal.SIGTERM)
        assert following.wait(20) == 0
        assert gone(found)
    finally:
        following.kill()
        following.wait()


def test_what_records_ends_before_what_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(Child, "start", lambda child: None)
    monkeypatch.setattr(Child, "stop", lambda child: ended.append(child.name))
    monkeypatch.setattr(Supervisor, "_await", lambda supervisor, child: setattr(supervisor, "stopping", True))
    children = [Child(name, []) for name in ("store", "wire", "record", "api")]
    assert Supervisor(Settings(data=tmp_path), children).run(as_json=True) == 0
    assert ended == ["api", "wire", "record", "store"]


def test_a_process_that_never_ends_is_named_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    log = SimpleNamespace(
        warning=lambda event, **more: told.append((event, more)), error=lambda event, **more: told.append((event, more))
    )
    hung = subprocess.Popen([sys.executable, "-c", PART, str(tmp_path), "wire", "60"])
    try:
        wait(tmp_path)
        monkeypatch.setattr(supervise, "FORMER_SECONDS", 0.2)
        child = Child("wire", [sys.executable, "-c", PART, str(tmp_path), "wire", "0"])
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            assert Supervisor(Settings(data=tmp_path), [child], log=cast(Any, log)).run(as_json=True) == 1
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
        assert child.process is None
        assert hung.poll() is None
        assert [(event, more["processes"]) for event, more in told] == [
            ("former-running", {"wire": hung.pid}),  # before it waits
            ("former-alive", {"wire": hung.pid}),
        ]
        assert "stop them" in told[0][1]["reason"]
    finally:
        hung.kill()
        hung.wait()


def test_a_number_that_another_program_has_by_now_is_nobody(tmp_path: Path) -> None:
    status.publish(tmp_path, "wire", {})  # by this very process
    assert not supervise._is_part(os.getpid(), "wire")
