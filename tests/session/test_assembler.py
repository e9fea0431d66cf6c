"""Frames to rows: clocks, identities, the ring, damage, the kernel's books, and that nothing depends on the cut."""

import json
import pickle
import random
import struct
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.journal import RING, Damage, Frame, FrameKind
from appliance.model import Coverage, Direction, Ending, Identity, Row, SessionRow
from appliance.wire.abi import SIDE_F_SYN, Flow, FlowEnd, Kind, Lane, Reason, SideState, pack_address
from appliance.wire.records import plain
from tests.session.test_datagrams import ANSWER, QUERY, fragments
from tests.session.test_state import decoded, encoded
from tests.session.traffic import (
    CLOCK,
    FIN,
    MS,
    PSH,
    RST,
    SECOND,
    STREAM,
    SYN,
    T0,
    Peer,
    Recorded,
    assembler,
    feed,
    frame,
    ingest,
    record,
    run,
    span,
    udp,
)  # fmt: skip

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
P = Peer()
W = Peer(flow=T0, lease=0xABC)
DAY = 86_400 * SECOND


def opened(**more: object) -> Frame:
    said = {"node": "gw", "source": "wire", "ring": "r1", "boot": "b1", **more}
    return frame(1, FrameKind.OPEN, json.dumps(said).encode())


def numbered(*frames: Frame) -> list[Frame]:
    return [replace(one, number=number) for number, one in enumerate(frames, 1)]


def hello(peer: Peer, time: int = 0) -> list[bytes]:
    return [
        *peer.handshake(time),
        peer.packet(0, PSH, 0, b"hello", time=time + 3 * MS),
        peer.packet(1, PSH, 0, b"world!", acked=5, time=time + 4 * MS),
        peer.packet(0, 0, 5, acked=6, time=time + 5 * MS),
    ]


def flow_end(
    peer: Peer, end: int, client: SideState, server: SideState, time: int = 10 * MS, lane: int = Lane.TAP
) -> bytes:
    flow = Flow(peer.flow, T0 + time, peer.lease, 1, lane, end, 0, client, server, reported=1)
    value = flow.pack()
    head = record(
        kind=Kind.FLOW_END, length=len(value), time=T0 + time, flow=peer.flow, lease=peer.lease,
        source=pack_address(peer.client), destination=pack_address(peer.server), source_port=peer.client_port,
        destination_port=peer.server_port,
    )  # fmt: skip
    return plain(head, value)


def clock(boottime: int, unix: int) -> Frame:
    return frame(0, FrameKind.CLOCK, struct.pack("<QQ", boottime, unix))


# -- clocks ----------------------------------------------------------------------------------------------------------


def test_wall_time_comes_from_the_clock_frame_before() -> None:
    shift = 5 * DAY
    rows = feed(numbered(opened(), clock(T0, T0 + shift), span(0, *hello(P))))
    found = Recorded(rows)
    assert found.session.started_ns == T0 + shift
    assert found.chunks() == [] or found.chunks()[0].ts_ns == T0 + shift + 3 * MS


def test_a_step_of_the_wall_clock_ends_no_session() -> None:
    frames = numbered(
        opened(), clock(T0, T0), span(0, *hello(P)), clock(T0 + SECOND, T0 + 9 * DAY),
        span(0, P.packet(0, PSH, 5, b"x", acked=6, time=2 * SECOND)), clock(T0 + 2 * SECOND, T0 - 9 * DAY),
        span(0, P.packet(0, PSH, 6, b"y", acked=6, time=3 * SECOND)),
    )  # fmt: skip
    found = Recorded(feed(frames))
    assert len(found.sessions) == 1


def test_recorded_time_goes_on_over_a_reboot() -> None:
    """Boot time begins at 0 again, and what was open is interrupted."""
    frames = numbered(
        opened(), clock(T0, T0), span(0, *hello(P)), opened(boot="b2"), clock(5 * SECOND, T0 + DAY),
        span(0, *hello(Peer(client_port=1), 6 * SECOND - T0)),
    )  # fmt: skip
    first, second = Recorded(feed(frames)).sessions
    assert first.ending is Ending.INTERRUPTED
    assert second.started_ns == T0 + DAY + SECOND


