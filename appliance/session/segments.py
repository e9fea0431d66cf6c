"""Bytes that arrived before their turn: non-overlapping segments in order of offset. First data wins.

Used for TCP segments that wait behind a hole, and for IP fragments. An insertion costs the length of the new segment,
the number of segments that lie wholly inside it (each is merged only once) and one list insertion.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple


class Conflict(NamedTuple):
    """Bytes that differ from those that were there first."""

    start: int
    data: bytes


def difference(old: bytes | bytearray, new: bytes) -> tuple[int, int] | None:
    """First and last-plus-one index at which two strings of equal length differ; None when they are equal.

    Halves the interval by comparing slices, so that even long strings cost a few `memcmp`.
    """
    if old == new:
        return None
    low, high = 0, len(new)  # old[:low] == new[:low]; the first difference lies before high
    while high - low > 1:
        middle = (low + high) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle
    first = low
    low, high = first, len(new)  # the last difference lies in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        if old[middle:high] == new[middle:high]:
            high = middle
        else:
            low = middle
    return first, low + 1


def compare(start: int, old: bytes | bytearray, new: bytes, out: list[Conflict]) -> None:
    """Report what of `new` differs from `old`; both begin at offset `start` and have the same length."""
    found = difference(old, new)
    if found is not None:
        out.append(Conflict(start + found[0], new[found[0] : found[1]]))


class Segments:
    """`size` bytes in `len()` segments."""

    __slots__ = ("_parts", "_starts", "_times", "size")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._parts: list[bytes] = []
        self._times: list[int] = []
        self.size = 0

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def first(self) -> int:
        return self._starts[0]

    @property
    def end(self) -> int:
        return self._starts[-1] + len(self._parts[-1])

    def insert(self, start: int, data: bytes, ts_ns: int) -> list[Conflict]:
        """Add `data`; what is there already stays, and what differs from it is returned."""
        conflicts: list[Conflict] = []
        starts, parts = self._starts, self._parts
        end = start + len(data)
        at = bisect_right(starts, start)
        if at and (covered := starts[at - 1] + len(parts[at - 1])) > start:  # the one before reaches into it
            stop = min(covered, end)
            base = starts[at - 1]
            compare(start, parts[at - 1][start - base : stop - base], data[: stop - start], conflicts)
            data = data[stop - start :]
            start = stop
        if not data:
            return conflicts
        last = bisect_left(starts, end)  # those in [at, last) begin inside
        if last > at and (covered := starts[last - 1] + len(parts[last - 1])) > end:  # the last one reaches out of it
            last -= 1
            compare(starts[last], parts[last][: end - starts[last]], data[starts[last] - start :], conflicts)
            data = data[: starts[last] - start]
        if last > at:
            merged = bytearray(data)
            for inside in range(at, last):
                low = starts[inside] - start
                part = parts[inside]
                compare(starts[inside], part, data[low : low + len(part)], conflicts)
                merged[low : low + len(part)] = part
                self.size -= len(part)
            data = bytes(merged)
        if data:
            starts[at:last] = [start]
            parts[at:last] = [data]
            self._times[at:last] = [ts_ns]
            self.size += len(data)
        return conflicts

    def take(self, offset: int) -> list[tuple[int, bytes, int]]:
        """Remove and return (offset, bytes, time) of the segments that follow `offset` without a hole."""
        taken: list[tuple[int, bytes, int]] = []
        count = 0
        for start in self._starts:
            if start != offset:
                break
            part = self._parts[count]
            taken.append((start, part, self._times[count]))
            offset += len(part)
            self.size -= len(part)
            count += 1
        self._drop(0, count)
        return taken

    def take_last(self) -> tuple[int, bytes, int]:
        """Remove and return the segment with the highest offset."""
        taken = self._starts.pop(), self._parts.pop(), self._times.pop()
        self.size -= len(taken[1])
        return taken

    def shift(self, distance: int) -> None:
        """Move every segment to higher offsets."""
        self._starts = [start + distance for start in self._starts]

    def _drop(self, start: int, stop: int) -> None:
        del self._starts[start:stop]
        del self._parts[start:stop]
        del self._times[start:stop]
