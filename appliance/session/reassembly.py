"""One direction of one TCP connection: segments in, the byte stream out (RFC 9293; windows: RFC 7323).

A stream is made of layers, each in its file: what was delivered, its receiver, what is in doubt, and here what waits.

In: `syn`, `segment`, `doubt`, `stop` (a reset), `acknowledge` (what the *other* side says of these bytes), `finish`.
Out: pieces. The stream is what a Linux receiver reads, as tests/session/hostile compares it with the running kernel.

- Delivered bytes never change. Of copies that wait behind a hole `Segments` keeps what Linux keeps. What lost and
  differs is an `Overlap`. Repetitions of bytes older than `HISTORY` can't be compared any more and are counted
  (`unverified`).
- A hole is held open until it fills. It becomes a `Gap` when the receiver acknowledged it although bytes behind it wait
  (`HOLE_NS` later, because captures may order packets wrongly), when the buffer is full, or when the connection ends.
  Bytes that come for a gap after all are `Late`: in the stream at their offset, but nobody dissected them there.
- What the receiver has probably dropped waits in `Doubts`, and its acknowledgements decide: segments beyond its
  window, behind the FIN, behind a reset, in a SYN, and those that TCP's own rules reject (tcp.py). Not taken, they are
  `Stray`. Only a `strict` stream (recorded before forwarding, so that no acknowledgement and no segment can be unknown)
  is sure of windows; in others bytes beyond the window wait behind their hole, and become `Stray` if they still wait
  when room is needed or the connection ends.
- Picked up midstream, the stream begins with the lowest sequence number seen within `HOLD_NS`, `HOLD_BYTES`, or
  `HOLE_NS` after the receiver's next acknowledgement (at once where the stream is strict); that byte has offset 0. A
  SYN that comes within that time after all gives the exact start.
- A keep-alive (RFC 1122 §4.2.3.6: at most one garbage octet, just before what is next) is not compared.
- A FIN ends the stream when its turn comes. It loses its place to bytes as bytes do to bytes.
"""

from bisect import insort

from appliance.session.doubted import Doubted
from appliance.session.doubts import Doubt
from appliance.session.memory import PIECE_BYTES
from appliance.session.pieces import Note, Piece, Stray
from appliance.session.receiver import MASK

OVERHEAD = 128  # bytes that a waiting segment costs beside its content; it counts against the buffer
MAX_SEGMENTS = 1 << 15  # that wait behind holes, per direction
HOLD_NS = 200_000_000
HOLD_BYTES = 64 * 1024
HOLE_NS = 50_000_000
MAX_SHIFT = 1 << 20  # how far a midstream start may still move back
MAX_FINS = 16  # different ones that wait behind holes
AT_ONCE = frozenset({"syn-data", "beyond-fin", "after-reset"})  # doubts that no wrong order of a capture brings about
_NEVER = -1
_FAR = 1 << 80  # beyond every offset


