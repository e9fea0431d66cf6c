"""A program of the lab, running in its own process group."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.lab.wait import NeverHappened

TAIL = 2000  # characters of a log that an error shows


class Process:
    """A started program. Its output goes to `log`; `stop` ends it and what it started."""

    def __init__(self, name: str, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self.name = name
        self.popen = popen
        self.log = log

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text("utf-8", "replace")[-TAIL:]

    def check(self) -> None:
        """Raise, with the end of its output, if it is not running any more."""
        if not self.running:
            raise NeverHappened(f"{self.name} ended with code {self.popen.returncode}:\n{self.output()}")

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 15.0) -> int:
        """Ask it to end by `number`, insist by SIGKILL to the whole group after `seconds`; its exit code."""
        if self.running:
            self.popen.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # its group is its own: see Host.popen
        return self.popen.wait()
