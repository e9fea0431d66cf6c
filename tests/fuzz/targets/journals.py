"""A stream's folder on the disk: frames sealed with a fixed key, so that damage is tried behind the tag too.

Operations, one byte each, with what they need behind it: a frame, a new segment, a header or frame whose fields lie,
damage (bits, zeros, bytes moved, a cut, a file gone), a release, a reader's turn. At the end the reader reads the rest.

What holds: a frame that is given out was sealed like that; numbers go on by one, or the reader says from where to where
they don't; a journal that nobody harmed is read whole; no authentic frame is left behind the reader; a reader that
begins anew at the cursor of another reads the same.
"""

import contextlib
import tempfile
from pathlib import Path
from typing import Final

from appliance.errors import DamagedEvidence, MalformedInput
from appliance.journal import Cursor, Damage, Frame, FrameKind, JournalKey, Layout, Reader, release
from appliance.journal.format import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    SALT_BYTES,
    TAG_BYTES,
    FrameHeader,
    SegmentHeader,
    SegmentSeal,
    frame_bytes,
)
from tests.fuzz.script import Script
from tests.fuzz.targets import Target

KEY: Final = JournalKey(bytes(range(32)))
STREAM: Final = bytes(range(16))
SIZE: Final = 2048
MAX_SEGMENTS: Final = 6
MAX_READS: Final = 4096
NAME: Final = b"verbatim-journal 1\n%s\n%s\n" % (STREAM.hex().encode(), KEY.key_id.hex().encode())
MEMORY: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None

Item = Frame | Damage


class Disk:
    """What a writer would have left in `folder`, and everything that it sealed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments: dict[int, bytearray] = {}
        self.sealed: set[tuple[int, int, int, bytes]] = set()
        self.next = 1
        self.harmed = False  # somebody touched the bytes, or a field lies
        self._seal: SegmentSeal | None = None
        self._newest = 0
        self._at = SIZE

    def rotate(self, script: Script | None = None) -> None:
        """Begin a segment; with a script, one whose header is authentic and says something else than it should."""
        if self._newest >= MAX_SEGMENTS:
            return
        self._newest += 1
        sequence, first, size, stream = self._newest, self.next, SIZE, STREAM
        if script is not None:
            self.harmed = True
            lie = script.number(2) - 0x8000
            sequence, first, size, stream = (
                (sequence + lie & 0xFFFF, first, size, stream),
                (sequence, first + lie & 0xFFFF, size, stream),
                (sequence, first, size + lie & 0xFFFF, stream),
                (sequence, first, size, bytes(16)),
            )[script.below(4)]
        salt = self._newest.to_bytes(SALT_BYTES, "big")
        self._seal = SegmentSeal(KEY, SegmentHeader(KEY.key_id, stream, sequence, first, size, salt))
        self.segments[self._newest] = bytearray(self._seal.header_bytes().ljust(SIZE, b"\0"))
        self._at = HEADER_BYTES

    def frame(self, kind: int, payload: bytes, layout: int = 0, number: int | None = None) -> None:
        """Seal a frame as the next one; `number`: another number than its own."""
        length = frame_bytes(len(payload))
        if self._at + length > SIZE or self._newest not in self.segments:
            self.rotate()
        if self._at + length > SIZE or self._newest not in self.segments or self._seal is None:
            return
        number = self.next if number is None else number
        made = memoryview(bytearray(length))
        self._seal.seal(made, number, FrameKind.SPAN, payload, length=len(payload), time_ns=number, layout=Layout.PLAIN)
        if kind in set(FrameKind) and layout in set(Layout):
            what = FrameKind(kind)
            where = Layout(layout)
            self._seal.seal(made, number, what, payload, length=len(payload), time_ns=number, layout=where)
            self.sealed.add((number, kind, layout, payload))
        else:
            self.sealed.add((number, FrameKind.SPAN, Layout.PLAIN, payload))
        self.segments[self._newest][self._at : self._at + length] = made
        self._at += length
        self.next = number + 1

    def harm(self, script: Script) -> None:
        """Touch the bytes of one segment."""
        if not self.segments:
            return
        self.harmed = True
        sequence = sorted(self.segments)[script.below(len(self.segments))]
        data = self.segments[sequence]
        at, length = script.below(SIZE), 1 + script.byte()
        match script.below(6):
            case 0:
                if at < len(data):
                    data[at] ^= 1 << script.below(8)
            case 1:
                data[at : at + length] = bytes(len(data[at : at + length]))
            case 2:
                del data[at:]
            case 3:  # a frame, or part of one, once more
                to = script.below(SIZE) & ~7
                part = data[at & ~7 : (at & ~7) + length]
                data[to : to + len(part)] = part
            case 4:
                del self.segments[sequence]
            case 5:
                other = sorted(self.segments)[script.below(len(self.segments))]
                self.segments[other] = bytearray(data)

    def show(self) -> None:
        """Bring the folder to what it should hold."""
        for path in self.folder.glob("*.seg"):
            if int(path.stem, 16) not in self.segments:
                path.unlink()
        for sequence, data in self.segments.items():
            (self.folder / f"{sequence:016x}.seg").write_bytes(data)

    def left(self, cursor: Cursor) -> list[int]:
        """Numbers of the authentic frames that a reader at `cursor` should still find."""
        found = []
        for sequence, data in self.segments.items():
            try:
                header = SegmentHeader.parse(bytes(data))
            except MalformedInput:
                continue
            if header is None or header.segment != sequence or header.stream != STREAM:
                continue
            seal = SegmentSeal(KEY, header)
            if sequence < cursor.segment or not seal.header_is_authentic(bytes(data)):
                continue
            start = max(HEADER_BYTES, cursor.offset if sequence == cursor.segment else 0)
            for at in range(start, len(data) - FRAME_HEADER_BYTES, 8):
                head = FrameHeader.parse(bytes(data[at : at + FRAME_HEADER_BYTES]), seal.mark)
                end = at + FRAME_HEADER_BYTES + (head.length if head else 0) + TAG_BYTES
                if head is None or head.number < cursor.frame or end > len(data):
                    continue
                if seal.open(head, bytes(data[at + FRAME_HEADER_BYTES : end])) is not None:
                    found.append(head.number)
        return found


class Chain:
    """What the reader says, checked in the order in which it says it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._next: int | None = 1

    def take(self, item: Item) -> None:
        if isinstance(item, Frame):
            told = (item.number, int(item.kind), int(item.layout), item.payload)
            assert told in self._disk.sealed, f"a frame that nobody wrote: {item.number}"
            assert self._next in (None, item.number), f"frame {item.number} where {self._next} was expected"
            self._next = item.number + 1
        else:
            assert self._disk.harmed, f"an unharmed journal is called damaged: {item}"
            if item.frames is None:
                self._next = None
            else:
                assert self._next in (None, item.first_frame), f"{item} where {self._next} was expected"
                self._next = item.first_frame + item.frames


