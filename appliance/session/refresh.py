"""The rows of open sessions, brought up to date while packets come: soon at first, then less and less often.

A session's first packet after its last row, and its place in a queue, are noticed when recorded time ticks; its row
follows when the pause is over, also if it has fallen silent by then. So many rows a second are made at most, whatever
the number of sessions; then each waits for its turn.
"""

from collections import deque
from collections.abc import Callable

from appliance.model import Row
from appliance.session.session import Session

PAUSES = tuple(seconds * 1_000_000_000 for seconds in (1, 2, 4, 8, 10))  # recorded time; the last again and again
RATE = 160  # rows in a second of recorded time: what 1600 busy sessions need


class Refresher:
    """`find`: the session of a serial while it is open. Times are recorded times, ns."""

    def __init__(self) -> None:
        self._queues: tuple[deque[tuple[int, int]], ...] = tuple(deque() for _ in PAUSES)  # due, serial
        self._looked = 0

    def note(self, session: Session) -> None:
        """There may be news of it."""
        if not session.queued_row and session.outdated:
            session.queued_row = True
            step = min(session.refreshed, len(PAUSES) - 1)
            self._queues[step].append((session.touched + PAUSES[step], session.serial))

    def work(self, now: int, find: Callable[[int], Session | None], out: list[Row]) -> None:
        """Make the rows that are due, the longest due first."""
        left = RATE * min(now - self._looked, PAUSES[0]) // PAUSES[0]
        self._looked = now
        while left > 0:
            queue = min((one for one in self._queues if one), key=lambda one: one[0], default=None)
            if queue is None or queue[0][0] > now:
                return
            session = find(queue.popleft()[1])
            if session is None:
                continue
            session.queued_row = False
            if session.outdated:
                session.refreshed += 1
                session.revise(out)
                left -= 1
