"""One direction of TCP against a model that is too simple to be wrong: who sent which byte for which place.

    initial sequence number (4 bytes), flags (strict, midstream), order of the buffer's size;
    then operations: a segment, one in doubt, an acknowledgement, a reset, time, a pickle

What holds: delivered bytes and gaps follow each other; no offset comes twice, and none with a byte that was not sent
for it. As long as nothing but segments and time came, none is missing before the first hole, and a byte that lost its
place to another one is given out too. The buffer keeps its bound.
"""

import pickle
from collections.abc import Iterator
from typing import Final

from appliance.session.delivered import HISTORY
from appliance.session.doubts import MAX_DOUBTFUL
from appliance.session.pieces import Data, Gap, Late, Overlap, Piece, Stray
from appliance.session.reassembly import Stream
from tests.fuzz.script import Script
from tests.fuzz.targets import Target

NS: Final = 1_000_000
MAX_LENGTH: Final = 256


class Model:
    """Checks pieces as they come. `exact`: offsets are known beforehand, as the SYN was seen first."""

    def __init__(self, *, exact: bool) -> None:
        self.sent: dict[int, set[int]] = {}
        self.got: dict[int, int] = {}
        self.beside: dict[int, set[int]] = {}
        self.next = 0
        self.exact = exact

    def send(self, offset: int, data: bytes) -> None:
        for place, byte in enumerate(data, offset):
            self.sent.setdefault(place, set()).add(byte)

    def take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, Data):
                assert piece.offset == self.next, f"bytes at {piece.offset} where {self.next} was next"
                assert piece.data, "no bytes"
                self.next += len(piece.data)
                self._got(piece.offset, piece.data)
            elif isinstance(piece, Gap):
                assert piece.start == self.next < piece.end, f"gap {piece.start} to {piece.end} at {self.next}"
                self.next = piece.end
            elif isinstance(piece, Late):
                assert piece.offset + len(piece.data) <= self.next, "late bytes beyond the stream"
                self._got(piece.offset, piece.data)
            elif isinstance(piece, Overlap | Stray) and self.exact:
                for place, byte in enumerate(piece.data, piece.start):
                    assert byte in self.sent.get(place, ()), "bytes that nobody sent"
                    self.beside.setdefault(place, set()).add(byte)

    def whole(self, *, verified: bool) -> None:
        """Nothing was left out before the first hole, or, as far as it was `verified`, given away in silence."""
        hole = next((place for place in range(len(self.sent) + 1) if place not in self.sent), 0)
        missed = next((place for place in range(hole) if place not in self.got), None)
        assert missed is None, f"offset {missed} was sent and is missing"
        for place, sent in self.sent.items() if verified else ():
            silent = sent - {self.got.get(place)} - self.beside.get(place, set())
            assert not silent, f"a byte for offset {place} was given away in silence"

    def _got(self, offset: int, data: bytes) -> None:
        for place, byte in enumerate(data, offset):
            assert place not in self.got, f"offset {place} comes twice"
            self.got[place] = byte
            if self.exact:
                assert byte in self.sent.get(place, ()), f"offset {place} was not sent"


def check(data: bytes) -> None:
    script = Script(data)
    isn, flags, order = script.number(4), script.byte(), script.below(8)
    strict, exact = bool(flags & 1), not flags & 2
    limit = 256 << order
    stream, now = Stream(limit, strict), NS
    model = Model(exact=exact)
    if exact:
        assert stream.syn(isn)
    plain = exact and not strict
    for op, offset, content in _operations(script):
        out: list[Piece] = []
        now += NS
        seq = isn + 1 + offset & 0xFFFFFFFF
        plain = plain and (op in (0, 1, 2, 3, 4, 11, 12) or op > 13)
        if op < 8:
            model.send(offset, content)
            stream.segment(seq, content, len(content) if op == 6 else 0, now, out, fin=op == 5)
        elif op == 8:
            stream.acknowledge(seq, len(content) << 6, now, out)
        elif op == 9:
            if stream.covers(seq):
                stream.stop(seq)
        elif op == 10:
            model.send(offset, content)
            stream.doubt(seq, content, offset % 3 == 0, now, "syn-data" if offset & 1 else "old-ack", out)
        elif op == 11:
            now += offset * 4 * NS
            stream.advance(now, out)
        elif op == 12:
            stream = pickle.loads(pickle.dumps(stream))
        elif op == 13:
            stream.forget()
        elif exact:
            stream.syn(isn)
        model.take(out)
        most = limit + MAX_LENGTH + 2 * HISTORY + 2 * MAX_DOUBTFUL
        assert stream.held_bytes <= most, f"{stream.held_bytes} bytes held"
    out = []
    stream.finish(now, out)
    model.take(out)
    assert stream.recorded == len(model.got), "counts other bytes than it gave out"
    assert stream.recorded + stream.missing == stream.next, "bytes that were neither recorded nor missing"
    if plain:
        model.whole(verified=not stream.unverified)


def _operations(script: Script) -> Iterator[tuple[int, int, bytes]]:
    """Operation, place, bytes. These follow from their place, so that repetitions agree; 4 and 7 send others."""
    while script.more:
        op = script.below(15)
        offset, length = script.number(2) if script.flag() else script.byte(), script.byte()
        other = 0x55 if op in (4, 7) else 0
        yield op, offset, bytes(((place * 7 + (place >> 8)) & 0xFF) ^ other for place in range(offset, offset + length))


def seeds() -> list[bytes]:
    def operation(op: int, offset: int, length: int) -> bytes:
        return bytes([op, 1]) + offset.to_bytes(2, "little") + bytes([length])

    def case(*operations: tuple[int, int, int], flags: int = 0) -> bytes:
        return b"\0\xff\xff\xff" + bytes([flags, 4]) + b"".join(operation(*one) for one in operations)

    return [
        case((0, 0, 100), (0, 100, 100), (5, 200, 0), (8, 201, 9)),
        case((0, 100, 100), (0, 0, 150), (4, 50, 100), (0, 200, 9)),
        case((0, 200, 50), (8, 220, 9), (11, 100, 0), (0, 0, 200)),
        case((6, 0, 100), (0, 300, 10), (8, 310, 9), (12, 0, 0), (11, 50, 0)),
        case((0, 500, 100), (0, 400, 100), (8, 600, 9), flags=2),
        case((0, 0, 100), (8, 100, 0), (0, 99, 1), (0, 100, 200), (13, 0, 0), (0, 0, 200), flags=1),
        case((10, 0, 9), (0, 0, 100), (10, 100, 9), (8, 109, 9), (9, 109, 0), (0, 109, 9), flags=1),
        case(*((0, place, 7) for place in range(490, 0, -10))),
    ]


TARGETS: Final = {"reassembly": Target(check, seeds, size=512)}
