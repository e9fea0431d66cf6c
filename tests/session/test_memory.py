"""The bound on the memory of all sessions: it is reached, it holds, it shows, and no recorded byte is lost."""

import struct
from collections.abc import Iterable
from dataclasses import replace

import pytest

from appliance.model import Coverage, Direction, Ending, EventRow, Row
from appliance.session.memory import DATAGRAM_BYTES, STREAM_BYTES
from tests.session.traffic import MS, PSH, SECOND, SYN, Peer, Recorded, assembler, feed, ingest, memory_taken, udp

LIMIT = 1 << 20
SLACK = 2 * STREAM_BYTES  # what comes between two looks: these connections begin one by one
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
    found, most = bounded(out_of_order(50))
    assert most <= LIMIT + SLACK
    assert counts(found)["unblocked"] > 0
    assert counts(found)["evicted"] == 0
    for session in found.sessions:
        assert found.stream(Direction.SERVER, session) == b"\0" + BODY * 4
        assert {"gap"} <= set(session.findings) <= {"gap", "memory"}


def test_the_heaviest_sessions_end_when_nothing_else_helps() -> None:
    room = 20
    found, most = bounded(downloads(60), limit=room * STREAM_BYTES)
    assert most <= room * STREAM_BYTES + SLACK
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


def lookup(number: int, answer: bool = False) -> bytes:
    """A DNS query or response."""
    head = struct.pack("!HHHHHH", number & 0xFFFF, 0x8100 if answer else 0x0100, 1, 0, 0, 0)
    return head + b"\5h%04d\7example\3org\0" % (number % 10_000) + struct.pack("!HH", 1, 1)


def lookups(count: int) -> list[bytes]:
    """Each from a port of its own, answered."""
    packets = []
    for number in range(count):
        client, server = (f"10.9.{number >> 8}.{number & 255}", 40_000), ("10.0.1.3", 53)
        packets.append(udp(client, server, lookup(number), time=number * 2 * MS))
        packets.append(udp(server, client, lookup(number, answer=True), time=number * 2 * MS + MS))
    return packets


def half_messages(count: int) -> list[bytes]:
    """DNS over TCP: a whole query, then the beginning of a message of 65,535 bytes."""
    packets = []
    for at, peer in enumerate(replace(peer, server_port=53) for peer in peers(count)):
        time, query = at * 2 * MS, lookup(at)
        data = struct.pack("!H", len(query)) + query + struct.pack("!H", 65535) + bytes(20_000)
        packets += peer.handshake(time=time)
        for start in range(0, len(data), 10_000):
            packets.append(peer.packet(0, PSH, start, data[start : start + 10_000], time=time + 2 * MS))
    return packets


def crumbs(count: int, cut: int = 0) -> list[bytes]:
    """Single bytes behind holes, or, cut off by the capture, behind gaps."""
    packets = []
    for at, peer in enumerate(replace(peer, server_port=9) for peer in peers(count)):
        packets += peer.handshake(time=at * MS)
        first = 0 if cut else 2
        packets += [peer.packet(0, PSH, first + 2 * n, b"xy"[: 1 + cut], cut=cut, time=at * MS) for n in range(400)]
    return [*packets, Peer().packet(0, SYN, -1, acked=None, time=SECOND)]


def closed(count: int) -> list[bytes]:
    """Connections that ended, with a packet of another one when they don't linger any more."""
    packets = []
    for at, peer in enumerate(peers(count)):
        packets += peer.handshake(time=at * MS) + peer.goodbye(0, 0, time=at * MS + 3 * MS)
    late = Peer(client="10.7.7.7")
    return packets + [late.packet(0, SYN, -1, acked=None, time=count * MS + n * SECOND) for n in (3, 4)]


@pytest.mark.parametrize(
    "packets",
    [
        pytest.param(downloads(200) + out_of_order(40), id="plain"),
        pytest.param(half_messages(200), id="half-messages"),
        pytest.param(lookups(800), id="lookups"),
        pytest.param(crumbs(20), id="behind-holes"),
        pytest.param(crumbs(20, cut=1), id="gaps"),
        pytest.param(closed(800), id="closed"),
    ],
)
def test_the_weight_is_about_what_it_takes(packets: list[bytes]) -> None:
    """Or the bound would not keep a process from growing."""
    frames = ingest(packets, size=20, close=False)
    machine = assembler(max_memory=1 << 40)
    feed(frames[:1], machine)
    taken = memory_taken(machine, frames[1:])
    assert taken / 1.25 < machine.weight < taken * 1.6


