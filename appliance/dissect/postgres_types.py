"""PostgreSQL values: bytes on the wire to the text that the server itself would print.

A value of a row or a bind parameter comes in text or binary format (PostgreSQL 18 documentation, 54.2.3 "Formats and
Format Codes"). Text is the server's own output and is kept. Binary is rendered as the type's output function would
print it with `DateStyle` ISO, `IntervalStyle` postgres, `TimeZone` UTC, so that the same value reads the same,
whatever the client asked for (`regclass` and its like show their OID). The binary layouts are those of each type's
`*_send` function (src/backend/utils/adt). A type that is not in `DECODERS`, and bytes that do not fit their type, are
shown in hexadecimal and reported as undecoded.

All functions are pure; none makes much more text than the bytes it was given (see `MAX_PADDING`).
"""

import math
import struct
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from appliance.dissect.sql_text import hexadecimal, text

MAX_PADDING = 400  # zeros that a numeric may have beside its own digits: 1e300 is 8 digits on the wire
MAX_DIMENSIONS = 6  # of an array; the server's MAXDIM

Decoder = Callable[[bytes, str], str]  # (value, Python codec of the client encoding) -> text; raises ValueError

_I16 = struct.Struct("!h")
_I32 = struct.Struct("!i")
_U32 = struct.Struct("!I")
_I64 = struct.Struct("!q")
_U64 = struct.Struct("!Q")
_F32 = struct.Struct("!f")
_F64 = struct.Struct("!d")
_NUMERIC = struct.Struct("!HhHH")  # digits, weight of the first, sign, digits after the point
_INTERVAL = struct.Struct("!qii")  # microseconds, days, months
_TIMETZ = struct.Struct("!qi")  # microseconds, seconds west of UTC

_EPOCH = date(2000, 1, 1).toordinal()
_CYCLE_DAYS, _CYCLE_YEARS = 146_097, 400  # the Gregorian calendar repeats
_DAY_US = 86_400_000_000


def _boolean(raw: bytes, codec: str) -> str:
    if len(raw) != 1:
        raise ValueError("bool is one byte")
    return "t" if raw[0] else "f"


def _bytea(raw: bytes, codec: str) -> str:
    return hexadecimal(raw)


def _char(raw: bytes, codec: str) -> str:
    return text(raw.rstrip(b"\0"), codec)  # the type "char": one byte, NUL is empty


def _int2(raw: bytes, codec: str) -> str:
    return str(_I16.unpack(raw)[0])


def _int4(raw: bytes, codec: str) -> str:
    return str(_I32.unpack(raw)[0])


def _int8(raw: bytes, codec: str) -> str:
    return str(_I64.unpack(raw)[0])


def _unsigned4(raw: bytes, codec: str) -> str:
    return str(_U32.unpack(raw)[0])


def _unsigned8(raw: bytes, codec: str) -> str:
    return str(_U64.unpack(raw)[0])


def _shortest(digits: str, limit: int) -> str:
    """Python's `repr` of a finite float in the server's form: an exponent below 1e-4 and from 1e`limit` on."""
    sign, figures, exponent = Decimal(digits).as_tuple()
    assert isinstance(exponent, int)  # finite
    mantissa = "".join(map(str, figures)).rstrip("0") or "0"
    point = len(figures) + exponent  # of the decimal point, from the left of the mantissa
    minus = "-" if sign else ""
    if mantissa == "0":
        return minus + "0"
    if not -4 < point <= limit:
        fraction = "." + mantissa[1:] if len(mantissa) > 1 else ""
        return f"{minus}{mantissa[0]}{fraction}e{point - 1:+03d}"
    if point <= 0:
        return f"{minus}0.{'0' * -point}{mantissa}"
    whole = mantissa[:point].ljust(point, "0")
    fraction = mantissa[point:]
    return f"{minus}{whole}.{fraction}" if fraction else minus + whole


def _special(value: float) -> str | None:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return None


