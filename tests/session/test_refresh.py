"""Rows of open sessions: how often they are brought up to date, what they say, and that news of losses are on them."""

import pytest

from appliance.journal import Damage, Frame
from appliance.model import Coverage, Ending, Row, SessionRow
from appliance.session.refresh import PAUSES, RATE
from tests.session.test_assembler import clock, hello, numbered, opened, ring
from tests.session.traffic import FIN, MS, PSH, SECOND, T0, Peer, Recorded, assembler, feed, ingest, run, span, udp

P = Peer()


def told(rows: list[Row]) -> list[SessionRow]:
    return [row for row in rows if isinstance(row, SessionRow)]


def drip(seconds: float, every: float = 0.1) -> list[bytes]:
    """One byte at a time by the client, behind `hello`."""
    count = round(seconds / every)
    return [P.packet(0, PSH, 5 + n, b"x", acked=6, time=SECOND // 10 + int(n * every * SECOND)) for n in range(count)]


def test_a_row_is_brought_up_to_date_soon_and_then_less_and_less_often() -> None:
    rows = told(feed(ingest([*hello(P), *drip(50)], close=False)))[1:]
    ends = [(row.ended_ns - T0) / SECOND for row in rows if row.client_packets > 6]
    steps = [PAUSES[0], *PAUSES[1:], PAUSES[-1], PAUSES[-1]]
    due = [sum(steps[: n + 1]) / SECOND for n in range(len(steps))]
    assert ends == pytest.approx([at for at in due if at < 50], abs=1.5)
    assert [row.client_bytes for row in rows] == sorted(row.client_bytes for row in rows)
    assert rows[-1].client_bytes > 400


def test_what_came_before_silence_is_on_the_row_too() -> None:
    frames = numbered(opened(), clock(T0, T0), span(0, *hello(P)), *(clock(T0 + n * SECOND, T0) for n in range(1, 9)))
    rows = told(feed(frames))
    assert (rows[-1].client_packets, rows[-1].server_packets, rows[-1].ending) == (4, 2, Ending.OPEN)
    assert len(rows) <= 3, "and once"


def test_datagrams_are_counted_on_rows_of_open_sessions() -> None:
    a, b = ("10.0.0.2", 4000), ("10.0.1.3", 9999)
    packets = [udp(a, b, b"x" * 10, n * 100 * MS) for n in range(25)] + [udp(b, a, b"y", 2600 * MS)]
    rows = told(feed(ingest(packets, close=False)))
    assert [row.client_bytes for row in rows if row.client_bytes > 100] != []
    assert {row.coverage for row in rows} == {Coverage.OPEN}, "what is one-sided so far may still be answered"


def test_open_rows_are_bounded_by_the_second() -> None:
    peers = [Peer(client_port=1000 + n) for n in range(3 * RATE)]
    packets = [one for peer in peers for one in hello(peer)[:5]]
    packets += [p.packet(0, PSH, 5, b"x", acked=6, time=s * SECOND) for s in range(1, 6) for p in peers]
    rows = told(feed(ingest(packets, close=False)))
    assert len(rows) - 2 * len(peers) in range(3 * RATE, 5 * RATE), "none is starved"
    assert len({row.session_id for row in rows if row.client_packets > 3}) == len(peers)


def test_only_the_row_of_a_session_that_is_over_says_complete() -> None:
    going = feed(ingest([*hello(P), *drip(3)], close=False))
    assert {row.coverage for row in told(going)} == {Coverage.OPEN}
    ended = run([*hello(P), *P.goodbye(5, 6)])
    assert [row.coverage for row in told(ended.rows)][-1] is Coverage.COMPLETE
    assert Coverage.COMPLETE not in [row.coverage for row in told(ended.rows)][:-1]


def test_what_is_missing_is_said_before_the_end() -> None:
    hole = P.packet(0, PSH, 900, b"x", acked=6, time=100 * MS)
    frames = ingest([*hello(P), hole, *(P.packet(1, 0, 6, b"", acked=901, time=n * SECOND) for n in range(1, 9))])
    assert told(feed(frames[:-1]))[-1].coverage is Coverage.PARTIAL


@pytest.mark.parametrize("lost", ["ring-lost", "journal-gap"])
def test_a_loss_is_on_the_rows_of_silent_open_sessions_at_once_and_they_end(lost: str) -> None:
    """Also where it took the session's end: it ends by its idle time."""
    packets = hello(P)
    away = P.goodbye(5, 6)
    length = sum(len(packet) + 8 for packet in packets)
    after = hello(Peer(client_port=9), 5 * SECOND)
    frames: list[Frame | Damage] = [opened(position=100), clock(T0, T0), ring(3, 100, *packets)]
    machine = assembler(idle=30.0)
    feed([*frames, clock(T0 + 4 * SECOND, T0 + 4 * SECOND)], machine)
    if lost == "ring-lost":
        rows = feed([ring(5, 100 + length + len(away[0]) * 3, *after)], machine)
    else:
        rows = feed([Damage(5, 3, "cut"), ring(8, 100 + length, *after)], machine)
    first = next(row for row in told(rows) if row.client_port == P.client_port)
    assert (first.ending, first.findings, first.coverage) == (Ending.OPEN, (lost,), Coverage.PARTIAL)
    rows = feed([clock(T0 + 40 * SECOND, T0 + 40 * SECOND)], machine)
    ended = next(row for row in told(rows) if row.client_port == P.client_port)
    assert (ended.ending, ended.findings, ended.coverage) == (Ending.IDLE, (lost,), Coverage.PARTIAL)


def test_rows_do_not_depend_on_how_frames_are_cut() -> None:
    packets = [*hello(P), *drip(20), P.packet(0, FIN, 205, acked=6, time=25 * SECOND)]
    found = [feed(ingest(packets, size=size)) for size in (1, 7, 1000)]
    shown = [[(row.seq, row.ended_ns, row.client_packets, row.coverage) for row in told(rows)] for rows in found]
    assert shown[0] == shown[1] == shown[2]
    assert Recorded(found[0]).session.client_bytes == 205
