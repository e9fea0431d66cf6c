"""From the bytes of one direction to the chunks that are stored.

Contiguous bytes are joined up to `MAX_CHUNK` bytes or `JOIN_NS` of recorded time. Nothing leaves before the dissector
has settled it; what it redacts leaves as asterisks. Copies (conflicting overlaps) and late bytes wait and are
redacted in the same way, and where the caller says so; but when more than `MAX_ASIDE` wait (an attack on memory), the
first of them leave with the redactions that are known by then.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from appliance.session.pieces import Data

MAX_CHUNK = 64 * 1024
JOIN_NS = 10_000_000
MAX_ASIDE = 1 << 18  # bytes of copies that wait to be settled, per direction
OVERHEAD = 128  # bytes that keeping one of them costs
FAR = 1 << 62
MAX_RANGES = 4096  # redactions that are remembered, and more only while their bytes wait

Ranges = Sequence[tuple[int, int]]


class Chunk(NamedTuple):
    """A chunk's content; `redacted` ranges are relative to `offset`."""

    offset: int
    data: bytes
    ts_ns: int
    copy: int
    redacted: tuple[tuple[int, int], ...]


class _Aside(NamedTuple):
    """Bytes out of order. `number` is that of their arrival."""

    end: int
    number: int
    copy: int
    data: bytes
    ts_ns: int
    hidden: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        return len(self.data) + OVERHEAD * (1 + len(self.hidden))


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes as disjoint ranges in order."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


