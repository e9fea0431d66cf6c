"""Facts for the journal from processes that may not write it: left in `DATA/state/notes/`, one JSON file each.

The wire process journals them within a second, or at its start, and removes them then. So a fact is on record for
certain, whether or not that process runs; after a crash between the two steps, twice. A file is mode 0600, named by the
time of the fact and what makes it unique, and put in place as a whole:

    {"version": 1, "kind": "secret-set", "text": "...", "attrs": {"name": "orders-db", "at_ns": 1795420800000000000}}
"""

import os
import stat
from pathlib import Path
from typing import Any

import msgspec

from appliance.errors import MalformedInput
from appliance.journal.key import sync_folder

VERSION = 1
MAX_NOTE = 64 * 1024  # bytes of one
SUFFIX = ".note"

Json = dict[str, Any]


def leave(data: Path, kind: str, text: str, now_ns: int, **attrs: Any) -> None:
    """Put a fact on the way to the journal; it is on the disk when this returns. `attrs` never hold secrets."""
    folder = data / "state" / "notes"
    for each in (data, folder.parent, folder):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    said = {"version": VERSION, "kind": kind, "text": text, "attrs": {"at_ns": now_ns, **attrs}}
    path = folder / f"{now_ns:020}-{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.encode(said))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(folder)


def left(data: Path, limit: int) -> list[Path]:
    """The oldest `limit` files that wait."""
    try:
        found = [path for path in (data / "state" / "notes").iterdir() if path.suffix == SUFFIX]
    except FileNotFoundError:
        return []
    return sorted(found)[:limit]


def read(path: Path) -> Json:
    """What a file says. Raises `MalformedInput` unless it is a note of this version, and our own."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(file, "rb") as opened:
        about = os.fstat(opened.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_size > MAX_NOTE:
            raise MalformedInput(f"{path}: not a note of ours; remove it")
        content = opened.read(MAX_NOTE)
    try:
        said = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        said = None
    if not isinstance(said, dict) or said.get("version") != VERSION:
        raise MalformedInput(f"{path}: not a note of version {VERSION}; remove it")
    return said
