"""Refused packets of which no record tells: their source was one too many in its second (`wire.refusal_rate`).

The program counts them by reason. What is new is put on record from time to time, so that the counts of all refusal
records and of these events together are all refused packets.
"""

from appliance.wire.abi import Counter, Reason
from appliance.wire.bpf import Map
from appliance.wire.maps import U32


class Untold:
    """Watches the program's counters, from what they are now."""

    def __init__(self, counters: Map) -> None:
        self._counters = counters
        self._told = self._read()

    def news(self) -> dict[int, int]:
        """Packets by reason since the last call."""
        now = self._read()
        found = {reason: count - self._told[reason] for reason, count in now.items() if count > self._told[reason]}
        self._told = now
        return found

    def _read(self) -> dict[int, int]:
        return {reason: self._total(Counter.UNTOLD + reason) for reason in Reason}

    def _total(self, index: int) -> int:
        return sum(int.from_bytes(value, "little") for value in self._counters.lookup_percpu(U32.pack(index)))
