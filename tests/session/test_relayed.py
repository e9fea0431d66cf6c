"""Frames of a relay's stream, from their rows' side: time, ends, damage, limits, state."""

from itertools import pairwise

import pytest

from appliance.journal import Damage, Frame, FrameKind
from appliance.model import Coverage, Direction, Ending, EventRow, Row, SessionRow
from appliance.session import relayed
from appliance.session.identifiers import relayed_id
from appliance.session.relayed import RelayAssembler
from appliance.session.relayed_session import RELAYED_BYTES
from tests.session.relaying import Flow, assembler, clock, exchange, feed, run, span, stream, told
from tests.session.test_state import decoded, encoded
from tests.session.traffic import MS, SECOND, STREAM, T0, Recorded, memory_taken

C, S = Direction.CLIENT, Direction.SERVER
RAW = Flow().note("protocol", protocol="raw")  # nothing waits for a verdict
BODY = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n" + b"text " * 8000


def test_the_id_is_one_that_the_relay_can_tell() -> None:
    found = run(exchange(Flow(7)))
    assert found.session.session_id == relayed_id(STREAM, 7, T0)
    assert found.session.session_id.version == 7


def test_frames_of_other_kinds_are_events() -> None:
    rows = feed(stream(told(FrameKind.EVENT, kind="relay-ready", text="ok"), told(FrameKind.CLOSE)))
    assert [(row.kind, row.position) for row in rows if isinstance(row, EventRow)] == [
        ("open", 1 << 24), ("relay-ready", 2 << 24), ("close", 3 << 24),
    ]  # fmt: skip


def test_how_records_were_cut_into_frames_changes_nothing_but_places() -> None:
    """All chunks and messages, whether one frame has one record or all of them."""
    records = exchange(Flow())

    def told_of(found: Recorded) -> list[object]:
        return [*found.chunks(), *found.messages(), found.session.coverage]

    whole, cut = run(records), Recorded(feed(stream(*[span(one) for one in records])))
    assert told_of(whole) == told_of(cut)


def test_a_frame_is_worked_off_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relayed, "PART_BYTES", 1)
    frames = stream(span(*exchange(Flow())))
    machine = assembler()
    parts = [list(machine.parts(frame)) for frame in frames]
    assert len(parts[1]) > 3
    assert [row for part in parts for rows in part for row in rows] == feed(frames)


# -- time ------------------------------------------------------------------------------------------------------------


def test_what_waits_comes_out_when_a_clock_says_that_time_passed() -> None:
    flow = Flow()
    machine = assembler()
    rows = feed(stream(span(flow.open(), RAW, flow.data(0, b"hello"))), machine)
    assert not Recorded(rows).chunks()
    frame = clock(SECOND)
    rows += machine.feed(Frame(3, frame.kind, frame.time_ns, frame.payload))
    assert Recorded(rows).stream(C) == b"hello"


def test_the_row_of_an_open_session_follows() -> None:
    flow = Flow()
    frames = [span(flow.open())]
    frames += [span(flow.data(0, b"x", n * SECOND), time=n * SECOND) for n in range(1, 8)]
    rows = [row for row in feed(stream(*frames, clock(20 * SECOND))) if isinstance(row, SessionRow)]
    assert [row.client_bytes for row in rows] == sorted(row.client_bytes for row in rows)
    assert rows[-1].client_bytes == 7
    assert rows[-1].coverage is Coverage.OPEN
    assert len(rows) < 8


def test_a_clock_that_was_set_back_stops_nothing() -> None:
    """The frames say how much time passed, also after they began again an hour earlier."""
    flow, back = Flow(), -3600 * SECOND
    frames = [
        span(flow.open(), RAW, flow.data(0, b"hello")),
        span(flow.data(0, b" you"), time=back),  # a flow's times don't run backwards
        clock(back + SECOND),
    ]
    found = Recorded(feed(stream(*frames)))
    assert found.stream(C) == b"hello you"
    assert found.session.ended_ns == T0


# -- ends that nobody told -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FrameKind.OPEN, FrameKind.CLOSE])
def test_a_relay_that_is_gone_leaves_its_sessions_interrupted(kind: FrameKind) -> None:
    """A new process took the stream over, or the old one ended without its flows."""
    flow, over = Flow(), exchange(Flow(2))
    found = Recorded(feed(stream(span(flow.open(), flow.data(0, b"hello"), *over), told(kind, SECOND))))
    first, second = found.sessions
    assert (first.ending, first.coverage, first.findings) == (Ending.INTERRUPTED, Coverage.PARTIAL, ("relay-gone",))
    assert (second.ending, second.coverage, second.findings) == (Ending.FIN, Coverage.COMPLETE, ())
    assert found.stream(C, first) == b"hello"


def test_a_new_process_may_count_its_flows_from_one_again() -> None:
    again = exchange(Flow(1), SECOND)
    found = Recorded(feed(stream(span(Flow(1).open()), told(FrameKind.OPEN, SECOND), span(*again))))
    assert [row.ending for row in found.sessions] == [Ending.INTERRUPTED, Ending.FIN]


