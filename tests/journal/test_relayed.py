"""A relay's records: the bytes of the specification, and what is none."""

import pytest

from appliance.errors import DamagedEvidence
from appliance.journal.relayed import HEADER, Relayed, RelayedKind, encode, header, padding, scan, size

# kind, direction, flow, time, offset, body -> the record
VECTORS = {
    "data": (
        (RelayedKind.DATA, 1, 7, 0x0102030405060708, 300, b"hello"),
        "050000000102010007000000000000000807060504030201 2c0100000000000068656c6c6f000000",
    ),
    "end": (
        (RelayedKind.EOF, 0, 7, 0x0102030405060708, 5, b""),
        "000000000104000007000000000000000807060504030201 0500000000000000",
    ),
    "note": (
        (RelayedKind.NOTE, 0, 2**64 - 1, 0, 0, b'{"a":1}\n'),
        "0800000001030000ffffffffffffffff0000000000000000 00000000000000007b2261223a317d0a",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str) -> None:
    fields, text = VECTORS[name]
    assert encode(*fields) == bytes.fromhex(text)
    assert list(scan(bytes.fromhex(text))) == [Relayed(*fields)]
    assert size(len(fields[5])) == len(bytes.fromhex(text))


def test_a_record_in_pieces_is_the_whole_one() -> None:
    body = b"0123456789"
    pieces = header(RelayedKind.DATA, 0, 1, 2, 3, len(body)) + body + padding(len(body))
    assert pieces == encode(RelayedKind.DATA, 0, 1, 2, 3, body)


def test_records_follow_each_other_on_multiples_of_eight() -> None:
    records = [encode(RelayedKind.DATA, length & 1, 1, length, 0, bytes(length)) for length in range(20)]
    found = list(scan(b"".join(records)))
    assert [(len(one.body), one.time_ns) for one in found] == [(length, length) for length in range(20)]
    assert all(one.at % 8 == 0 for one in found)


GOOD = encode(RelayedKind.DATA, 0, 1, 2, 0, b"12345678")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (GOOD[:-1], "cut"),
        (GOOD[: HEADER.size - 1], "cut"),
        (GOOD[:4] + b"\2" + GOOD[5:], "version 1"),
        (GOOD[:5] + b"\6" + GOOD[6:], "unknown kind 6"),
        (GOOD[:6] + b"\2" + GOOD[7:], "version 1"),
        (GOOD[:7] + b"\1" + GOOD[8:], "version 1"),
        (b"\xff\xff\xff\xff" + GOOD[4:], "cut"),
    ],
)
def test_what_is_no_record_comes_after_those_before_it(bad: bytes, why: str) -> None:
    records = scan(GOOD + bad)
    assert next(records).body == b"12345678"
    with pytest.raises(DamagedEvidence, match=why):
        next(records)


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff", b'"x"'])
def test_what_is_no_object_says_nothing(body: bytes) -> None:
    (record,) = scan(encode(RelayedKind.NOTE, 0, 1, 2, 0, body))
    assert record.said() == {}
