"""Values that a server would not send, and one of each kind that it does (test_postgres_live has them all)."""

import struct
from decimal import Decimal
from ipaddress import ip_address
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer

from appliance.dissect.postgres_charsets import CODECS
from appliance.dissect.postgres_types import DECODERS, MAX_PADDING, type_name, value
from appliance.dissect.sql_text import hexadecimal, text


def dumped(item: object) -> bytes:
    """What psycopg sends for a Python value in binary format."""
    raw = Transformer().get_dumper(item, PyFormat.BINARY).dump(item)
    assert raw is not None
    return bytes(raw)


@pytest.mark.parametrize(
    ("oid", "raw", "shown"),
    [
        (16, b"\1", "t"),
        (20, struct.pack("!q", -1), "-1"),
        (701, struct.pack("!d", 1e15), "1e+15"),
        (700, struct.pack("!f", 0.1), "0.1"),
        (1082, struct.pack("!i", -(2**31)), "-infinity"),
        (1186, struct.pack("!qii", 1, -1, 25), "2 years 1 mon -1 days +00:00:00.000001"),
        (2950, bytes(range(16)), "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        (3802, b'\1{"a":1}', '{"a":1}'),
        (18, b"\0", ""),
        (25, b"\xff", "\\xff"),
    ],
)
def test_values(oid: int, raw: bytes, shown: str) -> None:
    assert value(raw, oid, True, "utf-8") == (shown, True)


@pytest.mark.parametrize(
    ("oid", "raw"),
    [
        (16, b""),
        (23, b"\0\0\0"),
        (701, bytes(9)),
        (1083, struct.pack("!q", -1)),
        (1266, bytes(11)),
        (1700, struct.pack("!HhHH", 2, 0, 0, 0)),  # digits that are not there
        (1700, struct.pack("!HhHHH", 1, 0, 0, 0, 10000)),
        (1700, struct.pack("!HhHH", 0, 0, 1, 0)),
        (1700, struct.pack("!HhHHH", 1, 32767, 0, 0, 1)),  # 131,000 digits out of 10 bytes
        (1700, struct.pack("!HhHHH", 1, 0, 0, 16383, 1)),
        (2950, bytes(15)),
        (3802, b"\2{}"),
        (869, b"\2\x21\0\4abcd"),
        (869, b"\2\x20\0\4abc"),
        (829, bytes(5)),
        (1560, struct.pack("!i", 9) + b"x"),
        (1560, struct.pack("!i", -1)),
        (1007, struct.pack("!iiI", 7, 0, 23)),
        (1007, struct.pack("!iiIii", 1, 0, 23, 2**31 - 1, 1)),
        (1007, struct.pack("!iiIiiii", 2, 0, 23, 65536, 1, 65536, 1)),
        (1007, struct.pack("!iiIiii", 1, 0, 23, 1, 1, 4)),
        (1007, struct.pack("!iiIiiiih", 1, 0, 23, 1, 1, 4, 7, 7)),
        (1007, struct.pack("!iiIii", 1, 0, 1007, 1, 1)),
        (1007, struct.pack("!iiIii", 1, 0, 23, -1, 1)),
        (600, bytes(16)),
        (0, b"x"),
        (999999, b"x"),
    ],
)
def test_what_does_not_fit_is_in_hexadecimal(oid: int, raw: bytes) -> None:
    assert value(raw, oid, True, "utf-8") == (hexadecimal(raw), False)


@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=60))
def test_any_bytes(oid: int, raw: bytes) -> None:
    shown, _ = value(raw, oid, True, "utf-8")
    assert len(shown) <= MAX_PADDING + 10 * len(raw) + 60


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**20), max_value=10**20))
def test_numerics(number: Decimal) -> None:
    assert value(dumped(number), 1700, True, "utf-8") == (f"{number if number else number.copy_abs():f}", True)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_floats_read_back_the_same(single: float, double: float) -> None:
    shown, _ = value(struct.pack("!f", single), 700, True, "utf-8")
    assert struct.pack("!f", float(shown)) == struct.pack("!f", single)
    shown, _ = value(struct.pack("!d", double), 701, True, "utf-8")
    assert float(shown) == double


@given(st.integers(-(2**31), 2**31 - 1), st.ip_addresses(), st.uuids())
def test_others_of_psycopg(number: int, address: object, uuid: UUID) -> None:
    assert value(struct.pack("!i", number), 23, True, "utf-8")[0] == str(number)
    assert ip_address(value(dumped(address), 869, True, "utf-8")[0]) == address
    assert value(dumped(uuid), 2950, True, "utf-8")[0] == str(uuid)


def test_every_encoding_is_known_to_python() -> None:
    for codec in CODECS.values():
        assert text(b"plain", codec) == "plain"
        text(bytes(range(256)), codec)


def test_names_of_types() -> None:
    assert [type_name(oid) for oid in (23, 1009, 0, 77777)] == ["int4", "text[]", "", "oid:77777"]
