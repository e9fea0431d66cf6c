"""COPY data in batches."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissect.sql_copy import MAX_BATCH, MAX_CARRY, SIGNATURE, Copy
from appliance.model import Direction, Message

HEAD = SIGNATURE + bytes(8)
END = b"\xff\xff"


def fields(*items: bytes | None) -> bytes:
    parts = [struct.pack("!i", -1) if one is None else struct.pack("!i", len(one)) + one for one in items]
    return struct.pack("!H", len(items)) + b"".join(parts)


def copied(form: str, *parts: bytes, codec: str = "utf-8") -> list[Message]:
    copy = Copy(Direction.SERVER, form, 7)
    out: list[Message] = []
    at = 0
    for part in parts:
        out += copy.add(part, at, at + 5 + len(part), 1, 2, False, codec)
        at += 5 + len(part)
    return out + copy.flush(codec, last=True)


def test_a_character_in_two_batches_is_in_the_later_one() -> None:
    snow = "☃".encode()
    one, two = copied("text", b"a" * (MAX_BATCH - 6) + snow[:2], snow[2:] + b"z")
    assert (one.text[-1], two.text) == ("a", "☃z")
    assert (one.end, two.start, two.reply_to) == (MAX_BATCH + 1, MAX_BATCH + 1, 7)
    assert copied("text", b"end\xe2\x98")[0].text == "end\\xe2\\x98"
    assert copied("text", b"\xe9", codec="iso8859-1")[0].text == "é"


def test_binary_rows() -> None:
    data = HEAD + fields(b"\0\0\0\x01", b"word", None) + fields("☃".encode()) + END
    (only,) = copied("binary", data)
    assert only.text == "\\x00000001\tword\t\\N\n☃"
    assert only.flags == ("undecoded",)
    assert only.attrs == {"format": "binary", "bytes": len(data), "messages": 1}


@given(st.integers(1, 60))
def test_binary_rows_cut_anywhere(size: int) -> None:
    data = HEAD + b"".join(fields(f"row {n}".encode(), bytes(4)) for n in range(20)) + END
    (only,) = copied("binary", *[data[at : at + size] for at in range(0, len(data), size)])
    assert only.text == "\n".join(f"row {n}\t\\x00000000" for n in range(20))


def test_binary_that_is_none() -> None:
    assert copied("binary", b"not at all")[0].text == "not at all"
    assert copied("binary", HEAD + b"\x80\x00rest")[0].text == "\\x8000" + b"rest".hex()
    assert copied("binary", HEAD + fields(b"ok") + b"\0\1\0\0\0\x09cut")[0].text == "ok\n\\x000100000009" + b"cut".hex()


def test_a_row_that_is_too_large_to_wait_for() -> None:
    parts = [HEAD + struct.pack("!Hi", 1, 1 << 30), *[b"y" * 50_000] * 10]
    copy = Copy(Direction.SERVER, "binary", None)
    for part in parts:
        copy.add(part, 0, MAX_BATCH, 1, 1, False, "utf-8")
        assert len(copy._data) <= MAX_CARRY + 50_000


@given(st.lists(st.binary(max_size=80), max_size=10), st.sampled_from(["text", "binary", "replication"]))
@settings(max_examples=150)
def test_any_bytes(parts: list[bytes], form: str) -> None:
    out = copied(form, *parts)
    assert sum(one.attrs["bytes"] for one in out) == sum(map(len, parts))
    assert len(copied("binary", HEAD, *parts)) == 1
