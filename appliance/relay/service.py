"""`verbatim relay`: one worker for each processor, started again when it dies, replaced without a gap on SIGHUP.

On SIGHUP a new generation starts; when each of its workers takes flows, the former ones get SIGHUP themselves: they
take no new flows, and end when those that they have end. SIGTERM ends all flows, each with an error in its own
protocol.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import structlog

from appliance import config, status
from appliance.lock import only
from appliance.log import configure
from appliance.relay import streams

PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before one that died is started again
WELL_AFTER: Final = 30.0  # seconds of life after which it counts as well again
READY: Final = 30.0  # seconds for a new generation to take flows
STOP: Final = 15.0
POLL: Final = 0.1
PUBLISH: Final = 1.0

COUNTED: Final = ("flows", "accepted", "frames", "bytes")

log = structlog.get_logger()


@dataclass(slots=True)
class Child:
    """One worker process."""

    number: int
    process: subprocess.Popen[bytes]
    started: float
    failures: int = 0


class Service:
    """`options`: those of the command line that workers get too."""

    def __init__(self, settings: config.Settings, options: Sequence[str]) -> None:
        self._settings = settings
        self._options = list(options)
        self._count = settings.relay.workers or len(os.sched_getaffinity(0))
        self._children: list[Child] = []
        self._former: list[Child] = []
        self._replacing = 0.0  # until when the new generation has time to take flows
        self._due: list[tuple[float, int, int]] = []  # when to start again, which, after how many failures
        self._stopping = False
        self._reload = False
        self._unstable = False  # a worker of the new generation died
        self._fault = ""
        self._said: dict[int, dict[str, Any]] = {}  # by process: its last values
        self._past: Counter[str] = Counter()  # of processes that ended
        self._refused: Counter[str] = Counter()

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._again)
        try:
            streams.end_abandoned(self._settings, time.time_ns())
            self._children = [self._start(number) for number in range(self._count)]
            published = 0.0
            while not self._stopping:
                self._watch()
                if time.monotonic() - published > PUBLISH:
                    published = time.monotonic()
                    status.publish(self._settings.data, "relay", self._values())
                time.sleep(POLL)
        finally:
            self._end()
        status.withdraw(self._settings.data, "relay")
        return 0

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _again(self, number: int, frame: FrameType | None) -> None:
        self._reload = True

    def _start(self, number: int, failures: int = 0) -> Child:
        command = [sys.executable, "-m", "appliance", "relay", "--worker", str(number), *self._options]
        return Child(number, subprocess.Popen(command), time.monotonic(), failures)

    def _watch(self) -> None:
        now = time.monotonic()
        for child in list(self._children):
            code = child.process.poll()
            if code is None:
                continue
            self._children.remove(child)
            self._unstable = bool(self._replacing)
            failures = 0 if now - child.started > WELL_AFTER else child.failures + 1
            self._due.append((now + PAUSES[min(failures, len(PAUSES) - 1)], child.number, failures))
            log.error("process-died", process=f"relay worker {child.number}", exit_code=code)
            streams.end_abandoned(self._settings, time.time_ns())
        for due in [each for each in self._due if now >= each[0]]:
            self._due.remove(due)
            self._children.append(self._start(due[1], due[2]))
        self._former = [child for child in self._former if child.process.poll() is None]
        if self._reload and not self._replacing:
            self._reload = self._unstable = False
            self._fault = ""
            self._replacing = now + READY
            self._former += self._children
            self._children = [self._start(number) for number in range(self._count)]
        if self._replacing and (self._taking() or now > self._replacing):
            self._replacing = 0.0
            if self._unstable and self._former and not self._taking():
                self._take_back()
            for child in self._former:
                child.process.send_signal(signal.SIGHUP)

    def _take_back(self) -> None:
        """New workers that die, as with settings that cannot be used, are no reason to end those that work."""
        self._fault = "the new workers did not stay and the former ones go on; see the log of verbatim relay"
        log.error("not-replaced")
        self._children, self._former = self._former[-self._count :], self._former[: -self._count] + self._children
        there = {child.number for child in self._children}
        self._due = [(time.monotonic(), number, 0) for number in range(self._count) if number not in there]

    def _taking(self) -> bool:
        """Do all workers of the present generation take flows?"""
        said = {each.pid: each for each in status.read(self._settings.data).values()}
        return len(self._children) == self._count and all(
            (found := said.get(child.process.pid)) is not None and bool(found.values.get("taking"))
            for child in self._children
        )

    def _values(self) -> dict[str, Any]:
        """For the status file: all workers as one."""
        pids = {child.process.pid for child in self._children + self._former}
        said = [each for each in status.read(self._settings.data).values() if each.pid in pids]
        for pid in self._said.keys() - pids:  # what only grows does not fall when a process ends
            ended = self._said.pop(pid)
            self._past.update({name: int(ended.get(name, 0)) for name in COUNTED if name != "flows"})
            self._refused.update(ended.get("refused", {}))
        self._said |= {each.pid: dict(each.values) for each in said}
        totals: dict[str, Any] = {
            name: self._past[name] + sum(int(each.get(name, 0)) for each in self._said.values()) for name in COUNTED
        }
        refused = Counter(self._refused)
        faults: dict[str, str] = {}
        for each in said:
            refused.update(each.values.get("refused", {}))
            faults |= each.faults
        if self._fault:
            faults["relay-not-replaced"] = self._fault
        if len(self._children) < self._count:
            faults["relay-died"] = "a relay worker died and is being started again; see the log of verbatim relay"
        return {
            **totals,
            "workers": len(self._children),
            "former": len(self._former),
            "refused": dict(refused),
            "faults": faults,
        }

    def _end(self) -> None:
        everyone = self._children + self._former
        for child in everyone:
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + STOP
        for child in everyone:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def run(settings: config.Settings, options: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT. Raises `Refused` while another one of this data folder does."""
    configure(settings.log_level, "relay")
    with only(settings.data, "relay"):
        return Service(settings, options).run()
