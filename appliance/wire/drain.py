"""From the ring to the journal, span by span, and what happens when the journal has no room.

A span is given back to the program only after the journal took it (and synced it, with fsync durability), so a crash in
between makes the same span be written again and never loses one; the ring positions in the frames let readers drop
what came twice.

When the journal's room falls below what the ring can hold, or the disk fails, the program is told to refuse everything
(`settings.stalled`); what the ring already holds still fits. Traffic waits, by TCP's retransmission, until the recorder
has released segments. The journal keeps a segment for the frames that tell of it.
"""

from collections.abc import Callable

import structlog

from appliance import config
from appliance.errors import MalformedInput, Unavailable
from appliance.identity.leases import Now
from appliance.journal import RING, FrameKind, Writer
from appliance.wire.notes import Notes
from appliance.wire.ring import SPAN, Ring

LARGEST = 2**19 + 4096  # bytes: more than the longest super-packet with its headers
OVERHEAD = 256  # bytes of a segment, at most, that are not a single frame's payload: headers, tag, padding
SHORTEST_STALL = 1_000_000_000  # ns, so that a failing disk does not make admission flap

log = structlog.get_logger()


def check_bounds(settings: config.Journal, ring: int) -> tuple[int, int]:
    """Room in the journal below which a ring of `ring` bytes is to be stalled, and from which on it may go on.

    Raises `MalformedInput` where the settings leave no room for both.
    """
    segment = min(settings.segment_bytes, settings.max_bytes // 4)
    low = ring + 2 * SPAN  # the ring's content, and the ends of segments that a span does not fit in
    high = low + segment // 2
    # One is being read or written, one is kept for other frames than spans.
    most = settings.max_bytes - settings.keep_bytes - 2 * segment
    if most < high or segment < LARGEST + OVERHEAD:
        least = settings.keep_bytes + low + 4 * max(segment, 2 * LARGEST)
        raise MalformedInput(
            f"journal: max_bytes {settings.max_bytes} and segment_bytes {settings.segment_bytes} are too little "
            f"for a ring of {ring} bytes and keep_bytes {settings.keep_bytes}; "
            f"set max_bytes to {least} or more, and segment_bytes to {2 * LARGEST} or more"
        )
    return low, high


class Drain:
    """Moves what the ring holds into the journal. `stall` tells the program to refuse everything, or to go on."""

    def __init__(
        self, ring: Ring, writer: Writer, notes: Notes, settings: config.Journal, stall: Callable[[bool], None]
    ) -> None:
        self._ring = ring
        self._writer = writer
        self._notes = notes
        self._stall = stall
        self._fsync = settings.durability == "fsync"
        self._limit = min(SPAN, writer.max_payload)
        self._low, self._high = check_bounds(settings, ring.size)
        self._stalled_at = 0
        self.stalled = False
        self.reason = ""  # of the last stall

    def step(self, now: Now) -> int:
        """Move what is committed, a quarter of the ring at most; bytes moved. Other work goes between two steps."""
        self._admission(now)
        if not self._notes.flush():  # what waits to be written explains what follows
            self._refuse(now, self._notes.held)
            return 0
        ring, start = self._ring, self._ring.position
        position = start
        try:
            while position - start < ring.size // 4:
                end = ring.committed(position, self._limit)
                if end == position:
                    break
                self._notes.clock(now)
                self._writer.append(
                    FrameKind.SPAN,
                    ring.span(position, end),
                    ring_start=position,
                    ring_end=end,
                    layout=RING,
                    time_ns=now.unix,
                )
                position = end
                if not self._fsync:
                    ring.advance(position)
            if self._fsync and position > start:
                self._writer.sync()
                ring.advance(position)
        except Unavailable as error:
            self._refuse(now, str(error))
        return ring.position - start

    def _admission(self, now: Now) -> None:
        room = self._writer.room()
        if not self.stalled:
            if room < self._low:
                self._refuse(now, self._writer.shortage())
        elif room >= self._high and now.boottime - self._stalled_at >= SHORTEST_STALL and self._notes.flush():
            self._stall(False)
            self.stalled = False
            self._notes.event("journal-resumed", "the journal has room again: forwarding goes on", now, room=room)

    def _refuse(self, now: Now, reason: str) -> None:
        if self.stalled:
            return
        self._stall(True)
        self.stalled = True
        self._stalled_at = now.boottime
        self.reason = reason
        log.error("journal-stalled", reason=reason)
        self._notes.event("journal-stalled", f"nothing is forwarded: {reason}", now)
