"""TCP sessions, by what they leave in the store."""

import pytest

from appliance.model import Coverage, Direction, Ending, EventRow, SessionRow
from appliance.session.session import LINGER_NS, MAX_FINDINGS
from appliance.wire.abi import pack_address
from appliance.wire.records import plain
from tests.session.traffic import (
    ACK,
    FIN,
    MS,
    PSH,
    RST,
    SECOND,
    SYN,
    T0,
    Peer,
    feed,
    record,
    run,
    span,
)

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
P = Peer()
HELLO = [
    *P.handshake(),
    P.packet(0, PSH, 0, b"hello", time=3 * MS),
    P.packet(1, PSH, 0, b"world!", acked=5, time=4 * MS),
    P.packet(0, 0, 5, acked=6, time=5 * MS),
]


def test_a_whole_connection() -> None:
    found = run([*HELLO, *P.goodbye(5, 6)])
    row = found.session
    assert (row.client_address, row.client_port) == ("10.0.0.2", 40000)
    assert (row.server_address, row.server_port) == ("10.0.1.3", 5432)
    assert (row.transport, row.protocol, row.lane, row.source) == ("tcp", "raw", "tap", "ingest:x.pcap")
    assert (row.ending, row.coverage, row.findings) == (Ending.FIN, Coverage.COMPLETE, ())
    assert (row.client_bytes, row.server_bytes) == (5, 6)
    assert (row.client_packets, row.server_packets) == (6, 3)
    assert row.ended_ns - row.started_ns == SECOND + 2 * MS
    assert row.attrs["coverage"]["acknowledged"] == {"client": 5, "server": 6}
    assert found.stream(CLIENT) == b"hello"
    assert found.stream(SERVER) == b"world!"
    assert [message.message.text for message in found.messages()] == ["hello", "world!"]
    assert row.messages == 2


def test_the_opening_row_comes_first() -> None:
    found = run(HELLO)
    first = next(row for row in found.rows if not isinstance(row, EventRow))
    assert isinstance(first, SessionRow)
    assert (first.seq, first.ending) == (0, Ending.OPEN)


def test_a_syn_ack_tells_the_server() -> None:
    found = run(HELLO[1:])
    assert found.session.server_port == 5432
    assert found.session.coverage is Coverage.PARTIAL
    assert [one.direction for one in found.findings(kind="midstream")] == [CLIENT]


def test_without_a_handshake_the_lower_port_is_the_server() -> None:
    found = run(HELLO[4:] + HELLO[3:4])
    assert found.session.server_port == 5432
    assert found.session.coverage is Coverage.PARTIAL
    assert {one.direction for one in found.findings(kind="midstream")} == {CLIENT, SERVER}
    assert found.stream(SERVER) == b"world!"


@pytest.mark.parametrize(("client", "server"), [(40000, 61616), (60999, 9092), (1024, 443), (61000, 8080)])
def test_without_a_handshake_the_ports_tell_the_server(client: int, server: int) -> None:
    peer = Peer(client_port=client, server_port=server)
    for order in (1, -1):
        packets = [peer.packet(0, PSH, 9, b"ask", acked=9), peer.packet(1, PSH, 9, b"answer", acked=12)]
        assert run(packets[::order]).session.server_port == server


def test_half_a_connection() -> None:
    found = run([packet for packet in HELLO if packet[3] == 0 and packet in (HELLO[0], HELLO[2], HELLO[3], HELLO[5])])
    assert found.session.coverage is Coverage.ONE_SIDED
    assert found.stream(CLIENT) == b"hello"
    assert found.session.attrs["coverage"]["missing"]["server"] == 6  # as the client acknowledged


def test_data_with_syn_and_with_fin() -> None:
    found = run(
        [
            P.packet(0, SYN, -1, b"fast", acked=None),
            P.packet(1, SYN, -1, acked=4, time=MS),
            P.packet(0, FIN, 4, b"open", time=2 * MS),
            P.packet(1, FIN, 0, b"bye", acked=9, time=3 * MS),
            P.packet(0, 0, 9, acked=4, time=4 * MS),
        ]
    )
    assert found.stream(CLIENT) == b"fastopen"
    assert found.stream(SERVER) == b"bye"
    assert (found.session.ending, found.session.coverage) == (Ending.FIN, Coverage.COMPLETE)


