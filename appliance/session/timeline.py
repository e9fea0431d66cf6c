"""Recorded time and wall time.

A record's time is the kernel's boottime. Recorded time is the same but goes on over boots and never goes back; wall
time is what CLOCK frames say it was. Both are sums: a record's time and a number that a CLOCK frame sets.
"""

TICK_NS = 100_000_000
STEP_NS = 1_000_000  # by which wall and boot clock may differ from before without one having been set


class Timeline:
    """All times are ns. `now` is recorded time; `next_tick` is when what waits for time is looked at again."""

    __slots__ = ("_clocked", "_left_ns", "base", "next_tick", "now", "offset")

    def __init__(self) -> None:
        self.now = 0
        self.next_tick = 0
        self.base: int | None = 0  # recorded time minus a record's time; None: to be set by the next clock
        self.offset: int | None = None  # wall time minus a record's time
        self._left_ns = 0  # wall time when a boot ended
        self._clocked = False  # a CLOCK frame of this boot said what `offset` is

    @property
    def wall_ns(self) -> int:
        """Wall time of the last record."""
        return self.now - (self.base or 0) + (self.offset or 0)

    def advance(self, now: int) -> bool:
        """Recorded time moves on to `now`. Whether what waits for time is to be looked at."""
        if now > self.now:
            self.now = now
        if self.now < self.next_tick:
            return False
        self.next_tick = self.now + TICK_NS
        return True

    def set_clock(self, boottime: int, unix: int) -> int | None:
        """Both clocks at one moment. By how much `offset` changes; None if it stays.

        The wall clock was set by that, if `known` was true before.
        """
        if self.base is None:  # the first one after a boot: recorded time goes on by what passed on the wall
            self.base = self.now + max(0, unix - self._left_ns) - boottime
        offset = unix - boottime
        step = 0 if self.offset is None else offset - self.offset
        if self._clocked and abs(step) < STEP_NS:
            return None
        self.offset, self._clocked = offset, True
        return step

    @property
    def known(self) -> bool:
        """Whether a CLOCK frame of this boot was read."""
        return self._clocked

    def end_boot(self) -> None:
        if self.base is not None:
            self._left_ns, self.base = self.wall_ns, None
        self._clocked = False
