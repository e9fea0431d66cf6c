"""One direction's framing: what is held, how long it takes, when messages come out."""

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dissect.postgres_frames import INSANE, SERVER_TYPES
from appliance.dissect.postgres_half import Half, Mode
from appliance.dissect.sql_frames import LOST
from appliance.dissect.sql_half import MAX_MESSAGE, MAX_SEARCH
from tests.dissect.postgres_bytes import IDLE, SYNC, done, row, typed


def half(known: bytes = SERVER_TYPES) -> Half:
    return Half(0, Mode.TYPED, known, {})


def test_searching_hostile_bytes_takes_linear_time() -> None:
    hostile = b"D\0\0\xff\xff" * (MAX_SEARCH // 5)
    one = half()
    one.gap(1, 0)
    before = time.process_time()
    frames = []
    for at in range(0, len(hostile), 1448):
        one.feed(hostile[at : at + 1448], 0)
        frames += one.typed()
    assert time.process_time() - before < 3
    one.feed(b"x" * 70000, 0)
    one.typed()
    assert one.received - one._offset < 100_000


def test_searching_ends() -> None:
    one = half()
    one.gap(1, 0)
    one.feed(b"x" * (MAX_SEARCH + 10), 5)
    (frame,) = one.typed()
    assert (frame.kind, frame.start, frame.end) == (LOST, 1, MAX_SEARCH + 7)
    assert one.mode is Mode.IGNORED
    assert one.settled() == one.received


def test_pieces_are_not_copied_again_and_again() -> None:
    one = half()
    data = b"D" + struct.pack("!I", MAX_MESSAGE - 1) + bytes(MAX_MESSAGE - 5)
    before = time.process_time()
    for at in range(0, len(data), 16):
        one.feed(data[at : at + 16], at)
        frames = one.typed()
    assert time.process_time() - before < 2
    (frame,) = frames
    assert (frame.ts_ns, frame.end_ns, len(frame.body), frame.cut) == (0, MAX_MESSAGE - 16, MAX_MESSAGE - 5, False)


def test_no_more_than_a_message_is_held() -> None:
    one = half()
    one.feed(b"D" + struct.pack("!I", 1 << 29), 0)
    for _ in range(100):
        one.feed(bytes(100_000), 0)
        assert one.typed() == []
        assert len(one.rest()) <= MAX_MESSAGE + 100_000
    assert one.settled() == one.received
    (frame,) = one.close(9)
    assert (frame.start, frame.end, frame.cut) == (0, one.received, True)
    assert len(frame.body) <= MAX_MESSAGE


@pytest.mark.parametrize("kind", ["Z", "C", "K", "?"])
def test_short_messages_are_short(kind: str) -> None:
    one = half()
    one.feed(typed(kind, bytes(40000)), 0)
    assert [frame.kind for frame in one.typed()] == [INSANE]


def test_times() -> None:
    one = half()
    data = done("A") + done("B") + done("C")
    one.feed(data[:3], 10)
    one.typed()
    one.feed(data[3:12], 20)
    first = one.typed()
    one.feed(data[12:], 30)
    times = [(frame.ts_ns, frame.end_ns) for frame in first + one.typed()]
    assert times == [(10, 20), (20, 30), (30, 30)]


@given(
    st.lists(st.sampled_from([done("A"), row(b"1"), IDLE, SYNC, typed("T", bytes(40000)), typed("?"), b"D\0\0\0\1"])),
    st.lists(st.integers(1, 50), min_size=1),
    st.booleans(),
)
def test_read_is_feed_and_typed(messages: list[bytes], sizes: list[int], gap: bool) -> None:
    short, long = half(), half()
    data, ts_ns = b"".join(messages), 0
    while data:
        for size in sizes:
            part, data, ts_ns = data[:size], data[size:], ts_ns + 1
            long.feed(part, ts_ns)
            assert short.read(part, ts_ns) == long.typed()
            assert (short.settled(), short.received, short.rest()) == (long.settled(), long.received, long.rest())
        if gap:
            short.gap(7, ts_ns)
            long.gap(7, ts_ns)
        sizes = [40_000]
    assert short.close(ts_ns) == long.close(ts_ns)


def test_whole_messages_are_not_copied_to_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    one = half()
    monkeypatch.setattr(one, "feed", None)
    assert [frame.kind for frame in one.read(row(b"1") + done("SELECT 1") + IDLE, 5)] == [*b"DCZ"]


def test_behind_a_gap_messages_come_as_soon_as_they_are_there() -> None:
    one = half()
    long = done("x" * 500)
    one.feed(long[:20], 0)
    assert one.typed() == []
    one.gap(len(long) - 30, 0)
    one.feed(long[-10:] + IDLE[:3], 0)
    assert [frame.cut for frame in one.typed()] == [True]
    one.feed(IDLE[3:], 0)
    assert [frame.kind for frame in one.typed()] == [0x5A]


def test_where_nothing_is_known_bytes_have_the_time_they_came_at() -> None:
    one = half()
    one.mode = Mode.SEARCHING
    one.feed(b"words" + done("SELECT 1") + IDLE, 7)
    lost = one.typed()[0]
    assert (lost.kind, lost.ts_ns) == (LOST, 7)
