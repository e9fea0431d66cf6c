"""Makes the journal vectors: `python -m tests.vectors.journal.make`. What each shows is in `CASES`.

Key and salts are fixed, times are small numbers; nothing here is random, so that a second run gives the same bytes.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from appliance.config import Journal
from appliance.errors import DamagedEvidence, MalformedInput
from appliance.journal import RING, Cursor, Damage, FrameKind, JournalKey, Reader, Writer, release

HERE = Path(__file__).parent
KEY = JournalKey(bytes(range(32)))
OTHER_KEY = JournalKey(bytes(32))
STREAM = bytes.fromhex("00112233445566778899aabbccddeeff")
SETTINGS = Journal(segment_bytes=4096, max_bytes=32768, min_free_bytes=1)
HEADER = 96
FILLING = 3700  # bytes of payload after which nothing more fits into a segment


def writer(folder: Path, key: JournalKey = KEY) -> Writer:
    """Salts are 16 times the sequence of the segment, counted over this writer's life."""
    salts = count(1)
    return Writer(folder, key, STREAM, settings=SETTINGS, salt=lambda size: bytes([next(salts)]) * size)


def two_frames(folder: Path) -> None:
    with writer(folder) as journal:
        journal.append(FrameKind.OPEN, b'{"node":"gateway","source":"wire"}', time_ns=1000)
        journal.append(FrameKind.SPAN, b"0123456789abcdef", ring_start=64, ring_end=80, layout=RING, time_ns=2000)


def three_frames(folder: Path) -> None:
    with writer(folder) as journal:
        for number in range(1, 4):
            journal.append(FrameKind.EVENT, b"event %d" % number, time_ns=number)


def two_segments(folder: Path) -> None:
    with writer(folder) as journal:
        for number in range(1, 3):
            journal.append(FrameKind.SPAN, bytes([number]) * FILLING, time_ns=number)
            journal.append(FrameKind.EVENT, b"event %d" % number, time_ns=number)


def three_segments(folder: Path) -> None:
    two_segments(folder)
    with writer(folder) as journal:
        journal.append(FrameKind.CLOSE, b"{}", time_ns=9)


def change(folder: Path, offset: int, data: bytes, segment: int = 1) -> None:
    with (folder / f"{segment:016x}.seg").open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(folder: Path, offset: int, segment: int = 1) -> None:
    path = folder / f"{segment:016x}.seg"
    change(folder, offset, bytes([path.read_bytes()[offset] ^ 1]), segment)


def torn_tail(folder: Path) -> None:
    three_frames(folder)
    change(folder, HEADER + 2 * 72 + 60, bytes(12))
    with writer(folder) as journal:
        journal.append(FrameKind.CLOSE, b"{}", time_ns=9)


def torn_tail_last(folder: Path) -> None:
    three_frames(folder)
    os.truncate(folder / f"{1:016x}.seg", HEADER + 2 * 72 + 60)


def corrupt_middle(folder: Path) -> None:
    three_frames(folder)
    flip(folder, HEADER + 72 + 50)


def corrupt_length(folder: Path) -> None:
    three_frames(folder)
    flip(folder, HEADER + 72 + 12)


def corrupt_segment_header(folder: Path) -> None:
    three_segments(folder)
    flip(folder, 40, segment=2)


def missing_segment(folder: Path) -> None:
    three_segments(folder)
    (folder / f"{2:016x}.seg").unlink()


def missing_first_segment(folder: Path) -> None:
    three_segments(folder)
    (folder / f"{1:016x}.seg").unlink()


def stale_recycled(folder: Path) -> None:
    """Segment 3 lies in the file of segment 1: behind its one frame is an old, then authentic, frame."""
    with writer(folder) as journal:
        for number in range(1, 11):
            journal.append(FrameKind.EVENT, b"%04d" % number * 100, time_ns=number)
        release(folder, Cursor(2, 0, 9))
        for number in range(11, 18):
            journal.append(FrameKind.EVENT, b"%04d" % number * 100, time_ns=number)
        assert {path.name for path in folder.glob("*.seg")} == {f"{number:016x}.seg" for number in (2, 3)}


def replayed_frame(folder: Path) -> None:
    three_frames(folder)
    first = (folder / f"{1:016x}.seg").read_bytes()[HEADER : HEADER + 72]
    change(folder, HEADER + 72, first)


def wrong_version(folder: Path) -> None:
    two_frames(folder)
    change(folder, 8, b"\x02\x00")


def wrong_version_stream(folder: Path) -> None:
    two_frames(folder)
    path = folder / "stream"
    path.write_text(path.read_text().replace("verbatim-journal 1", "verbatim-journal 2"))


def wrong_key(folder: Path) -> None:
    with writer(folder, OTHER_KEY) as journal:
        journal.append(FrameKind.EVENT, b"sealed with another key", time_ns=1)


@dataclass(frozen=True)
class Case:
    """`make` writes the folder; the reader, given KEY, must yield what `expected.json` says."""

    make: Callable[[Path], None]
    why: str


CASES = {
    "ok_two_frames": Case(two_frames, "one segment, an OPEN and a RING span"),
    "ok_two_segments": Case(two_segments, "frame 2 does not fit behind frame 1, so the second segment begins with it"),
    "torn_tail": Case(torn_tail, "frame 3 was never finished; the next writer gave its number to CLOSE in segment 2"),
    "torn_tail_last": Case(torn_tail_last, "the file ends within frame 3 and nothing follows"),
    "corrupt_middle": Case(corrupt_middle, "one bit of frame 2's ciphertext is wrong; frame 3 is read on"),
    "corrupt_length": Case(corrupt_length, "one bit of frame 2's length is wrong; frame 3 is found by its mark"),
    "corrupt_segment_header": Case(
        corrupt_segment_header, "segment 2 cannot be opened; segment 3 tells what is missing"
    ),
    "missing_segment": Case(missing_segment, "segment 2 is gone; the first frame of segment 3 tells what is missing"),
    "missing_first_segment": Case(missing_first_segment, "segment 1 is gone and was never released"),
    "stale_recycled": Case(stale_recycled, "frames of the file's former life lie behind the last one and are not read"),
    "replayed_frame": Case(replayed_frame, "frame 1 was copied over frame 2: authentic, but not frame 2"),
    "wrong_version": Case(wrong_version, "a segment of format version 2 in a stream of version 1: a damaged header"),
    "wrong_version_stream": Case(wrong_version_stream, "a stream of format version 2"),
    "wrong_key": Case(wrong_key, "sealed with another key"),
}


def observe(folder: Path) -> list[list[Any]]:
    """What the reader says, in JSON values."""
    said: list[list[Any]] = []
    try:
        with Reader(folder, KEY) as reader:
            while (item := reader.read()) is not None:
                if isinstance(item, Damage):
                    said.append(["damage", item.first_frame, item.frames])
                else:
                    said.append(["frame", item.number, item.kind.name, item.time_ns, item.payload.hex()])
            said.append(["end", {"torn_tails": reader.torn_tails}])
    except (DamagedEvidence, MalformedInput) as error:
        said.append(["error", type(error).__name__])
    return said


def make(into: Path) -> None:
    """Write every case's folder and `expected.json` below `into`."""
    expected = {}
    for name, case in CASES.items():
        folder = into / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        case.make(folder)
        (folder / "lock").unlink()
        expected[name] = {"why": case.why, "read": observe(folder)}
    (into / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