def test_quiet_time_lets_chunks_go() -> None:
    machine = assembler()
    rows = feed(numbered(opened(), clock(T0, T0), span(0, *hello(P))), machine)
    before = len(Recorded(rows).chunks())
    rows += machine.feed(replace(clock(T0 + SECOND, T0 + SECOND), number=9))
    assert len(Recorded(rows).chunks()) == 2 > before


# -- identity --------------------------------------------------------------------------------------------------------


def lease(event: str = "granted", number: str = "0000000000000abc", subject: str = "agent-7") -> Frame:
    said = {
        "event": event, "id": number, "address": "10.0.0.2", "expires_ns": T0 + DAY,
        "identity": {"issuer": "https://idp", "subject": subject, "act": ["alice"], "groups": ["g"], "run_id": "r"},
    }  # fmt: skip
    return frame(0, FrameKind.LEASE, json.dumps(said).encode())


def test_the_lease_names_the_identity() -> None:
    found = Recorded(feed(numbered(opened(), clock(T0, T0), lease(), span(0, *hello(W)))))
    assert found.session.identity == Identity(
        "https://idp", "agent-7", "", ("alice",), ("g",), "r", "0000000000000abc", "lease"
    )
    event = found.events[1]
    assert (event.kind, event.address, event.stream) == ("lease-granted", "10.0.0.2", STREAM.hex())


def test_a_later_lease_does_not_change_sessions_before_it() -> None:
    frames = numbered(
        opened(), clock(T0, T0), lease(), span(0, *hello(W)), lease(subject="other"),
        span(0, *hello(replace(W, client_port=9, flow=T0 + 1), SECOND)),
    )  # fmt: skip
    assert [row.identity.subject for row in Recorded(feed(frames)).sessions] == ["agent-7", "other"]


def test_no_lease_is_unbound_and_an_unknown_lease_is_a_finding() -> None:
    found = Recorded(feed(numbered(opened(), span(0, *hello(P), *hello(replace(W, client_port=9))))))
    unbound, unknown = found.sessions
    assert unbound.identity.method == "unbound"
    assert (unknown.identity.lease_id, unknown.identity.method) == ("0000000000000abc", "lease")
    assert unknown.findings == ("unknown-lease",)


def test_an_ingest_may_say_whose_it_is() -> None:
    said = opened(source="ingest:f", identity={"issuer": "https://idp", "subject": "s"})
    found = Recorded(feed(numbered(said, clock(0, 0), span(0, *hello(P)))))
    assert found.session.identity == Identity("https://idp", "s", method="ingest")


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b'{"id": 5}', b'{"id": "zz"}', b'{"id":"1","identity":[1]}'])
def test_frames_that_make_no_sense_are_events_all_the_same(payload: bytes) -> None:
    for kind in (FrameKind.LEASE, FrameKind.EVENT, FrameKind.OPEN, FrameKind.CLOSE):
        rows = feed([frame(1, kind, payload), frame(2, FrameKind.CLOCK, b"123")])
        assert [type(row).__name__ for row in rows] == ["EventRow"]


# -- the kernel's books ----------------------------------------------------------------------------------------------


def test_flow_end_makes_the_coverage_statement() -> None:
    client = SideState(packets=4, bytes=5, refused=3, flags=SIDE_F_SYN)
    end = flow_end(W, FlowEnd.FIN, client, SideState(packets=2, bytes=6, flags=SIDE_F_SYN))
    found = Recorded(feed(numbered(opened(), clock(T0, T0), span(0, *hello(W), end), clock(T0 + 9 * SECOND, T0))))
    assert (found.session.ending, found.session.coverage) == (Ending.FIN, Coverage.COMPLETE)
    assert found.session.attrs["coverage"]["forwarded"] == {"client": 5, "server": 6}
    assert found.session.attrs["coverage"]["refused"] == {"client": 3, "server": 0}


