"""Which session a packet belongs to, and what is kept of those that ended."""

import gc
import pickle

from appliance.config import Record
from appliance.model import UNBOUND, Ending, Row
from appliance.session import sessions
from appliance.session.identifiers import session_id
from appliance.session.session import LINGER_NS, Birth
from appliance.session.sessions import STUB_NS, Key, Sessions, choose
from appliance.session.streams import FORGET_NS
from appliance.session.tcp import TcpSession
from appliance.session.tcp_segment import ACK, SYN, Segment
from tests.session.traffic import STREAM, T0

KEY: Key = (b"a" * 16, b"b" * 16, 1, 2, 6)
TURNED: Key = (b"b" * 16, b"a" * 16, 2, 1, 6)


def born(number: int = 1, port: int = 1, flow: int = 0) -> TcpSession:
    birth = Birth(
        session_id(STREAM, number, T0), T0, "gw", "wire", "10.0.0.1", port, "10.0.0.2", 2, "tcp", UNBOUND, "tap", flow
    )
    return TcpSession(birth, 1000, 1 << 20)


def segment(seq: int, flags: int = ACK, data: bytes = b"", ack: int = 0) -> Segment:
    return Segment(seq, ack, flags, 65535, len(data), data, None)


def talk(session: TcpSession, seq: int) -> TcpSession:
    rows: list[Row] = []
    session.packet(0, segment(seq, SYN), T0, 1, rows)
    session.packet(1, segment(seq * 2, SYN | ACK, ack=seq + 1), T0, 1, rows)
    return session


def test_the_nearer_sequence_number_decides() -> None:
    current, previous = talk(born(2), 5000), talk(born(1), 900_000)
    current.previous = previous
    assert choose(current, 0, segment(5010, data=b"x")) == (current, 0)
    assert choose(current, 0, segment(900_010, data=b"x")) == (previous, 0)
    assert choose(current, 1, segment(1_800_010)) == (previous, 1)
    assert choose(current, 0, segment(900_000, SYN)) == (previous, 0)
    assert choose(current, 0, segment(7, SYN)) == (None, 0)


def test_the_former_server_may_open_the_next_one() -> None:
    current, previous = talk(born(2, port=9), 5000), talk(born(1), 900_000)
    current.previous = previous
    assert choose(current, 1, segment(900_010)) == (previous, 0)


def test_a_closed_former_session_is_forgotten() -> None:
    current, previous = talk(born(2), 5000), talk(born(1), 900_000)
    current.previous = previous
    previous.finish(Ending.FIN, [])
    assert choose(current, 0, segment(900_010)) == (current, 0)
    assert current.previous is None


def test_ended_sessions_stay_known_for_a_while() -> None:
    table, rows = Sessions(Record()), list[Row]()
    session = born(flow=77)
    table.begin(session, KEY, 0, 0, rows)
    assert table.find(KEY) == (session, 0)
    assert table.find(TURNED) == (session, 1)
    session.ending, session.deadline = Ending.FIN, LINGER_NS
    table.touched(session)
    table.tick(LINGER_NS - 1, T0, rows)
    assert len(table) == 1
    table.tick(LINGER_NS, T0, rows)
    assert len(table) == 0
    assert session.closed
    assert table.of_flow(77, KEY) is session
    table.tick(LINGER_NS + STUB_NS, T0, rows)
    assert table.find(KEY) is None
    assert table.of_flow(77, KEY) is None
    assert [table.knew(flow) for flow in (78, 77, 77)] == [False, True, False]


def test_ended_sessions_are_bounded() -> None:
    table, rows = Sessions(Record(max_sessions=2)), list[Row]()
    for number in range(sessions.MAX_STUBS + 50):
        table.begin(born(number), (b"a" * 16, b"b" * 16, number, 2, 6), 0, number, rows)
    assert len(table) == 2
    assert table.find((b"a" * 16, b"b" * 16, 0, 2, 6)) is None
    assert sum(table.find((b"a" * 16, b"b" * 16, number, 2, 6)) is not None for number in range(9000)) == (
        sessions.MAX_STUBS + 2
    )


def test_ended_sessions_are_not_kept_alive_by_what_waits_for_time() -> None:
    table, rows = Sessions(Record()), list[Row]()
    count = sessions.MAX_STUBS + 50
    for number in range(count):
        session = born(number)
        table.begin(session, (b"a" * 16, b"b" * 16, number, 2, 6), 0, number, rows)
        session.ending, session.deadline = Ending.FIN, number + 1
        table.touched(session)
        table.tick(number + 1, T0, rows)
    rows.clear()
    state = pickle.loads(pickle.dumps(table))
    del table, session
    alive = [one for one in gc.get_objects() if isinstance(one, TcpSession)]
    assert len(state) == 0
    assert len(alive) <= sessions.MAX_STUBS + 10


def test_silent_sessions_need_little_memory() -> None:
    table, rows = Sessions(Record()), list[Row]()
    session = talk(born(), 100)
    table.begin(session, KEY, 0, 0, rows)
    session.packet(0, segment(101, data=bytes(5000)), T0, 5, rows)
    table.touched(session)
    table.tick(FORGET_NS - 1, T0, rows)
    assert session.held_bytes == 5000
    table.tick(2 * FORGET_NS, T0, rows)
    table.tick(3 * FORGET_NS, T0, rows)
    assert session.held_bytes == 0


def test_all_end_with_the_capture() -> None:
    table, rows = Sessions(Record()), list[Row]()
    first, second = born(1), born(2, port=7)
    table.begin(first, KEY, 0, 0, rows)
    table.begin(second, (b"a" * 16, b"b" * 16, 7, 2, 6), 0, 0, rows)
    second.ending, second.deadline = Ending.RST, LINGER_NS
    table.end_all(Ending.EOF, 5, rows)
    assert (first.ending, second.ending) == (Ending.EOF, Ending.RST)
    assert len(table) == 0


def test_only_holes_that_become_gaps_count_as_unblocked() -> None:
    """Not bytes that wait to be joined with what follows."""
    session, rows = talk(born(), 100), list[Row]()
    session.packet(0, segment(101, data=bytes(5000), ack=201), T0, 5, rows)
    assert session.held_bytes > 0
    assert not session.unblock(rows)
    session.packet(0, segment(8000, data=bytes(5000), ack=201), T0, 5, rows)
    assert session.unblock(rows)
    assert not session.unblock(rows)
