"""MySQL values: bytes on the wire to the text that the server itself would print.

Rows of COM_QUERY hold text, which is kept; those of prepared statements, and bind values, are binary ("Binary Protocol
Resultset") and are rendered as the text protocol would send them. Bytes that are no text (collation `binary`) show as
they are where they are printable UTF-8, else in hexadecimal.

A `Kind` is what says how a value is to be read: of a column the end of its definition, of a bind value its type.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

from appliance.dissect.mysql_charsets import BINARY, codec
from appliance.dissect.sql_text import hexadecimal, text

Decoder = Callable[[bytes, int], tuple[str, int]]  # (bytes, place) -> text and the place behind; raises

UNSIGNED, ZEROFILL, ENUM, SET = 0x20, 0x40, 0x100, 0x800  # flags of a column
MAX_ZEROFILL = 255
ANY_DECIMALS = 31  # of a floating-point column: as many as it takes

_NUMBERS: Final = {1: "tinyint", 2: "smallint", 3: "int", 8: "bigint", 9: "mediumint", 0: "decimal", 246: "decimal"}
_NAMES: Final = {
    **_NUMBERS,
    4: "float",
    5: "double",
    6: "null",
    7: "timestamp",
    10: "date",
    11: "time",
    12: "datetime",
    13: "year",
    14: "date",
    15: "varchar",
    16: "bit",
    17: "timestamp",
    18: "datetime",
    19: "time",
    242: "vector",
    244: "boolean",
    245: "json",
    247: "enum",
    248: "set",
    249: "tinytext",
    250: "mediumtext",
    251: "longtext",
    252: "text",
    253: "varchar",
    254: "char",
    255: "geometry",
}
_BINARIES: Final = {249: "tinyblob", 250: "mediumblob", 251: "longblob", 252: "blob", 253: "varbinary", 254: "binary"}
_OPAQUE: Final = frozenset({16, 242, 255})  # bit, vector, geometry: never text
_MAYBE_BYTES: Final = frozenset({15, 247, 248, 249, 250, 251, 252, 253, 254})

_LAYOUTS: Final = {
    1: ("<b", "<B"),
    2: ("<h", "<H"),
    3: ("<i", "<I"),
    8: ("<q", "<Q"),
    9: ("<i", "<I"),
    13: ("<H", "<H"),
    244: ("<b", "<B"),
}
_LAYOUT: Final = dict.fromkeys(map(ord, "\t\n\r"))  # control characters that text has
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_F32 = struct.Struct("<f")
_F64 = struct.Struct("<d")
_DATE = struct.Struct("<HBB")
_CLOCK = struct.Struct("<BBB")
_TIME = struct.Struct("<BIBBB")


class Kind(NamedTuple):
    """`decimals`: of a fraction; 255 where nothing says how many."""

    type: int
    flags: int = 0
    charset: int = 0
    decimals: int = 255
    length: int = 0


def type_name(kind: Kind) -> str:
    """As CREATE TABLE would have it, about."""
    number = kind.type
    if kind.charset == BINARY and number in _BINARIES:
        return _BINARIES[number]
    if number == 254 and kind.flags & (ENUM | SET):
        return "enum" if kind.flags & ENUM else "set"
    name = _NAMES.get(number, f"type {number}")
    return f"{name} unsigned" if number in _NUMBERS and kind.flags & UNSIGNED else name


def lenenc(data: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer and the place behind it."""
    first = data[at]
    if first < 251:
        return first, at + 1
    if first == 252:
        return _U16.unpack_from(data, at + 1)[0], at + 3
    if first == 253:
        return _U32.unpack_from(data, at)[0] >> 8, at + 4
    if first == 254:
        return _U64.unpack_from(data, at + 1)[0], at + 9
    raise ValueError("not a length")


def string(data: bytes, at: int) -> tuple[bytes, int]:
    """A length-encoded string and the place behind it."""
    length, at = lenenc(data, at)
    if at + length > len(data):
        raise ValueError("a string that is longer than its packet")
    return data[at : at + length], at + length


def readable(raw: bytes) -> str:
    """Bytes that may be text: as they are where they are printable UTF-8, else in hexadecimal."""
    try:
        shown = raw.decode("utf-8")
    except UnicodeDecodeError:
        return hexadecimal(raw)
    return shown if shown.translate(_LAYOUT).isprintable() else hexadecimal(raw)


def is_bytes(kind: Kind) -> bool:
    """Whether values of this kind may be anything but text, in the text protocol too."""
    return kind.type in _OPAQUE or (kind.charset == BINARY and kind.type in _MAYBE_BYTES)


def shown_bytes(raw: bytes, kind: Kind) -> str:
    return hexadecimal(raw) if kind.type in _OPAQUE else readable(raw)