def test_the_kernel_forwarded_more_than_arrived_here() -> None:
    end = flow_end(W, FlowEnd.CUT, SideState(packets=9, bytes=500), SideState(packets=2, bytes=6))
    found = Recorded(feed(numbered(opened(), clock(T0, T0), span(0, *hello(W), end), clock(T0 + 9 * SECOND, T0))))
    assert (found.session.ending, found.session.coverage) == (Ending.CUT, Coverage.PARTIAL)


def test_counters_that_come_after_the_end_revise_the_session() -> None:
    end = flow_end(W, FlowEnd.FIN, SideState(packets=9, bytes=5), SideState(packets=2, bytes=6), 8 * SECOND)
    packets = [*hello(W), *W.goodbye(5, 6, 10 * MS)]
    found = Recorded(
        feed(numbered(opened(), clock(T0, T0), span(0, *packets), clock(T0 + 4 * SECOND, T0), span(0, end)))
    )
    assert found.session.ending is Ending.FIN
    assert found.session.coverage is Coverage.PARTIAL
    assert "forwarded" in found.session.attrs["coverage"]


@pytest.mark.parametrize("first", [4, 3], ids=["the very same", "a packet later"])
def test_an_end_that_is_told_twice_counts_once(first: int) -> None:
    """Two processors saw the last packets, or the wire process was killed before it forgot what it had told."""
    server = SideState(packets=2, bytes=6, flags=SIDE_F_SYN)
    ends = [
        flow_end(W, FlowEnd.FIN, SideState(packets=packets, bytes=5, flags=SIDE_F_SYN), server)
        for packets in (first, 4)
    ]
    frames = numbered(
        opened(), clock(T0, T0), span(0, *hello(W), ends[0]), span(0, ends[1]), clock(T0 + 9 * SECOND, T0)
    )
    found = Recorded(feed(frames))
    assert "flow-unknown" not in {event.kind for event in found.events}
    assert found.session.coverage is Coverage.COMPLETE
    assert found.session.attrs["coverage"]["forwarded"] == {"client": 5, "server": 6}


def test_counters_of_a_flow_that_was_picked_up_again_are_added() -> None:
    peer = replace(W, flow=T0 + 5)
    server = SideState(packets=2, bytes=6, flags=SIDE_F_SYN)
    first = flow_end(W, FlowEnd.IDLE, SideState(packets=4, bytes=5, flags=SIDE_F_SYN), server)
    more = [peer.packet(0, PSH, 5, b" again", acked=6, time=11 * MS), *peer.goodbye(11, 6)]
    second = flow_end(peer, FlowEnd.FIN, SideState(packets=3, bytes=6), SideState(packets=2))
    frames = numbered(
        opened(), clock(T0, T0), span(0, *hello(W), first, *more, second, second), clock(T0 + 9 * SECOND, T0)
    )
    found = Recorded(feed(frames))
    assert found.session.attrs["coverage"]["forwarded"] == {"client": 11, "server": 6}


def test_the_end_of_a_flow_that_nobody_saw_is_an_event() -> None:
    end = flow_end(W, FlowEnd.FIN, SideState(packets=9, bytes=5), SideState())
    found = Recorded(feed(numbered(opened(), span(0, end))))
    assert [event.kind for event in found.events] == ["open", "flow-unknown"]
    assert found.events[1].attrs["packets"] == {"client": 9, "server": 0}


@pytest.mark.parametrize("lease", [0, 0xAB])
def test_the_end_of_a_flow_that_a_relay_had_is_an_event_of_its_own(lease: int) -> None:
    """So that flows which the kernel steered to a relay, and no relay recorded, can be found."""
    peer = replace(W, lease=lease)
    client, server = SideState(packets=9, bytes=5), SideState(packets=8, bytes=7)
    end = flow_end(peer, FlowEnd.FIN, client, server, lane=Lane.RELAY)
    found = Recorded(feed(numbered(opened(), span(0, end))))
    assert [event.kind for event in found.events] == ["open", "flow-relayed"]
    assert found.events[1].attrs == {
        "source": "10.0.0.2", "source_port": 40000, "destination": "10.0.1.3", "destination_port": 5432,
        "transport": "tcp", "packets": {"client": 9, "server": 8}, "bytes": {"client": 5, "server": 7},
        "kernel_flow": peer.flow, **({"lease_id": "00000000000000ab"} if lease else {}),
    }  # fmt: skip
    assert found.events[1].address == "10.0.0.2"


