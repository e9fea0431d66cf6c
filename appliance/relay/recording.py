"""The worker's journal stream: what flows say in a turn of the loop is one frame, and is forwarded when it is written.

Records are put together in a batch; behind them stands what may be done only when they are in the journal: bytes to
send, or a call. `commit` writes what there is, each batch as one frame, makes it durable where the settings ask for it,
and then does these things in their order. So many flows share one encryption, one write and one fsync.

When the journal takes nothing (its limit, a full disk), batches wait as they are and nothing is forwarded; nobody reads
from its sockets any more (`slot` gives no room), so that TCP holds the peers back and what waits stays small. When an
fsync fails, nobody knows what of the last frames is on the disk: `failed` is told, and the worker ends.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from appliance.errors import Unavailable, VerbatimError
from appliance.identity.leases import Now
from appliance.journal import RELAY, FrameKind, Writer
from appliance.journal.relayed import HEADER, VERSION, RelayedKind, padding, size
from appliance.relay.leg import Leg
from appliance.wire.clock import CLOCK

RETRY: Final = 0.1  # seconds until the journal is asked again
ENOUGH: Final = 16384 + HEADER.size  # bytes of room below which a batch is full
SPARE: Final = 4  # buffers kept for batches
MOST: Final = 8  # batches of one turn: what is ready beyond these waits for the next
_HEAD: Final = HEADER.size
_DATA: Final = int(RelayedKind.DATA)  # plain, as what is packed for each chunk
_pack: Final = HEADER.pack_into
_MAX_TEXT: Final = 4096  # characters of one text of a record that would be too large

Then = tuple[Leg, memoryview | bytes] | Callable[[], None]

log = structlog.get_logger()


class Trace:
    """One flow's place in the stream: its number, how far each direction is, and its clock, which never runs back."""

    __slots__ = ("last_ns", "number", "offsets")

    def __init__(self, number: int) -> None:
        self.number = number
        self.offsets = [0, 0]
        self.last_ns = 0


class Batch(NamedTuple):
    """A buffer of records, and what is due behind them."""

    buffer: bytearray
    view: memoryview
    then: list[Then]


