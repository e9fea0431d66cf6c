"""Times without any lock, as `unguarded` events tell of them: whose sessions bear the finding."""

import json
from typing import Any

import pytest

from appliance.journal import Frame, FrameKind
from appliance.model import Coverage, Ending, SessionRow
from appliance.session.bypassed import MAX_BOUNDS, Bypassed
from appliance.session.sessions import STUB_NS
from appliance.wire.abi import FlowEnd, SideState
from tests.session.test_assembler import clock, flow_end, hello, numbered, opened
from tests.session.test_state import decoded, encoded
from tests.session.traffic import PSH, SECOND, T0, Peer, Recorded, assembler, feed, frame, span

FINDING = ("unguarded",)


def unguarded(since: int | None, until: int, **more: Any) -> Frame:
    """Seconds after `T0`, on both clocks."""
    start = None if since is None else T0 + since * SECOND
    said: dict[str, Any] = {
        "since_boottime_ns": start or 0,
        "until_boottime_ns": T0 + until * SECOND,
        "since_ns": start,
    }
    said |= {
        "until_ns": T0 + until * SECOND,
        "interfaces": ["eth0"],
        "kind": "unguarded",
        "text": "nothing held",
        **more,
    }
    return frame(0, FrameKind.EVENT, json.dumps(said).encode())


def at(second: int) -> Frame:
    return clock(T0 + second * SECOND, T0 + second * SECOND)


def whole(port: int, begin: int, end: int | None = None) -> list[bytes]:
    """Packets of a session, whose FINs come at `end`."""
    peer = Peer(client_port=port)
    return hello(peer, begin * SECOND) + ([] if end is None else peer.goodbye(5, 6, end * SECOND))


def last(*frames: Frame) -> dict[int, SessionRow]:
    """Last rows by the client's port."""
    found = Recorded(feed(numbered(opened(), at(0), *frames)))
    return {row.client_port: row for row in found.sessions}


def test_sessions_that_were_open_within_the_bounds_bear_the_finding_and_no_others() -> None:
    rows = last(
        span(0, *whole(1, 0, 5), *whole(2, 6, 21), *whole(3, 12, 13), *whole(4, 14)), at(22), unguarded(10, 20),
        span(0, *whole(5, 23, 24)), at(30),
    )  # fmt: skip
    bear = {port: row.findings == FINDING for port, row in rows.items()}
    assert bear == {1: False, 2: True, 3: True, 4: True, 5: False}
    assert {port: row.coverage for port, row in rows.items()} == {
        1: Coverage.COMPLETE, 2: Coverage.PARTIAL, 3: Coverage.PARTIAL, 4: Coverage.PARTIAL, 5: Coverage.COMPLETE,
    }  # fmt: skip
    assert [rows[port].ending for port in (3, 4)] == [Ending.FIN, Ending.OPEN]


def test_the_row_of_an_open_session_says_it_at_once_with_the_bounds() -> None:
    machine = assembler()
    feed(numbered(opened(), at(0), span(0, *whole(1, 0)), at(12)), machine)
    event, finding, row = machine.feed(unguarded(10, 11))
    assert (event.kind, finding.kind) == ("unguarded", "unguarded")  # type: ignore[union-attr]
    assert finding.attrs == {  # type: ignore[union-attr]
        "since_ns": T0 + 10 * SECOND, "until_ns": T0 + 11 * SECOND, "interfaces": ["eth0"],
    }  # fmt: skip
    assert isinstance(row, SessionRow)
    assert (row.ending, row.coverage, row.findings) == (Ending.OPEN, Coverage.PARTIAL, FINDING)


def test_what_the_ring_still_held_when_it_was_told_counts_by_its_own_time() -> None:
    """The wire process hung: it looked at the locks before it had drained what came meanwhile."""
    peer = Peer(client_port=1)
    late = [*whole(2, 12, 13), *whole(3, 25, 26), peer.packet(0, PSH, 5, b"x", acked=6, time=15 * SECOND)]
    rows = last(span(0, *whole(1, 0)), at(21), unguarded(10, 20), span(0, *late), at(40))
    assert {port: row.findings for port, row in rows.items()} == {1: FINDING, 2: FINDING, 3: ()}


def test_the_kernels_books_do_not_outvote_it() -> None:
    peer = Peer(flow=T0, lease=0xABC)
    books = flow_end(peer, FlowEnd.FIN, SideState(packets=4, bytes=5), SideState(packets=2, bytes=6))
    for event, coverage in (([], Coverage.COMPLETE), ([unguarded(0, 1)], Coverage.PARTIAL)):
        found = Recorded(feed(numbered(opened(), at(0), span(0, *hello(peer)), *event, span(0, books), at(60))))
        assert (found.session.ending, found.session.coverage) == (Ending.FIN, coverage)


def test_since_an_unknown_time() -> None:
    assert last(span(0, *whole(1, 0)), at(9), unguarded(None, 8))[1].findings == FINDING


def test_sessions_that_ended_are_remembered_for_a_while() -> None:
    over = STUB_NS // SECOND + 20
    rows = last(span(0, *whole(1, 0, 5)), at(10), at(over), unguarded(0, 8))
    assert rows[1].findings == ()


def test_the_place_of_the_event_among_the_frames_changes_nothing() -> None:
    packets = [*whole(2, 12, 13), *whole(1, 16, 20), *whole(3, 21, 22)]
    for cut in range(len(packets) + 1):
        rows = last(span(0, *packets[:cut]), unguarded(10, 20), span(0, *packets[cut:]), at(60))
        assert {port: row.findings for port, row in rows.items()} == {2: FINDING, 1: FINDING, 3: ()}, cut


def test_it_is_part_of_the_state() -> None:
    machine = assembler()
    frames = numbered(opened(), at(0), at(21), unguarded(10, 20), span(0, *whole(1, 12, 13)), at(40))
    rows = []
    for one in frames:
        rows += machine.feed(one)
        machine = decoded(encoded(machine))
    assert rows == feed(frames)
    assert Recorded(rows).session.findings == FINDING


@pytest.mark.parametrize(
    "wrong", [{"since_boottime_ns": "x"}, {"until_boottime_ns": None}, {"since_boottime_ns": T0 * 2}]
)
def test_bounds_that_are_none_are_only_an_event(wrong: dict[str, Any]) -> None:
    found = Recorded(feed(numbered(opened(), at(0), span(0, *whole(1, 0)), unguarded(0, 5, **wrong))))
    assert (found.events[-1].kind, found.session.findings) == ("unguarded", ())


def test_what_is_remembered_is_bounded_and_adjoining_times_are_one() -> None:
    known = Bypassed()
    for second in range(100):
        known.add({"since_boottime_ns": second, "until_boottime_ns": second + 1}, 0)
    assert known.at(0) is not None
    assert known.at(50) == known.at(99)
    for second in range(1000, 1000 + 10 * MAX_BOUNDS, 5):
        known.add({"since_boottime_ns": second, "until_boottime_ns": second + 1}, 0)
    assert known.at(50) is None
    assert len(known._known) == MAX_BOUNDS
