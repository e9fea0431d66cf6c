"""`verbatim store` and the recorder as processes of their own, each held to cores, with what they took."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.store.link import live_service

PATIENCE = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


def held(core: int | None, *command: str) -> list[str]:
    """The command, on one core alone if there is one named."""
    pin = [] if core is None else ["taskset", "-c", str(core)]
    return [*pin, sys.executable, "-m", *command]


@dataclass(frozen=True, slots=True)
class Store:
    """A running `verbatim store`."""

    data: Path
    pid: int

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def peak_bytes(self) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


@contextmanager
def store(data: Path, core: int | None = None) -> Iterator[Store]:
    """The store of a data folder, ready for use; stopped at the end."""
    with subprocess.Popen(held(core, "appliance", "store", "--data", str(data)), stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while live_service(data) is None:
                assert process.poll() is None, "the store did not start"
                assert time.monotonic() < deadline, "the store did not start in time"
                time.sleep(0.05)
            yield Store(data, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def record(data: Path, name: str, core: int | None = None, *options: str) -> dict[str, Any]:
    """What `tests.bench.recording` says of a journal of the folder."""
    command = held(core, "tests.bench.recording", str(data), name, *options)
    said: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return said
