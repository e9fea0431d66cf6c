"""One direction of a PostgreSQL connection, cut into protocol messages.

In: bytes, gaps, the end. Out: `Frame`s, each with its byte range and times.

    STARTUP    length, then a body whose first 4 bytes are a code   client: before log-in
    ANSWER     one byte, S, G or N                                  server: after SSLRequest or GSSENCRequest
    TYPED      type byte, length, body                              everything else
    SEARCHING  behind a gap that did not end inside a message: looking for a message to go on with, see `search`
    IGNORED    degraded, or encrypted from here on: nothing is read any more

A message over `MAX_MESSAGE` is not buffered: its head comes out once all of it has passed, `cut`. So does a message
with a gap inside, which ends where its length says, and one that the end of the stream cuts off.

Until a half is told by `release` that log-in is over, credentials may come: `sensitive` names the message types that
may hold one, with the number of bytes from the message's start that are harmless. `secrets` collects ranges to redact:
those that the caller names by `redact`, and by itself those of cut messages and of bytes that passed unread.
"""

from collections.abc import Mapping
from enum import Enum

from msgspec.structs import replace

from appliance.dissect.postgres_frames import (
    CANCEL,
    HEADER,
    HEADER_LAYOUT,
    INSANE,
    MAX_CREDENTIAL,
    MAX_SHORT,
    MAX_STARTUP,
    STARTUP_PACKET,
    limit,
    sane,
    search,
)
from appliance.dissect.sql_frames import FRAGMENT, Frame
from appliance.dissect.sql_half import MAX_MESSAGE, MAX_SEARCH, Reader


class Mode(Enum):
    STARTUP = 0
    ANSWER = 1
    TYPED = 2
    SEARCHING = 3
    IGNORED = 4


