from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.session.chunks import JOIN_NS, MAX_ASIDE, MAX_CHUNK, MAX_RANGES, Chunk, Outlet
from appliance.session.pieces import Data


def push(outlet: Outlet, *pieces: tuple[int, bytes, int], settled: int = 1 << 62) -> list[Chunk]:
    out: list[Chunk] = []
    for piece in pieces:
        outlet.push(Data(*piece), settled, out)
    return out


def finish(outlet: Outlet) -> list[Chunk]:
    out: list[Chunk] = []
    outlet.finish(out)
    return out


def test_neighbours_within_a_moment_become_one_chunk() -> None:
    outlet = Outlet()
    assert push(outlet, (0, b"abc", 5), (3, b"def", JOIN_NS)) == []
    assert outlet.held_bytes
    assert push(outlet, (6, b"g", JOIN_NS + 6)) == [Chunk(0, b"abcdef", 5, 0, ())]
    assert finish(outlet) == [Chunk(6, b"g", JOIN_NS + 6, 0, ())]


def test_a_gap_ends_a_chunk() -> None:
    outlet = Outlet()
    assert push(outlet, (0, b"abc", 0), (5, b"fg", 0)) == [Chunk(0, b"abc", 0, 0, ())]


def test_chunks_have_a_largest_size() -> None:
    outlet = Outlet()
    out = push(outlet, (0, bytes(MAX_CHUNK - 1), 0), (MAX_CHUNK - 1, bytes(3 * MAX_CHUNK), 0)) + finish(outlet)
    assert max(len(chunk.data) for chunk in out) == MAX_CHUNK
    assert sum(len(chunk.data) for chunk in out) == 4 * MAX_CHUNK - 1


def test_datagrams_stay_apart() -> None:
    outlet = Outlet(join=False)
    assert push(outlet, (0, b"ab", 0), (2, b"cd", 0)) == [Chunk(0, b"ab", 0, 0, ())]


def test_what_is_not_settled_stays() -> None:
    outlet = Outlet()
    assert push(outlet, (0, b"user=a password=geheim;", 0), settled=7) == []
    assert outlet.held_bytes >= 16
    outlet.redact(16, 22)
    out: list[Chunk] = []
    outlet.release(23, out)
    assert out + finish(outlet) == [Chunk(0, b"user=a password=******;", 0, 0, ((16, 22),))]


def test_what_is_hidden_is_known() -> None:
    outlet = Outlet()
    outlet.redact(5, 10)
    outlet.redact(10, 12)
    outlet.redact(20, 21)
    assert outlet.hides(5, 12)
    assert outlet.hides(7, 9)
    assert not outlet.hides(4, 6)
    assert not outlet.hides(11, 20)
    assert not Outlet().hides(0, 1)


def test_copies_wait_and_are_redacted_too() -> None:
    outlet = Outlet()
    push(outlet, (0, b"pw=secret;", 0), settled=0)
    out: list[Chunk] = []
    assert outlet.copy(3, b"geheim", 1, out) == 1
    assert outlet.copy(0, b"p", 1, out) == 2
    assert out == []
    outlet.redact(3, 9)
    outlet.release(5, out)
    assert out == [Chunk(0, b"p", 1, 2, ())]
    outlet.release(10, out)
    assert Chunk(3, b"******", 1, 1, ((0, 6),)) in out
    assert not outlet.behind


def test_late_bytes_are_part_of_the_stream() -> None:
    outlet = Outlet()
    push(outlet, (0, b"ab", 0), (4, b"ef", 0))
    outlet.late(2, b"cd", 9)
    out: list[Chunk] = []
    outlet.release(6, out)
    assert Chunk(2, b"cd", 9, 0, ()) in out


def test_copies_that_wait_are_bounded_and_none_is_lost() -> None:
    outlet = Outlet()
    push(outlet, (0, b"x", 0), settled=0)
    out: list[Chunk] = []
    for _ in range(8):
        outlet.copy(0, bytes(MAX_ASIDE // 4), 0, out)
        assert outlet.held_bytes <= MAX_ASIDE + 1
    for _ in range(5000):
        outlet.copy(5, b"x", 0, out)
    assert len(out) > 2000
    assert sorted(chunk.copy for chunk in out + finish(outlet)) == list(range(5009))


def test_redactions_are_bounded() -> None:
    outlet = Outlet()
    size = 4 * MAX_RANGES
    for start in range(0, size, 2):
        outlet.redact(start, start + 1)
    out = push(outlet, (0, b"x" * size, 0))
    outlet.flush(out)
    assert out[-1].data == b"*x" * (size // 2), "none is forgotten before its bytes have left"
    outlet.redact(size, size + 1)
    outlet.copy(0, b"y" * size, 0, out)
    out = finish(outlet)
    assert out[-1].data.count(b"*") == MAX_RANGES - 1


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_byte_once_and_only_redacted_ones_masked(data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=1, max_size=200)).replace(b"*", b"+")
    outlet = Outlet()
    out: list[Chunk] = []
    masked: set[int] = set()
    at = settled = now = 0
    while at < len(content):
        size = data.draw(st.integers(1, 40))
        part = content[at : at + size]
        now += data.draw(st.integers(0, JOIN_NS))
        if data.draw(st.booleans()):  # somewhere behind what is settled
            start = data.draw(st.integers(settled, at + len(part)))
            end = data.draw(st.integers(start, at + len(part)))
            outlet.redact(start, end)
            masked |= set(range(start, end))
        at += len(part)
        settled = data.draw(st.integers(settled, at))
        outlet.push(Data(at - len(part), part, now), settled, out)
        assert all(chunk.offset + len(chunk.data) <= settled for chunk in out)
    out += finish(outlet)
    assert [chunk.offset for chunk in out] == [sum(len(c.data) for c in out[:n]) for n in range(len(out))]
    whole = b"".join(chunk.data for chunk in out)
    assert whole == bytes(ord("*") if n in masked else byte for n, byte in enumerate(content))
    said = {chunk.offset + n for chunk in out for low, high in chunk.redacted for n in range(low, high)}
    assert said == masked
