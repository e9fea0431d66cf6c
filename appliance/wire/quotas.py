"""The books of who has how many flows (`bpf/quota.h`): what user space owes them.

The program counts the flows that an owner opens, less those whose place a new connection on the same ports takes; what
user space takes out of the map, it counts itself. Each survey of the flows puts the difference right: of the flows that
were opened before it began, those that it does not find are released. An error of a moment (a flow that was opened
while the survey looked) is gone with the next.
"""

import struct
from collections import Counter
from collections.abc import Iterable

from appliance.wire.abi import Owner, Quota
from appliance.wire.bpf import Map

U64 = struct.Struct("<Q")
BOUND = b"\xff" * 8
EVERYBODY = bytes(Owner.LAYOUT.size)
SOURCE = slice(0, 16)  # of struct flow_key
FAMILY = 37  # of struct flow_key
IPV4 = 4
WRAP = 1 << 64


def owner(key: bytes, lease: int) -> bytes:
    """Who answers for the flow of this key: its lease, or the client's network."""
    if lease:
        return U64.pack(lease) + BOUND
    source = key[SOURCE]
    return source[:15] + b"\0" if key[FAMILY] == IPV4 else source[:8] + bytes(8)


class Quotas:
    """Maps `quotas` and `released`."""

    def __init__(self, quotas: Map, released: Map) -> None:
        self._quotas = quotas
        self._released = released
        self._opened: dict[bytes, int] = {}
        self._found: Counter[bytes] = Counter()
        self._since = 0
        self._empty: set[bytes] = set()  # owners without flows at the last survey

    def begin(self, now_ns: int) -> None:
        """A survey of all flows begins."""
        self._opened = {name: Quota.unpack(value).opened for name, value in self._quotas.items()}
        self._found.clear()
        self._since = now_ns

    def seen(self, key: bytes, lease: int, start_ns: int) -> None:
        """The survey found this flow."""
        if start_ns <= self._since:
            self._found[owner(key, lease)] += 1
            self._found[EVERYBODY] += 1

    def settle(self) -> None:
        """The survey is over: write what was released. Owners without flows are forgotten after the second time."""
        empty = set()
        for name, opened in self._opened.items():
            found = self._found[name]
            if not found and name != EVERYBODY:
                if name in self._empty:  # in this order: an owner without a quota is held to have nothing
                    self._quotas.delete(name)
                    self._released.delete(name)
                    continue
                empty.add(name)
            self._released.update(name, U64.pack((opened - found) % WRAP))
        self._empty = empty

    def release(self, gone: Iterable[tuple[bytes, int]]) -> None:
        """Flows, by key and lease, were taken out of the map."""
        counts = Counter(owner(key, lease) for key, lease in gone)
        counts[EVERYBODY] = counts.total()
        for name, count in counts.items():
            if (value := self._released.lookup(name)) is not None:
                self._released.update(name, U64.pack((U64.unpack(value)[0] + count) % WRAP))
