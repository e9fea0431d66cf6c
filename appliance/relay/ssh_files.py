"""Hashes of the files that pass in an SFTP subsystem (draft-ietf-secsh-filexfer-02): sans-IO, beside the bytes.

A file's contents are hashed as they pass, between its OPEN and its CLOSE. They are hashed where they come in order from
the file's start, as every common client has it; where they do not, the file is told without a hash.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from appliance.dissect.ssh_messages import Reader
from appliance.model import Direction

OPEN, CLOSE, READ, WRITE, STATUS, HANDLE, DATA = 3, 4, 5, 6, 101, 102, 103
MAX_HEAD: Final = 8192  # bytes of a packet that are looked at, contents aside
MAX_OPEN: Final = 1024  # files at one time
MAX_WAITING: Final = 8192  # requests that wait for an answer
MAX_HANDLE: Final = 256  # bytes; draft-ietf-secsh-filexfer-02 section 4
_FOR_WRITING: Final = 2  # bit of OPEN's flags


@dataclass(frozen=True, slots=True)
class File:
    """A file as it passed. `sha256`: 64 hexadecimal digits; "" where it did not come in order."""

    path: bytes
    direction: Direction  # who sent it
    size: int
    sha256: str


@dataclass(slots=True)
class _Way:
    """One direction of a file's contents."""

    used: bool = False
    hash: Any = field(default_factory=hashlib.sha256)
    at: int = 0  # bytes that came in order
    size: int = 0
    ordered: bool = True


@dataclass(slots=True)
class _Opened:
    path: bytes
    ways: dict[Direction, _Way]


@dataclass(slots=True)
class _Side:
    """One direction, cut into packets."""

    head: bytearray = field(default_factory=bytearray)
    need: int = 5
    left: int = 0  # bytes of the packet behind its head
    way: _Way | None = None  # whose contents these are
    lost: bool = False  # it is no SFTP: nothing is read any more


class SftpFiles:
    """One subsystem's files."""

    def __init__(self) -> None:
        self._sides = {Direction.CLIENT: _Side(), Direction.SERVER: _Side()}
        self._opening: dict[int, tuple[bytes, bool]] = {}  # path, and whether it is to be written
        self._reading: dict[int, tuple[bytes, int]] = {}  # handle, offset
        self._opened: dict[bytes, _Opened] = {}

    def receive(self, direction: Direction, data: bytes) -> list[File]:
        """What `direction` says on the channel; the files that are complete by that."""
        side, files = self._sides[direction], list[File]()
        view, at, size = memoryview(data), 0, len(data)
        while at < size and not side.lost:
            if side.left:
                step = min(side.left, size - at)
                if side.way is not None:
                    side.way.hash.update(view[at : at + step])
                side.left -= step
                at += step
                continue
            step = min(side.need - len(side.head), size - at)
            side.head += view[at : at + step]
            at += step
            if len(side.head) == side.need:
                try:
                    self._head(direction, side, files)
                except ValueError:
                    side.lost = True
        return files

    def _head(self, direction: Direction, side: _Side, files: list[File]) -> None:
        """The head is as long as was wanted: want more of it, or go on with what is behind. Raises `ValueError`."""
        head = side.head
        length, kind = int.from_bytes(head[:4]), head[4]
        if length < 1:
            raise ValueError("an empty packet")
        whole = 4 + length
        wanted = self._wanted(direction, kind, whole, head)
        if wanted > len(head):
            side.need = wanted
            return
        side.left, side.way = whole - len(head), None
        if direction is Direction.CLIENT:
            side.way = self._asked(kind, head, files)
        else:
            side.way = self._answered(kind, head)
        side.head = bytearray()
        side.need = 5

    @staticmethod
    def _wanted(direction: Direction, kind: int, whole: int, head: bytearray) -> int:
        """How much of a packet is looked at."""
        if direction is Direction.CLIENT and kind == WRITE:
            if len(head) < 13:
                return min(13, whole)
            handle = int.from_bytes(head[9:13])
            if handle > MAX_HANDLE:
                raise ValueError("a long handle")
            return min(13 + handle + 12, whole)
        if direction is Direction.SERVER and kind == DATA:
            return min(13, whole)
        looked = (OPEN, CLOSE, READ) if direction is Direction.CLIENT else (HANDLE, STATUS)
        return min(whole, MAX_HEAD) if kind in looked else 5

    def _asked(self, kind: int, head: bytearray, files: list[File]) -> _Way | None:
        if kind not in (OPEN, CLOSE, READ, WRITE):
            return None
        reader = Reader(bytes(head), 5)
        number = reader.uint32()
        if kind == OPEN:
            path = reader.string()
            _keep(self._opening, number, (path, bool(reader.uint32() & _FOR_WRITING)), MAX_WAITING)
            return None
        handle = reader.string()
        opened = self._opened.get(handle)
        if kind == READ:
            if opened is not None:
                opened.ways[Direction.SERVER].used = True
                _keep(self._reading, number, (handle, reader.uint64()), MAX_WAITING)
        elif kind == CLOSE:
            if opened is not None:
                del self._opened[handle]
                files += [_file(opened.path, direction, way) for direction, way in opened.ways.items() if way.used]
        elif opened is not None:
            return _contents(opened.ways[Direction.CLIENT], reader.uint64(), reader.uint32())
        return None

    def _answered(self, kind: int, head: bytearray) -> _Way | None:
        if kind not in (HANDLE, DATA, STATUS):
            return None
        reader = Reader(bytes(head), 5)
        number = reader.uint32()
        if kind == HANDLE:
            path, writing = self._opening.pop(number, (None, False))
            if path is not None:
                ways = {Direction.CLIENT: _Way(used=writing), Direction.SERVER: _Way()}
                _keep(self._opened, reader.string()[:MAX_HANDLE], _Opened(path, ways), MAX_OPEN)
            return None
        self._opening.pop(number, None)
        handle, offset = self._reading.pop(number, (b"", 0))
        opened = self._opened.get(handle)
        if kind != DATA or opened is None:
            return None
        return _contents(opened.ways[Direction.SERVER], offset, reader.uint32())


def _contents(way: _Way, offset: int, length: int) -> _Way | None:
    """What comes next is contents of this file, if in order."""
    way.used = True
    way.size += length
    way.ordered = way.ordered and offset == way.at
    way.at = offset + length
    return way if way.ordered else None


def _file(path: bytes, direction: Direction, way: _Way) -> File:
    return File(path, direction, way.size, way.hash.hexdigest() if way.ordered else "")


def _keep(kept: dict[Any, Any], key: Any, value: Any, limit: int) -> None:
    """The oldest goes where there is no room."""
    kept.pop(key, None)
    if len(kept) >= limit:
        del kept[next(iter(kept))]
    kept[key] = value
