"""Bytes that arrived before their turn: non-overlapping pieces in order of offset. The lower start wins.

Which of two copies a receiver keeps while a hole lies before them is its own affair (Shankar and Paxson 2003; Novak
and Sturges 2007). This is what Linux keeps (`tcp_data_queue_ofo`): a segment that begins before one that waits replaces
what they share; one that begins later does not; of two that begin at the same place the longer one stays, among equals
the first. A segment that continues a waiting one exactly becomes part of it and has its start. The tests compare it
with the running kernel. Once delivered, bytes never change: the first win there. Linux keeps a segment that lies under
what was so joined, and compares with it again; here it is forgotten, so of bytes behind one that were sent with two
contents the other may be shown as read. Both are kept.

An insertion costs the length of the new segment, the pieces inside it, and one list insertion. In a crowd small pieces
of one segment are joined, and what lies inside a segment that replaces it goes, so pieces are walked over once.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

CROWD = 256  # pieces above which one takes up what continues it (and its time is lost), while it is shorter than JOIN
JOIN = 4096
Part = tuple[int, bytes, int, int]  # offset, bytes, time, start of its segment


class Conflict(NamedTuple):
    """Bytes that lost against others for the same place, and when they came."""

    start: int
    data: bytes
    ts_ns: int


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


def compare(start: int, kept: bytes | bytearray, lost: bytes, ts_ns: int, out: list[Conflict]) -> None:
    """Report what of `lost` differs from `kept`; both begin at offset `start` and have the same length."""
    found = difference(kept, lost)
    if found is not None:
        out.append(Conflict(start + found[0], lost[found[0] : found[1]], ts_ns))


class Segments:
    """`size` bytes in `len()` pieces."""

    __slots__ = ("_owners", "_parts", "_starts", "_times", "size")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._parts: list[bytes] = []
        self._times: list[int] = []
        self._owners: list[int] = []  # where the segment of the piece began
        self.size = 0

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def first(self) -> int:
        return self._starts[0]

    @property
    def end(self) -> int:
        return self._starts[-1] + len(self._parts[-1])

    def _end(self, index: int) -> int:
        return self._starts[index] + len(self._parts[index])

    def at(self, offset: int) -> tuple[int, int] | None:
        """Start of the segment that has the byte at `offset`, and the end of its last piece from there on."""
        index = bisect_right(self._starts, offset) - 1
        if index < 0 or self._end(index) <= offset:
            return None
        return self._owners[index], self._end(index)

    def overlap(self, start: int, data: bytes, ts_ns: int) -> tuple[int, list[Conflict]]:
        """How many bytes of a segment are there already, and what of it differs from them. Nothing is added."""
        there, end = 0, start + len(data)
        differing: list[Conflict] = []
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._starts) and self._starts[index] < end:
            base = self._starts[index]
            low, high = max(base, start), min(self._end(index), end)
            if low < high:
                there += high - low
                compare(
                    low,
                    self._parts[index][low - base : high - base],
                    data[low - start : high - start],
                    ts_ns,
                    differing,
                )
            index += 1
        return there, differing

    def insert(self, start: int, data: bytes, ts_ns: int, reach: int = 0) -> list[Conflict]:
        """Add a segment; what loses, of it or of those before, and differs, is returned.

        `reach`: its end with the FIN, if it has one.
        """
        if not data:
            return []
        starts, end = self._starts, start + len(data)
        reach = max(reach, end)
        at = bisect_right(starts, start)
        owner = start
        if at:
            before = self._end(at - 1)
            if before > start:
                at -= 1
            elif before == start:
                owner = self._owners[at - 1]
        last = bisect_left(starts, end, at)
        conflicts: list[Conflict] = []
        pieces = (
            [(start, data, ts_ns, owner)]
            if at == last
            else self._merged(at, last, (start, data, ts_ns, owner), reach, conflicts)
        )
        if at and len(starts) > CROWD and pieces[0][3] == self._owners[at - 1] and len(self._parts[at - 1]) < JOIN:
            place, part, _, _ = pieces[0]
            if self._end(at - 1) == place:
                self.size += len(part)
                self._parts[at - 1] += part
                del pieces[0]
        self.size -= sum(map(len, self._parts[at:last]))
        self.size += sum(len(part) for _, part, _, _ in pieces)
        starts[at:last] = [piece[0] for piece in pieces]
        self._parts[at:last] = [piece[1] for piece in pieces]
        self._times[at:last] = [piece[2] for piece in pieces]
        self._owners[at:last] = [piece[3] for piece in pieces]
        return conflicts

    def _merged(self, at: int, last: int, new: Part, reach: int, conflicts: list[Conflict]) -> list[Part]:
        """The pieces [at, last), all of which overlap `new`, and `new`, as they are from now on."""
        start, data, ts_ns, owner = new
        end = start + len(data)
        tie = False  # whether a segment with the same start stays
        for index in range(at, last):
            if self._owners[index] == owner and self._end(index) >= reach:
                tie = True
        out: list[Part] = []
        done = start  # up to here `new` is placed
        won = start  # from here up to `done` it won and is not in `out` yet
        for index in range(at, last):
            low, part, when, whose = self._starts[index], self._parts[index], self._times[index], self._owners[index]
            high = low + len(part)
            first, stop = max(low, start), min(high, end)
            old, fresh = part[first - low : stop - low], data[first - start : stop - start]
            if whose < owner or (whose == owner and tie):
                compare(first, old, fresh, ts_ns, conflicts)
                if first > won:
                    out.append((won, data[won - start : first - start], ts_ns, owner))
                out.append((low, part, when, whose))
                won = stop
            else:
                compare(first, fresh, old, when, conflicts)
                if high > end:
                    out.append((won, data[won - start :], ts_ns, owner))
                    out.append((end, part[end - low :], when, whose))
                    won = end
            done = stop
        if done < end:
            done = end
        if won < done:
            out.append((won, data[won - start : done - start], ts_ns, owner))
        return out

    def take(self, offset: int, limit: int = 1 << 80) -> list[tuple[int, bytes, int]]:
        """Remove and return (offset, bytes, time) of the pieces that follow `offset` without a hole, up to `limit`."""
        taken: list[tuple[int, bytes, int]] = []
        count = 0
        for start, part, when in zip(self._starts, self._parts, self._times, strict=True):
            if start != offset or start >= limit:
                break
            offset += len(part)
            if offset > limit:
                self._starts[count], self._parts[count] = limit, part[limit - start :]
                part = part[: limit - start]
                count -= 1
            taken.append((start, part, when))
            self.size -= len(part)
            count += 1
        self._drop(0, count)
        return taken

    def take_last(self) -> tuple[int, bytes, int]:
        """Remove and return the piece with the highest offset."""
        self._owners.pop()
        taken = self._starts.pop(), self._parts.pop(), self._times.pop()
        self.size -= len(taken[1])
        return taken

    def shift(self, distance: int) -> None:
        """Move every piece to higher offsets."""
        self._starts = [start + distance for start in self._starts]
        self._owners = [owner + distance for owner in self._owners]

    def _drop(self, start: int, stop: int) -> None:
        del self._starts[start:stop]
        del self._parts[start:stop]
        del self._times[start:stop]
        del self._owners[start:stop]
