"""The one writer of a stream: seals frames into preallocated, recycled segment files."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from appliance import config
from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable
from appliance.journal.folder import Cursor, Folder
from appliance.journal.format import (
    HEADER_BYTES,
    MAX_FRAME,
    MAX_PAYLOAD,
    PLAIN,
    SALT_BYTES,
    STREAM_BYTES,
    Buffer,
    FrameKind,
    Layout,
    SegmentHeader,
    SegmentSeal,
    frame_bytes,
)
from appliance.journal.key import JournalKey, sync_folder
from appliance.journal.reader import Reader

_MIN_SEGMENT: Final = 4096
_MIN_SEGMENTS: Final = 4  # one being written, one being read, one for facts after spans are refused, one to reuse
_SPARES: Final = 2
LOOK_NS: Final = 5_000_000  # the disk's free space is looked at again after this
_ZEROS: Final = bytes(2**20)


class JournalFull(Unavailable):
    """Nothing was written: the journal is at its limit, or the disk is. The recorder makes room by catching up."""


class Writer:
    """Appends frames to the stream in `folder`. One at a time: a second one is `Refused`.

    `settings.max_bytes` bounds all files of the stream; spans leave the last segment of that to the other kinds, so
    that what stopped the recording can itself be recorded. Segments are smaller than `settings.segment_bytes` where
    fewer than four of them would fit. `salt` is for test vectors; a salt that repeats gives the plaintext away.
    """

    stream: bytes

    def __init__(
        self,
        folder: Path,
        key: JournalKey,
        stream: bytes | None = None,
        *,
        settings: config.Journal,
        salt: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._segment_bytes = min(settings.segment_bytes, settings.max_bytes // _MIN_SEGMENTS) & ~7
        if self._segment_bytes < _MIN_SEGMENT:
            raise MalformedInput(
                f"journal: segments of {self._segment_bytes} bytes are too small; "
                f"set segment_bytes to {_MIN_SEGMENT} and max_bytes to {_MIN_SEGMENT * _MIN_SEGMENTS} or more"
            )
        self._capacity = self._segment_bytes - HEADER_BYTES
        self.max_payload = min(MAX_PAYLOAD, (self._capacity - frame_bytes(0)) & ~7)
        self._settings = settings
        self._key = key
        self._salt = salt
        self._buffer = memoryview(bytearray((MAX_FRAME + 7) & ~7))
        self._file = -1
        self._offset = 0
        self._making = -1
        self._made = 0
        self._looked = -LOOK_NS  # when the disk had enough space left
        self._folder = Folder(folder)
        self._lock = _lock(folder)
        try:
            self.stream = self._name(stream)
            self._segment, self._next = self._resume()
        except BaseException:
            os.close(self._lock)
            raise

    def _name(self, wanted: bytes | None) -> bytes:
        found = self._folder.stream(self._key)
        if found is None and self._folder.listing().segments:
            raise DamagedEvidence(
                f"{self._folder.path}: the file 'stream' is missing beside its segments; "
                "restore it, or move the folder away"
            )
        if wanted is not None and len(wanted) != STREAM_BYTES:
            raise MalformedInput(f"journal: a stream id has {STREAM_BYTES} bytes, not {len(wanted)}")
        if found is None:
            found = wanted if wanted is not None else os.urandom(STREAM_BYTES)
            self._folder.name_stream(found, self._key)
        elif wanted is not None and wanted != found:
            raise Refused(f"{self._folder.path}: holds stream {found.hex()}, not {wanted.hex()}; use another folder")
        return found

    def _resume(self) -> tuple[int, int]:
        """Sequence of the newest segment so far, and the next frame number; clears what a crash left half made."""
        for path in self._folder.path.glob("spare-*.new"):
            path.unlink(missing_ok=True)
        released = self._folder.released() or Cursor(0, 0, 1)
        segments = sorted(self._folder.listing().segments)
        number = released.frame
        for sequence in reversed(segments):
            with Reader(self._folder.path, self._key, Cursor(sequence, 0, 0)) as reader:
                while reader.read() is not None:
                    pass
                if reader.cursor.frame:
                    number = max(number, reader.cursor.frame)
                    break
        return max([released.segment, *segments]), number

    def append(
        self,
        kind: FrameKind,
        payload: Buffer,
        *,
        ring_start: int = 0,
        ring_end: int = 0,
        layout: Layout = PLAIN,
        time_ns: int,
    ) -> int:
        """Seal `payload` into the next frame and return its number.

        `payload` may be a view of live memory; it is read once. Raises `JournalFull` before anything is written,
        `Refused` for more than `max_payload` bytes, `Unavailable` when the disk fails (the frame then does not exist).
        """
        length = payload.nbytes if isinstance(payload, memoryview) else len(payload)
        if length > self.max_payload:
            raise Refused(f"journal: a frame of {length} bytes is over the limit of {self.max_payload}; split it")
        if kind is FrameKind.SPAN and not self._ample(time_ns):
            raise JournalFull(f"{self._folder.path}: {self.shortage()}")
        if self._file < 0 or self._offset + frame_bytes(length) > self._segment_bytes:
            self._rotate(kind)
        size = self._seal.seal(
            self._buffer,
            self._next,
            kind,
            payload,
            length=length,
            time_ns=time_ns,
            ring_start=ring_start,
            ring_end=ring_end,
            layout=layout,
        )
        self._write(self._buffer[:size])
        self._offset += size
        number = self._next
        self._next += 1
        return number

    def _write(self, frame: memoryview) -> None:
        try:
            written = os.pwrite(self._file, frame, self._offset)
            if written != len(frame):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # The nonce is spent: this segment takes no further frame, and what is there of this one shall not be read.
            with contextlib.suppress(OSError):
                os.pwrite(self._file, bytes(8), self._offset)
            self._leave()
            raise Unavailable(f"{self._folder.path}: {error.strerror}; see to the disk") from error

    def sync(self) -> None:
        """Make all frames so far survive a power failure, where `durability` asks for it."""
        if self._settings.durability == "fsync" and self._file >= 0:
            try:
                os.fdatasync(self._file)
            except OSError as error:
                self._leave()
                raise Unavailable(f"{self._folder.path}: {error.strerror}; see to the disk") from error

    def room(self) -> int:
        """Bytes of spans that still fit, give or take what stays unused at the end of each segment; 0: stop."""
        free = self._disk_free()
        if free < self._settings.min_free_bytes:
            return 0
        rest = self._segment_bytes - self._offset if self._file >= 0 else 0
        return max(0, rest) + self._slots(FrameKind.SPAN, free) * self._capacity

    def shortage(self, kind: FrameKind = FrameKind.SPAN) -> str:
        """What bounds the room for frames of this kind now, the disk or `max_bytes`, with the remedy."""
        free, settings = self._disk_free(), self._settings
        allowed, on_disk = self._bounds(kind, free)
        if kind is FrameKind.SPAN and (free < settings.min_free_bytes or on_disk < allowed):
            left = f"the disk has {free} bytes left, too few beyond journal.min_free_bytes ({settings.min_free_bytes})"
            return f"{left} for what the ring may hold; free disk space"
        if on_disk < allowed:
            return "the disk is full; free disk space"
        return (
            f"the journal is as large as journal.max_bytes ({settings.max_bytes}) lets it be; see why verbatim record "
            "lags, or raise it"
        )

    def size(self) -> int:
        """Bytes of all files of the stream."""
        listing = self._folder.listing()
        return sum(listing.segments.values()) + sum(listing.free.values())

    def prepare(self) -> bool:
        """Make a spare segment file a little at a time, for idle moments; true while there is more to do.

        Writing to pages that the system has to find first costs a factor of five; these are found beforehand.
        """
        listing = self._folder.listing()
        path = self._folder.path / "spare-0.new"
        if self._making < 0:
            bytes_after = self.size() + self._segment_bytes
            affordable = self._disk_free() - self._segment_bytes >= self._settings.min_free_bytes
            if len(listing.free) >= _SPARES or bytes_after > self._settings.max_bytes or not affordable:
                return False
            try:
                self._making, self._made = _allocate(path, self._segment_bytes), 0
            except OSError:  # no spare, then; append() says what is wrong when it matters
                path.unlink(missing_ok=True)
                return False
        try:
            self._made += os.pwrite(self._making, _ZEROS[: self._segment_bytes - self._made], self._made)
        except OSError:
            self._made = self._segment_bytes
        if self._made >= self._segment_bytes:
            os.close(self._making)
            self._making = -1
            path.rename(self._free_name())
            self._folder.forget()
        return True

    def close(self) -> None:
        """Give the stream up. Frames are kept as they are; a CLOSE frame is the caller's to append."""
        if self._lock < 0:
            return
        with contextlib.suppress(Unavailable):
            self.sync()
        self._leave()
        if self._making >= 0:
            os.close(self._making)
            self._making = -1
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _leave(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _ample(self, time_ns: int) -> bool:
        """Whether the disk has enough left beside the segments, whose room is taken when they are made. That it has is
        believed for `LOOK_NS`: to ask for each small frame costs more than to encrypt it."""
        if not self._looked <= time_ns < self._looked + LOOK_NS:
            if self._disk_free() < self._settings.min_free_bytes:
                return False
            self._looked = time_ns
        return True

    def _disk_free(self) -> int:
        disk = os.statvfs(self._folder.path)
        return disk.f_bavail * disk.f_frsize

    def _slots(self, kind: FrameKind, free: int) -> int:
        """How many further segments a frame of this kind may open, with `free` bytes left on the disk."""
        return max(0, min(self._bounds(kind, free)))

    def _bounds(self, kind: FrameKind, free: int) -> tuple[int, int]:
        """Further segments that `max_bytes` allows (also less than 0), and that the disk has room for."""
        listing = self._folder.listing()
        kept = self._segment_bytes if kind is FrameKind.SPAN else 0
        allowed = (self._settings.max_bytes - kept - sum(listing.segments.values())) // self._segment_bytes
        on_disk = (free - (self._settings.min_free_bytes if kind is FrameKind.SPAN else 0)) // self._segment_bytes
        return allowed, len(listing.free) + max(0, on_disk)

    def _rotate(self, kind: FrameKind) -> None:
        self._folder.forget()
        if self._slots(kind, self._disk_free()) < 1:
            raise JournalFull(f"{self._folder.path}: {self.shortage(kind)}")
        self.sync()
        sequence = self._segment + 1
        try:
            path, file = self._take()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise JournalFull(f"{self._folder.path}: the disk is full; free disk space") from error
            raise Unavailable(f"{self._folder.path}: {error.strerror}; see to the disk") from error
        header = SegmentHeader(
            self._key.key_id, self.stream, sequence, self._next, self._segment_bytes, self._salt(SALT_BYTES)
        )
        seal = SegmentSeal(self._key, header)
        try:
            os.pwrite(file, seal.header_bytes(), 0)
            if self._settings.durability == "fsync":
                os.fsync(file)
            path.rename(self._folder.segment(sequence))
            self._folder.forget()
            if self._settings.durability == "fsync":
                sync_folder(self._folder.path)
        except OSError as error:
            os.close(file)
            raise Unavailable(f"{self._folder.path}: {error.strerror}; see to the disk") from error
        self._leave()
        self._seal, self._file, self._offset, self._segment = seal, file, HEADER_BYTES, sequence

    def _take(self) -> tuple[Path, int]:
        """A file to write the next segment to: the oldest spare one, or a new one."""
        for name, size in self._folder.listing().free.items():
            path = self._folder.path / name
            if size == self._segment_bytes:
                return path, os.open(path, os.O_RDWR | os.O_CLOEXEC)
            path.unlink()  # of another segment_bytes
        path = self._folder.path / "spare-1.new"
        try:
            return path, _allocate(path, self._segment_bytes)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _free_name(self) -> Path:
        """A name that no released segment can have: those end before the newest one."""
        sequence = self._segment + 1
        while (path := self._folder.path / f"{sequence:016x}.free").exists():
            sequence += 1
        return path


def _allocate(path: Path, size: int) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, size)
    except OSError:
        os.close(file)
        raise
    return file


def _lock(folder: Path) -> int:
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(folder.parent)
        file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror}; let the appliance's user write there") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise Refused(f"{folder}: another process writes this journal; stop that one first") from error
    return file