def test_half_messages_of_many_connections_are_bounded() -> None:
    """They were weighed as nothing once: 64 KiB of each direction."""
    limit = 8 << 20
    found, most = bounded(half_messages(2000), limit=limit, size=50)
    assert most <= limit + (1 << 20) + 2 * STREAM_BYTES
    assert counts(found)["shed"] > 0
    assert len(shorts(found)) >= 2


def test_connections_alone_are_bounded_at_once() -> None:
    """No tick and no `LOOK_BYTES` lie between these."""
    limit = 200 * STREAM_BYTES
    packets = [peer.packet(0, SYN, -1, acked=None) for peer in peers(2000)]
    found, most = bounded(packets, limit=limit, size=500)
    assert most <= limit
    assert {session.ending for session in found.sessions} == {Ending.INTERRUPTED, Ending.EOF}
    positions = [event.position for event in found.events]
    assert positions == sorted(set(positions))


def test_lookups_do_not_cost_a_session_that_is_active() -> None:
    """The longest silent ones are closed as they would be later, without a word."""
    peer = Peer(client="10.8.0.2", server_port=80)
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n"
    parts = [(head + b"text " * 20_000)[at : at + 1000] for at in range(0, len(head) + 100_000, 1000)]
    sent = sum(map(len, parts))
    timed = [(at * 20 * MS, packet) for at, packet in enumerate(peer.handshake())]
    timed += [
        (SECOND + at * 30 * MS, peer.packet(0, PSH, at * 1000, part, time=SECOND + at * 30 * MS))
        for at, part in enumerate(parts)
    ]
    timed += [(time, packet) for time, packet in zip(range(0, 1 << 62, MS), lookups(2500), strict=False)]
    timed.sort(key=lambda one: one[0])
    found, most = bounded([packet for _, packet in timed], limit=1000 * DATAGRAM_BYTES, size=50)
    assert most <= 1000 * DATAGRAM_BYTES
    total = counts(found)
    assert total.pop("closed") >= 1000
    assert total == {"dropped": total["dropped"], "forgotten": 0, "shed": 0, "unblocked": 0, "evicted": 0}
    tcp, *names = sorted(found.sessions, key=lambda session: session.protocol != "http1")
    assert (tcp.protocol, tcp.findings, tcp.client_bytes) == ("http1", (), sent)
    (request,) = found.messages(tcp)
    assert request.message.text.endswith("text " * 20)
    assert {(session.protocol, session.findings) for session in names} == {("dns", ())}
    assert {session.ending for session in names} == {Ending.IDLE, Ending.EOF}
    assert len(names) == 2500


def test_sessions_that_linger_are_closed_as_they_ended() -> None:
    packets = []
    for at, peer in enumerate(peers(300)):
        packets += peer.handshake(time=at * MS) + peer.goodbye(0, 0, time=at * MS + 3 * MS)
    found, most = bounded(packets, limit=100 * STREAM_BYTES)
    assert most <= 100 * STREAM_BYTES + SLACK
    assert counts(found)["closed"] > 200
    assert {(one.ending, one.findings, one.coverage) for one in found.sessions} == {(Ending.FIN, (), Coverage.COMPLETE)}
    assert len(found.sessions) == 300


def test_quiet_streams_go_before_what_active_ones_hold() -> None:
    active = Peer(client="10.8.0.2", server_port=80)
    packets = [packet for at, peer in enumerate(peers(200)) for packet in peer.handshake(time=at * MS)]
    packets += active.handshake(time=2 * SECOND)
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n"
    body = [head + b"text " * 2000] + [b"text " * 2000] * 40
    offset = 0
    for at, part in enumerate(body):
        packets.append(active.packet(0, PSH, offset, part, time=2 * SECOND + at * 200 * MS))
        offset += len(part)
    found, _ = bounded(packets, limit=220 * STREAM_BYTES)
    assert counts(found)["evicted"] > 0
    assert counts(found)["shed"] == counts(found)["unblocked"] == 0
    (kept,) = (session for session in found.sessions if session.client_address == "10.8.0.2")
    assert kept.findings == ()