def exhaust(reader: Reader) -> list[tuple[Item, Cursor]]:
    """Everything that is there, and the cursor behind each."""
    found: list[tuple[Item, Cursor]] = []
    while (item := reader.read()) is not None:
        found.append((item, reader.cursor))
        assert len(found) < MAX_READS, "the reader does not come to an end"
    return found


def check(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, contextlib.suppress(MalformedInput, DamagedEvidence):
        _check(Path(folder), Script(data))


def _check(folder: Path, script: Script) -> None:
    (folder / "stream").write_bytes(NAME)
    disk, reader = Disk(folder), Reader(folder, KEY)
    chain = Chain(disk)
    try:
        while script.more:
            op = script.below(10)
            if op < 4:
                disk.frame(1 + script.below(7), script.piece(), script.below(3))
            elif op == 4:
                disk.rotate()
            elif op == 5:
                disk.harmed = True
                disk.frame(1, script.piece(8), 0, script.below(32))
            elif op == 6:
                disk.harm(script)
            elif op == 7:
                disk.rotate(script)
            elif op == 8:
                disk.show()
                for _ in range(script.below(16)):
                    if (item := reader.read()) is None:
                        break
                    chain.take(item)
                if script.flag():
                    reader.close()
                    reader = Reader(folder, KEY, reader.cursor)
            elif reader.cursor.segment:
                disk.show()
                release(folder, reader.cursor)
                kept = {int(path.stem, 16) for path in folder.glob("*.seg")}
                disk.segments = {sequence: data for sequence, data in disk.segments.items() if sequence in kept}
        disk.show()
        _finish(folder, disk, reader, chain)
    finally:
        reader.close()


def _finish(folder: Path, disk: Disk, reader: Reader, chain: Chain) -> None:
    start = reader.cursor
    for item, _ in exhaust(reader):
        chain.take(item)
    left = disk.left(reader.cursor)
    assert not left, f"frames {left} were passed over in silence"
    with Reader(folder, KEY, start) as whole:
        found = exhaust(whole)
    middle = len(found) // 2
    with Reader(folder, KEY, found[middle][1] if found else start) as other:
        assert _told(exhaust(other)) == _told(found[middle + 1 :]), "from the same cursor, something else is read"


def _told(found: list[tuple[Item, Cursor]]) -> list[object]:
    """Frames, and which of them are missing; why, and where they lay, may be known in other words."""
    return [item if isinstance(item, Frame) else (item.first_frame, item.frames) for item, _ in found]


def seeds() -> list[bytes]:
    frame, read, rotate = b"\0\0\5hello\0", b"\x08\x0f\1", b"\4"
    plain = frame * 3 + read + frame + rotate + frame * 2
    harms = [
        b"\6\0" + at.to_bytes(2, "little") + b"\x20" + bytes([how]) + b"\1\1"
        for at in (40, 100, 200)
        for how in range(6)
    ]
    return [
        plain,
        *(plain + harm + read + frame for harm in harms),
        plain + b"\7\1\x80\1" + frame,
        plain + b"\5\3abc\x07" + frame,
        plain + b"\x08\x0f\0\x09" + frame + rotate + frame,
        b"\0\0\xff" + bytes(255) + b"\0" + frame * 30,
    ]


TARGETS: Final = {"journal": Target(check, seeds, size=512)}
