"""How much memory the sessions' state takes, and what is given up when it is too much.

Each session is weighed when recorded time ticks or `LOOK_BYTES` of records have passed, so the outcome does not depend
on how records were cut into frames; in between, the state grows by what comes. Above the bound, memory is given up in
the order of what that costs the evidence, until the state is an eighth below it:

1. delivered bytes that are kept to compare repetitions with, of the longest silent sessions first (the coverage
   statement's `unverified` counts repetitions that could not be compared);
2. what dissectors keep for text and context, of the heaviest sessions first (finding `memory`; message flags);
3. bytes that wait behind holes, of the heaviest first: the holes become gaps (finding `gap`, reason `buffer`);
4. the heaviest sessions themselves (finding `evicted`): they end as interrupted, and go on as new ones.

No byte that was recorded is lost by any of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LOOK_BYTES = 1 << 20  # of records between two looks
SESSION_BYTES = 12 * 1024  # of a session without anything that waits, measured
SHEDDABLE = 8 * 1024  # in a dissector; less is not worth a finding


@dataclass(slots=True)
class Relief:
    """What one look gave up: numbers of sessions, and the state's size before and after it, bytes."""

    before: int = 0
    after: int = 0
    forgotten: int = 0
    shed: int = 0
    unblocked: int = 0
    evicted: int = 0

    def attrs(self, limit: int) -> dict[str, Any]:
        counts = {"forgotten": self.forgotten, "shed": self.shed, "unblocked": self.unblocked, "evicted": self.evicted}
        return {"limit": limit, "before": self.before, "after": self.after, "sessions": counts}


class Weights:
    """The weight of every session, by serial, and their sum."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._of: dict[int, int] = {}

    def put(self, serial: int, weight: int) -> None:
        self.total += weight - self._of.get(serial, 0)
        self._of[serial] = weight

    def drop(self, serial: int) -> None:
        self.total -= self._of.pop(serial, 0)

    @property
    def over(self) -> bool:
        return self.total > self.limit

    @property
    def wanted(self) -> int:
        """What the sum should come down to once it is over the limit."""
        return self.limit - self.limit // 8

    def heaviest(self) -> Iterable[int]:
        """Serials, the heaviest first, the older first of equals."""
        return sorted(self._of, key=lambda serial: (-self._of[serial], serial))

    def of(self, serial: int) -> int:
        return self._of.get(serial, 0)
