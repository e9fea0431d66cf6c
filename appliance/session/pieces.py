"""What a stream of TCP gives out: its bytes, and everything that is not simply the next bytes.

Offsets count from the byte after the SYN; times are those of the packets, ns.
"""

from typing import NamedTuple


class Data(NamedTuple):
    offset: int
    data: bytes
    ts_ns: int


class Gap(NamedTuple):
    start: int
    end: int
    ts_ns: int
    why: str  # acknowledged, snapped, buffer, end


class Overlap(NamedTuple):
    start: int
    data: bytes  # the bytes that lost
    ts_ns: int


class Late(NamedTuple):
    """Bytes for a range that was declared a gap."""

    offset: int
    data: bytes
    ts_ns: int


class Stray(NamedTuple):
    """Bytes without a place in the stream. `start` may be negative: before the first byte.

    `why`: out-of-window, beyond-fin, before-start, after-reset, or a reason for which receivers drop a segment.
    """

    start: int
    data: bytes
    ts_ns: int
    why: str


class Note(NamedTuple):
    """A fact without bytes of its own."""

    kind: str
    start: int
    end: int
    ts_ns: int


Piece = Data | Gap | Overlap | Late | Stray | Note
