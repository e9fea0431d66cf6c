"""Columns of values as ClickHouse's Native format writes them, for the types that the tables' rows are sent in.

A recorder stores tens of thousands of rows a second, so there is no Python call per value where it can be avoided, and
rows are taken `SLICE` at a time: all columns of a few rows that are still in the processor's cache.
The format (ClickHouse documentation, "Native"): a block is its numbers of columns and rows, then name, type and values
of each column. Integers are little-endian; a string is its length (LEB128) and its bytes; an array is the running ends
of all rows, then all items in a row; a map is an array of pairs, keys first; a nullable column has a byte per row
ahead.
"""

import struct
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any
from uuid import UUID

LAST_NS = 2**63 - 1  # 2262-04-11, the last moment of DateTime64(9)
NS = "DateTime64(9, 'UTC')"
STRINGS = "Array(String)"
FIELDS = "Map(String, String)"
RANGES = "Array(Tuple(UInt32, UInt32))"
NULLABLE = "Nullable(UInt64)"

_SHORT = 4096
SLICE = 256  # rows
_ARRAYS = frozenset((STRINGS, FIELDS, RANGES))  # their first stream is how many items each row has
_CODES = {"UInt16": "H", "UInt32": "I", "UInt64": "Q", "Int64": "q"}
Pieces = list[bytes]
Parts = tuple[Pieces, ...]  # what one slice adds to each of a column's streams, which follow each other in the block
Column = tuple[str, str, Callable[[Sequence[Any]], list[Any]]]  # name, type on the wire, values of some rows


def leb128(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


_LENGTHS = tuple(map(leb128, range(_SHORT)))


def block(columns: Sequence[Column], rows: Sequence[Any]) -> bytes:
    """All rows as one block. Raises `Misfit` for a value that its column cannot hold."""
    streams: list[list[Parts]] = [[] for _ in columns]
    for first in range(0, len(rows), SLICE):
        some = rows[first : first + SLICE]
        for (name, wire, values), into in zip(columns, streams, strict=True):
            try:
                into.append(_WRITERS[wire](values(some)))
            except (TypeError, ValueError, OverflowError, AttributeError, struct.error) as error:
                raise Misfit(name, wire) from error
    parts = [leb128(len(columns)), leb128(len(rows))]
    for (name, wire, _), written in zip(columns, streams, strict=True):
        parts += [leb128(len(name)), name.encode("ascii"), leb128(len(wire)), wire.encode("ascii")]
        first_stream, *others = zip(*written, strict=True)
        if wire in _ARRAYS:
            lengths = array("Q", b"".join(chain.from_iterable(first_stream)))
            parts.append(array("Q", accumulate(lengths)).tobytes())
        else:
            parts += chain.from_iterable(first_stream)
        for stream in others:
            parts += chain.from_iterable(stream)
    return b"".join(parts)


class Misfit(Exception):
    """A value is not of its column's type."""

    def __init__(self, column: str, wire: str) -> None:
        super().__init__(column, wire)
        self.column = column
        self.wire = wire


def _integers(wire: str) -> Callable[[Sequence[int]], Parts]:
    code = _CODES[wire]
    return lambda values: ([array(code, values).tobytes()],)


def _moments(values: Sequence[int]) -> Parts:
    """Nanoseconds; what the type cannot hold counts as its first or last moment."""
    if min(values) < 0 or max(values) > LAST_NS:
        values = [min(max(value, 0), LAST_NS) for value in values]
    return ([array("q", values).tobytes()],)


def _ids(values: Sequence[UUID]) -> Parts:
    """Two halves of eight bytes, each little-endian. Rows of one session share the object, so it is packed once."""
    packed: dict[int, bytes] = {}
    for value in values:
        if id(value) not in packed:
            number = value.int
            packed[id(value)] = struct.pack("<QQ", number >> 64, number & (1 << 64) - 1)
    return ([b"".join([packed[id(value)] for value in values])],)


def _pieces(values: Sequence[str | bytes]) -> Pieces:
    if not values:
        return []
    try:
        data = [value.encode() if isinstance(value, str) else value for value in values]
    except UnicodeEncodeError:  # lone surrogates cannot be stored; they become question marks
        data = [value.encode("utf-8", "replace") if isinstance(value, str) else value for value in values]
    pieces = [b""] * (2 * len(data))
    pieces[::2] = [_LENGTHS[size] if size < _SHORT else leb128(size) for size in map(len, data)]
    pieces[1::2] = data
    return pieces if len(data[0]) > _SHORT else [b"".join(pieces)]  # short ones: put together while they are at hand


def _strings(values: Sequence[str | bytes]) -> Parts:
    return (_pieces(values),)


def _few(values: Sequence[str]) -> Pieces:
    """As `_pieces`, for values that repeat."""
    known = {value: b"".join(_pieces([value])) for value in set(values)}
    return [b"".join([known[value] for value in values])]


def _counts(values: Sequence[Any]) -> Pieces:
    return [array("Q", map(len, values)).tobytes()]


def _lists(values: Sequence[Sequence[str]]) -> Parts:
    return _counts(values), _few([*chain.from_iterable(values)])


def _maps(values: Sequence[dict[str, str]]) -> Parts:
    names = list(map(tuple, values))  # the rows of one kind have the same
    known = {some: b"".join(_pieces(some)) for some in set(names)}
    keys = [b"".join(map(known.__getitem__, names))]
    return _counts(values), keys, _pieces([*chain.from_iterable(map(dict.values, values))])


def _ranges(values: Sequence[Sequence[tuple[int, int]]]) -> Parts:
    pairs = [*chain.from_iterable(values)]
    lows, highs = array("I", [low for low, _ in pairs]), array("I", [high for _, high in pairs])
    return _counts(values), [lows.tobytes()], [highs.tobytes()]


def _nullable(values: Sequence[int | None]) -> Parts:
    absent = bytes([value is None for value in values])
    return [absent], [array("Q", [value or 0 for value in values]).tobytes()]


_WRITERS: dict[str, Callable[[Any], Parts]] = {
    **{wire: _integers(wire) for wire in _CODES},
    NS: _moments,
    "UUID": _ids,
    "String": _strings,
    STRINGS: _lists,
    FIELDS: _maps,
    RANGES: _ranges,
    NULLABLE: _nullable,
}
