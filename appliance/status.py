"""What each process says of itself: one small JSON file per process in `DATA/run/`, replaced as a whole.

`verbatim status`, `verbatim doctor`, `/healthz` and `/metrics` read these files, so that a process that hangs or died
shows by the age of its file, and no process needs a port of its own.

Whatever else `values` holds, `faults` is what is wrong now (name → what, why and the remedy) and `repairs` counts what
was put back since the process started (name → count). The README's section "When something is wrong" lists the names.
"""

import errno
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from appliance.errors import MalformedInput, Unavailable, VerbatimError

STALE_AFTER = 10.0  # seconds
BLOCK = 4096  # bytes: files are padded with blanks to whole ones, so that the next word fits into the place of the last
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Status:
    """`values` as the process `name` published them `age` seconds ago, at the Unix time `time`."""

    name: str
    pid: int
    age: float
    values: dict[str, Any]
    time: float = 0.0

    @property
    def live(self) -> bool:
        return self.age < STALE_AFTER and Path(f"/proc/{self.pid}").exists()

    @property
    def faults(self) -> dict[str, str]:
        found = self.values.get("faults")
        return {str(name): str(text) for name, text in found.items()} if isinstance(found, dict) else {}

    @property
    def repairs(self) -> dict[str, int]:
        found = self.values.get("repairs")
        if not isinstance(found, dict):
            return {}
        return {str(name): count for name, count in found.items() if isinstance(count, int)}


def run_folder(data: Path) -> Path:
    """The folder of sockets, tokens and status files: `DATA/run`, made with mode 0700."""
    folder = data / "run"
    for each in (data, folder):  # parents that mkdir makes on the way would have the usual mode
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def publish(data: Path, name: str, values: dict[str, Any]) -> None:
    """Replace the file as a whole; on a disk without a free block or inode, write over it, or else stay silent."""
    path = run_folder(data) / f"{name}.status.json"
    fresh = path.with_suffix(".new")
    said = msgspec.json.encode({"pid": os.getpid(), "time": time.time(), "values": values})
    said += b" " * (-len(said) % BLOCK)
    try:
        fresh.write_bytes(said)
        fresh.replace(path)
    except OSError as error:
        if error.errno not in FULL:
            raise
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
            _overwrite(path, said)


def _overwrite(path: Path, said: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(file, said, 0)
        os.ftruncate(file, len(said))
    finally:
        os.close(file)


def withdraw(data: Path, name: str) -> None:
    """Say that `name` stopped on purpose."""
    (data / "run" / f"{name}.status.json").unlink(missing_ok=True)


def check_readable(data: Path) -> None:
    """Fine where this user may see what processes say, and while there is nothing yet.

    Raises `MalformedInput` where another file is in the folder's place, `Unavailable` where the user may not look.
    """
    for folder in (data, data / "run"):
        try:
            if folder.exists() and not folder.is_dir():
                raise MalformedInput(f"{folder}: not a folder; name the appliance's folder as data")
        except PermissionError as error:
            raise Unavailable(f"{folder}: not allowed to look; run it as root") from error
    if (data / "run").exists() and not os.access(data / "run", os.R_OK | os.X_OK):
        raise Unavailable(f"{data / 'run'}: not allowed to look; run it as root")


def read(data: Path) -> dict[str, Status]:
    """The last word of every process, by name. Unreadable files count as absent."""
    found: dict[str, Status] = {}
    try:
        check_readable(data)
        paths = sorted((data / "run").glob("*.status.json"))
    except VerbatimError:
        return found
    for path in paths:
        try:
            if not path.is_file():  # a pipe would never end
                continue
            said = msgspec.json.decode(path.read_bytes())
            name = path.name.removesuffix(".status.json")
            at = float(said["time"])
            found[name] = Status(name, int(said["pid"]), time.time() - at, dict(said["values"]), at)
        except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
            continue
    return found
