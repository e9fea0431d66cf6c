"""One direction of TCP. Offsets count from the byte after the SYN; `at` makes a sequence number of one."""

import pickle
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.session.delivered import HISTORY
from appliance.session.doubts import MAX_DOUBTFUL, MAX_DOUBTS
from appliance.session.pieces import Data, Gap, Late, Note, Overlap, Piece, Stray
from appliance.session.reassembly import HOLD_NS, HOLE_NS, MAX_SEGMENTS, OVERHEAD, Stream
from tests.session.linux import Linux

ISN = 0xFFFF_FF00  # wraps after 256 bytes
BUFFER = 1 << 20


def at(offset: int) -> int:
    return (ISN + 1 + offset) & 0xFFFFFFFF


class Side:
    """A stream and what it gave out."""

    def __init__(self, buffer: int = BUFFER, *, strict: bool = False, syn: bool = True) -> None:
        self.stream = Stream(buffer, strict)
        self.out: list[Piece] = []
        self.now = 1000
        if syn:
            assert self.stream.syn(ISN)

    def send(self, offset: int, data: bytes = b"", missing: int = 0) -> "Side":
        self.now += 1
        self.stream.segment(at(offset), data, missing, self.now, self.out)
        return self

    def ack(self, offset: int, window: int = 65535) -> "Side":
        self.now += 1
        self.stream.acknowledge(at(offset), window, self.now, self.out)
        return self

    def fin(self, offset: int) -> "Side":
        self.stream.segment(at(offset), b"", 0, self.now, self.out, fin=True)
        return self

    def doubt(self, offset: int, data: bytes, why: str = "old-timestamp") -> "Side":
        self.now += 1
        self.stream.doubt(at(offset), data, False, self.now, why, self.out)
        return self

    def wait(self, ns: int) -> "Side":
        self.now += ns
        self.stream.advance(self.now, self.out)
        return self

    def finish(self) -> "Side":
        self.stream.finish(self.now, self.out)
        return self

    @property
    def bytes(self) -> bytes:
        """Delivered bytes, which must be in order."""
        whole = b""
        expected = 0
        for piece in self.out:
            if isinstance(piece, Gap):
                assert piece.start == expected
                expected = piece.end
                whole += b"?" * (piece.end - piece.start)
            if isinstance(piece, Data):
                assert piece.offset == expected
                expected += len(piece.data)
                whole += piece.data
        return whole

    def of(self, kind: type[Piece]) -> list[Piece]:
        return [piece for piece in self.out if isinstance(piece, kind)]

    @property
    def odd(self) -> list[Piece]:
        return [piece for piece in self.out if not isinstance(piece, Data)]


def test_in_order_over_a_wrap() -> None:
    side = Side()
    for offset in range(0, 600, 100):
        side.send(offset, bytes([offset // 100]) * 100)
    assert side.bytes == b"".join(bytes([n]) * 100 for n in range(6))
    assert not side.odd


def test_streams_longer_than_four_gigabytes() -> None:
    side = Side()
    for wraps in range(1, 12):  # jump ahead by acknowledged gaps of 1 GiB: offsets must go on, not wrap
        start = wraps << 30
        side.send(start, b"x", 0)
        side.ack(start + 1)
        side.wait(HOLE_NS)
        side.send(start + 1, b"y")
        assert side.stream.next == start + 2
    assert side.stream.next > 11 << 30


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_order_any_cut_any_repetition_gives_the_stream(data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=1, max_size=400))
    cuts = data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(1, 80)), min_size=1, max_size=40))
    parts = [(start, content[start : start + size]) for start, size in cuts]
    parts += [(start, content[start : start + 50]) for start in range(0, len(content), 50)]
    parts = data.draw(st.permutations(parts))
    side = Side()
    for start, part in parts:
        side.send(start, part)
        if data.draw(st.booleans()):
            side.stream = pickle.loads(pickle.dumps(side.stream))
    assert side.bytes == content
    assert not side.odd
    assert side.stream.recorded == len(content)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_the_stream_is_what_linux_would_read_and_what_lost_is_given_out(data: st.DataObject) -> None:
    size = 120
    side = Side()
    linux = Linux()
    sent: dict[int, set[int]] = {}
    starts = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=30))
    for start in [*starts, *range(0, size, 20)]:
        part = data.draw(st.binary(min_size=1, max_size=30))[: size - start]
        for index, byte in enumerate(part):
            sent.setdefault(start + index, set()).add(byte)
        side.send(start, part)
        linux.segment(start, part)
    delivered = side.bytes
    assert delivered == bytes(linux.queue)
    said: dict[int, set[int]] = {position: {byte} for position, byte in enumerate(delivered)}
    for piece in side.odd:
        assert isinstance(piece, Overlap)
        for index, byte in enumerate(piece.data):
            said.setdefault(piece.start + index, set()).add(byte)
    assert all(values <= said[position] for position, values in sent.items() if position < len(delivered))


