"""One direction of one TCP connection: segments in, the byte stream out (RFC 9293; windows: RFC 7323).

Offsets are 64 bits wide and count from the byte after the SYN; 32-bit sequence numbers are unwrapped to the offset that
is nearest to what was delivered last (serial number arithmetic, RFC 1982), so streams of any length work.

In: `syn`, `segment`, `end` (FIN), `acknowledge` (what the *other* side says of these bytes), `finish`. Out: pieces.

- First data wins. A repetition that differs from what was delivered, or from what waits, is an `Overlap` with the
  losing bytes. Repetitions of bytes older than `HISTORY` can't be compared any more and are counted (`unverified`).
- A hole is held open until it fills. It becomes a `Gap` when the receiver acknowledged it although bytes behind it wait
  (`HOLE_NS` later, because captures may order packets wrongly), when the buffer is full, or when the connection ends.
  Bytes that come for a gap after all are `Late`: in the stream at their offset, but nobody dissected them there.
- What the receiver can't have accepted does not make the stream jump: bytes beyond its window wait, and become `Stray`
  if they still wait when room is needed or the connection ends. In a `strict` stream (recorded before forwarding, so
  that no acknowledgement can be unknown) they are `Stray` at once.
- Picked up midstream, the stream begins with the lowest sequence number seen within `HOLD_NS`, `HOLD_BYTES`, or
  `HOLE_NS` after the receiver's next acknowledgement (at once where the stream is strict); that byte has offset 0. A
  SYN that comes within that time after all gives the exact start.
- A keep-alive (RFC 1122 §4.2.3.6: at most one garbage octet, just before what is next) is not compared.
- A FIN counts once the receiver acknowledged it. Bytes behind an unacknowledged FIN show that it was not real.
"""

from bisect import bisect_right

from appliance.session.pieces import Data, Gap, Late, Note, Overlap, Piece, Stray
from appliance.session.segments import Conflict, Segments, compare

HISTORY = 64 * 1024  # delivered bytes kept for comparison with repetitions (up to twice as many for a moment)
OVERHEAD = 128  # bytes that a waiting segment costs beside its content; it counts against the buffer
MAX_SEGMENTS = 1 << 15  # that wait behind holes, per direction
MAX_GAPS = 1 << 16  # declared gaps that late bytes can still fill; older ones are forgotten
HOLD_NS = 200_000_000
HOLD_BYTES = 64 * 1024
HOLE_NS = 50_000_000
MAX_SHIFT = 1 << 20  # how far a midstream start may still move back
MASK = 0xFFFFFFFF
HALF = 1 << 31
_NEVER = -1