def test_a_number_that_is_opened_twice_is_two_sessions() -> None:
    found = run([Flow(1).open(), *exchange(Flow(1), SECOND)])
    assert [row.ending for row in found.sessions] == [Ending.INTERRUPTED, Ending.FIN]
    assert [row.coverage for row in found.sessions] == [Coverage.PARTIAL, Coverage.COMPLETE]


def test_a_flow_whose_start_is_gone_keeps_its_bytes() -> None:
    """A part of the journal is lost: nobody knows whose flow it is, and its stream begins with what there is."""
    flow = Flow()
    flow.sent[1] = 1 << 40
    note = flow.note("redacted", 1, start=(1 << 40) + 2, end=(1 << 40) + 5, what="token")
    found = run([note, flow.data(1, b"ab***cd"), flow.data(0, b"x"), flow.close(MS)])
    row = found.session
    assert (row.client_address, row.server_port, row.identity.method) == ("::", 0, "unbound")
    assert (row.coverage, row.findings) == (Coverage.PARTIAL, ("midstream", "redacted"))
    assert found.stream(S) == b"ab***cd"
    assert [chunk.redacted for chunk in found.chunks() if chunk.direction is S] == [((2, 5),)]


def test_a_note_about_bytes_that_never_came_is_told() -> None:
    flow = Flow()
    found = run([flow.note("withheld", 0, start=0, end=9, text="kept back"), flow.close()])
    assert [(row.kind, row.start, row.end) for row in found.findings(kind="withheld")] == [("withheld", 0, 9)]


# -- damage ----------------------------------------------------------------------------------------------------------


def test_damage_of_the_journal_is_held_against_the_sessions_that_were_open() -> None:
    flow, late = Flow(), exchange(Flow(2), SECOND)
    frames: list[Frame | Damage] = [
        span(flow.open(), flow.data(0, b"a")),
        Damage(0, 1, "torn"),
        span(flow.data(0, b"b"), flow.close(MS)),
        span(*late),
    ]
    found = Recorded(feed(stream(*frames)))
    assert [row.coverage for row in found.sessions] == [Coverage.PARTIAL, Coverage.COMPLETE]
    assert "journal-gap" in found.sessions[0].findings
    assert [row.kind for row in found.events] == ["open", "journal-gap"]


@pytest.mark.parametrize("what", ["record", "layout"])
def test_a_span_that_is_none_is_damage(what: str) -> None:
    flow = Flow()
    good = span(flow.open(), flow.data(0, b"a"))
    rest = span(flow.data(0, b"b")[:-8] if what == "record" else b"")
    if what == "layout":
        rest = Frame(0, FrameKind.SPAN, T0, b"xxxxxxxx")
    machine = assembler()
    found = Recorded(feed(stream(good, rest), machine))
    assert [row.kind for row in found.events] == ["open", "journal-gap"]
    assert machine.damaged == 1
    assert found.session.coverage is Coverage.PARTIAL


# -- limits ----------------------------------------------------------------------------------------------------------


def test_more_sessions_than_may_be_open_go_on_as_others() -> None:
    """No byte is lost, and who it was is known on."""
    flows = [Flow(number, client_port=number) for number in range(1, 6)]
    records = [flow.open(flow.number * MS) for flow in flows]
    records += [flow.data(0, b"GET / HTTP/1.1\r\nAuth", 10 * MS) for flow in flows]
    records += [flow.data(0, b"orization: Bearer secret\r\n\r\n", 20 * MS) for flow in flows]
    records += [flow.close(30 * MS) for flow in flows]
    found = run(records, max_sessions=2)
    assert {row.identity.subject for row in found.sessions} == {"alice"}
    assert len(found.sessions) > 5
    assert len({row.session_id for row in found.sessions}) == len(found.sessions)
    for flow in flows:
        mine = [row for row in found.sessions if row.client_port == flow.number]
        text = b"".join(found.stream(C, row) for row in mine)
        assert text == b"GET / HTTP/1.1\r\nAuth" + b"*" * 25 + b"\n\r\n"  # to the end of a line that was broken off
        assert [row.ending for row in mine][-1] is Ending.FIN
        assert all("evicted" in row.findings for row in mine[:-1])
        assert all("midstream" in row.findings for row in mine[1:])
    assert not [row for row in found.findings(found.sessions[0]) if row.kind == "gap"]


