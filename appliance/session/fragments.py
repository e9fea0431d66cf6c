"""IP fragments put together (RFC 791 §3.2, RFC 8200 §4.5). The kernel side refuses fragments; capture files have them.

A datagram whose fragments overlap is given up, as RFC 8200 §4.5 wants and Linux does for IPv4 too; a fragment of which
every byte is there already is a repetition, and the first stay. Bounded in datagrams, bytes and recorded time.
"""

from collections import OrderedDict
from typing import NamedTuple

from appliance.session.packets import Network
from appliance.session.segments import Segments

MAX_DATAGRAMS = 1024
MAX_PARTS = 512  # fragments of one datagram
MAX_BYTES = 1 << 16
TIMEOUT_NS = 30_000_000_000  # RFC 791 suggests 15 s, Linux waits 30 s


class Whole(NamedTuple):
    """The IP payload of a datagram; `conflicting` bytes arrived in two versions."""

    data: bytes
    conflicting: int


class _Datagram:
    __slots__ = ("conflicting", "count", "end", "parts", "since")

    def __init__(self, now: int) -> None:
        self.parts = Segments()
        self.end: int | None = None
        self.since = now
        self.count = 0
        self.conflicting = 0


class Fragments:
    """`lost` counts fragments of datagrams that never became whole; the caller reports and resets it."""

    def __init__(self) -> None:
        self.lost = 0
        self._waiting: OrderedDict[tuple[bytes, bytes, int, int], _Datagram] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, source: bytes, destination: bytes, part: Network, packet: memoryview, now: int) -> Whole | None:
        """Take one fragment; the whole payload once nothing is missing."""
        key = (source, destination, part.protocol, part.identification)
        data = bytes(packet[part.start : part.end])
        end = part.offset + len(data)
        datagram = self._waiting.get(key)
        if datagram is None:
            datagram = self._waiting[key] = _Datagram(now)
            if len(self._waiting) > MAX_DATAGRAMS:
                self._drop(next(iter(self._waiting)))
        cut = part.end > len(packet)  # the capture left bytes out
        broken = cut or end > MAX_BYTES or (part.more and len(data) % 8 != 0) or not data
        if broken or datagram.count >= MAX_PARTS:
            self.lost += 1
            return None
        datagram.count += 1
        top = datagram.parts.end if len(datagram.parts) else 0
        last = end if datagram.end is None and not part.more else datagram.end
        if last is not None and (max(end, top) > last or (not part.more and end != last)):  # ends in two places
            self._drop(key)
            return None
        there, differing = datagram.parts.overlap(part.offset, data, now)
        if 0 < there < len(data):
            self._drop(key)
            return None
        if not there:
            datagram.parts.insert(part.offset, data, now)
        datagram.conflicting += sum(len(found.data) for found in differing)
        if not part.more and datagram.end is None:
            datagram.end = end
        if datagram.end is None or datagram.parts.size < datagram.end:
            return None
        del self._waiting[key]
        whole = b"".join(piece for _, piece, _ in datagram.parts.take(0))
        return Whole(whole[: datagram.end], datagram.conflicting)

    def expire(self, now: int) -> None:
        """Give up what waited too long."""
        while self._waiting:
            key, datagram = next(iter(self._waiting.items()))
            if now - datagram.since < TIMEOUT_NS:
                return
            self._drop(key)

    def give_up(self) -> None:
        """Nothing will come any more."""
        while self._waiting:
            self._drop(next(iter(self._waiting)))

    def _drop(self, key: tuple[bytes, bytes, int, int]) -> None:
        self.lost += self._waiting.pop(key).count
