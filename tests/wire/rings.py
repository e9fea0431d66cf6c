"""A ring for tests without a kernel: a file laid out like the mapped ring buffer, written like the program writes."""

import mmap
import os
from dataclasses import replace
from typing import Any

from appliance.wire.abi import ABI, Kind, Record
from appliance.wire.records import BUSY, DISCARD, RING_HEADER, padded
from appliance.wire.ring import Ring

PAGE = mmap.PAGESIZE


def record(data: bytes = b"", **fields: Any) -> Record:
    """A PACKET record with `data` behind it, all else 0 unless said."""
    made = Record.unpack(bytes(Record.LAYOUT.size))
    given = {"version": ABI, "kind": Kind.PACKET, "length": len(data), **fields}
    return replace(made, **given)


class FileRing:
    """`ring` maps what this writes. Data goes to both copies, since a file has no double mapping."""

    def __init__(self, size: int = 65536, start: int = 0) -> None:
        self.size = size
        self._fd = os.memfd_create("ring")
        os.ftruncate(self._fd, 2 * PAGE + 2 * size)
        self.producer = start
        os.pwrite(self._fd, start.to_bytes(8, "little"), 0)
        os.pwrite(self._fd, start.to_bytes(8, "little"), PAGE)
        self.ring = Ring(self._fd, size)

    def close(self) -> None:
        self.ring.close()
        os.close(self._fd)

    def put(self, body: bytes, flags: int = 0) -> int:
        """Reserve and commit a record, or leave it busy; its position."""
        at = self.producer
        held = at + padded(len(body)) + RING_HEADER.size - self.ring.position
        assert held <= self.size, "the ring is full"
        self._poke(at, RING_HEADER.pack(len(body) | flags, 0) + body)
        self.producer = at + RING_HEADER.size + padded(len(body))
        os.pwrite(self._fd, self.producer.to_bytes(8, "little"), PAGE)
        return at

    def commit(self, at: int, body: bytes) -> None:
        """Make the busy record at `at` a whole one."""
        self._poke(at, len(body).to_bytes(4, "little"))

    def packet(self, data: bytes, **fields: Any) -> int:
        return self.put(record(data, **fields).pack() + data)

    def busy(self, body: bytes) -> int:
        return self.put(body, BUSY)

    def discard(self, body: bytes) -> int:
        return self.put(body, DISCARD)

    def _poke(self, at: int, data: bytes) -> None:
        offset = at % self.size
        first = self.size - offset  # bytes before the end
        for copy in (0, self.size):
            os.pwrite(self._fd, data[:first], 2 * PAGE + copy + offset)
            os.pwrite(self._fd, data[first:], 2 * PAGE + copy)
