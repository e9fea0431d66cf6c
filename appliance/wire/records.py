"""The records of a SPAN frame, one by one.

A span is a sequence of `struct record` and the bytes that follow each, in one of two layouts. `RING`: as the kernel's
ring buffer holds it (kernel `struct bpf_ringbuf_hdr`): 8 bytes before each record, of which the first four are its
length with two flag bits, and padding to 8 bytes behind it. `PLAIN`: record and bytes, padded to 8 bytes.

Journal frames are authenticated, so a span that breaks this form is the appliance's own fault or a foreign version: it
is reported (`DamagedEvidence`), never guessed at.
"""

import struct
from collections.abc import Iterator
from typing import Any

from appliance.errors import DamagedEvidence
from appliance.journal import Frame, FrameKind, Layout
from appliance.wire.abi import ABI, Record

RING_HEADER = struct.Struct("<II")
BUSY = 1 << 31
DISCARD = 1 << 30
LENGTH = DISCARD - 1
SIZE = Record.LAYOUT.size
_VERSION, _LENGTH = 0, 9  # places among the fields
OFFSET_BITS = 24  # a span is at most 1 MiB


def position(frame: int, offset: int) -> int:
    """What names a record for good within its stream: frame number and byte offset of `struct record` in the span."""
    return frame << OFFSET_BITS | offset


def padded(length: int) -> int:
    return (length + 7) & ~7


def plain(record: Record, data: bytes) -> bytes:
    """One record in `PLAIN` layout; `record.length` must be that of `data`."""
    return record.pack() + data + bytes(padded(len(data)) - len(data))


def records(frame: Frame, start: int = 0) -> Iterator[tuple[int, Record, memoryview]]:
    """Yield (position, record, bytes behind it) of a SPAN frame; what the program discarded is skipped.

    `start`: offset in the span to begin at, for a `RING` span whose first part an earlier frame already held.
    Raises `DamagedEvidence` where the span breaks its form.
    """
    span = memoryview(frame.payload)
    for at, fields in scan(frame, start):
        record = Record(*fields)
        yield position(frame.number, at), record, span[at + SIZE : at + SIZE + record.length]


def scan(frame: Frame, start: int = 0) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The same without an object per record: yields (offset of the record in the span, values of `Record`'s fields)."""
    if frame.kind is not FrameKind.SPAN:
        raise DamagedEvidence(f"frame {frame.number}: kind {frame.kind} has no records; pass SPAN frames only")
    span = frame.payload
    size, unpack, header = SIZE, Record.LAYOUT.unpack_from, RING_HEADER.unpack_from
    ring = frame.layout is Layout.RING
    at, end = start, len(span)
    while at < end:
        if ring:
            if at + RING_HEADER.size > end:
                raise _damaged(frame, at)
            word, _ = header(span, at)
            at += RING_HEADER.size
            room = word & LENGTH
            following = at + (room + 7 & ~7)
            if word & DISCARD:
                at = following
                continue
            if word & BUSY or at + room > end:
                raise _damaged(frame, at)
        else:
            room = end - at
            following = 0
        if room < size:
            raise _damaged(frame, at)
        fields = unpack(span, at)
        if fields[_VERSION] != ABI or size + fields[_LENGTH] > room:
            raise _damaged(frame, at)
        yield at, fields
        at = following or at + padded(size + fields[_LENGTH])


def _damaged(frame: Frame, at: int) -> DamagedEvidence:
    return DamagedEvidence(
        f"frame {frame.number}, offset {at}: not a record of version {ABI}; read it with the release that wrote it"
    )
