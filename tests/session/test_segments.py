from hypothesis import assume, given, settings
from hypothesis import strategies as st

from appliance.session.segments import Conflict, Segments, difference
from tests.session.linux import Linux


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_difference_is_the_smallest_span(old: bytes, new: bytes) -> None:
    size = min(len(old), len(new))
    old, new = old[:size], new[:size]
    wrong = [index for index in range(size) if old[index] != new[index]]
    assert difference(old, new) == ((wrong[0], wrong[-1] + 1) if wrong else None)


pieces = st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=12)), max_size=25)


@given(pieces)
@settings(max_examples=400)
def test_linux_keeps_the_same(arrivals: list[tuple[int, bytes]]) -> None:
    segments, linux = Segments(), Linux()
    sent: dict[int, set[int]] = {}
    said: dict[int, set[int]] = {}
    for start, data in arrivals:
        for index, byte in enumerate(data):
            sent.setdefault(start + 1 + index, set()).add(byte)
        for conflict in segments.insert(start + 1, data, 0):
            for index, byte in enumerate(conflict.data):
                said.setdefault(conflict.start + index, set()).add(byte)
        linux.segment(start + 1, data)  # offset 0 never comes: all of them wait
        assert segments.size == len(sent)
    assume(not linux.nested)
    out: dict[int, int] = {}
    last = -1
    while len(segments):
        assert segments.first > last
        for start, part, _ in segments.take(segments.first):
            out |= {start + index: byte for index, byte in enumerate(part)}
            last = start + len(part) - 1
    kept: dict[int, int] = {}
    for start, part in linux.waiting:
        kept = {start + index: byte for index, byte in enumerate(part)} | kept
    assert out == kept
    assert segments.size == 0
    assert all(values <= said.get(place, set()) | {out[place]} for place, values in sent.items())


def test_a_conflict_holds_the_losing_bytes() -> None:
    segments = Segments()
    segments.insert(10, b"abcdef", 5)
    assert segments.insert(11, b"bXdYf..", 6) == [Conflict(12, b"XdY", 6)]
    assert segments.insert(8, b"..AbcdeF..", 7) == [Conflict(10, b"abcdef", 5)]
    assert segments.take(8) == [(8, b"..AbcdeF..", 7)]


def test_a_large_segment_swallows_small_ones_once() -> None:
    """A comb of tiny segments must not make every later packet slow."""
    segments = Segments()
    for start in range(0, 2000, 2):
        segments.insert(start, b"x", 0)
    segments.insert(0, b"x" * 2000, 0)
    assert len(segments) == 1
    assert segments.size == 2000


def test_a_piece_is_taken_up_to_a_limit() -> None:
    segments = Segments()
    segments.insert(3, b"abcdef", 4)
    assert segments.take(3, 5) == [(3, b"ab", 4)]
    assert segments.take(3, 5) == []
    assert segments.take(5, 99) == [(5, b"cdef", 4)]
    assert segments.size == len(segments) == 0


def test_the_last_one_can_be_taken_first() -> None:
    segments = Segments()
    segments.insert(0, b"a", 1)
    segments.insert(5, b"bc", 2)
    assert segments.end == 7
    assert segments.take_last() == (5, b"bc", 2)
    assert (len(segments), segments.size) == (1, 1)
    segments.shift(3)
    assert segments.first == 3