class Stream:
    """State of one direction. Counters are bytes of this direction."""

    __slots__ = (
        "_armed",
        "_gaps",
        "_held_until",
        "_history",
        "_history_start",
        "_hole_since",
        "_max_buffer",
        "_pending",
        "_snapped",
        "_strict",
        "acked",
        "edge",
        "fin",
        "keepalives",
        "missing",
        "next",
        "origin",
        "recorded",
        "retransmitted",
        "started",
        "synchronised",
        "top",
        "unverified",
    )

    def __init__(self, max_buffer: int, strict: bool = False) -> None:
        self.origin: int | None = None  # sequence number of offset 0
        self.synchronised = False  # its SYN was seen
        self.started = False  # a segment of its own was seen, not only acknowledgements of it
        self.next = 0  # everything before was delivered or is a gap
        self.top = 0  # highest offset seen that the receiver may have taken, plus one
        self.acked = 0  # highest acknowledged offset; one more than `fin` when that is acknowledged
        self.edge: int | None = None  # right edge of the receiver's window, None while unknown
        self.fin: int | None = None  # offset at which the stream ends
        self.recorded = 0
        self.missing = 0
        self.retransmitted = 0
        self.unverified = 0
        self.keepalives = 0
        self._max_buffer = max_buffer
        self._strict = strict
        self._pending = Segments()
        self._history = bytearray()
        self._history_start = 0
        self._gaps: list[tuple[int, int]] = []
        self._snapped: list[tuple[int, int]] = []
        self._hole_since = 0  # the receiver acknowledged past the hole since then
        self._armed = False  # midstream: the start is not final
        self._held_until = _NEVER

    @property
    def held_bytes(self) -> int:
        """Memory in use for bytes, roughly."""
        return self._pending.size + len(self._history)

    @property
    def holding(self) -> bool:
        """Midstream: segments came, but the start may still move; `begin` ends that."""
        return self._held_until > 0

    @property
    def waiting(self) -> bool:
        """Whether the passing of recorded time alone may change something."""
        return self.holding or self._hole_since > 0

    @property
    def closed(self) -> bool:
        """The receiver acknowledged the FIN."""
        return self.fin is not None and self.acked > self.fin

    def distance(self, seq: int) -> int:
        """How far a sequence number is from the next expected byte; 0 while nothing is known."""
        if self.origin is None:
            return 0
        delta = (seq - self.origin - self.next) & MASK
        return delta - (1 << 32) if delta >= HALF else delta

    def may_follow(self, seq: int) -> bool:
        """Whether the bytes known so far may be those behind a SYN with this sequence number that comes only now."""
        if self.origin is None or not (self.next or self.top):
            return True
        offset = self.next + self.distance((seq + 1) & MASK)
        return -MAX_SHIFT <= offset <= 0 if self._armed else offset == 0

    # -- what its sender does --------------------------------------------------------------------------------------

    def syn(self, seq: int) -> bool:
        """Take the SYN's sequence number. False if it contradicts what was delivered: another connection."""
        origin = (seq + 1) & MASK
        if self.origin is not None and self.origin != origin:
            if self._armed:
                distance = self.distance(origin)
                if distance > 0 and self._pending.size:
                    return False
                self._move(distance)
            elif self.top or self.acked:
                return False
        self.origin = origin
        self.synchronised = self.started = True
        self._armed, self._held_until = False, _NEVER
        return True

    def segment(self, seq: int, data: bytes, missing: int, ts_ns: int, out: list[Piece]) -> None:
        """Bytes from `seq` on; `missing` more followed them but were not captured. Without any, only `seq` counts."""
        self.started = True
        if self.origin is None or self._armed:
            self._pick_up(seq, ts_ns)
        delta = self.distance(seq)
        length = len(data)
        if not delta and not missing and self.fin is None and not self._pending.size and not self._armed:
            edge = self.edge
            if edge is None or not self._strict or self.next + length <= edge:
                if length:
                    self._deliver(data, ts_ns, out)
                if self._snapped:
                    self._drain(ts_ns, out)
                return
        if not length and delta == -1 and self.acked >= self.next:
            self.keepalives += 1
        if length or missing:
            self._place(self.next + delta, data, missing, ts_ns, out)
        self._drain(ts_ns, out)

    def end(self, seq: int, ts_ns: int, out: list[Piece]) -> None:
        """A FIN with this sequence number, that is, of the byte after the last one."""
        offset = self.next + self.distance(seq)
        if self.fin is None and offset >= 0:
            if offset < self.top:
                out.append(Note("fin-ignored", offset, offset, ts_ns))
            elif not self._strict or self.edge is None or offset <= self.edge:
                self.fin = offset

    def covers(self, seq: int) -> bool:
        """Whether a RST with this sequence number may be real (RFC 5961 §3.2): in the receiver's window."""
        if self.origin is None:
            return True
        offset = self.next + self.distance(seq)
        low = min(self.acked, self.next)
        high = max(self.top, self.edge if self.edge is not None else self.top + (1 << 30))
        return low - 1 <= offset <= high + 1

    # -- what its receiver says ------------------------------------------------------------------------------------

    def acknowledge(self, ack: int, window: int, ts_ns: int, out: list[Piece]) -> None:
        """The receiver expects `ack` next and has room for `window` more bytes."""
        if self.origin is None:
            self.origin = ack
            self._armed = True
            self._held_until = _NEVER
        acked = self.next + self.distance(ack)
        if acked < 0:
            return
        if acked > self.acked:
            self.acked = acked
            if self.holding and self._strict:
                self.begin(ts_ns, out)
            elif self.holding:
                self._held_until = min(self._held_until, ts_ns + HOLE_NS)
        right = acked + window
        if self.edge is None or right > self.edge:
            self.edge = right
        if self._pending.size:
            self._drain(ts_ns, out)

    # -- the passing of time ---------------------------------------------------------------------------------------

    def advance(self, ts_ns: int, out: list[Piece]) -> None:
        """Recorded time is now `ts_ns`."""
        if self._held_until > 0 and ts_ns >= self._held_until:
            self.begin(ts_ns, out)
        elif self._hole_since:
            self._drain(ts_ns, out)

    def begin(self, ts_ns: int, out: list[Piece]) -> None:
        """Midstream: the start is final now."""
        self._armed, self._held_until = False, _NEVER
        self._drain(ts_ns, out)

    def finish(self, ts_ns: int, out: list[Piece]) -> None:
        """The connection is over: deliver what waits, and say what is missing."""
        self._armed, self._held_until = False, _NEVER
        self._drain(ts_ns, out)
        while self._pending.size:
            start = self._pending.first
            if (self.edge is None or start <= max(self.edge, self.acked)) and (self.fin is None or start < self.fin):
                self._gap(start, ts_ns, "end", out)
                self._drain(ts_ns, out)
            else:
                offset, data, when = self._pending.take_last()
                out.append(Stray(offset, data, when, "out-of-window"))
        last = self.acked if self.fin is None else self.fin if self.closed else min(self.acked, self.fin)
        if last > self.next:
            self._gap(last, ts_ns, "acknowledged", out)
        self._history.clear()
        self._history_start = self.next

    def forget(self) -> None:
        """Give up comparing with what was delivered (an idle connection)."""
        self._history = bytearray()
        self._history_start = self.next

    # -- inside ----------------------------------------------------------------------------------------------------

    def _pick_up(self, seq: int, ts_ns: int) -> None:
        """Midstream: the first segment, or an earlier one while the start may still move."""
        if self.origin is None:
            self.origin = seq
            self._armed = True
        if self._held_until == _NEVER:
            self._held_until = ts_ns + HOLD_NS
        back = -self.distance(seq)
        if 0 < back <= MAX_SHIFT:
            self._move(-back)
            self.origin = seq

    def _move(self, distance: int) -> None:
        """The start moves by `distance`: offsets are counted from there. Nothing was delivered yet."""
        self._pending.shift(-distance)
        self.acked = max(0, self.acked - distance)
        self.top = max(0, self.top - distance) if self.top else 0  # acknowledgements alone are no bytes
        self.edge = None if self.edge is None else self.edge - distance
        self.fin = None if self.fin is None else self.fin - distance
        self._snapped = [(low - distance, high - distance) for low, high in self._snapped]

    def _place(self, start: int, data: bytes, missing: int, ts_ns: int, out: list[Piece]) -> None:
        end = start + len(data)
        if start < self.next:
            if len(data) <= 1 and not missing and start == self.next - 1 and self.acked >= self.next:
                self.keepalives += 1
                return
            old = min(end, self.next) - start
            self._repeated(start, data[:old], ts_ns, out)
            data = data[old:]
            start += old
        if self.fin is not None and end + missing > self.fin:
            if self.acked > self.fin:
                keep = max(0, self.fin - start)
                if data[keep:]:
                    out.append(Stray(start + keep, data[keep:], ts_ns, "beyond-fin"))
                data, missing = data[:keep], 0
            elif self._acceptable(end + missing):
                out.append(Note("fin-ignored", self.fin, self.fin, ts_ns))
                self.fin = None
        if self._strict and self.edge is not None and end > self.edge and not (len(data) <= 1 and start == self.edge):
            keep = max(0, self.edge - start)
            if data[keep:]:
                out.append(Stray(start + keep, data[keep:], ts_ns, "out-of-window"))
            data, missing = data[:keep], 0
        end = start + len(data)
        if end + missing > self.top and self._acceptable(end + missing):
            self.top = end + missing
        if missing > 0 and end + missing > self.next and len(self._snapped) < MAX_SEGMENTS:
            self._snapped.append((max(end, self.next), end + missing))
            self._snapped.sort()
        if data:
            if start == self.next and not self._pending.size and not self._armed:
                self._deliver(data, ts_ns, out)
                return
            self._conflicts(self._pending.insert(start, data, ts_ns), ts_ns, out)
            if self._armed and self._pending.size >= HOLD_BYTES:
                self.begin(ts_ns, out)

    def _acceptable(self, end: int) -> bool:
        """Whether the receiver may have taken bytes up to this offset."""
        return self.edge is None or end <= max(self.edge, self.acked) + 1  # one more: a window probe

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
            compare(low, old, data[low - start :], conflicts)
            self._conflicts(conflicts, ts_ns, out)
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
    def _conflicts(conflicts: list[Conflict], ts_ns: int, out: list[Piece]) -> None:
        out.extend(Overlap(start, data, ts_ns) for start, data in conflicts)

    def _deliver(self, data: bytes, ts_ns: int, out: list[Piece]) -> None:
        out.append(Data(self.next, data, ts_ns))
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

    def _gap(self, end: int, ts_ns: int, why: str, out: list[Piece]) -> None:
        out.append(Gap(self.next, end, ts_ns, why))
        self._gaps.append((self.next, end))
        if len(self._gaps) > MAX_GAPS:
            del self._gaps[0]
        self.missing += end - self.next
        self.next = end
        self._history.clear()
        self._history_start = end

    def _drain(self, ts_ns: int, out: list[Piece]) -> None:
        """Deliver what is next, and decide on the hole before what waits."""
        if self._armed:
            if self._held_until <= ts_ns and self._held_until != _NEVER:
                self.begin(ts_ns, out)
            return
        while True:
            for _, data, when in self._pending.take(self.next):
                self._deliver(data, when, out)
            waiting = self._pending.size > 0
            if self._snapped and self._lost(waiting, ts_ns, out):
                continue
            if not waiting:
                self._hole_since = 0
                return
            first = self._pending.first
            count = len(self._pending)
            if count > MAX_SEGMENTS or self._pending.size + OVERHEAD * (count - 1) > self._max_buffer:
                if self.edge is not None and self._pending.end > max(self.edge, self.acked):
                    offset, beyond, when = self._pending.take_last()
                    out.append(Stray(offset, beyond, when, "out-of-window"))
                    continue
                self._gap(first, ts_ns, "buffer", out)
                self._hole_since = 0
            elif self.acked < first:
                self._hole_since = 0
                return
            elif not self._hole_since:
                self._hole_since = max(ts_ns, 1)
                return
            elif ts_ns - self._hole_since < HOLE_NS:
                return
            else:
                self._gap(first, ts_ns, "acknowledged", out)

    def _lost(self, waiting: bool, ts_ns: int, out: list[Piece]) -> bool:
        """Whether `next` moved over bytes that the capture cut off."""
        while self._snapped and self._snapped[0][1] <= self.next:
            del self._snapped[0]
        if not self._snapped or self._snapped[0][0] > self.next:
            return False
        end = self._snapped[0][1]
        if waiting:
            end = min(end, self._pending.first)
        self._gap(end, ts_ns, "snapped", out)
        return True
