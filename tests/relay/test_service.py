"""Generations of workers: a new one that does not stay is no reason to end the former one."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from appliance import status
from appliance.config import Settings
from appliance.journal import JournalKey
from appliance.relay import service, streams
from appliance.relay.service import Child, Service
from tests.lab.wait import until


class Process:
    """What a service sees of one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        self.told: list[int] = []

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int) -> None:
        self.told.append(number)


class Watched(Service):
    """Its processes are not started."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, ())
        self.made: list[Process] = []
        self._children = [self._start(number) for number in range(self._count)]

    def _start(self, number: int, failures: int = 0) -> Child:
        self.made.append(Process(1000 + len(self.made)))
        return Child(number, self.made[-1], time.monotonic(), failures)  # type: ignore[arg-type]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(service, "READY", 0.2)
    settings = Settings(data=tmp_path, relay={"workers": 2})
    return Watched(settings)


def replace(watched: Watched, *, die: bool) -> None:
    watched._again(signal.SIGHUP, None)
    watched._watch()
    if die:
        for process in watched.made[2:]:
            process.code = 1
    watched._watch()
    until(lambda: time.monotonic() > watched._replacing, "the time of the new ones to be over")
    watched._watch()


def test_new_workers_that_die_leave_the_former_ones_alone(watched: Watched) -> None:
    replace(watched, die=True)
    assert [process.told for process in watched.made[:2]] == [[], []]
    assert [child.process.pid for child in watched._children] == [1000, 1001]
    assert "relay-not-replaced" in watched._values()["faults"]
    watched._again(signal.SIGHUP, None)
    watched._watch()
    assert "relay-not-replaced" not in watched._values()["faults"], "the next try is another one"


def test_new_workers_that_live_take_over_though_nothing_is_steered_yet(watched: Watched) -> None:
    replace(watched, die=False)
    assert [process.told for process in watched.made[:2]] == [[signal.SIGHUP]] * 2
    assert [child.process.pid for child in watched._children] == [1002, 1003]


def test_what_only_grows_does_not_fall_when_a_worker_ends(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}
    monkeypatch.setattr(status, "read", lambda data: said)
    for number, process in enumerate(watched.made):
        values = {"flows": 1, "accepted": 10, "refused": {"tls": 2}}
        said[f"relay-{number}"] = status.Status(f"relay-{number}", process.pid, 0.0, values)
    assert (watched._values()["flows"], watched._values()["accepted"]) == (2, 20)
    del said["relay-0"]
    watched._children = watched._children[1:]
    assert (watched._values()["flows"], watched._values()["accepted"]) == (1, 20)
    assert watched._values()["refused"] == {"tls": 4}


def test_a_damaged_stream_is_left_and_another_one_written(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    JournalKey.load_or_create(tmp_path)
    writer, name = streams.take(settings)
    writer.close()
    (tmp_path / "journal" / name / "stream").write_bytes(b"no such thing")
    assert streams.end_abandoned(settings, 1) == []
    other, second = streams.take(settings)
    other.close()
    assert (name, second) == ("relay-0", "relay-1")
