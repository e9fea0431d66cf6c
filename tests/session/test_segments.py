from hypothesis import given
from hypothesis import strategies as st

from appliance.session.segments import Conflict, Segments, difference


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_difference_is_the_smallest_span(old: bytes, new: bytes) -> None:
    size = min(len(old), len(new))
    old, new = old[:size], new[:size]
    wrong = [index for index in range(size) if old[index] != new[index]]
    assert difference(old, new) == ((wrong[0], wrong[-1] + 1) if wrong else None)


pieces = st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=12)), max_size=25)


@given(pieces)
def test_first_data_wins_whatever_overlaps(arrivals: list[tuple[int, bytes]]) -> None:
    segments = Segments()
    model: dict[int, int] = {}
    for start, data in arrivals:
        differing = {start + index: byte for index, byte in enumerate(data) if model.get(start + index, byte) != byte}
        said: dict[int, int] = {}
        for conflict in segments.insert(start, data, 0):
            said |= {conflict.start + index: byte for index, byte in enumerate(conflict.data)}
        assert differing.items() <= said.items()
        assert all(position in model for position in said)
        model = {start + index: byte for index, byte in enumerate(data)} | model
        assert segments.size == len(model)
    out: dict[int, int] = {}
    last = -1
    while len(segments):
        assert segments.first > last
        for start, data, _ in segments.take(segments.first):
            out |= {start + index: byte for index, byte in enumerate(data)}
            last = start + len(data) - 1
    assert out == model
    assert segments.size == 0


def test_a_conflict_holds_the_losing_bytes() -> None:
    segments = Segments()
    segments.insert(10, b"abcdef", 0)
    assert segments.insert(8, b"..aXcdYf..", 0) == [Conflict(11, b"XcdY")]
    assert segments.take(8) == [(8, b"..abcdef..", 0)]


def test_a_large_segment_swallows_small_ones_once() -> None:
    """A comb of tiny segments must not make every later packet slow."""
    segments = Segments()
    for start in range(0, 2000, 2):
        segments.insert(start, b"x", 0)
    segments.insert(0, b"x" * 2000, 0)
    assert len(segments) == 2  # the first tooth was there before its start
    assert segments.size == 2000


def test_the_last_one_can_be_taken_first() -> None:
    segments = Segments()
    segments.insert(0, b"a", 1)
    segments.insert(5, b"bc", 2)
    assert segments.end == 7
    assert segments.take_last() == (5, b"bc", 2)
    assert (len(segments), segments.size) == (1, 1)
    segments.shift(3)
    assert segments.first == 3