def test_a_credential_that_was_announced_to_one_that_was_given_up() -> None:
    """The relay's word comes before the bytes: these are told of in the session that has them."""
    flow, other = Flow(1), Flow(2, client_port=2)
    head, token = b"a log-in of its own: ", b"*" * 12
    place = len(head)
    note = flow.note("redacted", start=place, end=place + 12, what="token")
    records = [flow.open(), flow.note("protocol", protocol="raw"), flow.data(0, head[:5]), note, other.open()]
    records += [flow.data(0, head[5:] + token[:4]), other.data(0, b"x"), flow.data(0, token[4:] + b"\r\n\r\n")]
    found = Recorded(feed(stream(span(*records), told(FrameKind.CLOSE)), max_sessions=1))
    first, second, third = (row for row in found.sessions if row.client_port == flow.client_port)
    redacted = [chunk.redacted for row in (first, second, third) for chunk in found.chunks(row)]
    assert redacted == [(), ((place - 5, place - 1),), ((0, 8),)]
    assert all("redacted" in row.findings for row in (second, third))
    (announced,) = found.findings(third, "redacted")
    assert (announced.start, announced.end, announced.attrs) == (0, 8, {"what": "token"})


def test_what_is_not_known_of_a_flow_is_not_made_up_when_its_session_is_given_up() -> None:
    """Its start is gone, and no byte came yet: the first one that comes is no jump, and what was told of it holds."""
    flow, other = Flow(1), Flow(2)
    flow.sent[0] = 1000
    note = flow.note("redacted", start=1002, end=1004, what="token")
    found = run([note, other.open(), flow.data(0, b"ab**c"), flow.close()], max_sessions=1)
    row = next(row for row in found.sessions if row.ending is Ending.FIN)
    assert row.findings == ("midstream", "redacted")
    assert [chunk.redacted for chunk in found.chunks(row)] == [((2, 4),)]


def bounded(flows: int, limit: int, body: bytes) -> tuple[Recorded, int]:
    """What a recorder with this bound makes of flows that each sent a part of something, and the largest weight."""
    machine, rows, most = assembler(max_memory=limit), list[Row](), 0
    frames = []
    for number in range(1, flows + 1):
        flow = Flow(number, client_port=number)
        frames.append(span(flow.open(), flow.data(0, body), time=number * 200 * MS))
    for frame in stream(*frames, told(FrameKind.CLOSE, 3600 * SECOND)):
        rows += machine.feed(frame)
        most = max(most, machine.weight)
    assert machine.relieved
    return Recorded(rows), most


def test_memory_is_bounded_and_costs_texts_first() -> None:
    limit = 1 << 20
    found, most = bounded(60, limit, BODY)
    assert most <= limit + 2 * len(BODY) + 2 * RELAYED_BYTES
    assert len(found.sessions) == 60
    assert {"memory"} <= {kind for row in found.sessions for kind in row.findings} <= {"memory", "relay-gone"}
    assert all(found.stream(C, row) == BODY for row in found.sessions)
    shorts = [event for event in found.events if event.kind == "memory-short"]
    assert sum(event.attrs["sessions"]["shed"] for event in shorts) >= 20
    positions = [event.position for event in found.events]
    assert positions == sorted(set(positions))


def test_memory_is_bounded_and_costs_sessions_last() -> None:
    limit = 20 * RELAYED_BYTES
    found, most = bounded(60, limit, b"x")
    assert most <= limit + 2 * RELAYED_BYTES
    evicted = [row for row in found.sessions if "evicted" in row.findings]
    assert len(evicted) >= 40
    assert {row.ending for row in evicted} == {Ending.INTERRUPTED}


def test_flows_alone_are_bounded_at_once() -> None:
    limit = 200 * RELAYED_BYTES
    machine = assembler(max_memory=limit)
    found = Recorded(feed(stream(span(*[Flow(number).open() for number in range(1, 2000)])), machine))
    assert machine.weight <= limit
    positions = [event.position for event in found.events]
    assert positions == sorted(set(positions))


def test_the_weight_is_about_the_memory_that_is_taken() -> None:
    frames = []
    for number in range(300):
        flow = Flow(number + 1, client_port=number)
        records = (flow.open(), flow.note("tls", sni="a.example"), flow.data(0, BODY[:100]))
        frames.append(span(*records, time=number * 200 * MS))
    first, *others = stream(*frames, clock(100 * SECOND))
    machine = assembler(max_memory=1 << 40)
    machine.feed(first)
    taken = memory_taken(machine, others)
    assert taken / 1.25 < machine.weight < taken * 1.6


# -- state -----------------------------------------------------------------------------------------------------------


def test_it_goes_on_from_its_state_at_any_record() -> None:
    records = [*exchange(Flow(1)), *exchange(Flow(2), SECOND)]
    frames = stream(*[span(one, time=number * 50 * MS) for number, one in enumerate(records)])
    expected = feed(frames)
    for cut in range(len(frames)):
        machine = assembler()
        rows = feed(frames[:cut], machine)
        machine = decoded(encoded(machine))
        assert isinstance(machine, RelayAssembler)
        assert rows + feed(frames[cut:], machine) == expected


def test_rows_count_on() -> None:
    machine = assembler()
    rows = feed(stream(span(*exchange(Flow()))), machine)
    assert machine.rows == len(rows)
    numbers = [row.seq for row in rows if isinstance(row, SessionRow)]
    assert all(later == one + 1 for one, later in pairwise(numbers))
