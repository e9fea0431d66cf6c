"""What cannot be read is moved out of the way, never thrown away: damaged bytes, and streams of another version."""

import fcntl
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from appliance.errors import Refused
from appliance.journal.folder import FORMAT, Folder
from appliance.journal.format import HEADER_BYTES, VERSION
from appliance.journal.key import sync_folder

_DAMAGED: Final = "damaged"
_MOVED: Final = re.compile(r".+\.old[0-9]+")
_MAX_DAMAGED: Final = 64 * 2**20  # bytes of one stream's damaged parts that are kept
_MAX_PART: Final = 4 * 2**20  # of one of them: the end of a segment is mostly empty


def set_foreign_aside(folder: Path) -> tuple[Path, str] | None:
    """Move a stream of another format version out of the way, whole: its new path and its version. None: there is none.

    Raises `Refused` while a process writes it.
    """
    try:
        word, _, version = (folder / "stream").read_bytes().decode("ascii", "replace").split("\n")[0].partition(" ")
        if word != FORMAT or version == str(VERSION):
            return None
        with (folder / "lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Refused(
                    f"{folder}: a process of another version of Verbatim writes this journal; stop that one first"
                ) from error
            aside = next(
                path for number in count(1) if not (path := folder.with_name(f"{folder.name}.old{number}")).exists()
            )
            folder.rename(aside)
    except FileNotFoundError:  # nothing is there, or another process was first
        return None
    sync_folder(folder.parent)
    return aside, version[:8]


def set_damage_aside(folder: Path, segment: int, start: int, end: int) -> Path | None:
    """Copy bytes of a segment that could not be read to `damaged/`, behind the segment's header, for people to look at.

    At most 4 MiB of them. None: there is no room for them (64 MiB in one stream), or the file is gone. Safe to repeat.
    """
    end = min(end, start + _MAX_PART)
    aside = folder / _DAMAGED
    copy = aside / f"{segment:016x}-{start:x}-{end:x}"
    with suppress(OSError):  # the damage itself is reported all the same
        aside.mkdir(mode=0o700, exist_ok=True)
        kept = sum(entry.stat().st_size for entry in os.scandir(aside))
        if copy.exists():
            return copy
        if kept + end - start <= _MAX_DAMAGED:
            with Folder(folder).segment(segment).open("rb") as file:
                content = file.read(HEADER_BYTES)
                file.seek(start)
                content += file.read(end - start)
            fresh = copy.with_suffix(".new")
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as made:
                made.write(content)
            fresh.replace(copy)
            return copy
    return None


@dataclass(frozen=True, slots=True)
class Aside:
    """What was moved out of the way and is still there: `parts` of `size` bytes in `folders`, and whole `streams`."""

    parts: int
    size: int
    folders: tuple[Path, ...]
    streams: tuple[Path, ...]


def set_aside(data: Path) -> Aside:
    """Of all streams of a data folder. Raises `PermissionError` where this user may not look."""
    parts, folders, streams = [], [], []
    try:
        for stream in sorted((data / "journal").iterdir()):
            if _MOVED.fullmatch(stream.name):
                streams.append(stream)
            with suppress(FileNotFoundError, NotADirectoryError):
                found = [entry.stat().st_size for entry in os.scandir(stream / _DAMAGED) if entry.is_file()]
                parts += found
                folders += [stream / _DAMAGED] if found else []
    except (FileNotFoundError, NotADirectoryError):
        pass
    return Aside(len(parts), sum(parts), tuple(folders), tuple(streams))