class Recording:
    """Writes the stream `name`. `clock`: Unix time, ns."""

    def __init__(
        self, writer: Writer, name: str, node: str, boot: str, loop: asyncio.AbstractEventLoop, clock: Callable[[], int]
    ) -> None:
        self._writer = writer
        self._loop = loop
        self._clock = clock
        self._largest = writer.max_payload & ~7
        self._spare: list[bytearray] = []
        self._batch = self._fresh()
        self._at = 0
        self._full: deque[tuple[Batch, int]] = deque()  # batches to write, and how much of them
        self._due = False  # a commit is scheduled
        self._numbers = 0
        self._resume: list[Callable[[], None]] = []
        self._dead = False  # nothing more is written or forwarded
        self.stalled = ""  # why nothing can be written now
        self.failed: Callable[[str], None] = _nothing  # told when nothing more may be forwarded at all
        self.frames = 0
        self.sealed = 0  # batches that were put together: what was said under one number is in one frame
        self.bytes = 0
        opened = {"node": node, "source": name, "boot": boot}
        writer.append(FrameKind.OPEN, msgspec.json.encode(opened), time_ns=clock())

    def trace(self) -> Trace:
        """For a new flow."""
        self._numbers += 1
        return Trace(self._numbers)

    # -- what flows say --------------------------------------------------------------------------------------------

    def slot(self, wanted: int) -> memoryview:
        """Room for the bytes of a DATA record, at least 16 KiB: read into it, then `fill`. Empty while stalled, or
        when there is enough for this turn of the loop."""
        if self.stalled or len(self._full) >= MOST:
            return self._batch.view[:0]
        if self._at + ENOUGH > self._largest:
            self._seal()
        start = self._at + _HEAD
        return self._batch.view[start : min(start + wanted, self._largest)]

    @property
    def full(self) -> bool:
        """Enough waits to be written: what more is ready is better read in the next turn."""
        return len(self._full) >= MOST

    def fill(self, trace: Trace, direction: int, length: int, leg: Leg | None) -> None:
        """The first `length` bytes of the last `slot` are what `direction` said; to be sent to `leg`."""
        start, offsets = self._at + _HEAD, trace.offsets
        self._head(trace, _DATA, direction, offsets[direction], length)
        offsets[direction] += length
        if leg is not None:
            self._batch.then.append((leg, self._batch.view[start : start + length]))

    def data(self, trace: Trace, direction: int, data: bytes) -> None:
        """Record bytes of any length."""
        at = 0
        while at < len(data):
            if self._at + ENOUGH > self._largest:
                self._seal()
            piece = data[at : at + (self._largest - self._at - HEADER.size)]
            self._put(trace, RelayedKind.DATA, direction, trace.offsets[direction], piece)
            trace.offsets[direction] += len(piece)
            at += len(piece)

    def say(self, trace: Trace, kind: RelayedKind, body: dict[str, Any], direction: int = 0, offset: int = 0) -> None:
        """Record OPEN, NOTE, EOF or CLOSE."""
        said = msgspec.json.encode(body) if body else b""
        if size(len(said)) > self._largest:
            said = msgspec.json.encode(_shortened(body))
        if self._at + size(len(said)) > self._largest:
            self._seal()
        self._put(trace, kind, direction, offset, said)

    def tick(self, now: Now) -> None:
        """A CLOCK frame, so that recorded time passes on a quiet stream."""
        if not self.stalled:
            try:
                self._writer.append(FrameKind.CLOCK, CLOCK.pack(now.boottime, now.unix), time_ns=now.unix)
            except (VerbatimError, OSError) as error:
                self._stall(str(error))

    def then(self, what: Then) -> None:
        """To be done behind everything that was recorded so far: a call, or bytes to send."""
        self._batch.then.append(what)
        self._schedule()

    def when_flowing(self, call: Callable[[], None]) -> None:
        """Call once the journal takes frames again."""
        self._resume.append(call)

    # -- batches ---------------------------------------------------------------------------------------------------

    def _fresh(self) -> Batch:
        buffer = self._spare.pop() if self._spare else bytearray(self._largest)
        return Batch(buffer, memoryview(buffer), [])

    def _head(self, trace: Trace, kind: int, direction: int, offset: int, length: int) -> None:
        """Put the header in front of a body that is in its place, and go on behind it."""
        now = self._clock()
        if now > trace.last_ns:
            trace.last_ns = now
        at, buffer = self._at, self._batch.buffer
        _pack(buffer, at, length, VERSION, kind, direction, 0, trace.number, trace.last_ns, offset)
        at += _HEAD + length
        if length & 7:
            zeros = padding(length)
            buffer[at : at + len(zeros)] = zeros
            at += len(zeros)
        self._at = at
        if not self._due:
            self._schedule()

    def _put(self, trace: Trace, kind: RelayedKind, direction: int, offset: int, body: bytes) -> None:
        start = self._at + HEADER.size
        self._batch.view[start : start + len(body)] = body
        self._head(trace, kind, direction, offset, len(body))

    def _schedule(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self.commit)

    def _seal(self) -> None:
        if self._at or self._batch.then:
            self._full.append((self._batch, self._at))
            self._batch, self._at = self._fresh(), 0
            self.sealed += 1
            self._schedule()

    def commit(self) -> None:
        """Write what there is, and do what waits for it."""
        if self._dead:
            return
        self._due = False
        self._seal()
        self._due = False
        written: list[Batch] = []
        try:
            while self._full:
                batch, length = self._full[0]
                if length:
                    self._writer.append(FrameKind.SPAN, batch.view[:length], layout=RELAY, time_ns=self._clock())
                    self.frames += 1
                    self.bytes += length
                written.append(batch)
                self._full.popleft()
        except (VerbatimError, OSError) as error:
            self._stall(str(error))
        if written:
            try:
                self._writer.sync()
            except Unavailable as error:
                self._dead = True
                self.failed(f"what was written may not be durable: {error}")
                return
        if self.stalled and not self._full:
            self._flow()
        for batch in written:
            self._finish(batch)

    def _finish(self, batch: Batch) -> None:
        for what in batch.then:
            try:
                if isinstance(what, tuple):
                    what[0].send(what[1])
                else:
                    what()
            except Exception:  # a fault of one flow takes nothing from the others
                log.exception("flow-failed")
                if isinstance(what, tuple):
                    what[0].crashed()
        batch.then.clear()
        if len(self._spare) < SPARE:
            self._spare.append(batch.buffer)

    def _stall(self, reason: str) -> None:
        if not self.stalled:
            log.error("journal-stalled", reason=reason)
        self.stalled = reason
        self._due = True
        self._loop.call_later(RETRY, self.commit)

    def _flow(self) -> None:
        log.info("journal-flows")
        self.stalled = ""
        waiting, self._resume = self._resume, []
        for call in waiting:
            try:
                call()
            except Exception:  # a fault of one flow takes nothing from the others
                log.exception("flow-failed")


def _shortened(value: Any) -> Any:
    """What peers said at length, cut."""
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if isinstance(value, dict):
        return {key: _shortened(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(each) for each in value[:64]]
    return value


def _nothing(reason: str) -> None:
    return None
