"""Column definitions of MySQL ("Protocol::ColumnDefinition41"; MariaDB: with extended metadata), one packet each."""

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from appliance.dissect.mysql_types import Kind, string, type_name
from appliance.dissect.sql_text import text
from appliance.dissect.table import MAX_DESCRIBED, OVERHEAD, WEIGHT

MAX_COLUMNS = 4096  # of a result; the server's own maximum
MAX_REMEMBERED = 512  # bytes of a definition that is remembered: it comes again with every execution

_FIXED = struct.Struct("<BHIBHB2x")  # 12, collation, length, type, flags, decimals


class Column(NamedTuple):
    name: str
    type: str
    kind: Kind


class Columns(NamedTuple):
    """The columns of a result. What is in here may be shared by many messages: it is not to be changed.

    `shown`: as messages have them, as far as `MAX_DESCRIBED` goes; `size`: its characters.
    """

    shown: list[dict[str, str]]
    size: int
    types: tuple[Kind, ...]

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        return WEIGHT * len(self.types)


NOTHING = Columns([], 0, ())


def column(body: bytes, codec: str) -> Column:
    """One definition. Raises `ValueError`, `IndexError` or `struct.error` for what does not fit."""
    return _remembered(body, codec) if len(body) <= MAX_REMEMBERED else _column(body, codec)


def columns(found: Iterable[Column]) -> Columns:
    shown: list[dict[str, str]] = []
    types: list[Kind] = []
    size, room = 0, True
    for one in found:
        types.append(one.kind)
        room = room and size + len(one.name) <= MAX_DESCRIBED
        if room:
            size += len(one.name)
            shown.append({"name": one.name, "type": one.type})
    return Columns(shown, size + OVERHEAD * len(shown), tuple(types))


def _column(body: bytes, codec: str) -> Column:
    at = 0
    name = b""
    for number in range(6):  # catalog, schema, table, its original name, name, its original name
        item, at = string(body, at)
        name = item if number == 4 else name
    extended = ""
    if len(body) - at > _FIXED.size and body[at] != 12:
        more, at = string(body, at)
        extended = _extended(more)
    fixed, charset, length, type_, flags, decimals = _FIXED.unpack_from(body, at)
    if fixed != 12:
        raise ValueError("a column without its fixed part")
    kind = Kind(type_, flags, charset, decimals, length)
    return Column(text(name, codec), extended or type_name(kind), kind)


def _extended(data: bytes) -> str:
    """MariaDB's name of the type or format: numbers 0 and 1, each with a string."""
    at, found = 0, ""
    while at < len(data) and not found:
        number = data[at]
        item, at = string(data, at + 1)
        found = text(item) if number in (0, 1) else ""
    return found[:64]


_remembered = lru_cache(2048)(_column)