class Half(Reader):
    """One direction. `feed`, then take every frame that `startup`, `answer` or `typed` gives for its present `mode`."""

    def __init__(self, offset: int, mode: Mode, known: bytes, sensitive: Mapping[int, int]) -> None:
        super().__init__(offset)
        self.mode = mode
        self.released: int | None = None  # offset from which on no credential comes
        self._known = known
        self._sensitive = dict(sensitive)

    # -- input -----------------------------------------------------------------------------------------------------

    def feed(self, data: bytes, ts_ns: int) -> None:
        self._now_ns = ts_ns
        if self._skip:
            passed = min(self._skip, len(data))
            self._pass(passed)
            data = data[passed:]
        if self.mode is Mode.IGNORED:
            self._ignored(data)
        elif data:
            if not self._buffer:
                self._ts_ns = ts_ns
            self._buffer += data

    def gap(self, length: int, ts_ns: int) -> None:
        """Bytes are missing. Within a message of known length it goes on behind that; else a place is searched for."""
        self._now_ns = ts_ns
        if self.released == self.received and self._sensitive:  # what is missing came before the answer
            self.released += length + MAX_CREDENTIAL
        if self.mode is Mode.TYPED and len(self._buffer) >= HEADER:
            self._redact_buffered()
            data = bytes(self._buffer)
            self._buffer.clear()
            self._begin_skip(data, 0, len(data))
        inside = min(self._skip, length)
        if self._skip:
            self._skip -= inside
            self._offset += inside
            if self._head is not None:
                self._head = replace(self._head, cut=True)
            self._finish_skip()
        if length == inside and inside:
            return
        if self.mode is not Mode.IGNORED:
            self._abandon()
            self._searched = 0
            self.mode = Mode.SEARCHING
        self._offset += length - inside
        self._lost_from, self._lost_ns = self._offset, ts_ns
        self._need = 0

    def close(self, ts_ns: int) -> list[Frame]:
        """The direction ended: what is left over, cut."""
        self._now_ns = ts_ns
        if self._head is not None:
            end = self._offset
            self._ready.append(replace(self._head, end=end, cut=True))
            self._head, self._skip = None, 0
        if self.mode is Mode.TYPED and len(self._buffer) >= HEADER:
            self._redact_buffered()
            self._emit(self._buffer[0], bytes(self._buffer[HEADER:]), len(self._buffer))
        else:
            self._abandon()
        self.mode = Mode.IGNORED
        return self._take()

    # -- output ----------------------------------------------------------------------------------------------------

    @property
    def first(self) -> int | None:
        """The first byte that was not read yet."""
        return self._buffer[0] if self._buffer else None

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return len(self._buffer) + (len(self._head.body) if self._head is not None else 0)

    def redact(self, start: int, end: int) -> None:
        """These bytes are a credential, as far as they came before the release; `MAX_REDACTED` in all."""
        if self.released is not None:
            end = min(end, self.released)
        super().redact(start, end)

    def startup(self) -> Frame | None:
        """The next packet without a type, or INSANE; None: more bytes are needed."""
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        length = int.from_bytes(buffer[:4], "big")
        if not 8 <= length <= MAX_STARTUP:
            return self._insane(4)
        if len(buffer) < length:
            return None
        return self._cut_off(STARTUP_PACKET, length, 4)

    def answer(self) -> Frame | None:
        """The server's one byte; `kind` is that byte. An E is the start of a typed error instead and is left."""
        if not self._buffer:
            return None
        if self._buffer[0] == 0x45:
            self.mode = Mode.TYPED
            return None
        return self._cut_off(self._buffer[0], 1, 1)

    def read(self, data: bytes, ts_ns: int) -> list[Frame]:
        """`feed` and `typed` in one: whole short messages at the start are read where they are."""
        if self._buffer or self._skip or self._ready or self.mode is not Mode.TYPED:
            self.feed(data, ts_ns)
            return self.typed()
        frames = []
        at, size, base = 0, len(data), self._offset
        unpack = HEADER_LAYOUT.unpack_from
        while size - at >= HEADER:
            kind, length = unpack(data, at)
            end = at + 1 + length
            if end > size or not 4 <= length <= MAX_SHORT:
                break
            frames.append(Frame(kind, data[at + HEADER : end], base + at, base + end, ts_ns, ts_ns))
            at = end
        self._offset, self._need, self._now_ns = base + at, HEADER, ts_ns
        if at < size:
            self.feed(data[at:], ts_ns)
            frames += self.typed()
        return frames

    def typed(self) -> list[Frame]:
        """All frames that are complete; INSANE is the last one ever."""
        if self.mode is Mode.SEARCHING:
            self._search()
        if self.mode is not Mode.TYPED or len(self._buffer) < max(self._need, HEADER):
            return self._take()
        data = bytes(self._buffer)
        frames = self._take()
        at, size = 0, len(data)
        base, ts_ns, now_ns = self._offset, self._ts_ns, self._now_ns
        unpack, known = HEADER_LAYOUT.unpack_from, self._known
        self._need = HEADER
        while size - at >= HEADER:
            kind, length = unpack(data, at)
            end = at + 1 + length
            if not 4 <= length <= MAX_SHORT and not 4 <= length <= limit(kind, known):
                self._degrade(frames, kind, base + at, ts_ns)
                at = size
                break
            if length >= MAX_MESSAGE:
                if size - at < MAX_MESSAGE:
                    self._need = MAX_MESSAGE
                    break
                self._offset, self._ts_ns = base, ts_ns
                self._begin_skip(data, at, min(end, size))
                at = min(end, size)
                if self._head is not None:
                    break
                frames += self._take()
            elif end <= size:
                frames.append(Frame(kind, data[at + HEADER : end], base + at, base + end, ts_ns, now_ns))
                at = end
            else:
                self._need = end - at
                break
            ts_ns = now_ns
        self._offset = base + at
        self._ts_ns = ts_ns
        if at:
            self._buffer = bytearray(data[at:])
        return frames

    def release(self) -> None:
        """Log-in is over. Bytes that came before this and were not read yet may still be of it.

        So may those of a message that has begun: what the peer has, and answers, may still wait here behind a hole.
        """
        if self.released is None:
            self.released = self.received
            if self._skip:
                self.released += self._skip
            elif (
                self.mode is Mode.TYPED
                and len(self._buffer) >= HEADER
                and sane(bytes(self._buffer[:HEADER]), 0, self._known)
            ):
                self.released = max(self.released, self._offset + 1 + int.from_bytes(self._buffer[1:HEADER], "big"))

    @property
    def _guarded(self) -> bool:
        """Whether the next byte to be read may be a credential's."""
        return self._budget > 0 and (self.released is None or self._offset < self.released)

    def ignore(self) -> None:
        """Read nothing any more."""
        self.mode = Mode.IGNORED
        self._offset += len(self._buffer)
        self._buffer.clear()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _cut_off(self, kind: int, length: int, header: int) -> Frame:
        body = bytes(self._buffer[header:length])
        frame = Frame(kind, body, self._offset, self._offset + length, self._ts_ns, self._now_ns)
        del self._buffer[:length]
        self._offset += length
        self._ts_ns = self._now_ns
        return frame

    def _insane(self, header: int) -> Frame:
        frame = self._cut_off(INSANE, header, header)
        self.ignore()
        return frame

    def _degrade(self, frames: list[Frame], kind: int, start: int, ts_ns: int) -> None:
        frames.append(Frame(INSANE, bytes((kind,)), start, start + HEADER, ts_ns, self._now_ns))
        self.mode = Mode.IGNORED
        self._tainted = kind in self._sensitive and self._guarded
        if self._tainted:
            self.redact(start + HEADER, self.received)

    def _emit(self, kind: int, body: bytes, length: int) -> None:
        self._ready.append(Frame(kind, body, self._offset, self._offset + length, self._ts_ns, self._now_ns, True))
        self._offset += length
        self._buffer.clear()

    def _abandon(self) -> None:
        """The buffered bytes can no longer become a message."""
        if self.mode is Mode.SEARCHING:
            self._pass_over(len(self._buffer))
            self._found()
        elif self._buffer:
            if self.mode is Mode.STARTUP and len(self._buffer) >= 8:
                self._redact_buffered()
            self._emit(FRAGMENT, b"", len(self._buffer))

    def _harmless(self) -> int:
        """How many of the buffered bytes cannot be a credential."""
        size = len(self._buffer)
        if not size or not self._guarded:
            return size
        if self.mode is Mode.TYPED:
            return min(self._sensitive.get(self._buffer[0], size), size)
        if self.mode is not Mode.STARTUP or size < 8:
            return 0
        if self._buffer[4:8] == CANCEL:
            return size
        return min(int.from_bytes(self._buffer[:4], "big"), size) if self._buffer[4:6] == b"\0\3" else 0

    def _redact_buffered(self) -> None:
        self.redact(self._offset + self._harmless(), self.received)

    def _begin_skip(self, data: bytes, at: int, upto: int) -> None:
        """Keep the head of the message at `at`, of which the bytes before `upto` came; pass over the rest of it."""
        kind, length = HEADER_LAYOUT.unpack_from(data, at)
        start = self._offset + at
        body = data[at + HEADER : min(upto, at + MAX_MESSAGE)]
        self._head = Frame(kind, body, start, start + 1 + length, self._ts_ns, 0, cut=True)
        self._skip = 1 + length - (upto - at)
        self._need = HEADER
        self._offset = start + upto - at
        self._finish_skip()

    def _pass(self, size: int) -> None:
        assert self._head is not None  # there is nothing to skip without it
        if self._head.kind in self._sensitive:
            self.redact(self._offset, self._offset + size)
        self._skip -= size
        self._offset += size
        self._finish_skip()

    def _finish_skip(self) -> None:
        if not self._skip:
            self._come_whole()

    # -- behind a gap ----------------------------------------------------------------------------------------------

    def _search(self) -> None:
        """Go on at the first place that looks like two messages in a row, or like one that ends a turn."""
        if len(self._buffer) < self._need:
            return
        data = bytes(self._buffer)
        at, need = search(data, self._known)
        self._pass_over(at)
        self._need = need
        if not need:
            self._found()
            self.mode = Mode.TYPED
        elif self._searched > MAX_SEARCH:
            self._found()
            self.ignore()

    def _pass_over(self, size: int) -> None:
        self.redact(self._offset, self._offset + size)
        self._pass_by(size)