def _float4(raw: bytes, codec: str) -> str:
    (value,) = _F32.unpack(raw)
    special = _special(value)
    if special is not None:
        return special
    for precision in range(6, 10):  # nine digits tell every single-precision value apart
        digits = f"{value:.{precision - 1}e}"
        try:
            if _F32.pack(float(digits)) == raw:
                break
        except OverflowError:  # rounded up past the largest one
            continue
    return _shortest(digits, 6)


def _float8(raw: bytes, codec: str) -> str:
    (value,) = _F64.unpack(raw)
    if 1e-4 <= abs(value) < 1e15:
        shown = repr(value)
        return shown[:-2] if shown.endswith(".0") else shown
    return _special(value) or _shortest(repr(value), 15)


def _numeric(raw: bytes, codec: str) -> str:
    count, weight, sign, scale = _NUMERIC.unpack_from(raw)
    if len(raw) != 8 + 2 * count:
        raise ValueError("numeric has another length")
    if sign in (0xC000, 0xD000, 0xF000):
        return {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}[sign]
    if sign not in (0, 0x4000) or 4 * abs(weight) + scale > MAX_PADDING + 8 * count:
        raise ValueError("numeric out of bounds")
    groups = struct.unpack_from(f"!{count}H", raw, 8)
    if any(group > 9999 for group in groups):
        raise ValueError("numeric has a digit over 9999")
    figures = "".join([f"{group:04d}" for group in groups])
    point = 4 * (weight + 1)
    if point > 0:
        whole, fraction = figures[:point].ljust(point, "0").lstrip("0") or "0", figures[point:]
    else:
        whole, fraction = "0", "0" * -point + figures
    minus = "-" if sign else ""
    return f"{minus}{whole}.{fraction[:scale].ljust(scale, '0')}" if scale else minus + whole


def _day(days: int) -> tuple[str, str]:
    """Days since 2000-01-01 to the ISO date and the era's suffix; any year, astronomical 0 is 1 BC."""
    cycles, rest = divmod(days, _CYCLE_DAYS)
    day = date.fromordinal(_EPOCH + rest)
    year = day.year + _CYCLE_YEARS * cycles
    era = "" if year > 0 else " BC"
    return f"{year if year > 0 else 1 - year:04d}-{day.month:02d}-{day.day:02d}", era


