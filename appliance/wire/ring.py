"""The BPF ring buffer, mapped: find what is committed, hand it out as one piece of memory, give the space back.

Layout (kernel/bpf/ringbuf.c): the consumer position on a page of its own, writable; the producer position on the next,
read-only; then the data, mapped twice in a row, so that a span that wraps is contiguous all the same. Positions are
byte counts that only rise. A record is 8 bytes of header, of which the first four are its length with a busy and a
discard bit, and its bytes padded to 8. Records become committed in any order; a span ends before the first busy one.

The consumer position lives in the ring itself: pinned, it outlasts this process, and the next one goes on from it.
"""

import mmap
import os

from appliance.errors import DamagedEvidence, Unavailable
from appliance.wire.records import BUSY, LENGTH, RING_HEADER

SPAN = 2**20  # bytes of one span at most: the journal's largest payload


def committed_end(words: memoryview, mask: int, start: int, producer: int, limit: int) -> int:
    """Position behind the last committed record in a row from `start`, at most `limit` bytes on (one record at least).

    `words`: the doubly mapped data as native u32, so that a length is read in one piece while the kernel writes it.
    `mask`: ring size - 1. This loop is all that Python does per record (0.1 µs): one index, no copy, no object kept.
    """
    shift = start - (start & mask)
    at = start - shift
    end = producer - shift
    stop = min(end, at + limit)
    while at < stop:
        word = words[at >> 2]
        if word & BUSY:
            break
        following = at + ((word & LENGTH) + 15 & ~7)
        if following > stop:
            if following > end:
                raise DamagedEvidence("ring: a record is longer than what was written; tear down and start again")
            if at + shift == start:  # longer than the limit by itself
                at = following
            break
        at = following
    return at + shift


def fill(fd: int) -> int:
    """Bytes that a ring holds, looked at from outside: nothing of it is mapped for writing."""
    page = mmap.PAGESIZE
    with (
        mmap.mmap(fd, 2 * page, mmap.MAP_SHARED, mmap.PROT_READ) as both,
        memoryview(both) as view,
        view[:8].cast("Q") as consumer,
        view[page : page + 8].cast("Q") as producer,
    ):
        start = consumer[0]  # first: a reader that goes on meanwhile never passes what was written by then
        return producer[0] - start


class Ring:
    """A mapped ring of `size` bytes (a power of two). `fd`: the map's file descriptor, which stays the caller's."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self.size = size
        self._mask = size - 1
        self._fd = fd
        try:
            self._front = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self._back = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        except OSError as error:
            raise Unavailable(f"ring: cannot be mapped: {os.strerror(error.errno or 0)}; run as root") from error
        self._views = [memoryview(self._front), memoryview(self._back)]
        self._consumer = self._views[0][:8].cast("Q")  # native: read and written in one piece, unlike struct's "<Q"
        self._producer = self._views[1][:8].cast("Q")
        self._data = self._views[1][page:]
        self._words = self._data.cast("I")

    def fileno(self) -> int:
        """Readable while the ring holds something; wake-ups get lost, so never wait for it without a time-out."""
        return self._fd

    @property
    def position(self) -> int:
        """Everything before it is consumed."""
        return self._consumer[0]

    @property
    def fill(self) -> int:
        """Bytes that the ring holds, those of uncommitted records included."""
        return self._producer[0] - self._consumer[0]

    def committed(self, start: int, limit: int = SPAN) -> int:
        """The end of the committed records in a row from position `start`; `start` itself when there are none."""
        return committed_end(self._words, self._mask, start, self._producer[0], limit)

    def span(self, start: int, end: int) -> memoryview:
        """The bytes between two positions, record headers included, not copied. Valid until `advance` passes them."""
        if not 0 <= end - start <= self.size:
            raise ValueError("span larger than the ring")
        at = start & self._mask
        return self._data[at : at + end - start]

    def advance(self, position: int) -> None:
        """Give the space before `position` back to the program. Only after its bytes are in the journal."""
        self._consumer[0] = position

    def close(self) -> None:
        """Unmap. The ring itself, and what it holds, stays."""
        for view in (self._words, self._data, self._producer, self._consumer, *self._views):
            view.release()
        self._front.close()
        self._back.close()


assert RING_HEADER.size == 8  # the walk above adds it to the rounding: (length + 8 + 7) & ~7