def test_repeated_syn_and_repeated_fin_stay_in_the_session() -> None:
    last = P.goodbye(5, 6)
    found = run([HELLO[0], *HELLO, *last, last[1], last[2]])
    assert len(found.sessions) == 1
    assert found.session.coverage is Coverage.COMPLETE


def test_another_sequence_number_is_another_session() -> None:
    again = Peer(client_isn=77_000_000, server_isn=5)
    found = run(
        [
            *HELLO,
            *again.handshake(10 * MS),
            again.packet(0, PSH, 0, b"second", time=13 * MS),
            again.packet(1, 0, 0, acked=6, time=14 * MS),
        ]
    )
    first, second = found.sessions
    assert found.stream(CLIENT, first) == b"hello"
    assert found.stream(CLIENT, second) == b"second"


def test_a_handshake_that_the_capture_put_behind_its_data() -> None:
    """Several queues or interfaces, or merged files: packets a moment apart change places."""
    packets = [
        P.packet(0, PSH, 0, b"hello", acked=0, time=MS),
        P.packet(1, PSH, 0, b"world!", acked=5, time=2 * MS),
        *P.handshake(3 * MS),
        *P.goodbye(5, 6),
    ]
    found = run(packets)
    assert (found.session.coverage, found.session.findings) == (Coverage.COMPLETE, ())
    assert (found.stream(CLIENT), found.stream(SERVER)) == (b"hello", b"world!")
    again = run([*packets[:2], *Peer(client_isn=77_000_000).handshake(3 * MS)])
    assert len(again.sessions) == 2


def test_both_directions_of_what_was_picked_up_come_by_time() -> None:
    packets = []
    for turn in range(3):
        packets.append(P.packet(0, PSH, 700 + 5 * turn, b"ask %d" % turn, acked=90 + 8 * turn, time=2 * turn * MS))
        packets.append(
            P.packet(1, PSH, 90 + 8 * turn, b"answer %d" % turn, acked=705 + 5 * turn, time=(2 * turn + 1) * MS)
        )
    found = run(packets)
    said = [row.message for row in found.messages()]
    assert [one.direction for one in said] == [CLIENT, SERVER] * 3
    assert (found.stream(CLIENT), found.stream(SERVER)) == (b"ask 0ask 1ask 2", b"answer 0answer 1answer 2")
    assert {one.direction for one in found.findings(kind="midstream")} == {CLIENT, SERVER}


def test_a_forged_syn_does_not_split_a_live_session() -> None:
    """The receiver of such a SYN answers with the old numbers (RFC 5961 §4), and the old connection goes on."""
    forged = Peer(client_isn=0x7000_0000)
    found = run(
        [
            *HELLO,
            forged.packet(0, SYN, -1, acked=None, time=6 * MS),
            P.packet(1, 0, 6, acked=5, time=7 * MS),
            P.packet(0, PSH, 5, b" again", acked=6, time=8 * MS),
            Peer(client_isn=0x1000_0000).packet(0, SYN, -1, acked=None, time=9 * MS),
            P.packet(0, PSH, 11, b" and again", acked=6, time=10 * MS),
            P.packet(1, PSH, 6, b"yes", acked=21, time=11 * MS),
        ]
    )
    streams = [found.stream(CLIENT, row) for row in found.sessions]
    assert sorted(streams) == [b"", b"", b"hello again and again"]
    real = found.sessions[streams.index(b"hello again and again")]
    assert found.stream(SERVER, real) == b"world!yes"


def test_a_reset_ends_the_session() -> None:
    found = run([*HELLO, P.packet(0, RST, 5, acked=6, time=6 * MS)])
    assert (found.session.ending, found.session.coverage) == (Ending.RST, Coverage.COMPLETE)


def test_a_refused_connection() -> None:
    found = run([HELLO[0], P.packet(1, RST | ACK, -1, acked=0, time=MS)])
    assert (found.session.ending, found.session.coverage) == (Ending.RST, Coverage.COMPLETE)


def test_a_reset_outside_of_the_window_changes_nothing() -> None:
    found = run([*HELLO, P.packet(1, RST, 1 << 28, acked=5, time=6 * MS), *P.goodbye(5, 6)])
    assert found.session.ending is Ending.FIN
    assert found.session.findings == ("reset-ignored",)


