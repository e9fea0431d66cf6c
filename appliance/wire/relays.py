"""Relays that died: their places are emptied, so that no connection goes to a listener that is gone, and their legs.

A relay registers itself (steering.py); that it lives is seen by its process, whose number and start it has left there.
"""

from collections.abc import Callable

from appliance.identity.leases import Now
from appliance.wire.abi import Leg, RelayValue
from appliance.wire.bpf import Map
from appliance.wire.maps import U32
from appliance.wire.steering import PROCESS_BITS, lives

Event = Callable[..., None]  # Notes.event


class Relays:
    """Maps `relays` and `legs`. `serving`: relays that take connections, by the last look."""

    def __init__(self, relays: Map, legs: Map, event: Event) -> None:
        self._relays = relays
        self._legs = legs
        self._event = event
        self._workers: set[int] = set()  # that were seen
        self.serving = 0

    def tend(self, now: Now) -> None:
        """Look after all of them: once a second."""
        places = {key: RelayValue.unpack(value) for key, value in self._relays.items()}
        there = {place.worker for place in places.values()}
        gone = {worker for worker in there | self._workers if not lives(worker)}
        for key, place in places.items():
            if place.worker in gone and self._relays.lookup(key) == place.pack():
                self._relays.delete(key)
                process = place.worker & (1 << PROCESS_BITS) - 1
                text = f"relay process {process} ended without a word; new connections go to the others"
                slot = int(U32.unpack(key)[0])
                self._event("relay-gone", text, now, slot=slot, port=place.port, pid=process)
        self._workers = (self._workers | there) - gone
        self.serving = sum(1 for place in places.values() if place.worker not in gone)
        if gone:
            self._forget_legs()

    def _forget_legs(self) -> None:
        """Of processes that are gone: their sockets are closed, and nobody asks for the counts any more."""
        dead: dict[int, bool] = {}
        for key, value in list(self._legs.items()):
            worker = Leg.unpack(value).worker
            if worker not in dead:
                dead[worker] = not lives(worker)
            if dead[worker]:
                self._legs.delete(key)
