"""Reads a stream's frames in order, beside a live writer, and says what cannot be read."""

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from appliance.errors import DamagedEvidence, MalformedInput
from appliance.journal.folder import Cursor, Folder, wrong_key
from appliance.journal.format import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    MAX_FRAME,
    TAG_BYTES,
    Frame,
    FrameHeader,
    SegmentHeader,
    SegmentSeal,
    frame_bytes,
)
from appliance.journal.key import JournalKey

_BLOCK: Final = 4096
_WINDOW: Final = 2**20  # bytes looked at in one go for the next authentic frame
_MAX_CANDIDATES: Final = 1024  # false starts tried in one segment: only somebody who writes to the disk makes any
_OFTEN: Final = 64  # fruitless reads before the rest of a segment is searched again
_MAX_HOPS: Final = 100_000  # frame headers looked at by one backlog_bytes()


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that could not be read were skipped. `frames`: how many frames from `first_frame` on; None: not known.

    `segment`, `start`, `end`: where these bytes are, if they are in a file that is there; else 0.
    """

    first_frame: int
    frames: int | None
    reason: str
    segment: int = 0
    start: int = 0
    end: int = 0


class Reader:
    """Reads on from `cursor`, or from the oldest segment that is still there.

    `torn_tails` counts frames that a writer began and never finished; they were never acknowledged: nothing is missing.
    """

    def __init__(self, folder: Path, key: JournalKey, cursor: Cursor | None = None) -> None:
        self._folder = Folder(folder)
        self._key = key
        self._cursor = cursor or Cursor(0, 0, 0)
        self._segment: _Segment | None = None
        self._searched = False
        self._misses = 0
        self._skipped = (0, 0, 0)  # segment and offsets of what was skipped on the way to the cursor
        self._measured = (0, 0)
        self.torn_tails = 0
        self.stream = self._folder.stream(key)

    @property
    def cursor(self) -> Cursor:
        """Where the next frame is read; give it to the next Reader or to `release`."""
        return self._cursor

    def read(self) -> Frame | Damage | None:
        """The next frame; `Damage` where bytes were skipped; None: nothing more for now.

        Raises `MalformedInput` for another format version and `DamagedEvidence` for another key.
        """
        while True:
            if self._segment is None:
                entered = self._enter()
                if entered is None or isinstance(entered, Damage):
                    return entered
            segment = self._segment
            assert segment is not None
            frame = self._frame(segment)
            if frame is not None:
                return frame
            later = self._folder.following(self._cursor.segment + 1)
            if not segment.current():
                self._leave(segment.sequence + 1)
                continue
            frame = self._frame(segment)  # written between the first look and the birth of the next segment
            if frame is not None:
                return frame
            if later is not None and self._continues(later):
                found = None
            else:
                found = segment.search(self._cursor.offset + 8, self._horizon(segment, later), self._cursor.frame)
            if found is not None:
                frame = self._frame(segment)  # by now, a frame that was just being written is there
                if frame is not None:
                    return frame
                self._skipped = (segment.sequence, self._cursor.offset, found)
                self._cursor = Cursor(self._cursor.segment, found, self._cursor.frame)
                self._searched = False
            elif later is not None:
                self.torn_tails += segment.begun(self._cursor.offset)
                self._skipped = (segment.sequence, self._cursor.offset, segment.size)
                self._leave(later)
            else:
                self._searched = True
                self._misses += 1
                return None

    @property
    def newest(self) -> int:
        """The last segment that is there now; 0: none."""
        return max(self._folder.listing().segments, default=0)

    def backlog_bytes(self) -> int:
        """Bytes written after the cursor (whole segments count as full)."""
        at = max(self._cursor.segment, 0)
        listing = self._folder.listing().segments
        newest = max(listing, default=0)
        if newest < at or newest == 0:
            return 0
        whole = sum(size for sequence, size in listing.items() if at <= sequence < newest)
        start = max(self._cursor.offset, HEADER_BYTES)
        if newest == at:
            return max(0, self._written(newest, start) - start)
        return max(0, whole - (start if at in listing else 0)) + self._written(newest, HEADER_BYTES)

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self) -> Damage | bool | None:
        """Open the segment of the cursor, or the first one after it. None: there is none."""
        cursor = self._cursor
        if self.stream is None:
            self.stream = self._folder.stream(self._key)
        sequence = self._folder.following(max(cursor.segment, 1))
        if sequence is None:
            return None
        segment = self._open(sequence)
        expected = cursor.frame
        if segment is None:
            later = self._folder.following(sequence + 1)
            self._skipped = (sequence, HEADER_BYTES, self._folder.listing().segments.get(sequence, HEADER_BYTES))
            self._cursor = Cursor(later or sequence + 1, 0, expected)
            if later is not None:
                return self._enter()  # what is missing is counted there
            reason = f"the header of journal segment {sequence} is damaged"
            return Damage(max(expected, 1), None, reason, *self._skipped)
        self._segment, self._searched = segment, False
        if sequence == cursor.segment and cursor.offset:
            return True
        first = segment.header.first_frame
        skipped, self._skipped = self._skipped, (0, 0, 0)
        self._cursor = Cursor(sequence, HEADER_BYTES, first)
        if expected == 0:  # no cursor: everything that was not released should be there
            released = self._folder.released()
            expected = min(first, released.frame) if released else 1
            if released is None or sequence <= released.segment:
                expected = first if released else 1
        if first > expected:
            reason = f"journal segments before segment {sequence} are missing or damaged"
            return Damage(expected, first - expected, reason, *skipped)
        if first < expected:
            return Damage(
                first, None, f"journal segment {sequence} counts on from {first}, before {expected}: a tail was lost"
            )
        return True

    def _open(self, sequence: int) -> "_Segment | None":
        """None: gone, or its header is damaged."""
        try:
            segment = _Segment(self._folder.segment(sequence), sequence, self._key)
        except FileNotFoundError:
            return None
        except MalformedInput:
            if self.stream is None:
                raise
            return None  # the stream is of this version, so the header is damaged
        except _BadHeader as bad:
            if bad.key_id is not None and self.stream is None and bad.key_id != self._key.key_id:
                raise DamagedEvidence(f"{self._folder.path}: {wrong_key(bad.key_id, self._key)}") from bad
            return None
        if self.stream is not None and segment.header.stream != self.stream:
            segment.close()
            return None
        return segment

    def _leave(self, sequence: int) -> None:
        self.close()
        self._cursor = Cursor(sequence, 0, self._cursor.frame)

    def _frame(self, segment: "_Segment") -> Frame | Damage | None:
        """The frame at the cursor, and the cursor behind it; None: no authentic one is there (yet)."""
        cursor = self._cursor
        header = segment.header_at(cursor.offset)
        if header is None or header.number < cursor.frame:
            return None
        payload = segment.payload(cursor.offset, header)
        if payload is None:
            return None
        self._misses = 0
        if header.number > cursor.frame:
            self._cursor = Cursor(cursor.segment, cursor.offset, header.number)
            skipped, self._skipped = self._skipped, (0, 0, 0)
            reason = f"frames of journal segment {cursor.segment} are damaged"
            return Damage(cursor.frame, header.number - cursor.frame, reason, *skipped)
        self._cursor = Cursor(cursor.segment, cursor.offset + frame_bytes(header.length), header.number + 1)
        return header.frame(payload) or Damage(header.number, 1, f"frame of kind {header.kind} is not known")

    def _horizon(self, segment: "_Segment", later: int | None) -> int:
        """How far to look for frames behind damage.

        To the end, if nothing more can come or it was not done since the last frame that was found so. Beside a live
        writer only as far as a single damaged frame can reach, and to the end ever more rarely.
        """
        often = self._misses >= _OFTEN and not self._misses & (self._misses - 1)
        if later is not None or not self._searched or often:
            return segment.size
        return self._cursor.offset + MAX_FRAME + FRAME_HEADER_BYTES

    def _continues(self, later: int) -> bool:
        """Does segment `later` go on with the frame that is expected now?"""
        following = self._open(later)
        if following is None:
            return False
        following.close()
        return following.header.first_frame == self._cursor.frame

    def _written(self, sequence: int, start: int) -> int:
        """Offset behind the last frame of a segment, by headers alone, going on from what was measured last."""
        segment = self._segment if self._segment and self._segment.sequence == sequence else self._open(sequence)
        if segment is None:
            return start
        measured, at = self._measured
        offset = max(at, start) if measured == sequence else start
        for _ in range(_MAX_HOPS):
            header = segment.header_at(offset)
            if header is None:
                break
            offset += frame_bytes(header.length)
        if segment is not self._segment:
            segment.close()
        self._measured = (sequence, offset)
        return offset


class _BadHeader(Exception):
    """`key_id`: of the key that the segment says to be sealed with; None: not a segment header at all."""

    def __init__(self, key_id: bytes | None) -> None:
        super().__init__()
        self.key_id = key_id


class _Segment:
    """An open segment file with an authentic header."""

    def __init__(self, path: Path, sequence: int, key: JournalKey) -> None:
        self.sequence = sequence
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._raw = self._read(0, HEADER_BYTES)
            try:
                header = SegmentHeader.parse(self._raw)
            except MalformedInput as error:
                raise MalformedInput(f"{path}: {error}") from error
            if header is None:
                raise _BadHeader(None)
            self.header = header
            self._seal = SegmentSeal(key, header)
            if header.segment != sequence or not self._seal.header_is_authentic(self._raw):
                raise _BadHeader(header.key_id)
        except BaseException:
            os.close(self._file)
            raise

    def close(self) -> None:
        os.close(self._file)

    @property
    def size(self) -> int:
        """Of the file as it is now: one that somebody cut grows again when its writer goes on."""
        return os.fstat(self._file).st_size

    def current(self) -> bool:
        """False once the file was recycled."""
        return self._read(0, HEADER_BYTES) == self._raw

    def header_at(self, offset: int) -> FrameHeader | None:
        return FrameHeader.parse(self._read(offset, FRAME_HEADER_BYTES), self._seal.mark)

    def begun(self, offset: int) -> bool:
        return self._read(offset, len(self._seal.mark)) == self._seal.mark

    def payload(self, offset: int, header: FrameHeader) -> bytes | None:
        sealed = self._read(offset + FRAME_HEADER_BYTES, header.length + TAG_BYTES)
        return self._seal.open(header, sealed) if len(sealed) == header.length + TAG_BYTES else None

    def search(self, start: int, end: int, number: int) -> int | None:
        """Offset of the first authentic frame from `start` on whose number is at least `number`."""
        mark = self._seal.mark
        candidates = 0
        for base in range(start, min(end, self.size), _WINDOW):
            window = self._read(base, min(_WINDOW + len(mark) - 1, end - base))
            at = window.find(mark)
            while at >= 0:
                header = self.header_at(base + at) if (base + at) % 8 == 0 else None
                if header is not None and header.number >= number:
                    if self.payload(base + at, header) is not None:
                        return base + at
                    candidates += 1
                    if candidates > _MAX_CANDIDATES:
                        return None
                at = window.find(mark, at + 1)
        return None

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._file, length, offset)
        except OSError:  # a bad block: what it held reads as zeros, which are not authentic
            if length <= _BLOCK:
                return bytes(length)
            pieces = range(offset, offset + length, _BLOCK)
            return b"".join(self._read(at, min(_BLOCK, offset + length - at)) for at in pieces)
