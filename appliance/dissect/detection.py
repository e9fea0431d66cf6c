"""Which protocol a session speaks: what arrived before that is known, and the verdict.

A detector that is undecided holds back those after it, so the verdict does not depend on how the bytes were cut into
segments. What arrived before the verdict is kept, for whoever reads it then.
"""

from typing import Literal

from appliance.dissect import Dissector, Match
from appliance.dissect.http2 import Http2
from appliance.dissect.http2_frames import midstream
from appliance.dissect.raw import Raw
from appliance.dissect.unframed import Unframed
from appliance.model import Direction

MAX_PREFIX = 4096  # bytes of one direction on which every detector must have decided
MAX_PENDING = 4 * MAX_PREFIX  # bytes of both directions that wait for a verdict
MAX_PENDING_EVENTS = 1024  # segments that wait for a verdict

Event = tuple[Literal["data", "gap", "close"], Direction, bytes, int, int]  # what, whose, bytes, length, time


class Detection:
    """The part of a `Conversation` that finds its protocol.

    `registry`: the dissectors that are asked, in order; the last one takes everything. `datagrams`: only the first one
    of each direction is looked at.
    """

    def __init__(self, registry: tuple[type[Dissector], ...], *, datagrams: bool) -> None:
        self._datagrams = datagrams
        self._registry = registry
        self._ended: set[Direction] = set()
        self._unseen: set[Direction] = set()  # directions that may begin within a message
        self._damaged = False  # bytes before the verdict are missing
        self._start_detection()

    def _start_detection(self) -> None:
        self._pending: list[Event] = []
        self._pending_bytes = 0
        self._prefix = {Direction.CLIENT: b"", Direction.SERVER: b""}
        self._frozen: set[Direction] = set()  # a gap, or a datagram's end, ended this direction's prefix

    def _keep(self, event: Event) -> type[Dissector] | None:
        """Keep the event; once the protocol is known, what dissects it."""
        what, direction, data, length, _ = event
        self._pending.append(event)
        if what == "close":
            self._ended.add(direction)
        elif what == "data":
            self._pending_bytes += length
            if direction not in self._frozen:
                self._prefix[direction] = (self._prefix[direction] + data)[:MAX_PREFIX]
                if self._datagrams:
                    self._frozen.add(direction)
        elif what == "gap":
            self._damaged = True
            if self._prefix[direction]:
                self._frozen.add(direction)
            else:
                self._unseen.add(direction)
        if not self._pending_bytes:
            if len(self._pending) > MAX_PENDING_EVENTS:
                return self._last()
            return None
        return self._verdict(final=self._must_decide())

    def _must_decide(self) -> bool:
        return (
            max(map(len, self._prefix.values())) >= MAX_PREFIX
            or self._pending_bytes >= MAX_PENDING
            or len(self._pending) >= MAX_PENDING_EVENTS
            or any(prefix and direction in self._ended for direction, prefix in self._prefix.items())
            or len(self._ended) == len(self._prefix)
        )

    def _verdict(self, final: bool) -> type[Dissector] | None:
        client, server = self._prefix[Direction.CLIENT], self._prefix[Direction.SERVER]
        for candidate in self._registry:
            try:
                match = candidate.detect(client, server)
            except Exception:  # a bug in a detector: the others go on
                match = Match.NO
            if match is Match.YES:
                return self._last() if candidate is self._registry[-1] else candidate
            if match is Match.MORE and not final:
                return None
        return self._last()

    def _last(self) -> type[Dissector]:
        """What fits everything."""
        last = self._registry[-1]
        if last is not Raw or not (self._unseen or self._damaged):
            return last
        if Http2 in self._registry and any(map(midstream, self._prefix.values())):
            self._unseen.update(Direction)
            return Http2
        return Unframed
