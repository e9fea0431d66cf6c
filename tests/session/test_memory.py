"""The bound on the memory of all sessions: it is reached, it holds, it shows, and no recorded byte is lost."""

import tracemalloc
from collections.abc import Iterable

import pytest

from appliance.model import Direction, Ending, EventRow, Row
from appliance.session.memory import SESSION_BYTES
from tests.session.traffic import MS, PSH, Peer, Recorded, assembler, feed, ingest

LIMIT = 1 << 20
SLACK = 2 * SESSION_BYTES  # what comes between two looks: these connections begin one by one
BODY = bytes(range(256)) * 40


def peers(count: int) -> list[Peer]:
    return [Peer(client=f"10.0.{number >> 8}.{number & 255}", server_port=80) for number in range(2, 2 + count)]


def bounded(packets: Iterable[bytes], limit: int = LIMIT, size: int = 1) -> tuple[Recorded, int]:
    """What a recorder with this bound makes of it, and the largest weight after any frame."""
    machine = assembler(max_memory=limit)
    rows: list[Row] = []
    most = 0
    for frame in ingest(list(packets), size=size):
        rows += machine.feed(frame)
        most = max(most, machine.weight)
    return Recorded(rows), most


def shorts(found: Recorded) -> list[EventRow]:
    return [event for event in found.events if event.kind == "memory-short"]


def counts(found: Recorded) -> dict[str, int]:
    """How many sessions gave something up, by step."""
    total: dict[str, int] = {}
    for event in shorts(found):
        for step, number in event.attrs["sessions"].items():
            total[step] = total.get(step, 0) + number
    return total


def downloads(count: int) -> list[bytes]:
    """Connections that got 10 KiB each and stay open."""
    packets = []
    for at, peer in enumerate(peers(count)):
        packets += peer.handshake(time=at * 200 * MS)
        packets.append(peer.packet(1, PSH, 0, BODY, time=at * 200 * MS + 5 * MS))
    return packets


def out_of_order(count: int) -> list[bytes]:
    """Connections whose first byte does not come."""
    packets = []
    for at, peer in enumerate(peers(count)):
        packets += peer.handshake(time=at * 200 * MS)
        packets += [
            peer.packet(1, PSH, 1 + len(BODY) * part, BODY, time=at * 200 * MS + (5 + part) * MS) for part in range(4)
        ]
    return packets


def uploads(count: int) -> list[bytes]:
    """Requests whose bodies are on their way."""
    packets = []
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n"
    for at, peer in enumerate(peers(count)):
        start = at * 200 * MS
        packets += peer.handshake(time=start)
        packets.append(peer.packet(0, PSH, 0, head, time=start + 5 * MS))
        packets += [
            peer.packet(
                0, PSH, len(head) + part * 20_000, b"text " * 4000, time=start + (6 + part) * MS, window=1 << 15
            )
            for part in range(3)
        ]
    return packets


def test_delivered_bytes_are_forgotten_first() -> None:
    found, most = bounded(downloads(60))
    assert most <= LIMIT + SLACK
    assert counts(found)["forgotten"] > 0
    assert counts(found)["evicted"] == 0
    assert len(found.sessions) == 60
    assert {kind for session in found.sessions for kind in session.findings} <= {"memory"}
    assert all(found.stream(Direction.SERVER, session) == BODY for session in found.sessions)


def test_bodies_in_progress_are_not_read_any_more() -> None:
    found, most = bounded(uploads(30))
    assert most <= LIMIT + SLACK
    assert counts(found)["shed"] > 0
    assert counts(found)["evicted"] == 0
    told = [session for session in found.sessions if "memory" in session.findings]
    assert len(told) >= 10
    assert all(len(found.stream(Direction.CLIENT, session)) > 60_000 for session in found.sessions)


def test_bytes_behind_holes_are_let_go_with_a_gap() -> None:
    found, most = bounded(out_of_order(60))
    assert most <= LIMIT + SLACK
    assert counts(found)["unblocked"] > 0
    assert counts(found)["evicted"] == 0
    for session in found.sessions:
        assert found.stream(Direction.SERVER, session) == b"\0" + BODY * 4
        assert {"gap"} <= set(session.findings) <= {"gap", "memory"}


def test_the_heaviest_sessions_end_when_nothing_else_helps() -> None:
    room = 20
    found, most = bounded(downloads(60), limit=room * SESSION_BYTES)
    assert most <= room * SESSION_BYTES + SLACK
    assert counts(found)["evicted"] >= 40
    ended = [session for session in found.sessions if "evicted" in session.findings]
    assert {session.ending for session in ended} == {Ending.INTERRUPTED}
    assert len(ended) == counts(found)["evicted"]


@pytest.mark.parametrize("traffic", [downloads, uploads, out_of_order])
def test_what_is_given_up_does_not_depend_on_frames(traffic: object) -> None:
    packets = traffic(40)  # type: ignore[operator]
    one, ten = (
        [row for row in bounded(packets, size=size)[0].rows if not isinstance(row, EventRow)] for size in (1, 10)
    )
    assert [replaced(row) for row in one] == [replaced(row) for row in ten]


def replaced(row: Row) -> str:
    """Ids come from positions, which tell of frames."""
    return repr(row).replace(str(getattr(row, "session_id", "")), "")


def test_without_the_bound_all_is_kept() -> None:
    packets = downloads(60) + out_of_order(10)
    found = Recorded(feed(ingest(packets, size=5)))
    assert not shorts(found)


def test_the_weight_is_about_what_it_takes() -> None:
    """Within a factor of two, or the bound would not keep a process from growing."""
    frames = ingest(downloads(300) + out_of_order(40), size=20, close=False)
    machine = assembler()
    feed(frames[:1], machine)
    tracemalloc.start()
    feed(frames[1:], machine)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / 2 < machine.weight < taken * 2
