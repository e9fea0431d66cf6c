"""What the receiver of a stream expects and takes: sequence numbers as offsets, its acknowledgements and its window.

Offsets are 64 bits wide and count from the byte after the SYN; 32-bit sequence numbers are unwrapped to the offset that
is nearest to what was delivered last (serial number arithmetic, RFC 1982), so streams of any length work.
"""

from appliance.session.delivered import Delivered
from appliance.session.segments import Segments

MASK = 0xFFFFFFFF
HALF = 1 << 31


class Receiver(Delivered):
    """The part of a `Stream` that knows its receiver. `strict`: every segment and acknowledgement was recorded."""

    __slots__ = (
        *("_pending", "_stopped", "_strict"),
        *("acked", "edge", "fin", "origin", "selective", "sent", "synchronised", "widest"),
    )

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.origin: int | None = None  # sequence number of offset 0
        self.synchronised = False  # its SYN was seen
        self.acked = 0  # highest acknowledged offset; one more than `fin` when that is acknowledged
        self.edge: int | None = None  # right edge of the receiver's window, None while unknown
        self.sent = 0  # the same as `top` without asking whether it may, with FINs; `top` may be ahead of it
        self.widest = 0  # the largest window that the receiver offered
        self.fin: int | None = None  # offset at which the stream ended
        self.selective = False  # both sides agreed on SACK
        self._strict = strict
        self._pending = Segments()  # bytes that wait behind a hole
        self._stopped: int | None = None  # offset of its sender's reset

    @property
    def stopped(self) -> bool:
        """A reset ended it."""
        return self._stopped is not None

    @property
    def closed(self) -> bool:
        """The receiver acknowledged the FIN."""
        return self.fin is not None and self.acked > self.fin

    def offset(self, seq: int) -> int:
        """The offset that a sequence number stands for, the next byte's while nothing is known."""
        return self.next + self.distance(seq)

    def distance(self, seq: int) -> int:
        """How far a sequence number is from the next expected byte; 0 while nothing is known."""
        if self.origin is None:
            return 0
        delta = (seq - self.origin - self.next) & MASK
        return delta - (1 << 32) if delta >= HALF else delta

    def misplaced(self, acked: int, by: int) -> str:
        """What is wrong with an acknowledgement up to an offset, "" if nothing is or nobody knows. `by`: 1 the server.

        The sender of these bytes drops segments that acknowledge more than it sent, or much less than was acknowledged
        before (RFC 5961 §5.2; Linux: less by the largest window that it was offered, or before its first byte).
        """
        if not self._strict or not self.synchronised:
            return ""
        if acked > self.top and acked > self.sent:
            return "unsent-acknowledged"
        if acked < self.acked and acked < self.acked - min(self.widest, self.acked + by):
            return "old-acknowledgement"
        return ""

    def covers(self, seq: int) -> bool:
        """Whether a RST with this sequence number may be real (RFC 5961 §3.2).

        In the receiver's window; where the stream is strict, as Linux asks for: at what the receiver expects next,
        which lies between what it acknowledged and what it was sent, or at the end of what it holds out of order.
        """
        if self.origin is None:
            return True
        offset = self.next + self.distance(seq)
        low = min(self.acked, self.next)
        if self._strict and self.synchronised:
            if self.selective and self._pending.size and offset == self._pending.end:
                return True
            return low <= offset <= max(self.acked, self.next + (self.fin is not None))
        high = max(self.top, self.edge if self.edge is not None else self.top + (1 << 30))
        return low - 1 <= offset <= high + 1

    def stop(self, seq: int) -> None:
        """A reset with this sequence number, which `covers` has called possible: nothing behind it is taken."""
        offset = self.next + self.distance(seq)
        if self._strict:
            self._stopped = min(offset, self.next + (self.fin is not None))
        else:
            self._stopped = max(offset, self.top)

    def heard(self, acked: int, window: int) -> None:
        """`acknowledge` for a calm stream, by offset."""
        if acked < 0:
            return
        if acked > self.acked:
            self.acked = acked
        if window > self.widest:
            self.widest = window
        right = acked + window
        if self.edge is None or right > self.edge:
            self.edge = right

    def _acceptable(self, end: int) -> bool:
        """Whether the receiver may have taken bytes up to this offset."""
        return self.edge is None or end <= max(self.edge, self.acked) + 1  # one more: a window probe
