"""Values in binary format, and character sets: what no server here sends, and what does not fit."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dissect.mysql_charsets import BINARY, UTF8, chosen, codec, collation
from appliance.dissect.mysql_types import UNSIGNED, ZEROFILL, Kind, decoder, lenenc, readable, type_name
from appliance.dissect.mysql_values import bulk, values


@pytest.mark.parametrize(
    ("kind", "raw", "shown"),
    [
        (Kind(1), b"\xff", "-1"),
        (Kind(1, UNSIGNED), b"\xff", "255"),
        (Kind(9), struct.pack("<i", -8388608), "-8388608"),
        (Kind(3, ZEROFILL, length=6), struct.pack("<i", 42), "000042"),
        (Kind(13), struct.pack("<H", 0), "0000"),
        (Kind(4), struct.pack("<f", 0.1), "0.1"),
        (Kind(4, decimals=2), struct.pack("<f", 3.14159), "3.14"),
        (Kind(5), struct.pack("<d", 5e-324), "5e-324"),
        (Kind(5), struct.pack("<d", 1e15), "1e15"),
        (Kind(5), struct.pack("<d", -12345.678), "-12345.678"),
        (Kind(5), struct.pack("<d", float("nan")), "nan"),
        (Kind(10), b"\0", "0000-00-00"),
        (Kind(12), b"\4\xea\7\x0b\x17", "2026-11-23 00:00:00"),
        (Kind(12, decimals=3), b"\x0b\xea\7\x0b\x17\1\2\3" + struct.pack("<I", 45_000), "2026-11-23 01:02:03.045"),
        (Kind(11), b"\0", "00:00:00"),
        (Kind(11), b"\x0c\1" + struct.pack("<IBBBI", 34, 22, 59, 59, 5), "-838:59:59.000005"),
        (Kind(16), b"\1\x05", "\\x05"),
        (Kind(252, charset=BINARY), b"\2\0\xff", "\\x00ff"),
        (Kind(252, charset=BINARY), b"\3a\tb", "a\tb"),
        (Kind(253, charset=8), b"\1\xfc", "ü"),
        (Kind(253, charset=UTF8), b"\1\xfc", "\\xfc"),
    ],
)
def test_values(kind: Kind, raw: bytes, shown: str) -> None:
    assert decoder(kind)(b"." + raw + b".", 1) == (shown, 1 + len(raw))


@pytest.mark.parametrize(
    ("number", "raw"), [(1, b""), (5, b"1234"), (12, b"\5abcde"), (11, b"\x08\2"), (253, b"\5ab"), (12, b"\xfb")]
)
def test_values_that_do_not_fit(number: int, raw: bytes) -> None:
    with pytest.raises((ValueError, IndexError, struct.error)):
        decoder(Kind(number))(raw, 0)


@given(
    st.integers(0, 255),
    st.integers(0, 65535),
    st.sampled_from([8, UTF8, BINARY, 13, 255]),
    st.integers(0, 255),
    st.binary(max_size=20),
)
def test_any_bytes_as_any_kind(number: int, flags: int, charset: int, decimals: int, raw: bytes) -> None:
    kind = Kind(number, flags, charset, decimals, 255)
    assert type_name(kind)
    try:
        shown, end = decoder(kind)(raw, 0)
    except (ValueError, IndexError, struct.error):
        return
    assert 0 <= end <= len(raw)
    assert len(shown) <= 400 + 5 * len(raw)


@given(st.binary(max_size=60), st.integers(0, 20), st.integers(0, 60))
def test_any_bytes_as_bind_values(body: bytes, count: int, at: int) -> None:
    with suppress(ValueError, IndexError, struct.error):
        assert values(body, at, count, UTF8).end <= len(body)
    with suppress(ValueError, IndexError, struct.error):
        assert len(bulk(body, at, count, True, UTF8, ()).rows) <= len(body)


def test_lengths() -> None:
    assert [lenenc(raw, 0) for raw in (b"\xfa", b"\xfc\1\2", b"\xfd\1\2\3", b"\xfe" + b"\1" * 8)] == [
        *((250, 1), (0x0201, 3), (0x030201, 4), (0x0101010101010101, 9))
    ]
    for raw in (b"\xfb", b"\xff", b"", b"\xfc\1"):
        with pytest.raises((ValueError, IndexError, struct.error)):
            lenenc(raw, 0)


def test_what_may_be_text() -> None:
    assert readable("größer\r\n".encode()) == "größer\r\n"
    assert readable(b"\x00a") == "\\x0061"
    assert readable(b"\xff") == "\\xff"


def test_character_sets() -> None:
    assert (codec(8), codec(45), codec(255), codec(28), codec(60_000)) == ("cp1252", "utf-8", "utf-8", "gbk", "utf-8")
    assert codec(collation("latin1")) == "cp1252"
    assert codec(collation("klingon")) == "utf-8"
    assert [chosen(sql) is None for sql in ("set names latin1", "SET  NAMES 'utf8mb4' COLLATE x", "select 1")] == [
        *(False, False, True)
    ]