def _clock(microseconds: int) -> str:
    seconds, fraction = divmod(microseconds, 1_000_000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    shown = f"{hour:02d}:{minute:02d}:{second:02d}"
    return f"{shown}.{fraction:06d}".rstrip("0") if fraction else shown


def _date(raw: bytes, codec: str) -> str:
    (days,) = _I32.unpack(raw)
    if abs(days) >= 2**31 - 1:
        return "infinity" if days > 0 else "-infinity"
    return "".join(_day(days))


def _time(raw: bytes, codec: str) -> str:
    (microseconds,) = _I64.unpack(raw)
    if not 0 <= microseconds <= _DAY_US:
        raise ValueError("time of day out of bounds")
    return _clock(microseconds)


def _timetz(raw: bytes, codec: str) -> str:
    microseconds, west = _TIMETZ.unpack(raw)
    if not 0 <= microseconds <= _DAY_US:
        raise ValueError("time of day out of bounds")
    minutes, second = divmod(abs(west), 60)
    hour, minute = divmod(minutes, 60)
    zone = f"{'-' if west > 0 else '+'}{hour:02d}"
    if second:
        return f"{_clock(microseconds)}{zone}:{minute:02d}:{second:02d}"
    return f"{_clock(microseconds)}{zone}:{minute:02d}" if minute else _clock(microseconds) + zone


def _moment(raw: bytes, zone: str) -> str:
    (microseconds,) = _I64.unpack(raw)
    if abs(microseconds) >= 2**63 - 1:
        return "infinity" if microseconds > 0 else "-infinity"
    days, rest = divmod(microseconds, _DAY_US)
    day, era = _day(days)
    return f"{day} {_clock(rest)}{zone}{era}"


def _timestamp(raw: bytes, codec: str) -> str:
    return _moment(raw, "")


def _timestamptz(raw: bytes, codec: str) -> str:
    return _moment(raw, "+00")


def _interval(raw: bytes, codec: str) -> str:
    microseconds, days, months = _INTERVAL.unpack(raw)
    if (microseconds, days, months) in ((2**63 - 1, 2**31 - 1, 2**31 - 1), (-(2**63), -(2**31), -(2**31))):
        return "infinity" if days > 0 else "-infinity"
    years, rest = divmod(abs(months), 12)
    sign = -1 if months < 0 else 1
    parts = []
    negative = False  # the part before; a positive one after it gets a sign
    for number, unit in ((sign * years, "year"), (sign * rest, "mon"), (days, "day")):
        if number:
            parts.append(f"{'+' if negative and number > 0 else ''}{number} {unit}{'' if number == 1 else 's'}")
            negative = number < 0
    if microseconds or not parts:
        plus = "-" if microseconds < 0 else "+" if negative else ""
        parts.append(plus + _clock(abs(microseconds)))
    return " ".join(parts)


def _uuid(raw: bytes, codec: str) -> str:
    if len(raw) != 16:
        raise ValueError("uuid is 16 bytes")
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _jsonb(raw: bytes, codec: str) -> str:
    if raw[:1] != b"\x01":
        raise ValueError("jsonb of another version")
    return text(raw[1:], codec)


def _address(raw: bytes, codec: str) -> str:
    """inet and cidr: family (2 or 3), prefix length, is cidr, address length, address."""
    if len(raw) < 4 or raw[0] not in (2, 3) or raw[3] != len(raw) - 4:
        raise ValueError("not an address")
    family, prefix, cidr, size = raw[:4]
    width = 32 if family == 2 else 128
    if prefix > width or size * 8 != width:
        raise ValueError("not an address")
    shown = str(IPv4Address(raw[4:])) if family == 2 else _ipv6(raw[4:])
    return shown if prefix == width and not cidr else f"{shown}/{prefix}"


def _ipv6(packed: bytes) -> str:
    mapped = IPv6Address(packed).ipv4_mapped
    return f"::ffff:{mapped}" if mapped is not None else str(IPv6Address(packed))


def _macaddr(raw: bytes, codec: str) -> str:
    if len(raw) not in (6, 8):
        raise ValueError("not a hardware address")
    return raw.hex(":")


def _bits(raw: bytes, codec: str) -> str:
    (count,) = _I32.unpack_from(raw)
    if count < 0 or len(raw) != 4 + (count + 7) // 8:
        raise ValueError("bit string has another length")
    return f"{int.from_bytes(raw[4:], 'big'):0{8 * (len(raw) - 4)}b}"[:count] if count else ""


def _lsn(raw: bytes, codec: str) -> str:
    (position,) = _U64.unpack(raw)
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def _array(raw: bytes, codec: str) -> str:
    """Dimensions, has-nulls, element type; per dimension size and lower bound; then elements as length and value."""
    dimensions, _, element = struct.unpack_from("!iiI", raw)
    if not 0 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError("array with too many dimensions")
    shape = struct.unpack_from(f"!{2 * dimensions}i", raw, 12)
    sizes, bounds = shape[0::2], shape[1::2]
    position = 12 + 8 * dimensions
    decoder = DECODERS.get(element)
    if decoder is None or decoder is _array or any(size <= 0 for size in sizes):
        raise ValueError("array of a type that is not known, or of nothing")
    count = math.prod(sizes) if sizes else 0
    if count * 4 > len(raw):
        raise ValueError("array shorter than its dimensions say")
    items: list[str] = []
    for _ in range(count):
        (size,) = _I32.unpack_from(raw, position)
        position += 4
        if size < 0:
            items.append("NULL")
            continue
        if position + size > len(raw):
            raise ValueError("array element cut off")
        items.append(_quoted(decoder(raw[position : position + size], codec)))
        position += size
    if position != len(raw):
        raise ValueError("array longer than its dimensions say")
    if not sizes:
        return "{}"
    for size in reversed(sizes):  # innermost first
        items = ["{" + ",".join(items[at : at + size]) + "}" for at in range(0, len(items), size)]
    if any(bound != 1 for bound in bounds):
        named = "".join(f"[{low}:{low + size - 1}]" for size, low in zip(sizes, bounds, strict=True))
        return f"{named}={items[0]}"
    return items[0]


def _quoted(item: str) -> str:
    """An element as array output writes it: quoted where it would otherwise read as something else."""
    if item and item.upper() != "NULL" and not any(mark in item for mark in '{},"\\ \t\n\r\v\f'):
        return item
    return '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"'


# type OID (src/include/catalog/pg_type.dat): name, decoder of its binary format, OID of its array type
_TYPES: Final[tuple[tuple[int, str, Decoder | None, int], ...]] = (
    (16, "bool", _boolean, 1000),
    (17, "bytea", _bytea, 1001),
    (18, "char", _char, 1002),
    (19, "name", text, 1003),
    (20, "int8", _int8, 1016),
    (21, "int2", _int2, 1005),
    (23, "int4", _int4, 1007),
    (24, "regproc", _unsigned4, 1008),
    (25, "text", text, 1009),
    (26, "oid", _unsigned4, 1028),
    (27, "tid", None, 1010),
    (28, "xid", _unsigned4, 1011),
    (29, "cid", _unsigned4, 1012),
    (114, "json", text, 199),
    (142, "xml", text, 143),
    (600, "point", None, 1017),
    (650, "cidr", _address, 651),
    (700, "float4", _float4, 1021),
    (701, "float8", _float8, 1022),
    (705, "unknown", text, 0),
    (774, "macaddr8", _macaddr, 775),
    (790, "money", None, 791),
    (829, "macaddr", _macaddr, 1040),
    (869, "inet", _address, 1041),
    (1042, "bpchar", text, 1014),
    (1043, "varchar", text, 1015),
    (1082, "date", _date, 1182),
    (1083, "time", _time, 1183),
    (1114, "timestamp", _timestamp, 1115),
    (1184, "timestamptz", _timestamptz, 1185),
    (1186, "interval", _interval, 1187),
    (1266, "timetz", _timetz, 1270),
    (1560, "bit", _bits, 1561),
    (1562, "varbit", _bits, 1563),
    (1700, "numeric", _numeric, 1231),
    (1790, "refcursor", text, 2201),
    (2205, "regclass", _unsigned4, 2210),
    (2206, "regtype", _unsigned4, 2211),
    (2249, "record", None, 2287),
    (2275, "cstring", text, 1263),
    (2278, "void", text, 0),
    (2950, "uuid", _uuid, 2951),
    (3220, "pg_lsn", _lsn, 3221),
    (3614, "tsvector", None, 3643),
    (3802, "jsonb", _jsonb, 3807),
    (5069, "xid8", _unsigned8, 271),
)

DECODERS: Final[dict[int, Decoder]] = {oid: decoder for oid, _, decoder, _ in _TYPES if decoder is not None}
DECODERS.update({array: _array for _, _, decoder, array in _TYPES if array and decoder is not None})
_NAMES: Final[dict[int, str]] = {oid: name for oid, name, _, _ in _TYPES}
_NAMES.update({array: name + "[]" for _, name, _, array in _TYPES if array})


def type_name(oid: int) -> str:
    """Name of a built-in type, `text[]` for an array; `oid:N` for any other; "" for 0, unspecified."""
    return _NAMES.get(oid) or (f"oid:{oid}" if oid else "")


def value(raw: bytes, oid: int, binary: bool, codec: str) -> tuple[str, bool]:
    """The value as text, and whether it was understood (else it is in hexadecimal)."""
    if not binary:
        return text(raw, codec), True
    decoder = DECODERS.get(oid)
    if decoder is not None:
        try:
            return decoder(raw, codec), True
        except (ValueError, struct.error):
            pass
    return hexadecimal(raw), False
