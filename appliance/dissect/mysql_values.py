"""Bind values of MySQL: of COM_STMT_EXECUTE, of query attributes, and of MariaDB's COM_STMT_BULK_EXECUTE.

Types come with the first execution, and are remembered for the next ones. A value that was sent before, by
COM_STMT_SEND_LONG_DATA, is not in the packet.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from appliance.dissect.mysql_charsets import BINARY
from appliance.dissect.mysql_types import UNSIGNED, Kind, decoder, lenenc, readable, string
from appliance.dissect.sql_text import hexadecimal, text

MAX_PARAMETERS = 65535  # of a statement; the server's own maximum
MAX_BULK = 100  # rows of a bulk execution that a message shows
_BLOBS = frozenset({249, 250, 251, 252})
_UNSIGNED = 0x80  # in the second byte of a type
_NONE, _NULL = 0, 1  # indicators of a bulk execution; 2: DEFAULT, 3: IGNORE
_SHOWN = {2: "DEFAULT", 3: "IGNORE"}


class Values(NamedTuple):
    """`types`: for the next execution. `complete`: all were understood. `names`: of query attributes."""

    items: list[str | None]
    types: tuple[Kind, ...]
    names: list[str]
    complete: bool
    end: int


class Bulk(NamedTuple):
    """`more`: rows were left out. `complete`: all were understood."""

    rows: list[list[str | None]]
    types: tuple[Kind, ...]
    more: bool
    complete: bool


def kind(number: int, flags: int, collation: int) -> Kind:
    """The type of a bind value."""
    charset = BINARY if number in _BLOBS else collation
    return Kind(number, UNSIGNED if flags & _UNSIGNED else 0, charset)


def values(
    body: bytes,
    at: int,
    count: int,
    collation: int,
    known: Sequence[Kind] = (),
    long: Mapping[int, bytearray] | None = None,
    *,
    named: bool = False,
) -> Values:
    """`count` values: bitmap of NULLs, whether types follow, these, then the values. Raises where that does not fit."""
    if count > MAX_PARAMETERS:
        raise ValueError("too many bind values")
    nulls = body[at : at + (count + 7) // 8]
    at += len(nulls)
    bound = body[at]
    at += 1
    if bound > 1:
        raise ValueError("neither with types nor without")
    types = list(known)
    names: list[str] = []
    if bound:
        types = []
        for _ in range(count):
            types.append(kind(body[at], body[at + 1], collation))
            at += 2
            if named:
                name, at = string(body, at)
                names.append(text(name))
    items: list[str | None] = []
    complete = len(types) == count
    for number in range(count):
        if long is not None and number in long:
            items.append(readable(bytes(long[number])))
        elif nulls[number >> 3] >> (number & 7) & 1:
            items.append(None)
        elif complete:
            try:
                shown, at = decoder(types[number])(body, at)
                items.append(shown)
            except (ValueError, IndexError, struct.error):
                items.append(hexadecimal(body[at:]))
                complete = False
                break
        else:
            items.append(hexadecimal(body[at:]))
            break
    return Values(items, tuple(types), names, complete, at)


def bulk(body: bytes, at: int, count: int, typed: bool, collation: int, known: Sequence[Kind]) -> Bulk:
    """Rows of values, each behind a byte that says whether there is one."""
    types = list(known)
    if typed:
        types = [kind(body[at + 2 * number], body[at + 2 * number + 1], collation) for number in range(count)]
        at += 2 * count
    rows: list[list[str | None]] = []
    if len(types) != count or not count:
        return Bulk(rows, tuple(types), False, at == len(body))
    while at < len(body):
        if len(rows) >= MAX_BULK:
            return Bulk(rows, tuple(types), True, True)
        row: list[str | None] = []
        rows.append(row)
        for one in types:
            if at >= len(body):
                return Bulk(rows, tuple(types), False, False)
            indicator = body[at]
            at += 1
            if indicator == _NONE:
                try:
                    shown, at = decoder(one)(body, at)
                except (ValueError, IndexError, struct.error):
                    row.append(hexadecimal(body[at:]))
                    return Bulk(rows, tuple(types), False, False)
                row.append(shown)
            else:
                row.append(None if indicator == _NULL else _SHOWN.get(indicator, f"indicator {indicator}"))
    return Bulk(rows, tuple(types), False, True)


def attributes(body: bytes, at: int, collation: int) -> tuple[dict[str, str | None], int, bool]:
    """Query attributes before the text of COM_QUERY; the place of that; whether all were understood."""
    count, at = lenenc(body, at)
    sets, at = lenenc(body, at)
    if sets != 1:
        raise ValueError("not one set of query attributes")
    if not count:
        return {}, at, True
    found = values(body, at, count, collation, named=True)
    named = dict(zip(found.names, found.items, strict=False))
    return named, found.end, found.complete
