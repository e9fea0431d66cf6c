"""What each process says of itself: one small JSON file per process in `DATA/run/`, replaced as a whole.

`verbatim doctor`, `/healthz` and `/metrics` read these files, so that a process that hangs or died shows by the age of
its file, and no process needs a port of its own.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

STALE_AFTER = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Status:
    """`values` as the process `name` published them `age` seconds ago."""

    name: str
    pid: int
    age: float
    values: dict[str, Any]

    @property
    def live(self) -> bool:
        return self.age < STALE_AFTER and Path(f"/proc/{self.pid}").exists()


def run_folder(data: Path) -> Path:
    """The folder of sockets, tokens and status files: `DATA/run`, made with mode 0700."""
    folder = data / "run"
    for each in (data, folder):  # parents that mkdir makes on the way would have the usual mode
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def publish(data: Path, name: str, values: dict[str, Any]) -> None:
    path = run_folder(data) / f"{name}.status.json"
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode({"pid": os.getpid(), "time": time.time(), "values": values}))
    fresh.replace(path)


def withdraw(data: Path, name: str) -> None:
    """Say that `name` stopped on purpose."""
    (data / "run" / f"{name}.status.json").unlink(missing_ok=True)


def read(data: Path) -> dict[str, Status]:
    """The last word of every process, by name. Unreadable files count as absent."""
    found: dict[str, Status] = {}
    for path in sorted((data / "run").glob("*.status.json")):
        try:
            said = msgspec.json.decode(path.read_bytes())
            name = path.name.removesuffix(".status.json")
            found[name] = Status(name, int(said["pid"]), time.time() - float(said["time"]), dict(said["values"]))
        except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
            continue
    return found