@lru_cache(1024)
def decoder(kind: Kind) -> Decoder:
    """How a value in binary format is read. What it returns raises `ValueError`, `IndexError` or `struct.error`."""
    number = kind.type
    if number in _LAYOUTS:
        return _integer(kind)
    if number in (4, 5):
        return _floating(kind)
    if number in (7, 10, 12, 14, 17, 18):
        return _moment(kind)
    if number in (11, 19):
        return _duration(kind)
    if number == 6:
        return lambda data, at: ("NULL", at)
    if is_bytes(kind):
        return lambda data, at: _bytes(data, at, kind)
    if number not in _NAMES:
        raise ValueError("a type that is not known")
    name = codec(kind.charset)
    return lambda data, at: _text(data, at, name)


def _text(data: bytes, at: int, name: str) -> tuple[str, int]:
    raw, at = string(data, at)
    return text(raw, name), at


def _bytes(data: bytes, at: int, kind: Kind) -> tuple[str, int]:
    raw, at = string(data, at)
    return shown_bytes(raw, kind), at


def _integer(kind: Kind) -> Decoder:
    layout = struct.Struct(_LAYOUTS[kind.type][bool(kind.flags & UNSIGNED)])
    size = layout.size
    width = 4 if kind.type == 13 else min(kind.length, MAX_ZEROFILL) if kind.flags & ZEROFILL else 0

    def read(data: bytes, at: int) -> tuple[str, int]:
        return str(layout.unpack_from(data, at)[0]).zfill(width), at + size

    return read


def _floating(kind: Kind) -> Decoder:
    layout, most = (_F32, 9) if kind.type == 4 else (_F64, 17)

    def read(data: bytes, at: int) -> tuple[str, int]:
        (value,) = layout.unpack_from(data, at)
        if kind.decimals < ANY_DECIMALS and abs(value) < 1e60:
            return f"{value:.{kind.decimals}f}", at + layout.size
        return _shortest(value, layout, most), at + layout.size

    return read


def _shortest(value: float, layout: struct.Struct, most: int) -> str:
    """As few digits as it takes to be the same number again, as the server prints them."""
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    raw = layout.pack(value)
    digits = next((n for n in range(1, most) if _packs(f"{value:.{n - 1}e}", layout) == raw), most)
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if -16 < power < 15:
        fixed = f"{value:.{max(digits - 1 - power, 0)}f}"
        return fixed.rstrip("0").rstrip(".") if "." in fixed else fixed
    return f"{mantissa.rstrip('0').rstrip('.')}e{power}"


def _packs(shown: str, layout: struct.Struct) -> bytes:
    try:
        return layout.pack(float(shown))
    except OverflowError:
        return b""


def _fraction(microseconds: int, decimals: int) -> str:
    if decimals > 6:
        return f".{microseconds:06d}" if microseconds else ""
    return "." + f"{microseconds:06d}"[:decimals] if decimals else ""


def _moment(kind: Kind) -> Decoder:
    day_only = kind.type in (10, 14)

    def read(data: bytes, at: int) -> tuple[str, int]:
        length = data[at]
        end = at + 1 + length
        if length not in (0, 4, 7, 11) or end > len(data):
            raise ValueError("not a date")
        year, month, day = _DATE.unpack_from(data, at + 1) if length else (0, 0, 0)
        hour, minute, second = _CLOCK.unpack_from(data, at + 5) if length > 4 else (0, 0, 0)
        micro = _U32.unpack_from(data, at + 8)[0] if length > 7 else 0
        if max(hour, minute, second) > 99 or micro > 999_999:
            raise ValueError("not a time")
        shown = f"{year:04d}-{month:02d}-{day:02d}"
        if day_only and length <= 4:
            return shown, end
        return f"{shown} {hour:02d}:{minute:02d}:{second:02d}{_fraction(micro, kind.decimals)}", end

    return read


def _duration(kind: Kind) -> Decoder:
    def read(data: bytes, at: int) -> tuple[str, int]:
        length = data[at]
        end = at + 1 + length
        if length not in (0, 8, 12) or end > len(data):
            raise ValueError("not a time")
        negative, days, hour, minute, second = _TIME.unpack_from(data, at + 1) if length else (0, 0, 0, 0, 0)
        micro = _U32.unpack_from(data, at + 9)[0] if length > 8 else 0
        if negative > 1 or micro > 999_999:
            raise ValueError("not a time")
        sign = "-" if negative else ""
        clock = f"{24 * days + hour:02d}:{minute:02d}:{second:02d}"
        return f"{sign}{clock}{_fraction(micro, kind.decimals)}", end

    return read
