"""Datagrams: each one is a whole message, so nothing is kept of one for the next, and all is settled on arrival."""

from abc import ABC, abstractmethod
from typing import Any

from appliance.dissect import Match, Output
from appliance.dissect.raw import said
from appliance.model import Direction, Message


class Datagrams(ABC):
    """Base of dissectors that are given one datagram at a time. Offsets are those of datagrams laid end to end."""

    opaque = False
    successor: str | None = None

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self._received = {Direction.CLIENT: client_offset, Direction.SERVER: server_offset}

    @property
    def held(self) -> int:
        return 0

    def shed(self) -> Output:
        return []

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        start = self._received[direction]
        self._received[direction] += len(data)
        return [self._message(direction, data, start, ts_ns)] if data else []

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        self._received[direction] += length
        return []

    def close(self, direction: Direction, ts_ns: int) -> Output:
        return []

    def settled(self, direction: Direction) -> int:
        return self._received[direction]

    @abstractmethod
    def _message(self, direction: Direction, data: bytes, start: int, ts_ns: int) -> Message:
        """What one datagram, which begins at offset `start`, says."""


class RawDatagrams(Datagrams):
    """Any bytes: what is recorded when no other dissector fits. Messages as `Raw` makes them of a burst."""

    protocol = "raw"

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        super().__init__(client_offset, server_offset)
        self.attrs: dict[str, Any] = {}

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        return Match.YES

    def _message(self, direction: Direction, data: bytes, start: int, ts_ns: int) -> Message:
        return said(direction, data, start, ts_ns, ts_ns)