def test_a_kernel_that_gave_a_live_flow_up_is_not_believed() -> None:
    end = flow_end(W, FlowEnd.IDLE, SideState(packets=3, bytes=5), SideState(packets=2, bytes=6))
    peer = replace(W, flow=T0 + 5)
    more = [peer.packet(0, PSH, 5, b" again", acked=6, time=11 * MS), *peer.goodbye(11, 6)]
    frames = numbered(opened(), clock(T0, T0), span(0, *hello(W), end, *more), clock(T0 + 9 * SECOND, T0))
    found = Recorded(feed(frames))
    assert found.stream(CLIENT) == b"hello again"
    assert found.session.ending is Ending.FIN
    assert found.session.findings == ("reopened", "unknown-lease")


def test_refusals_are_events_with_counts() -> None:
    refused = record(
        kind=Kind.REFUSAL, reason=Reason.NO_LEASE, count=12, source=pack_address("10.0.0.9"), source_port=5,
        destination=pack_address("10.0.1.1"), destination_port=443, protocol=6,
    )  # fmt: skip
    swept = record(kind=Kind.REFUSAL, reason=200, count=3, source=pack_address("10.0.0.9"))
    inbound = replace(refused, reason=Reason.INBOUND, side=1)
    found = Recorded(feed([span(7, plain(refused, b""), plain(swept, b""), plain(inbound, b""))]))
    first, second, third = found.events
    assert (first.kind, first.address, first.attrs["reason"], first.attrs["packets"]) == (
        "refusal", "10.0.0.9", "no-lease", 12,
    )  # fmt: skip
    assert first.attrs["destination"] == "10.0.1.1"
    assert first.position == 7 << 24
    assert second.attrs["reason"] == "200"
    assert "destination" not in second.attrs
    assert third.address == "10.0.1.1"


# -- the ring and the journal ----------------------------------------------------------------------------------------


def ring(number: int, start: int, *packets: bytes) -> Frame:
    """As the kernel's ring holds them: a header of 8 bytes before each."""
    payload = b"".join(struct.pack("<II", len(packet), 0) + packet for packet in packets)
    return Frame(number, FrameKind.SPAN, T0, payload, start, start + len(payload), RING)


def test_what_the_ring_gave_twice_is_taken_once() -> None:
    packets = hello(P)
    whole = ring(2, 100, *packets)
    again = ring(3, 100, *packets)
    length = 8 + len(packets[0])
    overlapping = ring(4, 100 + length, *packets[1:], P.packet(0, PSH, 5, b"!", acked=6, time=6 * MS))
    said = opened(position=100, source="ingest:x")
    found = Recorded(feed([said, clock(0, 0), whole, again, overlapping, frame(5, FrameKind.CLOSE)]))
    assert found.session.client_packets == 5
    assert found.session.findings == ()
    assert found.session.client_bytes == 6


def test_a_jump_of_the_ring_is_told() -> None:
    lost = Recorded(feed([opened(position=100), clock(0, 0), ring(2, 100, *hello(P)), ring(3, 9000, hello(P)[5])]))
    (event,) = [event for event in lost.events if event.kind == "ring-lost"]
    assert event.attrs["to"] == 9000
    assert lost.findings()[0].kind == "ring-lost"


def test_a_new_ring_is_told() -> None:
    frames = numbered(opened(), clock(0, 0), span(0, *hello(P)), opened(ring="r2"), span(0, hello(P)[5]))
    lost = Recorded(feed(frames))
    assert [event.kind for event in lost.events] == ["open", "open", "ring-lost"]
    assert len({event.position for event in lost.events}) == 3
    again = Recorded(feed(numbered(opened(), clock(0, 0), span(0, *hello(P)), opened())))
    assert [event.kind for event in again.events] == ["open", "open"]


