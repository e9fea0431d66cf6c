import struct

from appliance.model import Coverage, Direction, Ending
from appliance.wire.abi import RECORD_F_FRAGMENT, RECORD_F_RELATED, pack_address
from appliance.wire.records import plain
from tests.session.traffic import MS, SECOND, T0, Peer, ip4, record, run, udp

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
A, S = ("10.0.0.2", 5353), ("10.0.1.3", 53)
QUERY = bytes.fromhex("123401000001000000000000076578616d706c6503636f6d0000010001")
ANSWER = bytes.fromhex("123481800001000100000000076578616d706c6503636f6d0000010001c00c000100010000003c00045db8d822")


def test_a_query_and_its_answer() -> None:
    found = run([udp(A, S, QUERY), udp(S, A, ANSWER, MS)])
    row = found.session
    assert (row.transport, row.protocol, row.coverage, row.ending) == ("udp", "dns", Coverage.COMPLETE, Ending.EOF)
    assert found.stream(CLIENT) == QUERY
    assert found.stream(SERVER) == ANSWER
    assert row.attrs["coverage"]["acknowledged"] == {"client": None, "server": None}


def test_a_query_without_an_answer_is_one_sided() -> None:
    assert run([udp(A, S, QUERY)]).session.coverage is Coverage.ONE_SIDED


def test_an_answer_first_still_tells_the_server() -> None:
    found = run([udp(S, A, ANSWER), udp(A, S, QUERY, MS)])
    assert found.session.server_port == 53


def test_one_chunk_per_datagram() -> None:
    found = run([udp(A, S, b"one"), udp(A, S, b"two"), udp(A, S, b""), udp(A, S, b"three")])
    assert [(row.offset, row.data) for row in found.chunks()] == [(0, b"one"), (3, b"two"), (6, b"three")]
    assert found.session.client_packets == 4


def test_datagrams_joined_by_the_network_card_are_told_apart() -> None:
    found = run([udp(A, S, b"onetwo33", gso_size=3)])
    assert [row.data for row in found.chunks()] == [b"one", b"two", b"33"]


def test_silence_ends_it() -> None:
    found = run([udp(A, S, b"one"), udp(A, S, b"two", 61 * SECOND)])
    assert [row.ending for row in found.sessions] == [Ending.IDLE, Ending.EOF]


def test_a_cut_datagram() -> None:
    whole = udp(A, S, b"0123456789", payload=30)
    found = run([whole, udp(A, S, b"next", MS)])
    assert [(row.offset, row.data) for row in found.chunks()] == [(0, b"0123456789"), (30, b"next")]
    (gap,) = found.findings()
    assert (gap.kind, gap.start, gap.end) == ("gap", 10, 30)
    assert found.session.attrs["coverage"]["missing"]["client"] == 20


def echo(side: int, data: bytes, time: int = 0) -> bytes:
    hosts = ("10.0.0.2", "10.0.1.3")
    packet = ip4(1, hosts[side], hosts[1 - side], struct.pack(">BBHHH", 0 if side else 8, 0, 0, 77, 1) + data)
    return plain(
        record(
            protocol=1, length=len(packet), time=T0 + time, source=pack_address(hosts[side]),
            destination=pack_address(hosts[1 - side]), source_port=0 if side else 77,
            destination_port=77 if side else 0, payload=len(data), header=28,
        ),
        packet,
    )  # fmt: skip


def test_icmp_is_kept_from_its_type_on() -> None:
    found = run([echo(0, b"ping"), echo(1, b"ping", MS)])
    assert found.session.transport == "icmp"
    assert found.session.coverage is Coverage.COMPLETE
    assert found.stream(CLIENT) == bytes.fromhex("0800000000 4d0001".replace(" ", "")) + b"ping"
    assert found.stream(SERVER)[:1] == b"\0"


def test_an_icmp_error_belongs_to_its_flow_and_what_it_quotes_is_not_kept() -> None:
    peer = Peer()
    quoted = ip4(6, "10.0.0.2", "10.0.1.3", b"password=geheim")
    packet = ip4(1, "10.0.9.9", "10.0.0.2", bytes([3, 4, 0, 0, 0, 0, 5, 0x78]) + quoted)
    error = plain(
        record(
            flags=RECORD_F_RELATED, length=len(packet), time=T0 + 5 * MS, side=1, source=pack_address("10.0.1.3"),
            destination=pack_address("10.0.0.2"), source_port=5432, destination_port=40000, header=28,
        ),
        packet,
    )  # fmt: skip
    found = run([*peer.handshake(), error])
    (finding,) = found.findings()
    assert (finding.kind, finding.direction) == ("icmp-error", SERVER)
    assert (finding.attrs["type"], finding.attrs["code"]) == (3, 4)
    assert found.session.server_packets == 1
    assert b"geheim" not in repr(found.rows).encode()
    alone = run([error])
    assert alone.session.transport == "icmp"


def fragments(source: str, destination: str, payload: bytes, size: int, time: int = 0) -> list[bytes]:
    out = []
    for start in range(0, len(payload), size):
        more = 0x2000 if start + size < len(payload) else 0
        packet = ip4(17, source, destination, payload[start : start + size], more | start // 8)
        head = record(
            flags=RECORD_F_FRAGMENT, protocol=17, length=len(packet), time=T0 + time + start,
            source=pack_address(source), destination=pack_address(destination), header=20,
            payload=len(packet) - 20,
        )  # fmt: skip
        out.append(plain(head, packet))
    return out


def test_fragments_become_a_datagram() -> None:
    data = bytes(range(256)) * 12
    datagram = struct.pack(">HHHH", A[1], S[1], 8 + len(data), 0) + data
    parts = fragments(A[0], S[0], datagram, 1024)
    found = run([parts[2], parts[0], parts[3], parts[1]])
    assert (found.session.client_port, found.session.server_port) == (5353, 53)
    assert [row.data for row in found.chunks()] == [data]


def test_fragments_that_never_become_whole_are_an_event() -> None:
    parts = fragments(A[0], S[0], bytes(3000), 1024)
    found = run([*parts[:2], udp(A, S, b"x", 40 * SECOND)])
    (event,) = [event for event in found.events if event.kind == "fragments-lost"]
    assert event.attrs == {"fragments": 2}


def test_fragments_that_wait_when_the_capture_ends_are_an_event() -> None:
    found = run(fragments(A[0], S[0], bytes(3000), 1024)[:1])
    assert not found.sessions
    assert [one.attrs for one in found.events if one.kind == "fragments-lost"] == [{"fragments": 1}]


def test_fragments_in_two_versions_are_a_finding() -> None:
    datagram = struct.pack(">HHHH", A[1], S[1], 40, 0) + b"A" * 32
    parts = fragments(A[0], S[0], datagram, 24)
    other = fragments(A[0], S[0], datagram[:8] + b"B" * 32, 24)
    found = run([parts[0], other[0], parts[1]])
    assert found.stream(CLIENT) == b"A" * 32
    assert found.session.findings == ("overlap",)
