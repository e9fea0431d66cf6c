"""What the wire process itself has to say in the journal: OPEN, CLOCK, LEASE and EVENT frames.

A CLOCK frame stands before the spans that it explains, so that reading the journal again gives the same wall times:
one at the start, one each second, and one at once when the wall clock steps. They are also what moves the recorded time
on a quiet wire, so that sessions end and their last bytes come out.

Facts that cannot wait (a revoked lease, a stall) take effect even when the journal is full; their frames are kept in
order and written as soon as there is room.
"""

from collections import deque
from typing import Any

import msgspec
import structlog

from appliance.errors import Unavailable
from appliance.identity.leases import Change, Now, identity_to_json
from appliance.journal import FrameKind, Writer
from appliance.wire import clock
from appliance.wire.clock import CLOCK

CLOCK_INTERVAL = 1_000_000_000  # ns between two CLOCK frames
CLOCK_STEP = 1_000_000  # ns by which the clocks may drift apart before a CLOCK frame is due at once
MAX_WAITING = 65536  # frames kept while the journal is full

log = structlog.get_logger()


class Notes:
    """Writes frames other than spans."""

    def __init__(self, writer: Writer, boot: str) -> None:
        self._writer = writer
        self._boot = boot
        self._waiting: deque[tuple[FrameKind, bytes, int]] = deque()
        self._lost = 0
        self._clock: Now | None = None
        self.held = ""  # why frames wait

    def now(self) -> Now:
        return clock.now(self._boot)

    def open(self, node: str, ring: str, position: int, now: Now, **more: Any) -> None:
        """Say who writes from here on, out of which ring, from which of its positions. `more`: see former.py."""
        opened = {"node": node, "source": "wire", "ring": ring, "boot": self._boot, "position": position, **more}
        self._later(FrameKind.OPEN, msgspec.json.encode(opened), now)

    def clock(self, now: Now) -> None:
        """Write a CLOCK frame if one is due; to be called before each span. Raises `Unavailable`."""
        if self._clock is not None:
            age = now.boottime - self._clock.boottime
            drift = abs(now.unix - now.boottime - (self._clock.unix - self._clock.boottime))
            if age < CLOCK_INTERVAL and drift <= CLOCK_STEP:
                return
        self._at_once(FrameKind.CLOCK, CLOCK.pack(now.boottime, now.unix), now)
        self._clock = now

    def lease(self, change: Change, now: Now, *, must: bool = False, **more: Any) -> None:
        """Journal what happened to a lease. Raises `Unavailable`; with `must` it is written later instead."""
        lease = change.lease
        said = {
            "event": change.what.value,
            "id": lease.id,
            "address": lease.address,
            "expires_ns": lease.expires_ns,
            "identity": identity_to_json(lease.identity),
            **more,
        }
        (self._later if must else self._at_once)(FrameKind.LEASE, msgspec.json.encode(said), now)
        log.info(f"lease-{change.what.value}", id=lease.id, address=lease.address, **more)

    def event(self, kind: str, text: str, now: Now, **attrs: Any) -> None:
        """Journal a fact about the recorder itself; written later where the journal is full."""
        self._later(FrameKind.EVENT, msgspec.json.encode({"kind": kind, "text": text, **attrs}), now)
        log.warning(kind, text=text, **attrs)

    def flush(self) -> bool:
        """Write what waited for room, as far as the journal takes it; whether nothing waits any more."""
        if not self._waiting:
            return True
        try:
            while self._waiting:
                kind, payload, time_ns = self._waiting[0]
                self._writer.append(kind, payload, time_ns=time_ns)
                self._waiting.popleft()
            self._writer.sync()
        except Unavailable as error:
            self.held = str(error)
            return False
        if self._lost:
            lost, self._lost = self._lost, 0
            self.event(
                "notes-lost", "facts of a time in which the journal was full are missing", self.now(), count=lost
            )
        return True

    def _at_once(self, kind: FrameKind, payload: bytes, now: Now) -> None:
        if not self.flush():  # order is kept
            raise Unavailable("journal: takes nothing now; free disk space or let the recorder catch up")
        self._writer.append(kind, payload, time_ns=now.unix)
        if kind is not FrameKind.CLOCK:  # which a span follows
            self._writer.sync()

    def _later(self, kind: FrameKind, payload: bytes, now: Now) -> None:
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append((kind, payload, now.unix))
        else:
            self._lost += 1
        self.flush()