def test_damage_is_an_event_and_a_finding_of_what_was_open() -> None:
    frames: list[Frame | Damage] = [
        *numbered(opened(), clock(0, 0), span(0, *hello(P))), Damage(4, 7, "why"), frame(11, FrameKind.CLOSE),
    ]  # fmt: skip
    found = Recorded(feed(frames))
    event = found.events[1]
    assert (event.kind, event.position, event.attrs["frames"]) == ("journal-gap", (4 << 24) - 1, 7)
    assert found.findings()[0].kind == "journal-gap"
    machine = assembler()
    feed(frames, machine)
    assert machine.damaged == 1


def test_damage_without_proof_of_completeness_is_partial() -> None:
    frames: list[Frame | Damage] = [*ingest(hello(P), close=False), Damage(9, 1, "why"), frame(10, FrameKind.CLOSE)]
    assert Recorded(feed(frames)).session.coverage is Coverage.PARTIAL


def test_a_span_that_breaks_its_form_is_damage() -> None:
    broken = span(3, hello(P)[0], b"\xff" * 200)
    found = Recorded(feed([opened(), clock(0, 0), broken]))
    assert [event.kind for event in found.events] == ["open", "journal-gap"]


def test_what_cannot_be_read_of_a_span_comes_behind_what_could_be() -> None:
    """A store that has the events up to a position must not take the later one for stored."""
    refused = plain(record(kind=Kind.REFUSAL, reason=1, count=3), b"")
    found = Recorded(feed(numbered(opened(), clock(0, 0), span(0, refused, refused, bytes(200)), clock(0, 0))))
    assert [event.kind for event in found.events] == ["open", "refusal", "refusal", "journal-gap"]
    positions = [event.position for event in found.events]
    assert positions == sorted(set(positions))


# -- bounds ----------------------------------------------------------------------------------------------------------


def test_the_longest_silent_session_is_given_up_when_there_are_too_many() -> None:
    packets = [packet for n in range(30) for packet in hello(Peer(client_port=1000 + n), n * SECOND)]
    machine = assembler(max_sessions=10)
    found = Recorded(feed(ingest(packets, close=False), machine))
    assert machine.sessions_open == 10
    ends = [row.ending for row in found.sessions]
    assert ends == [Ending.INTERRUPTED] * 20 + [Ending.OPEN] * 10
    assert found.sessions[0].findings == ("evicted",)


def test_memory_is_bounded_and_told() -> None:
    machine = assembler(max_buffer=10_000)
    holes = [P.packet(1, 0, 10 + n * 2000, bytes(1000), acked=5, time=(10 + n) * MS) for n in range(100)]
    feed(ingest([*hello(P), *holes], close=False), machine)
    assert 5_000 < machine.held_bytes < 10_000 + 4 * 65536


# -- the same, however it is cut -------------------------------------------------------------------------------------


