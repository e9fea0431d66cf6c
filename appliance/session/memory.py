"""How much memory the sessions' state takes, and what is given up when it is too much.

Each session is weighed when recorded time ticks or `LOOK_BYTES` of records have passed, and a new one at once, so the
outcome does not depend on how records were cut into frames; in between, the state grows by what comes. Above the bound,
memory is given up in the order of what that costs the evidence, until the state is an eighth below it:

1. sessions that ended and only linger for late packets: they are closed;
2. datagram sessions that have been silent for `QUIET_NS`, the longest silent first: closed as `idle`;
3. closed sessions that are remembered for the kernel's counters, the oldest first;
4. of sessions that have been silent for `QUIET_NS`
   - delivered bytes that are kept to compare repetitions with, the longest silent first (the coverage statement's
     `unverified` counts repetitions that could not be compared);
   - what dissectors keep for text and context, the heaviest first (finding `memory`; message flags);
   - bytes that wait behind holes, the heaviest first: the holes become gaps (finding `gap`, reason `buffer`);
5. while sessions as such make up most of it, streams that have been silent for `QUIET_NS`, the longest silent first
   (finding `evicted`): they end as interrupted, and go on as new ones;
6. the same as in 4 of sessions that are active;
7. these themselves (finding `evicted`): the longest silent while sessions as such make up most, else the heaviest.

No byte that was recorded is lost by any of it.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

LOOK_BYTES = 1 << 20  # of records between two looks
STREAM_BYTES = 12 * 1024  # of a TCP session without anything that waits; here and below as measured
DATAGRAM_BYTES = 9 * 1024  # of another one
STUB_BYTES = 7 * 1024  # of a closed one
PIECE_BYTES = 128  # that a buffered piece, a range or an entry of a table costs beside its content
SHEDDABLE = 8 * 1024  # in a dissector; less is not worth a finding
QUIET_NS = 1_000_000_000


@dataclass(slots=True)
class Relief:
    """What one look gave up: numbers of sessions, and the state's size before and after it, bytes."""

    before: int = 0
    after: int = 0
    closed: int = 0
    dropped: int = 0
    forgotten: int = 0
    shed: int = 0
    unblocked: int = 0
    evicted: int = 0

    def attrs(self, limit: int) -> dict[str, Any]:
        """`closed`: ended or silent ones; `dropped`: those that were closed before; the others see above."""
        counts = asdict(self)
        before, after = counts.pop("before"), counts.pop("after")
        return {"limit": limit, "before": before, "after": after, "sessions": counts}


class Weights:
    """The weight of every session, by serial, and their sum."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._of: dict[int, int] = {}

    def put(self, serial: int, weight: int) -> bool:
        """Whether it is lighter than before."""
        before = self._of.get(serial, 0)
        self.total += weight - before
        self._of[serial] = weight
        return weight < before

    def drop(self, serial: int) -> None:
        self.total -= self._of.pop(serial, 0)

    @property
    def over(self) -> bool:
        return self.total > self.limit

    @property
    def enough(self) -> bool:
        """Whether the sum is as far down as it should come once it was over the limit."""
        return self.total <= self.limit - self.limit // 8

    def heaviest(self) -> Iterable[int]:
        """Serials, the heaviest first, the older first of equals."""
        return sorted(self._of, key=lambda serial: (-self._of[serial], serial))
