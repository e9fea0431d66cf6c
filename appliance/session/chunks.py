"""From the bytes of one direction to the chunks that are stored.

Contiguous bytes are joined up to `MAX_CHUNK` bytes or `JOIN_NS` of recorded time. Nothing leaves before the dissector
has settled it; what it redacts leaves as asterisks. Copies (conflicting overlaps) and late bytes wait and are
redacted in the same way; but when more than `MAX_ASIDE` wait (an attack on memory), the first of them leave with the
redactions that are known by then.
"""

from bisect import bisect_right
from collections import deque
from heapq import heappop, heappush
from typing import NamedTuple

from appliance.session.pieces import Data

MAX_CHUNK = 64 * 1024
JOIN_NS = 10_000_000
MAX_ASIDE = 1 << 18  # bytes of copies that wait to be settled, per direction
OVERHEAD = 128  # bytes that keeping one of them costs
MAX_RANGES = 4096  # redactions remembered for copies that may still come


class Chunk(NamedTuple):
    """A chunk's content; `redacted` ranges are relative to `offset`."""

    offset: int
    data: bytes
    ts_ns: int
    copy: int
    redacted: tuple[tuple[int, int], ...]


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
        self._since = 0
        self._aside: list[tuple[int, int, int, bytes, int]] = []  # heap: end, order of arrival, copy, bytes, time
        self._asides = 0
        self._aside_size = 0
        self._ranges: list[tuple[int, int]] = []  # disjoint, sorted

    @property
    def held_bytes(self) -> int:
        return self._held_size + self._size + self._aside_size

    @property
    def pending(self) -> bool:
        """Whether a chunk is in the making."""
        return bool(self._parts)

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
        """These bytes leave as asterisks."""
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
            del ranges[0]

    def copy(self, offset: int, data: bytes, ts_ns: int, out: list[Chunk]) -> int:
        """Keep a conflicting copy beside the stream; its number. When too many wait, the first in line leaves early."""
        self.copies += 1
        self._set_aside(self.copies, offset, data, ts_ns)
        while self._aside_size > MAX_ASIDE:
            self._release_first(out)
        return self.copies

    def late(self, offset: int, data: bytes, ts_ns: int) -> None:
        """Bytes of the stream, out of order. At most the gaps' sizes, so not limited further."""
        self._set_aside(0, offset, data, ts_ns)

    def flush(self, out: list[Chunk]) -> None:
        """End the chunk in the making."""
        if self._parts:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts = []
            self._size = 0
            out.append(self._chunk(self._start, data, self._since, 0))

    def finish(self, out: list[Chunk]) -> None:
        """The session is over: nothing will be redacted any more."""
        self.release(1 << 62, out)
        self.flush(out)

    def _join(self, offset: int, data: bytes, ts_ns: int, out: list[Chunk]) -> None:
        if self._parts:
            size = self._size + len(data)
            if offset == self._end and size <= MAX_CHUNK and 0 <= ts_ns - self._since <= self._join_ns:
                self._parts.append(data)
                self._size = size
                self._end += len(data)
                return
            self.flush(out)
        while len(data) > MAX_CHUNK:
            out.append(self._chunk(offset, data[:MAX_CHUNK], ts_ns, 0))
            data = data[MAX_CHUNK:]
            offset += MAX_CHUNK
        self._parts.append(data)
        self._start, self._since, self._size = offset, ts_ns, len(data)
        self._end = offset + len(data)

    def _set_aside(self, number: int, offset: int, data: bytes, ts_ns: int) -> None:
        self._asides += 1
        heappush(self._aside, (offset + len(data), self._asides, number, data, ts_ns))
        self._aside_size += len(data) + OVERHEAD

    def _release_aside(self, out: list[Chunk]) -> None:
        while self._aside and self._aside[0][0] <= self.settled:
            self._release_first(out)

    def _release_first(self, out: list[Chunk]) -> None:
        end, _, number, data, ts_ns = heappop(self._aside)
        self._aside_size -= len(data) + OVERHEAD
        out.append(self._chunk(end - len(data), data, ts_ns, number))

    def _chunk(self, offset: int, data: bytes, ts_ns: int, copy: int) -> Chunk:
        ranges = self._ranges
        if not ranges:
            return Chunk(offset, data, ts_ns, copy, ())
        end = offset + len(data)
        at = max(0, bisect_right(ranges, (offset, offset)) - 1)
        redacted: list[tuple[int, int]] = []
        masked = bytearray(data)
        while at < len(ranges) and ranges[at][0] < end:
            low, high = max(ranges[at][0], offset) - offset, min(ranges[at][1], end) - offset
            if low < high:
                masked[low:high] = b"*" * (high - low)
                redacted.append((low, high))
            at += 1
        return Chunk(offset, bytes(masked) if redacted else data, ts_ns, copy, tuple(redacted))