class Outlet:
    """Holds back, joins (if `join`) and redacts one direction's bytes."""

    __slots__ = (
        "_aside",
        "_aside_size",
        "_asides",
        "_end",
        "_held",
        "_held_size",
        "_join_ns",
        "_parts",
        "_passed",
        "_ranges",
        "_since",
        "_size",
        "_start",
        "copies",
        "settled",
    )

    def __init__(self, join: bool = True) -> None:
        self._join_ns = JOIN_NS if join else -1
        self.settled = 0
        self.copies = 0
        self._held: deque[tuple[int, bytes, int]] = deque()
        self._held_size = 0
        self._parts: list[bytes] = []  # of the chunk in the making
        self._start = self._end = self._size = 0
        self._passed = 0  # everything before is stored, or in the chunk in the making
        self._since = 0
        self._aside: list[_Aside] = []  # a heap
        self._asides = 0
        self._aside_size = 0
        self._ranges: list[tuple[int, int]] = []  # disjoint, sorted

    @property
    def held_bytes(self) -> int:
        return self._held_size + self._size + self._aside_size

    @property
    def weight(self) -> int:
        """Memory in use, about, beyond that of an empty one."""
        return self.held_bytes + OVERHEAD * (len(self._held) + len(self._parts) + len(self._ranges))

    @property
    def behind(self) -> bool:
        """Whether anything waits to be settled."""
        return bool(self._held) or bool(self._aside)

    def push(self, piece: Data, settled: int, out: list[Chunk]) -> None:
        """Take the next bytes; `settled`: the dissector's word on them."""
        offset, data, ts_ns = piece
        self.settled = settled
        if not self._held and offset + len(data) <= settled:
            self._join(offset, data, ts_ns, out)
            if self._aside:
                self._release_aside(out)
            return
        self._held.append(piece)
        self._held_size += len(data)
        self.release(settled, out)

    def release(self, settled: int, out: list[Chunk]) -> None:
        """Let go of what lies before `settled`."""
        self.settled = settled
        held = self._held
        while held:
            offset, data, ts_ns = held[0]
            if offset >= settled:
                break
            if offset + len(data) > settled:
                part = data[: settled - offset]
                held[0] = (settled, data[len(part) :], ts_ns)
                data = part
            else:
                held.popleft()
            self._held_size -= len(data)
            self._join(offset, data, ts_ns, out)
        if self._aside:
            self._release_aside(out)

    def redact(self, start: int, end: int) -> None:
        """These bytes leave as asterisks. Of what has left, only the last `MAX_RANGES` are remembered, for copies."""
        if start >= end:
            return
        ranges = self._ranges
        at = bisect_right(ranges, (start, start))
        if at and ranges[at - 1][1] >= start:
            at -= 1
            start = ranges[at][0]
        last = at
        while last < len(ranges) and ranges[last][0] <= end:
            end = max(end, ranges[last][1])
            last += 1
        ranges[at:last] = [(start, end)]
        if len(ranges) > MAX_RANGES:
            left = self._start if self._parts else self._passed
            gone = max(0, bisect_right(ranges, (left, left)) - 1)
            del ranges[: min(gone, len(ranges) - MAX_RANGES)]

    def hides(self, start: int, end: int) -> bool:
        """Whether all of these bytes are known to leave as asterisks."""
        at = bisect_right(self._ranges, (start, FAR)) - 1
        return at >= 0 and end <= self._ranges[at][1]

    def copy(self, offset: int, data: bytes, ts_ns: int, out: list[Chunk], hidden: Ranges = ()) -> int:
        """Keep a conflicting copy beside the stream; its number. When too many wait, the first in line leaves early.

        `offset` may be negative: before the first byte. `hidden`: ranges of `data` to redact in any case.
        """
        self.copies += 1
        self._set_aside(self.copies, offset, data, ts_ns, hidden)
        while self._aside_size > MAX_ASIDE:
            self._release_first(out)
        return self.copies

    def late(self, offset: int, data: bytes, ts_ns: int, hidden: Ranges = ()) -> None:
        """Bytes of the stream, out of order; `hidden` as above. At most the gaps' sizes, so not limited further."""
        self._set_aside(0, offset, data, ts_ns, hidden)

    def flush(self, out: list[Chunk]) -> None:
        """End the chunk in the making."""
        if self._parts:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts = []
            self._size = 0
            out.append(self._chunk(self._start, data, self._since, 0))

    def finish(self, out: list[Chunk]) -> None:
        """The session is over: nothing will be redacted any more."""
        self.release(FAR, out)
        self.flush(out)

    def _join(self, offset: int, data: bytes, ts_ns: int, out: list[Chunk]) -> None:
        if self._parts:
            size = self._size + len(data)
            if offset == self._end and size <= MAX_CHUNK and 0 <= ts_ns - self._since <= self._join_ns:
                self._parts.append(data)
                self._size = size
                self._end += len(data)
                self._passed = self._end
                return
            self.flush(out)
        while len(data) > MAX_CHUNK:
            out.append(self._chunk(offset, data[:MAX_CHUNK], ts_ns, 0))
            data = data[MAX_CHUNK:]
            offset += MAX_CHUNK
        self._parts.append(data)
        self._start, self._since, self._size = offset, ts_ns, len(data)
        self._end = self._passed = offset + len(data)

    def _set_aside(self, number: int, offset: int, data: bytes, ts_ns: int, hidden: Ranges) -> None:
        self._asides += 1
        aside = _Aside(offset + len(data), self._asides, number, data, ts_ns, tuple(hidden))
        heappush(self._aside, aside)
        self._aside_size += aside.size

    def _release_aside(self, out: list[Chunk]) -> None:
        while self._aside and self._aside[0].end <= self.settled:
            self._release_first(out)

    def _release_first(self, out: list[Chunk]) -> None:
        aside = heappop(self._aside)
        self._aside_size -= aside.size
        offset = aside.end - len(aside.data)
        out.append(self._chunk(offset, aside.data, aside.ts_ns, aside.copy, aside.hidden))

    def _chunk(self, offset: int, data: bytes, ts_ns: int, copy: int, hidden: Ranges = ()) -> Chunk:
        ranges = self._ranges
        if not ranges and not hidden:
            return Chunk(offset, data, ts_ns, copy, ())
        end = offset + len(data)
        at = max(0, bisect_right(ranges, (offset, offset)) - 1)
        redacted: list[tuple[int, int]] = []
        while at < len(ranges) and ranges[at][0] < end:
            low, high = max(ranges[at][0], offset) - offset, min(ranges[at][1], end) - offset
            if low < high:
                redacted.append((low, high))
            at += 1
        if hidden:
            redacted = merged([*redacted, *hidden])
        masked = bytearray(data)
        for low, high in redacted:
            masked[low:high] = b"*" * (high - low)
        return Chunk(offset, bytes(masked) if redacted else data, ts_ns, copy, tuple(redacted))
