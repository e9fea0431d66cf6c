"""When each lock was seen in place, when it was gone, and when all of them may have been gone at once.

A packet passes without a record where the recording program is not attached to the interface it comes by, and the gate
not to the one it leaves by, and the interlock is gone or changed. A lock that is found gone may have been so since the
look that last found it, and until it was put back. Where these times overlap for all three, nothing held.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from appliance.identity.leases import Now

FILTER, GATE, INTERLOCK = "filter", "gate", "interlock"
EVERYWHERE = ""  # the place of the interlock
MAX_ABSENCES = 16  # of one lock, that are remembered after they ended
LASTING_NS = 5_000_000_000  # between two that tell of the same time, while nothing can be put back


class Absence(NamedTuple):
    """`since` None: no look found it before. `until` None: it is still gone. `place`: the interface's name."""

    place: str
    since: Now | None
    until: Now | None


@dataclass(frozen=True, slots=True)
class Unguarded:
    """Nothing held at some time between these, packets from and to these interfaces. `since` None: not known."""

    since: Now | None
    until: Now
    interfaces: tuple[str, ...]


class Locks:
    """The moment that is passed in lies before the look, and behind the repair: so the bounds hold the truth."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], Now] = {}
        self._gone: dict[tuple[str, str], Now | None] = {}  # since when
        self._past: dict[str, deque[Absence]] = {lock: deque(maxlen=MAX_ABSENCES) for lock in (FILTER, GATE, INTERLOCK)}
        self._told = 0  # boot time up to which it was told

    def in_place(self, lock: str, place: str, looked: Now) -> None:
        """A look found it."""
        if (lock, place) in self._gone:
            self.put_back(lock, place, looked)
        self._seen[lock, place] = looked

    def knows(self, lock: str, place: str) -> bool:
        """Whether it was in place there once."""
        return (lock, place) in self._seen

    def missing(self, lock: str, place: str) -> Now | None:
        """A look found it gone. The last look that did find it; None: there was none."""
        self._gone.setdefault((lock, place), self._seen.get((lock, place)))
        return self._gone[lock, place]

    def put_back(self, lock: str, place: str, now: Now) -> None:
        """It is in place again, or nothing can pass there any more."""
        if (lock, place) in self._gone:
            self._past[lock].append(Absence(place, self._gone.pop((lock, place)), now))
        self._seen[lock, place] = now

    def places(self, lock: str) -> set[str]:
        """Where it is, or was once."""
        return {place for known, place in self._seen if known == lock}

    def judge(self, now: Now) -> Unguarded | None:
        """What is new about times without any lock. All locks should have been looked at."""
        found: list[tuple[Now | None, Now, bool, str, str]] = []
        for arrival, departure, table in product(*(list(self._absences(lock)) for lock in self._past)):
            since = max((one.since for one in (arrival, departure, table) if one.since), key=_boottime, default=None)
            ends = [one.until for one in (arrival, departure, table) if one.until]
            until = min(ends, key=_boottime, default=now)
            if _boottime(since) < until.boottime > self._told:
                found.append((since, until, not ends, arrival.place, departure.place))
        self._forget()
        until = max((one[1] for one in found), key=_boottime, default=now)
        if not found or (all(one[2] for one in found) and self._told and until.boottime - self._told < LASTING_NS):
            return None
        self._told = until.boottime
        places = sorted({place for one in found for place in one[3:]})
        return Unguarded(min((one[0] for one in found), key=_boottime), until, tuple(places))

    def _absences(self, lock: str) -> Iterator[Absence]:
        yield from self._past[lock]
        yield from (Absence(place, since, None) for (known, place), since in self._gone.items() if known == lock)

    def _forget(self) -> None:
        """An absence matters as long as another lock may turn out to have been gone meanwhile."""
        looked = {**self._seen, **self._gone}
        for lock, past in self._past.items():
            last = min((_boottime(moment) for (known, _), moment in looked.items() if known != lock), default=0)
            while past and _boottime(past[0].until) <= last:
                past.popleft()


def _boottime(moment: Now | None) -> int:
    return moment.boottime if moment is not None else 0
