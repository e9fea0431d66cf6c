"""What the receiver has probably not taken, and how its acknowledgements decide (`Doubts`)."""

from abc import abstractmethod

from appliance.session.doubts import Doubt, Doubts
from appliance.session.pieces import Note, Piece, Stray
from appliance.session.receiver import Receiver


class Doubted(Receiver):
    """The part of a `Stream` that keeps segments in doubt."""

    __slots__ = ("_doubts", "revived")

    def __init__(self, strict: bool) -> None:
        super().__init__(strict)
        self.revived = False  # the receiver took bytes behind a reset
        self._doubts = Doubts()

    def doubt(self, seq: int, data: bytes, fin: bool, ts_ns: int, why: str, out: list[Piece]) -> None:
        """A segment that the receiver has probably dropped."""
        if data or fin:
            self._doubt(Doubt(self.next + self.distance(seq), data, fin, ts_ns, why), out)

    def _doubt(self, doubt: Doubt, out: list[Piece]) -> None:
        self.sent = max(self.sent, doubt.end + doubt.fin)
        if doubt.end + doubt.fin <= self.next:
            self._reject(doubt, out)
            return
        for former in self._doubts.add(doubt):
            self._reject(former, out)

    def _judge(self, reasons: frozenset[str] | None, ts_ns: int, out: list[Piece]) -> None:
        """The receiver acknowledged more: take what must have been meant, let go of what was not."""
        if self.acked > self.next + (self.fin is not None):
            limit = min(self.acked, self._waiting_at()) if self._pending.size else self.acked
            self._take_doubts(limit, reasons, ts_ns, out)
        for doubt in self._doubts.settled(min(self.acked, self.next + (self.fin is not None))):
            self._reject(doubt, out)

    def _take_doubts(self, limit: int, reasons: frozenset[str] | None, ts_ns: int, out: list[Piece]) -> bool:
        """Deliver bytes in doubt from `next` up to `limit`. Whether there were any."""
        taken = False
        while self.next < limit and (doubt := self._doubts.covering(self.next, reasons)) is not None:
            self._doubts.remove(doubt)
            taken = True
            if self.fin is not None:
                out.append(Note("fin-ignored", self.fin, self.fin, ts_ns))
                self.fin = None
            stop = min(doubt.end, limit)
            if stop > self.next:
                self._deliver(doubt.data[self.next - doubt.start : stop - doubt.start], doubt.ts_ns, out)
            if doubt.end > stop:
                self._doubt(doubt._replace(start=stop, data=doubt.data[stop - doubt.start :]), out)
            elif doubt.fin and self.acked > self.next:
                self._close(self.next, ts_ns, out)
                break
        return taken

    def _reject(self, doubt: Doubt, out: list[Piece]) -> None:
        """It has no place in the stream. Nothing needs to be said of a mere repetition."""
        low = doubt.start - self._history_start
        if doubt.data and low >= 0 and self._history[low : low + len(doubt.data)] == doubt.data:
            self.retransmitted += len(doubt.data)
        elif doubt.data:
            out.append(Stray(doubt.start, doubt.data, doubt.ts_ns, doubt.why))
        elif doubt.end != self.fin:
            out.append(Note("fin-ignored", max(0, doubt.end), max(0, doubt.end), doubt.ts_ns))

    def _revive(self, ts_ns: int, out: list[Piece]) -> None:
        """The receiver acknowledged bytes behind a reset: it did not take that."""
        self._stopped = None
        self.revived = True
        for doubt in self._doubts.of("after-reset"):
            self._place(doubt.start, doubt.data, 0, doubt.fin, doubt.ts_ns, out)
        self._drain(ts_ns, out)

    # -- of the stream ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _waiting_at(self) -> int:
        """Where the first of what waits begins."""

    @abstractmethod
    def _place(self, start: int, data: bytes, missing: int, fin: bool, ts_ns: int, out: list[Piece]) -> None:
        """Bytes at an offset, and a FIN behind them."""

    @abstractmethod
    def _drain(self, ts_ns: int, out: list[Piece]) -> None:
        """Deliver what is next, and decide on the hole before what waits."""

    @abstractmethod
    def _close(self, offset: int, ts_ns: int, out: list[Piece]) -> None:
        """The turn of a FIN."""