def test_a_conflict_is_the_span_that_differs() -> None:
    side = Side().send(0, b"select 1; drop").send(7, b"2; dro")
    assert side.bytes == b"select 1; drop"
    assert side.odd == [Overlap(7, b"2", side.now)]


def test_repetitions_beyond_the_history_are_counted_as_unverified() -> None:
    side = Side()
    for offset in range(0, 4 * HISTORY, HISTORY):
        side.send(offset, b"x" * HISTORY)
    side.send(0, b"other" * 10)
    assert not side.odd
    assert side.stream.unverified == 50
    assert side.stream.retransmitted == 50
    assert side.stream.held_bytes <= 2 * HISTORY


def test_keep_alives_are_not_compared() -> None:
    side = Side().send(0, b"abc").ack(3)
    side.send(2, b"\0").send(2)
    assert not side.odd
    assert side.stream.keepalives == 2
    side = Side().send(0, b"abc")
    side.send(2, b"\0")  # not acknowledged: it could have become the stream
    assert side.odd == [Overlap(2, b"\0", side.now)]


def test_a_hole_that_the_receiver_acknowledged_is_a_gap_after_a_moment() -> None:
    side = Side().send(0, b"abc").send(5, b"fgh").ack(8)
    assert side.bytes == b"abc"
    side.wait(HOLE_NS)
    assert side.bytes == b"abc??fgh"
    assert [piece[:2] + piece[3:] for piece in side.of(Gap)] == [(3, 5, "acknowledged")]
    assert side.stream.missing == 2


def test_a_hole_that_fills_in_time_is_none() -> None:
    side = Side().send(0, b"abc").send(5, b"fgh").ack(8).send(3, b"de")
    side.wait(HOLE_NS)
    assert side.bytes == b"abcdefgh"
    assert not side.odd


def test_without_an_acknowledgement_the_hole_stays_open() -> None:
    side = Side().send(0, b"abc").send(5, b"fgh").ack(3).wait(1 << 40)
    assert side.bytes == b"abc"
    assert side.send(3, b"de").bytes == b"abcdefgh"


def test_late_bytes_fill_the_gap_beside_the_dissector() -> None:
    side = Side().send(0, b"abc").send(8, b"ijk").ack(11).wait(HOLE_NS).send(4, b"ef")
    assert side.of(Late) == [Late(4, b"ef", side.now)]
    assert side.stream.missing == 3
    assert side.stream.recorded == 8
    side.send(3, b"defgh")
    assert [piece[:2] for piece in side.of(Late)] == [(4, b"ef"), (3, b"d"), (6, b"gh")]
    assert side.stream.missing == 0
    assert side.stream.unverified == 2  # the e and f that came again


def test_the_buffer_limit_makes_a_gap() -> None:
    side = Side(1000 + 10 * OVERHEAD).send(0, b"a")
    for offset in range(10, 1210, 110):
        side.send(offset, b"x" * 100)
    assert next(piece[:2] + piece[3:] for piece in side.of(Gap)) == (1, 10, "buffer")
    assert side.stream.held_bytes < 3000


def test_many_tiny_segments_are_bounded_and_quick() -> None:
    side = Side(1 << 30)
    began = time.process_time()
    for offset in range(1, 6 * MAX_SEGMENTS, 2):
        side.send(offset, b"x")
    assert time.process_time() - began < 5
    assert len(side.of(Gap)) > MAX_SEGMENTS
    assert side.stream.held_bytes < 200_000


def test_bytes_beyond_the_window_do_not_move_the_stream() -> None:
    side = Side().ack(0, window=5000).send(0, b"abc").send(500_000_000, b"wild").send(3, b"def").finish()
    assert side.bytes == b"abcdef"
    assert [piece[:2] + piece[3:] for piece in side.of(Stray)] == [(500_000_000, b"wild", "out-of-window")]


