"""Refused packets of which no record tells: their source was one too many in its second (`wire.refusal_rate`).

The program counts them by reason, also while no wire process runs. What is new is put on record from time to time, so
that the counts of all refusal records and of these events together are all refused packets. How many were put on record
stands beside the counters, in the same pinned map: both begin at 0 together, and no restart forgets one of them. A
crash between the record and `keep` tells the last packets twice, rather than never.
"""

from appliance.wire.abi import Counter, Reason
from appliance.wire.bpf import Map
from appliance.wire.maps import U32

U64 = 8  # bytes


class Untold:
    """Watches the program's counters, from what is on record of them."""

    def __init__(self, counters: Map) -> None:
        self._counters = counters
        self._told = self._read(Counter.TOLD)
        self._kept = dict(self._told)

    def news(self) -> dict[int, int]:
        """Packets by reason since the last call."""
        now = self._read(Counter.UNTOLD)
        found = {reason: count - self._told[reason] for reason, count in now.items() if count > self._told[reason]}
        self._told = now
        return found

    def keep(self) -> None:
        """All that `news` gave is on record."""
        for reason, count in self._told.items():
            if count != self._kept[reason]:
                values = [count, *[0] * (len(self._values(Counter.TOLD + reason)) - 1)]  # a value for each CPU
                self._counters.update(
                    U32.pack(Counter.TOLD + reason), b"".join(value.to_bytes(U64, "little") for value in values)
                )
        self._kept = dict(self._told)

    def _read(self, first: Counter) -> dict[int, int]:
        return {reason: sum(self._values(first + reason)) for reason in Reason}

    def _values(self, index: int) -> list[int]:
        return [int.from_bytes(value, "little") for value in self._counters.lookup_percpu(U32.pack(index))]
