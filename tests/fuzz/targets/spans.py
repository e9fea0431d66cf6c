"""The kernel's ring as the reader sees it, and the records of a span.

    order of the ring's size (8 to 12), 3 bytes start, 2 bytes fill, 2 bytes limit, 1 byte: cut of the second reading;
    then the ring's data

What holds: the walk ends within what was produced, on a multiple of 8, and gives up only by `DamagedEvidence`; records
lie within the span, in rising order; a span read in two parts gives the same records; what is read can be written back.
"""

import struct
from typing import Final

from appliance.errors import DamagedEvidence
from appliance.journal import Frame, FrameKind, Layout
from appliance.wire.abi import Record
from appliance.wire.records import BUSY, DISCARD, LENGTH, OFFSET_BITS, plain, records
from appliance.wire.ring import committed_end
from tests.fuzz.script import Script
from tests.fuzz.targets import Target
from tests.session.traffic import Peer, record

Read = list[tuple[int, Record, bytes]]


def read(payload: bytes, layout: Layout, start: int = 0) -> tuple[Read, bool]:
    """Records of a span, and whether it was whole."""
    frame = Frame(1, FrameKind.SPAN, 0, payload, 0, len(payload), layout)
    found: Read = []
    try:
        for position, one, data in records(frame, start):
            assert position >> OFFSET_BITS == 1, "a position of another frame"
            offset = position & (1 << OFFSET_BITS) - 1
            assert start <= offset <= len(payload) - Record.LAYOUT.size, "a record outside of its span"
            assert not found or offset > found[-1][0], "records out of order"
            assert len(data) == one.length, "another length than the record says"
            found.append((offset, one, bytes(data)))
    except DamagedEvidence:
        return found, False
    return found, True


def check(data: bytes) -> None:
    script = Script(data)
    size = 256 << script.below(5)
    begin = script.number(3) & ~7
    fill, limit = script.below(size + 1) & ~7, 1 + script.below(size)
    cut = script.byte()
    memory = script.rest()[:size].ljust(size, b"\0")
    doubled = memoryview(bytearray(memory + memory)).cast("I")
    try:
        end = committed_end(doubled, size - 1, begin, begin + fill, limit)
    except DamagedEvidence:
        return
    assert begin <= end <= begin + fill, "the span ends outside of what was produced"
    assert end % 8 == 0, "a span that ends within a record"
    at = begin & size - 1
    span = (memory + memory)[at : at + end - begin]
    bounds = _bounds(span)
    assert end - begin <= limit or len(bounds) == 1, "more than was asked for"
    found, whole = read(span, Layout.RING)
    if not whole:
        return
    middle = bounds[cut % len(bounds)] if bounds else 0
    first, second = read(span[:middle], Layout.RING)[0], read(span, Layout.RING, middle)[0]
    assert first + second == found, "read in two parts, it has other records"
    again = b"".join(plain(one, part) for _, one, part in found)
    assert [entry[1:] for entry in read(again, Layout.PLAIN)[0]] == [entry[1:] for entry in found], "not written back"


def _bounds(span: bytes) -> list[int]:
    """Where records of the ring begin."""
    at, places = 0, []
    while at < len(span):
        places.append(at)
        (word,) = struct.unpack_from("<I", span, at)
        assert not word & BUSY, "a record that is still being written"
        at += ((word & LENGTH) + 15) & ~7
    assert at == len(span), "the last record is not whole"
    return places


def ringed(body: bytes, flags: int = 0) -> bytes:
    return struct.pack("<II", len(body) | flags, 0) + body + bytes(-len(body) % 8)


def seeds() -> list[bytes]:
    peer = Peer()
    packet = peer.packet(0, 24, 0, b"hello")
    bodies = [packet[: Record.LAYOUT.size + 45], plain(record(length=3), b"abc")[: Record.LAYOUT.size + 3]]
    memory = ringed(bodies[0]) + ringed(bodies[1], DISCARD) + ringed(bodies[0]) + ringed(bytes(60))
    head = b"\3" + bytes(3) + len(memory).to_bytes(2, "little") + b"\xff\x07\1"
    wrapped = b"\0" + bytes([200, 0, 0]) + (208).to_bytes(2, "little") + b"\xff\0\0"
    short = ringed(bodies[0])
    return [head + memory, wrapped + short[56:].ljust(200, b"\0") + short[:56], head + ringed(bodies[0], BUSY)]


TARGETS: Final = {"ring": Target(check, seeds, (b"\x00\x00\x00\x80", b"\x00\x00\x00\x40", b"\1\1\1\0\4\6"), 2200)}
