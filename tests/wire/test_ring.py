"""Finding the committed end of the ring, and giving space back."""

import os
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import DamagedEvidence
from appliance.wire.records import BUSY
from appliance.wire.ring import SPAN, committed_end, fill
from tests.wire.rings import FileRing


@pytest.fixture
def made() -> Iterator[FileRing]:
    made = FileRing()
    yield made
    made.close()


def test_an_empty_ring_has_nothing(made: FileRing) -> None:
    assert made.ring.position == 0
    assert made.ring.fill == 0
    assert made.ring.committed(0) == 0


def test_a_span_is_all_that_is_committed_with_its_headers(made: FileRing) -> None:
    made.put(b"a" * 5)
    made.put(b"b" * 16)
    end = made.ring.committed(0)
    assert end == 8 + 8 + 8 + 16 == made.ring.fill
    assert (
        bytes(made.ring.span(0, end))
        == struct.pack("<II", 5, 0) + b"aaaaa\0\0\0" + struct.pack("<II", 16, 0) + b"b" * 16
    )


def test_a_span_ends_before_a_busy_record(made: FileRing) -> None:
    made.put(b"a" * 8)
    late = made.busy(b"b" * 8)
    made.put(b"c" * 8)
    assert made.ring.committed(0) == late == 16
    assert made.ring.committed(16) == 16
    made.commit(late, b"b" * 8)
    assert made.ring.committed(0) == 48


def test_discarded_records_are_part_of_the_span(made: FileRing) -> None:
    made.discard(b"x" * 100)
    made.put(b"a")
    assert made.ring.committed(0) == made.ring.fill


def test_space_is_given_back_and_used_again_across_the_end() -> None:
    made = FileRing(4096, start=2**33 - 64)
    try:
        for number in range(300):
            body = bytes([number % 251]) * (number % 700)
            start = made.put(body)
            assert start == made.ring.position
            end = made.ring.committed(start)
            assert bytes(made.ring.span(start, end))[8 : 8 + len(body)] == body
            made.ring.advance(end)
            assert made.ring.fill == 0
    finally:
        made.close()


def test_a_span_stays_within_the_limit_but_holds_one_record(made: FileRing) -> None:
    for _ in range(3):
        made.put(b"a" * 92)  # 104 with header and padding
    assert made.ring.committed(0, 250) == 208
    assert made.ring.committed(0, 208) == 208
    assert made.ring.committed(0, 50) == 104


LIVELY = """
import mmap, sys
with mmap.mmap(int(sys.argv[1]), 0) as ring, memoryview(ring) as view:
    with view[:8].cast("Q") as consumer, view[mmap.PAGESIZE:mmap.PAGESIZE + 8].cast("Q") as producer:
        print("go", flush=True)
        while True:
            producer[0] += 8
            consumer[0] += 8
"""


def test_looked_at_from_outside_a_lively_ring_holds_no_less_than_nothing() -> None:
    fd = os.memfd_create("ring")
    os.ftruncate(fd, 4 * 4096)
    both = subprocess.Popen([sys.executable, "-c", LIVELY, str(fd)], pass_fds=[fd], stdout=subprocess.PIPE)
    try:
        assert both.stdout is not None
        assert both.stdout.readline() == b"go\n"
        assert min(fill(fd) for _ in range(20_000)) >= 0
    finally:
        both.kill()
        both.communicate()
        os.close(fd)


def test_a_length_beyond_what_was_written_is_an_error() -> None:
    words = memoryview(struct.pack("<IIII", 64, 0, 0, 0)).cast("I")
    with pytest.raises(DamagedEvidence):
        committed_end(words, 15, 0, 16, SPAN)


@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=40), st.integers(0, 2**20))
def test_the_walk_finds_what_a_plain_reading_finds(lengths: list[tuple[int, bool]], laps: int) -> None:
    size = 16384
    start = laps * 8
    shadow = bytearray(2 * size)
    at, expected, open_ = start, start, True
    for length, busy in lengths:
        whole = 8 + (length + 7) // 8 * 8
        word = struct.pack("<I", length | (BUSY if busy else 0))
        shadow[at % size : at % size + 4] = word
        shadow[at % size + size : at % size + size + 4] = word
        at += whole
        open_ = open_ and not busy
        expected = at if open_ else expected
    assert committed_end(memoryview(shadow).cast("I"), size - 1, start, at, SPAN) == expected