class Stream(Doubted):
    """State of one direction. Counters are bytes of this direction."""

    __slots__ = (
        *("_armed", "_fins", "_held_until", "_hole_since", "_max_buffer", "_snapped"),
        *("keepalives", "started"),
    )

    def __init__(self, max_buffer: int, strict: bool = False) -> None:
        super().__init__(strict)
        self.started = False  # a segment of its own was seen, not only acknowledgements of it
        self.keepalives = 0
        self._max_buffer = max_buffer
        self._fins: list[tuple[int, int]] = []  # offsets of FINs that wait, and where their segments began
        self._snapped: list[tuple[int, int]] = []
        self._hole_since = 0  # the receiver acknowledged past the hole since then
        self._armed = False  # midstream: the start is not final
        self._held_until = _NEVER

    @property
    def held_bytes(self) -> int:
        """Memory in use for bytes, roughly."""
        return self._pending.size + len(self._history) + self._doubts.size

    @property
    def weight(self) -> int:
        """Memory in use, about, beyond that of an empty one."""
        pieces = len(self._pending) + len(self._gaps) + len(self._snapped) + len(self._fins)
        return self.held_bytes + PIECE_BYTES * pieces

    @property
    def holding(self) -> bool:
        """Midstream: segments came, but the start may still move; `begin` ends that."""
        return self._held_until > 0

    @property
    def waiting(self) -> bool:
        """Whether the passing of recorded time alone may change something."""
        return self.holding or self._hole_since > 0

    @property
    def calm(self) -> bool:
        """Its start is final, nothing waits, and no end was announced."""
        return (
            self.origin is not None
            and not (self._armed or self._snapped or self._pending.size)
            and self._held_until < 0
            and self.fin is None
            and self._stopped is None
            and not (self._fins or self._doubts)
        )

    def fits(self, seq: int, length: int) -> bool:
        """Calm: whether these are the next bytes, and the receiver may take them."""
        assert self.origin is not None  # a calm one has one
        if (seq - self.origin - self.next) & MASK:
            return False
        edge = self.edge
        return edge is None or not self._strict or self.next + length <= edge

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
            elif self.top or self.acked or (self.synchronised and self.edge is not None):
                return False
        self.origin = origin
        self.synchronised = self.started = True
        self._armed, self._held_until = False, _NEVER
        return True

    def segment(self, seq: int, data: bytes, missing: int, ts_ns: int, out: list[Piece], fin: bool = False) -> None:
        """Bytes from `seq` on; `missing` more followed them but were not captured. Without any, only `seq` counts."""
        self.started = True
        if self.origin is None or self._armed:
            self._pick_up(seq, ts_ns)
        delta = self.distance(seq)
        length = len(data)
        plain = not delta and not missing and not fin and self.fin is None and self._stopped is None
        if plain and not self._pending.size and not self._armed and not self._fins:
            edge = self.edge
            if edge is None or not self._strict or self.next + length <= edge:
                if length:
                    self._deliver(data, ts_ns, out)
                if self._snapped:
                    self._drain(ts_ns, out)
                return
        if not length and delta == -1 and self.acked >= self.next and not fin:
            self.keepalives += 1
        if length or missing or fin:
            self._place(self.next + delta, data, missing, fin, ts_ns, out)
        self._drain(ts_ns, out)

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
            if self._stopped is not None and acked > self._stopped:
                self._revive(ts_ns, out)
            if self._doubts:
                self._judge(None if self._strict else AT_ONCE, ts_ns, out)
        if window > self.widest:
            self.widest = window
        right = acked + window
        if self.edge is None or right > self.edge:
            self.edge = right
        if self._pending.size or self._fins:
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
        while self._pending.size or self._fins:
            start = self._waiting_at()
            known = self.edge is None or start <= max(self.edge, self.acked)
            if not self._strict and known and self._take_doubts(start, AT_ONCE, ts_ns, out):
                self._drain(ts_ns, out)
            elif known and (self._pending.size or self.acked > start):
                self._gap(start, ts_ns, "end", out)
                self._drain(ts_ns, out)
            elif self._pending.size:
                offset, data, when = self._pending.take_last()
                out.append(Stray(offset, data, when, "out-of-window"))
            else:
                self._fins.clear()
        last = self.acked if self.fin is None else self.fin
        if last > self.next:
            self._gap(last, ts_ns, "acknowledged", out)
        for doubt in self._doubts.settled(_FAR):
            self._reject(doubt, out)
        self.forget()
        self._gaps = []
        self._snapped = []

    def unblock(self, ts_ns: int, out: list[Piece]) -> None:
        """Memory is short: as if the buffer was full."""
        if self.holding:
            self.begin(ts_ns, out)
        kept, self._max_buffer = self._max_buffer, -1
        self._drain(ts_ns, out)
        self._max_buffer = kept

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
        self._fins = [(offset - distance, start - distance) for offset, start in self._fins]
        self._doubts.shift(-distance)
        self._snapped = [(low - distance, high - distance) for low, high in self._snapped]

    def _place(self, start: int, data: bytes, missing: int, fin: bool, ts_ns: int, out: list[Piece]) -> None:
        end = start + len(data)
        if self._stopped is not None and end + missing > max(self._stopped, self.next):
            self._doubt(Doubt(start, data, fin, ts_ns, "after-reset"), out)
            return
        begin = start
        if start < self.next:
            if len(data) <= 1 and not missing and not fin and start == self.next - 1 and self.acked >= self.next:
                self.keepalives += 1
                return
            old = min(end, self.next) - start
            self._repeated(start, data[:old], ts_ns, out)
            data = data[old:]
            start += old
        if self.fin is not None:
            if data or (fin and end != self.fin):
                self._doubt(Doubt(start, data, fin, ts_ns, "beyond-fin"), out)
            return
        if self._strict and self.edge is not None and end + missing > self.edge and (data or missing):
            self._doubt(Doubt(start, data, fin, ts_ns, "out-of-window"), out)
            return
        if end + missing > self.top and self._acceptable(end + missing):
            self.top = end + missing
        if missing > 0 and end + missing > self.next and len(self._snapped) < MAX_SEGMENTS:
            insort(self._snapped, (max(end, self.next), end + missing))
        if self._fins and data:
            self._outdo_fins(begin, end, ts_ns, out)
            if (end - 1, begin) in self._fins:  # as long as the one that waits, with its FIN: that stays whole
                self._doubt(Doubt(end - 1, data[-1:], False, ts_ns, "beyond-fin"), out)
                data, end = data[:-1], end - 1
        if data:
            if start == self.next and not self._pending.size and not self._armed and not self._fins:
                self._deliver(data, ts_ns, out)
            else:
                lost = self._pending.insert(start, data, ts_ns, end + fin)
                self._conflicts(lost, out)
                if self._armed and self._pending.size >= HOLD_BYTES:
                    self.begin(ts_ns, out)
        if fin:
            self._end(end + missing, begin, ts_ns, out)

    def _end(self, offset: int, begin: int, ts_ns: int, out: list[Piece]) -> None:
        """A FIN, behind a segment that began at `begin`."""
        self.sent = max(self.sent, offset + 1)
        other = self._pending.at(offset)
        first = other is None or begin < other[0]
        if offset < self.next or not first:
            out.append(Note("fin-ignored", max(0, offset), max(0, offset), ts_ns))
        elif all(offset != known for known, _ in self._fins) and len(self._fins) < MAX_FINS:
            self._fins.append((offset, begin))
            self._fins.sort()

    def _outdo_fins(self, begin: int, end: int, ts_ns: int, out: list[Piece]) -> None:
        """Bytes in [begin, end) take the place of FINs that wait, by the rule of `Segments`."""
        for known in list(self._fins):
            offset, start = known
            if begin <= offset < end and (begin < start or (begin == start and end > offset + 1)):
                self._fins.remove(known)
                out.append(Note("fin-ignored", offset, offset, ts_ns))

    def _close(self, offset: int, ts_ns: int, out: list[Piece]) -> None:
        """The turn of a FIN: the receiver throws away what waits behind it."""
        self.fin = offset
        self._fins.clear()
        while self._pending.size:
            start, data, when = self._pending.take_last()
            self._doubt(Doubt(start, data, False, when, "beyond-fin"), out)
        self._hole_since = 0

    # -- bytes -----------------------------------------------------------------------------------------------------

    def _drain(self, ts_ns: int, out: list[Piece]) -> None:
        """Deliver what is next, and decide on the hole before what waits."""
        if self._armed:
            if self._held_until <= ts_ns and self._held_until != _NEVER:
                self.begin(ts_ns, out)
            return
        while True:
            fin = self._fins[0][0] if self._fins else _FAR
            for _, data, when in self._pending.take(self.next, fin):
                self._deliver(data, when, out)
            if self.next >= fin:
                self._close(fin, ts_ns, out)
                return
            waiting = self._waiting_at()
            if self._snapped and self._lost(waiting, ts_ns, out):
                continue
            if waiting == _FAR:
                self._hole_since = 0
                return
            count = len(self._pending)
            if count > MAX_SEGMENTS or self._pending.size + OVERHEAD * (count - 1) > self._max_buffer:
                if self.edge is not None and self._pending.end > max(self.edge, self.acked):
                    offset, beyond, when = self._pending.take_last()
                    out.append(Stray(offset, beyond, when, "out-of-window"))
                    continue
                self._gap(waiting, ts_ns, "buffer", out)
                self._hole_since = 0
            elif self.acked < waiting + (waiting == fin):
                self._hole_since = 0
                return
            elif not self._hole_since:
                self._hole_since = max(ts_ns, 1)
                return
            elif ts_ns - self._hole_since < HOLE_NS:
                return
            elif not self._take_doubts(waiting, None, ts_ns, out):
                self._gap(waiting, ts_ns, "acknowledged", out)

    def _waiting_at(self) -> int:
        """Where the first of what waits begins."""
        first = self._pending.first if self._pending.size else _FAR
        return min(first, self._fins[0][0]) if self._fins else first

    def _lost(self, waiting: int, ts_ns: int, out: list[Piece]) -> bool:
        """Whether `next` moved over bytes that the capture cut off."""
        while self._snapped and self._snapped[0][1] <= self.next:
            del self._snapped[0]
        if not self._snapped or self._snapped[0][0] > self.next:
            return False
        self._gap(min(self._snapped[0][1], waiting), ts_ns, "snapped", out)
        return True