def test_wild_bytes_go_first_when_room_is_needed() -> None:
    side = Side(1000).ack(0, window=2000)
    side.send(0, b"a").send(10, b"x" * 600)
    side.send(1_000_000, b"w" * 600)
    assert not side.of(Gap)
    assert [piece[:2] for piece in side.of(Stray)] == [(1_000_000, b"w" * 600)]
    assert side.send(1, b"b" * 9).bytes == b"a" + b"b" * 9 + b"x" * 600


def test_a_strict_stream_refuses_what_the_receiver_did_not_take() -> None:
    """Else bytes that the receiver drops would hide those that it takes later."""
    side = Side(strict=True).ack(0, window=4).send(0, b"abcdEVIL").ack(0, window=8).send(0, b"abcdefgh").ack(8)
    assert side.bytes == b"abcdefgh"
    assert [piece[:2] + piece[3:] for piece in side.odd] == [(0, b"abcdEVIL", "out-of-window")]


def test_a_strict_stream_has_what_the_receiver_took_beyond_its_window() -> None:
    """Older kernels take all of a segment that begins within the window, other systems a part of it."""
    side = Side(strict=True).ack(0, window=4).send(0, b"abcdefgh").ack(8)
    assert side.bytes == b"abcdefgh"
    side = Side(strict=True).ack(0, window=4).send(0, b"abcdefgh").ack(4).send(4, b"EFGH").ack(8)
    assert side.bytes == b"abcdEFGH"
    assert [piece[:2] + piece[3:] for piece in side.odd] == [(4, b"efgh", "out-of-window")]


def test_a_window_probe_waits_for_its_answer() -> None:
    side = Side(strict=True).ack(0, window=4).send(0, b"abcd").ack(4, window=0).send(4, b"e")
    assert side.bytes == b"abcd"
    side.ack(5, window=0).send(5, b"f")
    assert side.bytes == b"abcde"
    assert not side.odd
    assert side.ack(5, window=9).send(5, b"f").ack(6).bytes == b"abcdef"
    assert not side.odd


def test_doubts_are_settled_by_acknowledgements() -> None:
    side = Side(strict=True).ack(0).doubt(0, b"decoy").send(0, b"right").ack(5)
    assert side.bytes == b"right"
    assert [piece[:2] + piece[3:] for piece in side.odd] == [(0, b"decoy", "old-timestamp")]
    side = Side(strict=True).ack(0).doubt(0, b"taken").ack(5)
    assert side.bytes == b"taken"
    side = Side(strict=True).ack(0).doubt(0, b"same").send(0, b"same").ack(4)
    assert (side.bytes, side.odd, side.stream.retransmitted) == (b"same", [], 4)


def test_a_capture_that_orders_wrongly_takes_doubts_late() -> None:
    side = Side().doubt(0, b"decoy").ack(5).send(0, b"right").send(5, b"!").ack(6).finish()
    assert side.bytes == b"right!"
    side = Side().doubt(0, b"taken").ack(5).send(5, b"!").ack(6).wait(HOLE_NS)
    assert side.bytes == b"taken!"


def test_doubts_are_bounded() -> None:
    side = Side(strict=True).ack(0)
    for offset in range(3 * MAX_DOUBTS):
        side.doubt(offset, b"x" * 1400)
        assert side.stream.held_bytes <= MAX_DOUBTFUL
    assert len(side.of(Stray)) >= 2 * MAX_DOUBTS
    assert side.ack(1 << 20).stream.held_bytes <= MAX_DOUBTFUL


def test_nothing_behind_a_reset_is_taken_until_it_is_acknowledged() -> None:
    side = Side(strict=True).ack(0).send(0, b"abc")
    side.stream.stop(at(3))
    side.send(3, b"def")
    assert side.bytes == b"abc"
    assert not side.stream.revived
    side.ack(6).send(6, b"ghi")
    assert (side.bytes, side.stream.revived) == (b"abcdefghi", True)


@pytest.mark.parametrize(("offset", "real"), [(3, True), (0, False), (4, False), (6, False), (9, False)])
def test_a_strict_stream_knows_where_a_reset_must_be(offset: int, real: bool) -> None:
    side = Side(strict=True).ack(0).send(0, b"abc").ack(3).send(6, b"ghi")
    assert side.stream.covers(at(offset)) is real
    side.stream.selective = True
    assert side.stream.covers(at(offset)) is (real or offset == 9)


