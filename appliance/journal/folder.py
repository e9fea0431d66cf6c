"""The folder of one stream: names of its files, what was released, and the stream's own name.

lock                 flock: the writer
stream               three lines: format, stream id, key id
released             the cursor up to which the reader is done
0000000000000001.seg segments by sequence
*.free               files to reuse
*.new                files in the making
damaged/             copies of what could not be read
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import DamagedEvidence, MalformedInput
from appliance.journal.format import STREAM_BYTES, VERSION
from appliance.journal.key import KEY_ID_BYTES, JournalKey, sync_folder

FORMAT = "verbatim-journal"
_SETTLED_NS = 100_000_000  # file systems date a folder's changes in ticks of up to 10 ms
_YOUNG_NS = 20_000_000  # the age at which a listing is made again that may lack a change of the same tick


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next frame is read: segment, byte offset in it (0: its first frame), frame number expected there."""

    segment: int
    offset: int
    frame: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Files of a stream: sizes in bytes, by sequence and by name."""

    segments: dict[int, int]
    free: dict[str, int]


class Folder:
    """A stream's folder. Listings are repeated only after the folder has changed.

    One that was made in the very tick of a change may lack the next one, for `_YOUNG_NS` at most; `forget` ends that.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listing = Listing({}, {})
        self._changed = -1  # the folder's time of change, as of the listing
        self._listed = 0

    def segment(self, sequence: int) -> Path:
        return self.path / f"{sequence:016x}.seg"

    def forget(self) -> None:
        """The folder was changed: the next listing is made anew."""
        self._changed = -1

    def listing(self) -> Listing:
        try:
            changed = self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return Listing({}, {})
        now = time.time_ns()
        if changed == self._changed and (self._listed - changed > _SETTLED_NS or 0 <= now - self._listed < _YOUNG_NS):
            return self._listing
        segments: dict[int, int] = {}
        free: dict[str, int] = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                stem, dot, suffix = entry.name.partition(".")
                try:
                    if dot and suffix == "free":
                        free[entry.name] = entry.stat().st_size
                    elif dot and suffix == "seg" and len(stem) == 16:
                        segments[int(stem, 16)] = entry.stat().st_size
                except (FileNotFoundError, ValueError):  # renamed meanwhile, or not ours
                    continue
        self._listing = Listing(dict(sorted(segments.items())), dict(sorted(free.items())))
        self._changed, self._listed = changed, now
        return self._listing

    def following(self, sequence: int) -> int | None:
        """The first segment at or after `sequence`."""
        if self.segment(sequence).exists():
            return sequence
        return next((found for found in self.listing().segments if found >= sequence), None)

    def stream(self, key: JournalKey) -> bytes | None:
        """The stream's id; None for a folder without one. Raises for another format version or another key."""
        path = self.path / "stream"
        try:
            lines = path.read_text("ascii").split("\n")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise DamagedEvidence(f"{path}: not the name of a journal stream; restore it from its backup") from error
        word, _, version = lines[0].partition(" ")
        if word == FORMAT and version != str(VERSION):
            raise MalformedInput(
                f"{path}: journal format version {version[:8]!r}, and this program reads version {VERSION}; "
                "read this journal with the version of Verbatim that wrote it"
            )
        try:
            stream, key_id = bytes.fromhex(lines[1]), bytes.fromhex(lines[2])
        except (ValueError, IndexError):
            stream = key_id = b""
        if word != FORMAT or len(stream) != STREAM_BYTES or len(key_id) != KEY_ID_BYTES or lines[3:] != [""]:
            raise DamagedEvidence(f"{path}: not the name of a journal stream; restore it from its backup")
        if key_id != key.key_id:
            raise DamagedEvidence(f"{self.path}: {wrong_key(key_id, key)}")
        return stream

    def name_stream(self, stream: bytes, key: JournalKey) -> None:
        _replace(self.path / "stream", f"{FORMAT} {VERSION}\n{stream.hex()}\n{key.key_id.hex()}\n")

    def released(self) -> Cursor | None:
        try:
            words = (self.path / "released").read_text("ascii").split()
            return Cursor(*(int(word) for word in words))
        except (FileNotFoundError, UnicodeDecodeError, ValueError, TypeError):
            return None  # then nothing counts as released, which costs a report of missing frames at worst


def wrong_key(found: bytes, key: JournalKey) -> str:
    return (
        f"sealed with journal key {found.hex()}, but the key here is {key.key_id.hex()}; "
        "restore the key file that belongs to this journal"
    )


def release(folder: Path, cursor: Cursor, keep: int = 0) -> None:
    """The reader is done with everything before `cursor`: whole segments before it may be reused by the writer.

    Never the newest segment, and not the last `keep` bytes of what was read. Safe to repeat and to interrupt.
    """
    if cursor.frame == 0:  # nothing was read yet
        return
    files = Folder(folder)
    before = files.released()
    if before is None or (before.frame, before.segment, before.offset) < (cursor.frame, cursor.segment, cursor.offset):
        _replace(folder / "released", f"{cursor.segment} {cursor.offset} {cursor.frame}\n")
    segments = files.listing().segments
    for sequence in sorted(segments, reverse=True)[1:]:
        if sequence < cursor.segment:
            keep -= segments[sequence]
            if keep < 0:
                path = files.segment(sequence)
                path.rename(path.with_suffix(".free"))


def beginning(folder: Path) -> Cursor | None:
    """Where a reader begins that knows nothing: None, at the first frame, if the stream is whole.

    Else where it was released up to: what lies before that was read, also where segments of it are still there.
    """
    files = Folder(folder)
    return None if files.segment(1).exists() else files.released()


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)
