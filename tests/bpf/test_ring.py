"""Without room in the ring nothing is forwarded; the last of it is for packets that nobody would send again."""

from scapy.layers.inet import IP, TCP, UDP

from appliance.wire import abi
from appliance.wire.abi import FlowEnd, Kind, Reason
from tests.bpf.bench import HEADER, Bench

A4, S4 = "10.0.1.5", "192.0.2.80"
DATA = IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags="A", seq=1001) / bytes(2000)
SMALL = IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags="A", seq=1001) / bytes(900)
ACK = IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags="A", seq=1001)
SYN = IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags="S", seq=1000)
RESET = IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags="R", seq=1001)
SLOT = 8 + HEADER  # of a record with nothing behind it


def _fill(bench: Bench, packet: IP = DATA) -> int:
    """Such packets until one is refused: how many were recorded."""
    bench.hold = True
    bench.forget_shares()
    recorded = 0
    while bench.send(packet).verdict == "forward":
        recorded += 1
    return recorded


def test_the_last_parts_of_the_ring_are_for_small_messages_and_for_packets_without_payload(open_bench: Bench) -> None:
    open_bench.send(SYN)
    size = open_bench.settings.ring_bytes
    large, small, least = ((SLOT + len(packet) + 7) // 8 * 8 for packet in (DATA, SMALL, ACK))
    bulk = _fill(open_bench)
    assert bulk == (size - size // 8) // large
    assert open_bench.send(IP(src=A4, dst=S4) / UDP(sport=1, dport=53) / bytes(2000)).verdict == "drop"
    messages = _fill(open_bench, SMALL)
    assert messages == (size - size // 16 - bulk * large) // small
    assert open_bench.send(IP(src=A4, dst=S4) / UDP(sport=1, dport=53) / bytes(900)).verdict == "drop"
    acks = _fill(open_bench, ACK)
    assert acks >= size // 16 // least
    counters = open_bench.counters()
    assert counters["ring_full"] == 5
    assert counters["packets"] == 1 + bulk + messages + acks


def test_what_was_refused_is_counted_and_goes_when_there_is_room(open_bench: Bench) -> None:
    open_bench.send(SYN)
    recorded = _fill(open_bench)
    assert open_bench.flow().client.refused == 1
    assert open_bench.flow().client.refused_bytes == 2000
    assert open_bench.flow().client.bytes == recorded * 2000
    kept = open_bench.ring.drain()
    assert [record.data for record in kept] == [bytes(DATA)] * recorded
    open_bench.hold = False
    outcome = open_bench.send(DATA)
    assert outcome.verdict == "forward"
    open_bench.set(refusal_interval=0)
    open_bench.hold = True
    while open_bench.send(DATA).verdict == "forward":
        pass
    open_bench.ring.drain()
    open_bench.hold = False
    key = abi.RefusalKey(abi.pack_address(A4), Reason.RING_FULL).pack()
    pending = abi.RefusalValue.unpack(open_bench.map("refusals").lookup(key) or b"")
    assert (pending.recorded, pending.count) == (0, 2), "no room to say so either: the count waits"


def test_a_flow_that_ends_without_room_is_left_to_user_space(open_bench: Bench) -> None:
    open_bench.hold = True
    open_bench.send(SYN)
    open_bench.send(ACK)
    _fill(open_bench)
    while open_bench.send(ACK).verdict == "forward":
        pass
    (oldest,) = open_bench.ring.drain(1)  # a reset's record fits where the SYN's was, a FLOW_END does not
    assert oldest.header.tcp_flags == 0x02
    assert open_bench.send(RESET).verdict == "forward"
    flow = open_bench.flow()
    assert (flow.end, flow.reported) == (FlowEnd.RST, 0)
    assert open_bench.counters()["unreported"] == 1
    assert Kind.FLOW_END not in {record.kind for record in open_bench.ring.drain()}
    # The next SYN reports it before it takes its place.
    open_bench.hold = False
    outcome = open_bench.send(SYN)
    assert [record.kind for record in outcome.records] == [Kind.FLOW_END, Kind.PACKET]
    assert abi.Flow.unpack(outcome.records[0].data).start == flow.start


def test_a_refused_new_flow_is_the_same_flow_when_it_comes_again(open_bench: Bench) -> None:
    _fill(open_bench)
    while open_bench.send(ACK).verdict == "forward":
        pass
    fresh = IP(src=A4, dst=S4) / TCP(sport=40001, dport=80, flags="S", seq=5)
    assert open_bench.send(fresh).verdict == "drop"
    (refused,) = (flow for key, flow in open_bench.flows() if key.source_port == 40001)
    assert (refused.client.refused, refused.client.packets) == (1, 0)
    open_bench.ring.drain()
    open_bench.hold = False
    outcome = open_bench.send(fresh)
    assert outcome.packet.header.flow == refused.start
    assert [record.kind for record in outcome.records] == [Kind.PACKET]


def test_the_ring_goes_round(open_bench: Bench) -> None:
    """Records that wrap at the ring's end are whole."""
    for turn in range(400):
        body = bytes([turn & 0xFF]) * (1000 + turn * 5)
        packet = IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags="A", seq=1) / body
        assert open_bench.send(packet).packet.data == bytes(packet)
