"""The records of a span, in both layouts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from appliance.errors import DamagedEvidence
from appliance.journal import PLAIN, RING, Frame, FrameKind
from appliance.wire.abi import Record
from appliance.wire.records import BUSY, DISCARD, RING_HEADER, padded, plain, position, records
from tests.wire.rings import record

SIZE = Record.LAYOUT.size


def ring(body: bytes, flags: int = 0) -> bytes:
    return RING_HEADER.pack(len(body) | flags, 0) + body + bytes(padded(len(body)) - len(body))


def span(payload: bytes, layout: int = RING) -> Frame:
    return Frame(5, FrameKind.SPAN, 0, payload, 0, len(payload), RING if layout == RING else PLAIN)


def packet(data: bytes, **fields: Any) -> bytes:
    return record(data, **fields).pack() + data


def test_records_of_a_ring_span() -> None:
    payload = ring(packet(b"abc", seq=1)) + ring(b"x" * 40, DISCARD) + ring(packet(b"", seq=2))
    found = list(records(span(payload)))
    assert [(at, header.seq, bytes(data)) for at, header, data in found] == [
        (5 << 24 | 8, 1, b"abc"),
        (5 << 24 | 8 + 120 + 48 + 8, 2, b""),
    ]


def test_records_of_a_plain_span() -> None:
    payload = plain(record(b"abc", seq=1), b"abc") + plain(record(b"12345678", seq=2), b"12345678")
    found = list(records(span(payload, PLAIN)))
    assert [(at, header.seq, bytes(data)) for at, header, data in found] == [
        (position(5, 0), 1, b"abc"),
        (position(5, SIZE + 8), 2, b"12345678"),
    ]


def test_a_slot_may_be_larger_than_its_record() -> None:
    payload = ring(packet(b"abc") + bytes(500)) + ring(packet(b"d"))
    assert [bytes(data) for _, _, data in records(span(payload))] == [b"abc", b"d"]


def test_what_an_earlier_frame_held_can_be_left_out() -> None:
    first = ring(packet(b"abc"))
    found = list(records(span(first + ring(packet(b"def"))), len(first)))
    assert [(at, bytes(data)) for at, _, data in found] == [(position(5, len(first) + 8), b"def")]


def test_an_empty_span_has_none() -> None:
    assert list(records(span(b""))) == []


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "ring header cut": lambda good: good + b"\0" * 4,
    "record cut": lambda good: good[:-8],
    "shorter than a record": lambda good: good + ring(b"x" * (SIZE - 1)),
    "busy": lambda good: good + ring(packet(b""), BUSY),
    "length beyond the slot": lambda good: good + ring(replace(record(b""), length=1).pack()),
    "foreign version": lambda good: good + ring(replace(record(b""), version=9).pack()),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_span_that_breaks_its_form_is_damaged(fault: str) -> None:
    payload = BROKEN[fault](ring(packet(b"abc")))
    with pytest.raises(DamagedEvidence, match="frame 5"):
        list(records(span(payload)))


def test_other_frames_have_no_records() -> None:
    with pytest.raises(DamagedEvidence):
        list(records(Frame(5, FrameKind.EVENT, 0, b"{}")))
