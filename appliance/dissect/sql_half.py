"""What the readers of one direction of a database's protocol have in common: places, limits, what is to be redacted.

A message over `MAX_MESSAGE` is not buffered, only its head is kept, as `_head`; `_skip` more bytes belong to it.
"""

from abc import ABC, abstractmethod

from msgspec.structs import replace

from appliance.dissect.sql_frames import LOST, Frame

MAX_MESSAGE = 1 << 20  # bytes of a message that are buffered and dissected
MAX_SEARCH = 1 << 20  # bytes searched after a gap before giving up
MAX_REDACTED = 1 << 18  # bytes of one direction redacted at most: redaction must not become a place to hide


class Reader(ABC):
    """One direction, cut into `Frame`s. `secrets` collects ranges to redact, for the caller to take."""

    def __init__(self, offset: int) -> None:
        self.secrets: list[tuple[int, int]] = []
        self._offset = offset  # of the first byte of _buffer
        self._buffer = bytearray()
        self._ts_ns = 0  # arrival of the first byte of _buffer
        self._now_ns = 0
        self._need = 0  # bytes that _buffer must have before there is anything to do
        self._skip = 0  # bytes that still belong to the present message, or packet, of _head
        self._head: Frame | None = None  # a message that is not buffered to its end
        self._ready: list[Frame] = []
        self._searched = 0
        self._lost_from = offset  # first byte passed over while a place to go on is searched for
        self._lost_ns = 0
        self._budget = MAX_REDACTED
        self._tainted = False  # degraded within a credential: what follows is redacted too

    @property
    def received(self) -> int:
        return self._offset + len(self._buffer)

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return len(self._buffer) + (len(self._head.body) if self._head is not None else 0)

    def rest(self) -> bytes:
        """Bytes that came and were not read."""
        return bytes(self._buffer)

    def settled(self) -> int:
        """Offset before which no byte will be redacted any more."""
        return self._offset + self._harmless()

    def redact(self, start: int, end: int) -> None:
        """These bytes are a credential; `MAX_REDACTED` in all."""
        size = min(end - start, self._budget)
        if size > 0:
            self._budget -= size
            self.secrets.append((start, start + size))

    @abstractmethod
    def _harmless(self) -> int:
        """How many of the buffered bytes cannot be a credential."""

    def _take(self) -> list[Frame]:
        ready, self._ready = self._ready, []
        return ready

    def _ignored(self, data: bytes) -> None:
        """Bytes of which nothing is read."""
        if self._tainted:
            self.redact(self._offset, self._offset + len(data))
        self._offset += len(data)

    def _come_whole(self) -> None:
        """All of `_head` has passed."""
        if self._head is not None:
            self._ready.append(replace(self._head, end_ns=self._now_ns))
            self._head = None

    def _pass_by(self, size: int) -> None:
        """Bytes of the buffer at which nothing begins, while a place to go on is searched for."""
        self._searched += size
        self._offset += size
        del self._buffer[:size]
        self._ts_ns = self._now_ns

    def _found(self) -> None:
        """The search is over: tell of what was passed over."""
        if self._offset > self._lost_from:
            lost_ns = self._lost_ns or self._now_ns
            self._ready.append(Frame(LOST, b"", self._lost_from, self._offset, lost_ns, self._now_ns, True))
            self._lost_from = self._offset
