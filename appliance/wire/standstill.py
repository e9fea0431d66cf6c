"""Times in which the wire process did nothing: stopped, starved of processor or disk, or the whole machine suspended.

Nothing is lost by that: the kernel records into the ring until that is full, and then nothing passes. But nobody looked
after the locks, and leases did not end by the clock. So it is on record, told by the process itself once it goes on.
"""

from collections.abc import Callable

from appliance.identity.leases import Now

LONG = 2_000_000_000  # ns of CLOCK_BOOTTIME, which goes on while the machine sleeps
Event = Callable[..., None]  # Notes.event


class Standstill:
    """`fill`: bytes that the ring holds now, of `size`."""

    def __init__(self, event: Event, fill: Callable[[], int], size: int, now: Now) -> None:
        self._event = event
        self._fill = fill
        self._size = size
        self._last = now

    def turn(self, now: Now, drained: int = 0) -> None:
        """The loop begins another turn, before it drains anything. `drained`: bytes of the turn before, in the midst of
        which it may have stood still."""
        last, self._last = self._last, now
        passed = now.boottime - last.boottime
        if passed > LONG:
            fill = self._fill() + drained
            text = f"the wire process did nothing for {passed / 1e9:.1f} s; then the ring held {fill} bytes"
            self._event(
                "wire-stood-still",
                text,
                now,
                from_ns=last.unix,
                to_ns=now.unix,
                nanoseconds=passed,
                ring_fill=fill,
                ring_bytes=self._size,
            )