def test_cut_packets_leave_gaps() -> None:
    side = Side().send(0, b"abc", 5).send(8, b"ijk")
    assert side.bytes == b"abc?????ijk"
    assert [piece[:2] + piece[3:] for piece in side.of(Gap)] == [(3, 8, "snapped")]


def test_cut_packets_out_of_order() -> None:
    side = Side().send(8, b"ijk", 2).send(0, b"abc", 5)
    assert side.bytes == b"abc?????ijk??"
    side = Side().send(4, b"e", 2).send(0, b"abc").send(3, b"d").send(7, b"h")
    assert side.bytes == b"abcde??h"


def test_a_fin_ends_the_stream_once_it_is_acknowledged() -> None:
    side = Side().send(0, b"abc").fin(3)
    assert not side.stream.closed
    assert side.ack(3).stream.closed is False
    assert side.ack(4).stream.closed is True
    side.finish()
    assert not side.odd


def test_bytes_behind_a_fin_show_that_it_was_false_when_they_are_acknowledged() -> None:
    for strict in (True, False):
        side = Side(strict=strict).ack(0).send(0, b"abc").fin(3).send(3, b"def")
        assert side.bytes == b"abc"
        side.ack(6)
        assert side.bytes == b"abcdef"
        assert [piece[0] for piece in side.of(Note)] == ["fin-ignored"]
        assert side.stream.fin is None


def test_a_fin_that_waits_loses_its_place_as_bytes_do() -> None:
    side = Side().send(3, b"def").fin(6).send(1, b"bcdefghi").send(0, b"a")
    assert (side.bytes, side.stream.fin) == (b"abcdefghi", None)
    side = Side().send(3, b"def").fin(6)
    side.stream.segment(at(3), b"def", 0, side.now, side.out, fin=True)
    side.send(3, b"DEFG").send(0, b"abc").ack(7).finish()
    assert (side.bytes, side.stream.fin) == (b"abcDEFG", None)
    side = Side()
    side.stream.segment(at(3), b"def", 0, side.now, side.out, fin=True)
    side.send(3, b"DEFG").send(0, b"abc").ack(7).finish()
    assert (side.bytes, side.stream.fin) == (b"abcdef", 6)
    side = Side().fin(6).send(8, b"behind").send(0, b"abcdef").ack(7).finish()
    assert (side.bytes, side.stream.fin) == (b"abcdef", 6)
    assert [piece[:2] + piece[3:] for piece in side.of(Stray)] == [(8, b"behind", "beyond-fin")]


def test_a_fin_behind_which_bytes_are_known_is_false() -> None:
    side = Side().send(0, b"abcdef").fin(3)
    assert side.stream.fin is None
    assert [piece[0] for piece in side.odd] == ["fin-ignored"]


def test_bytes_behind_an_acknowledged_fin_are_kept_aside() -> None:
    side = Side().send(0, b"abc").fin(3).ack(4).send(2, b"cdef").finish()
    assert side.bytes == b"abc"
    assert [piece[:2] + piece[3:] for piece in side.of(Stray)] == [(3, b"def", "beyond-fin")]


def test_the_end_tells_what_is_missing() -> None:
    side = Side().send(0, b"abc").send(5, b"f").ack(9).finish()
    assert side.bytes == b"abc??f???"
    assert side.stream.missing == 5
    side = Side().send(0, b"abc").fin(6).ack(7).finish()
    assert side.bytes == b"abc???"


def test_midstream_begins_at_the_lowest_of_the_first_moment() -> None:
    side = Side(syn=False).send(110, b"klm").send(100, b"abcdefghij").wait(HOLD_NS)
    assert side.bytes == b"abcdefghijklm"
    assert not side.stream.synchronised
    side.send(95, b"-----abc")
    assert [piece[:2] + piece[3:] for piece in side.of(Stray)] == [(-5, b"-----", "before-start")]


def test_midstream_begins_a_moment_after_the_receiver_acknowledges() -> None:
    side = Side(syn=False).ack(100).send(103, b"def")
    side.ack(106).send(100, b"abc")
    assert side.bytes == b""
    side.wait(HOLE_NS)
    assert side.bytes == b"abcdef"
    side = Side(strict=True, syn=False).ack(100).send(100, b"abc")
    assert side.bytes == b""
    assert side.ack(103).bytes == b"abc"