def busy() -> list[bytes]:
    """A bit of everything, in order of time."""
    rng = random.Random(4)
    http, bulk = Peer(client_port=3, server_port=80), Peer(client_port=4, server_port=9)
    wire = replace(W, client_port=5)
    secret = b"Authorization: Bearer abcdefghijklmnop\r\n"
    request = b"POST /x HTTP/1.1\r\nHost: h\r\n" + secret + b"Content-Length: 5\r\n\r\nhello"
    out: list[tuple[int, bytes]] = []

    def add(packets: list[bytes]) -> None:
        for packet in packets:
            out.append((struct.unpack_from("<Q", packet, 16)[0], packet))

    add(http.handshake())
    for n in range(0, len(request), 11):
        add([http.packet(0, PSH, n, request[n : n + 11], time=(5 + n) * MS)])
    add([http.packet(0, PSH, 40, b"conflict" * 4, time=70 * MS)])
    add([http.packet(1, PSH, 0, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", acked=len(request), time=300 * MS)])
    add(bulk.handshake(20 * MS))
    order = list(range(40))
    rng.shuffle(order)
    for n, number in enumerate(order):
        if number not in (7, 8):
            add([bulk.packet(1, 0, number * 3000, bytes([number]) * 3000, time=(30 + 3 * n) * MS)])
    add([bulk.packet(0, 0, 0, acked=120_000, time=(200 + 100 * n) * MS) for n in range(3)])
    add([bulk.packet(1, PSH, 21_000, b"late" * 100, time=900 * MS), bulk.packet(0, RST, 0, time=950 * MS)])
    add([udp(("10.0.0.2", 5353), ("10.0.1.3", 53), QUERY, 60 * MS)])
    add([udp(("10.0.1.3", 53), ("10.0.0.2", 5353), ANSWER, 61 * MS)])
    add(fragments("10.0.0.7", "10.0.1.3", struct.pack(">HHHH", 9, 9, 3008, 0) + bytes(3000), 1024, 62 * MS))
    add(hello(wire, 100 * MS))
    add(wire.goodbye(5, 6, 200 * MS))
    add([flow_end(wire, FlowEnd.FIN, SideState(packets=9), SideState(packets=3), 210 * MS)])
    add([Peer(client_port=6).packet(0, PSH, 50, b"midstream", time=400 * MS)])
    add([Peer(client_port=6).packet(0, PSH, 44, b"before", time=410 * MS)])
    add([P.packet(0, SYN, -1, acked=None, time=90 * SECOND), P.packet(0, FIN, 0, acked=None, time=91 * SECOND)])
    return [packet for _, packet in sorted(out, key=lambda pair: pair[0])]


def anonymous(rows: list[Row]) -> list[dict[str, Any]]:
    """Without what comes from record positions: ids by order of appearance, no positions."""
    names: dict[object, int] = {}
    out = []
    for row in rows:
        values: dict[str, Any] = msgspec.structs.asdict(row)
        if "session_id" in values:
            values["session_id"] = names.setdefault(values["session_id"], len(names))
        values.pop("position", None)
        out.append(values | {"row": type(row).__name__})
    return out


BUSY = busy()


def test_the_busy_scene_has_what_it_should() -> None:
    found = run(BUSY)
    kinds = {kind for row in found.sessions for kind in row.findings}
    assert {"gap", "late", "overlap", "midstream", "redacted"} <= kinds
    assert b"abcdefghijklmnop" not in repr(found.rows).encode()
    assert {"http1", "dns"} <= {row.protocol for row in found.sessions}


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_the_cut_into_frames_changes_nothing(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(BUSY) - 1))))
    parts = [BUSY[a:b] for a, b in zip([0, *cuts], [*cuts, len(BUSY)], strict=True)]
    frames = numbered(opened(source="ingest:x"), frame(0, FrameKind.CLOCK, CLOCK), *[span(0, *part) for part in parts])
    end = frame(len(frames) + 1, FrameKind.CLOSE)
    whole = numbered(opened(source="ingest:x"), frame(0, FrameKind.CLOCK, CLOCK), span(0, *BUSY))
    assert anonymous(feed([*frames, end])) == anonymous(feed([*whole, frame(4, FrameKind.CLOSE)]))


def test_the_same_frames_give_the_same_rows() -> None:
    assert feed(ingest(BUSY)) == feed(ingest(BUSY))


def test_a_pickle_between_any_two_frames_changes_nothing() -> None:
    frames = ingest(BUSY, size=1)
    machine = assembler()
    rows: list[Row] = []
    for one in frames:
        rows += machine.feed(one)
        machine = decoded(encoded(machine))
    assert rows == feed(frames)


@pytest.mark.parametrize("seed", range(6))
def test_hostile_records_never_raise(seed: int) -> None:
    rng = random.Random(seed)
    machine = assembler(max_sessions=20, max_buffer=50_000)
    rows: list[Row] = []
    for number in range(1, 60):
        packets = []
        for _ in range(30):
            packet = bytearray(rng.choice(BUSY))
            for _ in range(rng.randrange(6)):
                at = rng.choice([rng.randrange(1, 24), rng.randrange(40, len(packet))])
                if not 12 <= at < 16:  # version and length are the span's form
                    packet[at] = rng.randrange(256)
            packets.append(bytes(packet))
        rows += machine.feed(span(number, *packets))
        if not number % 20:
            machine = pickle.loads(pickle.dumps(machine))
    rows += machine.feed(frame(99, FrameKind.CLOSE))
    assert machine.sessions_open <= 20
    assert any(isinstance(row, SessionRow) for row in Recorded(rows).rows)
