"""RowDescription (PostgreSQL 18 documentation, 54.7): a result's columns, and what messages say of them."""

import struct
from functools import lru_cache
from typing import Final, NamedTuple

from appliance.dissect.postgres_types import type_name
from appliance.dissect.sql_text import text
from appliance.dissect.table import MAX_DESCRIBED, OVERHEAD, WEIGHT

MAX_COLUMNS = 1664  # of a result; the server's MaxTupleAttributeNumber
MAX_REMEMBERED = 1024  # bytes of a RowDescription that is remembered: it comes again with every execution

_U16 = struct.Struct("!H")
_COLUMN = struct.Struct("!IhIhih")  # table, attribute, type, its size, its modifier, format


class Columns(NamedTuple):
    """The columns of a result. What is in here may be shared by many messages: it is not to be changed.

    `shown`: as messages have them, as far as `MAX_DESCRIBED` goes; `size`: its characters. `types`: of every column.
    `formats`: the type again where values come in binary format unless Bind asks for something else, else -1.
    """

    shown: list[dict[str, str]]
    size: int
    types: tuple[int, ...]
    formats: tuple[int, ...]

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        return WEIGHT * len(self.types)


NOTHING: Final = Columns([], 0, (), ())


def columns(body: bytes, codec: str) -> tuple[Columns, bool]:
    """The columns, and whether all are there. Raises `ValueError` or `struct.error` for what does not fit."""
    return _remembered(body, codec) if len(body) <= MAX_REMEMBERED else _columns(body, codec)


def _columns(body: bytes, codec: str) -> tuple[Columns, bool]:
    (count,) = _U16.unpack_from(body)
    shown: list[dict[str, str]] = []
    types: list[int] = []
    formats: list[int] = []
    at, size, room = 2, 0, True
    for _ in range(min(count, MAX_COLUMNS)):
        end = body.find(0, at)
        if end < 0:
            raise ValueError("a column's name without its NUL")
        name = text(body[at:end], codec)
        _, _, oid, _, _, code = _COLUMN.unpack_from(body, end + 1)
        at = end + 1 + _COLUMN.size
        types.append(oid)
        formats.append(oid if code == 1 else -1)
        room = room and size + len(name) <= MAX_DESCRIBED
        if room:
            size += len(name)
            shown.append({"name": name, "type": type_name(oid)})
    return Columns(shown, size + OVERHEAD * len(shown), tuple(types), tuple(formats)), count <= MAX_COLUMNS


_remembered = lru_cache(256)(_columns)
