"""What a stream has given out: how far, with which gaps, and its last bytes, with which repetitions are compared."""

from bisect import bisect_right

from appliance.session.pieces import Data, Gap, Late, Overlap, Piece, Stray
from appliance.session.segments import Conflict, compare

HISTORY = 64 * 1024  # delivered bytes kept for comparison with repetitions (up to twice as many for a moment)
MAX_GAPS = 1 << 16  # declared gaps that late bytes can still fill; older ones are forgotten


class Delivered:
    """The part of a `Stream` that lies behind it. Offsets and counters are those of the stream's bytes."""

    __slots__ = (
        *("_gaps", "_history", "_history_start"),
        *("missing", "next", "recorded", "retransmitted", "top", "unverified"),
    )

    def __init__(self) -> None:
        self.next = 0  # everything before was delivered or is a gap
        self.top = 0  # highest offset seen that the receiver may have taken, plus one
        self.recorded = 0
        self.missing = 0
        self.retransmitted = 0
        self.unverified = 0
        self._history = bytearray()
        self._history_start = 0
        self._gaps: list[tuple[int, int]] = []

    def forget(self) -> None:
        """Give up comparing with what was delivered (an idle connection)."""
        self._history = bytearray()
        self._history_start = self.next

    def _repeated(self, start: int, data: bytes, ts_ns: int, out: list[Piece]) -> None:
        """Bytes before `next`: fill a gap, or equal, or contradict, or can't be compared any more."""
        if start < 0:
            before = min(len(data), -start)
            out.append(Stray(start, data[:before], ts_ns, "before-start"))
            data, start = data[before:], start + before
        end = start + len(data)
        if self._gaps and start < self._gaps[-1][1]:
            self._fill(start, end, data, ts_ns, out)
        low = max(start, self._history_start)
        if low < end:
            conflicts: list[Conflict] = []
            old = self._history[low - self._history_start : end - self._history_start]
            compare(low, old, data[low - start :], ts_ns, conflicts)
            self._conflicts(conflicts, out)
        self.retransmitted += len(data)
        self.unverified += min(low, end) - start

    def _fill(self, start: int, end: int, data: bytes, ts_ns: int, out: list[Piece]) -> None:
        gaps = self._gaps
        at = first_gap = max(0, bisect_right(gaps, (start, 1 << 64)) - 1)
        left: list[tuple[int, int]] = []
        while at < len(gaps) and gaps[at][0] < end:
            low, high = gaps[at]
            first, last = max(low, start), min(high, end)
            if first < last:
                out.append(Late(first, data[first - start : last - start], ts_ns))
                self.recorded += last - first
                self.missing -= last - first
                self.retransmitted -= last - first  # not compared, and not repeated either
                self.unverified -= last - first
                left += [part for part in ((low, first), (last, high)) if part[0] < part[1]]
            else:
                left.append((low, high))
            at += 1
        gaps[first_gap:at] = left
        del gaps[: max(0, len(gaps) - MAX_GAPS)]

    @staticmethod
    def _conflicts(conflicts: list[Conflict], out: list[Piece]) -> None:
        out.extend(Overlap(*conflict) for conflict in conflicts)

    def _deliver(self, data: bytes, ts_ns: int, out: list[Piece]) -> None:
        out.append(self.take(data, ts_ns))

    def take(self, data: bytes, ts_ns: int) -> Data:
        """These are the next bytes."""
        piece = Data(self.next, data, ts_ns)
        length = len(data)
        self.next += length
        self.recorded += length
        if self.next > self.top:
            self.top = self.next
        history = self._history
        history += data
        if len(history) > 2 * HISTORY:
            del history[:-HISTORY]
            self._history_start = self.next - HISTORY
        return piece

    def _gap(self, end: int, ts_ns: int, why: str, out: list[Piece]) -> None:
        out.append(Gap(self.next, end, ts_ns, why))
        self._gaps.append((self.next, end))
        if len(self._gaps) > MAX_GAPS:
            del self._gaps[0]
        self.missing += end - self.next
        self.next = end
        self._history.clear()
        self._history_start = end