def test_a_reset_that_its_receiver_ignored() -> None:
    found = run(
        [
            *HELLO,
            P.packet(0, RST, 5, acked=6, time=6 * MS),
            P.packet(0, PSH, 5, b" still here", acked=6, time=500 * MS),
            P.packet(1, PSH, 6, b"fine", acked=16, time=SECOND),
        ]
    )
    assert found.session.ending is Ending.EOF
    assert found.session.findings == ("reopened",)
    assert found.stream(CLIENT) == b"hello still here"
    assert found.stream(SERVER) == b"world!fine"


def test_packets_within_two_seconds_of_the_end_belong_to_it() -> None:
    last = P.goodbye(5, 6)
    stray = P.packet(0, 0, 6, acked=7, time=SECOND + LINGER_NS // 2)
    found = run([*HELLO, *last, stray])
    assert found.session.client_packets == 7


def test_a_stray_acknowledgement_after_the_end_opens_no_session() -> None:
    late = P.packet(0, 0, 6, acked=7, time=SECOND + 2 * LINGER_NS)
    found = run([*HELLO, *P.goodbye(5, 6), late])
    assert len(found.sessions) == 1


def test_data_after_the_end_is_recorded() -> None:
    late = P.packet(0, PSH, 6, b"ghost", acked=7, time=SECOND + 2 * LINGER_NS)
    found = run([*HELLO, *P.goodbye(5, 6), late])
    assert [found.stream(CLIENT, row) for row in found.sessions] == [b"hello", b"ghost"]


def test_a_conflict_keeps_both_copies() -> None:
    found = run([*HELLO, P.packet(0, PSH, 0, b"help!", acked=6, time=6 * MS), *P.goodbye(5, 6)])
    assert found.stream(CLIENT) == b"hello"
    (finding,) = found.findings()
    assert (finding.kind, finding.direction, finding.start, finding.end) == ("overlap", CLIENT, 3, 5)
    (copy,) = [row for row in found.chunks() if row.copy]
    assert (copy.copy, copy.offset, copy.data) == (finding.attrs["copy"], 3, b"p!")
    assert found.session.findings == ("overlap",)
    assert found.session.coverage is Coverage.COMPLETE


def test_an_identical_repetition_is_no_finding() -> None:
    found = run([*HELLO, HELLO[3], HELLO[4], *P.goodbye(5, 6)])
    assert found.session.findings == ()
    assert found.session.attrs["tcp"]["retransmitted"] == {"client": 5, "server": 6}


def test_a_lost_packet_is_a_gap() -> None:
    found = run(
        [
            *HELLO,
            P.packet(1, PSH, 16, b"after", acked=5, time=7 * MS),
            P.packet(0, 0, 5, acked=21, time=8 * MS),
            P.packet(0, 0, 5, acked=21, time=100 * MS),
            *P.goodbye(5, 21),
        ]
    )
    (gap,) = found.findings()
    assert (gap.kind, gap.direction, gap.start, gap.end) == ("gap", SERVER, 6, 16)
    assert found.stream(SERVER) == b"world!" + bytes(10) + b"after"
    assert (found.session.coverage, found.session.server_bytes) == (Coverage.PARTIAL, 11)
    assert found.session.attrs["coverage"]["missing"] == {"client": 0, "server": 10}


def test_captured_headers_only_is_one_gap() -> None:
    packets = [P.packet(1, 0, 6 + n * 100, b"x" * 100, acked=5, time=(6 + n) * MS, cut=100) for n in range(50)]
    found = run([*HELLO, *packets, *P.goodbye(5, 5006)])
    (gap,) = found.findings()
    assert (gap.start, gap.end, gap.attrs["reason"]) == (6, 5006, "snapped")


def test_window_scale_is_learnt_from_both_syns() -> None:
    """Without it, what is well within the window would look out of it."""
    scale = b"\1\3\3\7"
    peer = Peer(flow=5, window=1000)
    opening = [
        peer.packet(0, SYN, -1, acked=None, options=scale),
        peer.packet(1, SYN, -1, acked=0, time=MS, options=scale),
        peer.packet(0, 0, 0, time=2 * MS),
        peer.packet(1, 0, 0, time=2 * MS),
    ]
    data = b"".join(bytes([n]) * 1000 for n in range(100))
    packets = [peer.packet(0, 0, n * 1000, data[n * 1000 : n * 1000 + 1000], time=(3 + n) * MS) for n in range(100)]
    rows = run([*opening, *packets])
    assert rows.stream(CLIENT) == data
    assert rows.session.findings == ()
    unscaled = [
        peer.packet(0, SYN, -1, acked=None),
        peer.packet(1, SYN, -1, acked=0, time=MS, options=scale),
        peer.packet(1, 0, 0, time=2 * MS),
    ]
    rows = run([*unscaled, *packets])
    assert rows.stream(CLIENT) == data[:1000]
    assert rows.session.findings == ("out-of-window",)
    kept = b"".join(row.data for row in sorted(rows.chunks(), key=lambda row: row.offset) if row.copy)
    assert kept == data[1000:]


def test_findings_of_one_kind_are_bounded() -> None:
    packets = [P.packet(0, PSH, 0, bytes([n & 127]) * 5, acked=6, time=6 * MS) for n in range(2 * MAX_FINDINGS)]
    found = run([*HELLO, *packets])
    assert len(found.findings(kind="overlap")) == MAX_FINDINGS
    assert found.session.attrs["findings_dropped"]["overlap"] == 2 * MAX_FINDINGS - MAX_FINDINGS
    assert len([row for row in found.chunks() if row.copy]) == 2 * MAX_FINDINGS


def test_an_idle_session_ends() -> None:
    other = Peer(client_port=41000)
    found = run([*HELLO, *other.handshake(20 * SECOND)], idle=10.0)
    assert found.sessions[0].ending is Ending.IDLE
    assert found.sessions[1].ending is Ending.EOF


@pytest.mark.parametrize("flow", [0, 77])
def test_the_credential_of_a_request_is_nowhere(flow: int) -> None:
    """In the stream, in a conflicting copy, in messages: kept by length only, even when it comes in pieces."""
    peer = Peer(server_port=80, flow=flow)
    secret = b"c2VjcmV0LXNlY3JldC1zZWNyZXQ="
    request = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic " + secret + b"\r\nX: y\r\n\r\n"
    reply = b"HTTP/1.1 204 No Content\r\n\r\n"
    at = request.index(secret)
    packets = peer.handshake()
    packets += [peer.packet(0, PSH, n, request[n : n + 7], time=(3 + n) * MS) for n in range(0, len(request) - 7, 7)]
    packets.append(peer.packet(0, PSH, at, b"X" + secret[1:], time=80 * MS))  # another first byte: a conflict
    rest = (len(request) - 8) // 7 * 7 + 7
    packets.append(peer.packet(0, PSH, rest, request[rest:], time=90 * MS))
    packets.append(peer.packet(0, PSH, at, b"Y" + secret[1:], time=91 * MS))
    packets.append(peer.packet(1, PSH, 0, reply, acked=len(request), time=92 * MS))
    found = run([*packets, *peer.goodbye(len(request), len(reply))])
    assert found.session.protocol == "http1"
    assert found.stream(CLIENT) == request.replace(secret, b"*" * len(secret))
    copies = [row for row in found.chunks() if row.copy]
    assert [(row.offset, row.data, row.redacted) for row in copies] == [(at, b"*", ((0, 1),))] * 2
    (finding,) = found.findings(kind="redacted")
    assert (finding.start, finding.end) == (at, at + len(secret))
    assert secret not in repr(found.rows).encode()
    covered = {row.offset + n for row in found.chunks() if not row.copy for a, b in row.redacted for n in range(a, b)}
    assert covered == set(range(at, at + len(secret)))


def test_urgent_data_stays_in_the_stream() -> None:
    found = run([*HELLO, P.packet(0, PSH | 32, 5, b"!urgent", acked=6, time=6 * MS)])
    assert found.stream(CLIENT) == b"hello!urgent"


def test_ports_and_addresses_of_ipv6() -> None:
    syn = record(
        family=6, source=pack_address("2001:db8::1"), destination=pack_address("2001:db8::2"), source_port=5,
        destination_port=443, tcp_flags=SYN, time=T0, flow=9,
    )  # fmt: skip
    rows = feed([span(1, plain(syn, b""))])
    (row,) = [row for row in rows if isinstance(row, SessionRow)]
    assert (row.client_address, row.server_address) == ("2001:db8::1", "2001:db8::2")