def test_what_may_lie_behind_a_syn_that_comes_late() -> None:
    side = Side(syn=False)
    assert side.stream.may_follow(ISN)
    side.send(5, b"fgh")
    assert side.stream.may_follow(ISN)
    assert not side.stream.may_follow(at(6))
    assert not side.stream.may_follow(at(-(1 << 21)))
    side.wait(HOLD_NS)
    assert not side.stream.may_follow(ISN)
    assert side.stream.may_follow(at(4))


def test_an_acknowledgement_before_the_syn_does_not_hide_the_fin() -> None:
    side = Side(syn=False).ack(4)
    assert side.stream.syn(ISN)
    side.fin(3).send(0, b"abc").finish()
    assert side.bytes == b"abc"
    assert not side.odd
    assert side.stream.closed


def test_wild_bytes_do_not_hide_the_fin() -> None:
    for wild_first in (True, False):
        side = Side().ack(0, window=5000).send(0, b"abc")
        if wild_first:
            side.send(500_000_000, b"wild").fin(3)
        else:
            side.fin(3).send(500_000_000, b"wild")
        side.ack(4).finish()
        assert side.stream.closed
        assert side.stream.missing == 0
        assert [type(piece) for piece in side.odd] == [Stray]


def test_tiny_segments_in_any_order_lose_nothing() -> None:
    """More than wait at one time: the holes become gaps, and what comes for them fills them."""
    side = Side(1 << 16)
    offsets = list(range(0, 40_000, 4))
    random.Random(5).shuffle(offsets)
    for offset in offsets:
        side.send(offset, b"%04d" % (offset % 10_000))
    assert side.of(Gap)
    assert (side.stream.missing, side.stream.recorded, side.stream.retransmitted) == (0, 40_000, 0)
    assert side.stream.held_bytes < 1 << 18


def test_midstream_holds_a_bounded_number_of_bytes() -> None:
    side = Side(syn=False)
    for offset in range(0, 1 << 17, 1 << 13):
        side.send(offset, bytes(1 << 13))
    assert len(side.bytes) >= 1 << 16


def test_a_syn_that_comes_behind_its_data_gives_the_exact_start() -> None:
    side = Side(syn=False).send(5, b"fgh")
    assert side.stream.syn(ISN)
    side.send(0, b"abcde")
    assert side.bytes == b"abcdefgh"
    assert side.stream.synchronised


def test_another_syn_is_not_taken_over_delivered_bytes() -> None:
    side = Side().send(0, b"abc")
    assert not side.stream.syn(ISN + 5)
    assert side.stream.syn(ISN)


def test_an_unanswered_syn_may_change() -> None:
    side = Side()
    assert side.stream.syn(ISN + 77)
    side.stream.segment(ISN + 78 & 0xFFFFFFFF, b"abc", 0, 1, side.out)
    assert side.bytes == b"abc"


def test_resets_count_only_in_the_window() -> None:
    side = Side().send(0, b"abc").ack(3, window=1000)
    assert side.stream.covers(at(3))
    assert side.stream.covers(at(900))
    assert not side.stream.covers(at(-50))
    assert not side.stream.covers(at(5_000_000))


def test_acknowledgements_of_unseen_bytes_are_counted() -> None:
    """Half a connection: what its other half said of it."""
    side = Side(syn=False).ack(0).ack(5000).finish()
    assert [piece[:2] + piece[3:] for piece in side.odd] == [(0, 5000, "acknowledged")]


@pytest.mark.parametrize("seed", range(8))
def test_hostile_numbers_never_raise_and_stay_bounded(seed: int) -> None:
    rng = random.Random(seed)
    side = Side(1 << 16, strict=bool(seed & 1), syn=bool(seed & 2))
    for _ in range(3000):
        offset = rng.choice([rng.randrange(1 << 32), side.stream.next + rng.randrange(-5000, 5000)])
        match rng.randrange(7):
            case 0:
                side.ack(offset, rng.randrange(1 << 20))
            case 1:
                side.fin(offset)
            case 2:
                side.stream.syn(at(offset))
            case 3:
                side.wait(rng.randrange(1 << 28))
            case _:
                side.send(offset, rng.randbytes(rng.randrange(1500)), rng.choice([0, 0, 0, rng.randrange(3000)]))
        assert side.stream.held_bytes <= (1 << 16) + 3 * HISTORY
    side.finish()
    expected = 0
    for piece in side.out:
        if isinstance(piece, Data | Gap):
            assert piece[0] == expected
            expected = piece.end if isinstance(piece, Gap) else piece.offset + len(piece.data)
