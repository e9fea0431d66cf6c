"""Segments that the receiver has probably dropped, until it says.

Linux drops many segments that look like part of the stream, without a word that could be told from other
acknowledgements. Other receivers take some of them. So such a segment waits here, and the receiver decides: when it
acknowledges bytes for which there are no others, it took these; when others came for their place, it did not.
"""

from collections.abc import Callable
from typing import NamedTuple

MAX_DOUBTS = 64  # segments in doubt, per direction; of more the oldest are given out as not taken
MAX_DOUBTFUL = 1 << 17  # their bytes, but one segment is always kept
OVERHEAD = 128


class Doubt(NamedTuple):
    """`fin`: a FIN follows the bytes. `why`: see `STRAYS` and `REJECTS` in tcp_segment.py."""

    start: int
    data: bytes
    fin: bool
    ts_ns: int
    why: str

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class Doubts:
    """In order of arrival."""

    __slots__ = ("_waiting", "size")

    def __init__(self) -> None:
        self._waiting: list[Doubt] = []
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, doubt: Doubt) -> list[Doubt]:
        """Keep it; what there is no room for is returned."""
        self._waiting.append(doubt)
        self.size += len(doubt.data) + OVERHEAD
        gone = 0
        while len(self._waiting) - gone > 1 and (len(self._waiting) - gone > MAX_DOUBTS or self.size > MAX_DOUBTFUL):
            self.size -= len(self._waiting[gone].data) + OVERHEAD
            gone += 1
        out = self._waiting[:gone]
        del self._waiting[:gone]
        return out

    def covering(self, offset: int, reasons: frozenset[str] | None) -> Doubt | None:
        """The first that has the byte, or whose FIN is, at `offset`; only of these reasons if there are any."""
        for doubt in self._waiting:
            if doubt.start <= offset < doubt.end + doubt.fin and (reasons is None or doubt.why in reasons):
                return doubt
        return None

    def remove(self, doubt: Doubt) -> None:
        self._waiting.remove(doubt)
        self.size -= len(doubt.data) + OVERHEAD

    def settled(self, offset: int) -> list[Doubt]:
        """Remove and return those that lie before `offset`."""
        return self._split(lambda doubt: doubt.end + doubt.fin <= offset)

    def of(self, why: str) -> list[Doubt]:
        """Remove and return those of one reason."""
        return self._split(lambda doubt: doubt.why == why)

    def shift(self, distance: int) -> None:
        """Move every one to higher offsets."""
        self._waiting = [doubt._replace(start=doubt.start + distance) for doubt in self._waiting]

    def _split(self, chosen: Callable[[Doubt], bool]) -> list[Doubt]:
        out = [doubt for doubt in self._waiting if chosen(doubt)]
        if out:
            self._waiting = [doubt for doubt in self._waiting if not chosen(doubt)]
            self.size -= sum(len(doubt.data) + OVERHEAD for doubt in out)
        return out
