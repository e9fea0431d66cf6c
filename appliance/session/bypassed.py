"""Times in which packets may have passed that not even the kernel program saw: events `unguarded`.

The event says since when and until when. What it means for a session depends on when that began and ended, not on where
the event stands in the journal: the ring may still hold packets of that time when the event is written.
"""

from collections import deque
from typing import Any, NamedTuple

KIND = "unguarded"
TEXT = "nothing held back unrecorded packets for a time while it was open: some may have passed"
MAX_BOUNDS = 16  # remembered for sessions that are still in the ring; adjoining ones count as one


class Bounds(NamedTuple):
    """Recorded time, ns, both ends included; `attrs` as the finding shows them."""

    since: int
    until: int
    attrs: dict[str, Any]


class Bypassed:
    """The last of these times."""

    def __init__(self) -> None:
        self._known: deque[Bounds] = deque(maxlen=MAX_BOUNDS)

    def add(self, said: dict[str, Any], base: int) -> Bounds | None:
        """From the event's fields; `base`: recorded time minus boot time. None: they are no bounds."""
        since, until = said.get("since_boottime_ns"), said.get("until_boottime_ns")
        if not isinstance(since, int) or not isinstance(until, int) or not 0 <= since <= until:
            return None
        names = ("since_ns", "until_ns", "interfaces")
        bounds = Bounds(since + base, until + base, {name: said[name] for name in names if name in said})
        last = self._known.pop() if self._known else bounds
        if last.since <= bounds.since <= last.until <= bounds.until:
            self._known.append(Bounds(last.since, bounds.until, last.attrs | {"until_ns": said.get("until_ns")}))
        else:
            self._known.extend((last, bounds) if last is not bounds else (bounds,))
        return bounds

    def at(self, began: int) -> Bounds | None:
        """That in which a session began which the journal has only now."""
        return next((one for one in self._known if one.since <= began <= one.until), None)
