"""The life of a flow: how it opens, what is counted, how it ends, and how it begins anew."""

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP

from appliance.wire import abi
from appliance.wire.abi import FlowEnd, Kind, Reason
from tests.bpf.bench import Bench, Outcome, Recorded

A4, B4, S4 = "10.0.1.5", "10.0.1.6", "192.0.2.80"
BIG = 2**32


class Talk:
    """One TCP conversation: who says what next, with right numbers."""

    def __init__(self, bench: Bench, client: str = A4, server: str = S4, isn: int = 1000, port: int = 40000) -> None:
        self.bench = bench
        self.ends = ((client, port), (server, 80))
        self.next = [isn, 500000]

    def say(self, side: int, flags: str, body: bytes = b"", *, seq: int | None = None, options: Any = ()) -> Outcome:
        (source, sport), (destination, dport) = self.ends[side], self.ends[1 - side]
        number = self.next[side] if seq is None else seq % BIG
        ack = self.next[1 - side] if "A" in flags else 0
        segment = TCP(sport=sport, dport=dport, flags=flags, seq=number, ack=ack, options=list(options)) / body
        outcome = (self.bench.receive if side and destination == A4 and source == S4 else self.bench.send)(
            IP(src=source, dst=destination) / segment
        )
        if seq is None:
            self.next[side] = (number + len(body) + ("S" in flags) + ("F" in flags)) % BIG
        return outcome

    def open(self) -> "Talk":
        self.say(0, "S", options=[("MSS", 1460), ("NOP", None), ("WScale", 7)])
        self.say(1, "SA", options=[("WScale", 9)])
        self.say(0, "A")
        return self


def ends(outcome: Outcome) -> list[tuple[Recorded, abi.Flow]]:
    found = [record for record in outcome.records if record.kind is Kind.FLOW_END]
    return [(record, abi.Flow.unpack(record.data)) for record in found]


def test_counts_of_both_sides(open_bench: Bench) -> None:
    talk = Talk(open_bench).open()
    talk.say(0, "PA", b"select 1")
    talk.say(1, "A")
    talk.say(1, "PA", b"one row")
    talk.say(0, "A")
    flow = open_bench.flow()
    seen = abi.SIDE_F_SYN | abi.SIDE_F_SEEN | abi.SIDE_F_ACKED
    assert flow.client == abi.SideState(4, 8, 0, 0, 1000, 1009, 1009, seen, 7)
    assert flow.server == abi.SideState(3, 7, 0, 0, 500000, 500008, 500008, seen, 9)
    assert (flow.lease, flow.rule, flow.lane, flow.end, flow.flags, flow.reported) == (7, 1, 1, 0, 0, 0)
    assert flow.start < flow.last


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ((), 0),
        ([("WScale", 14)], 14),
        ([("WScale", 15)], 14),
        ([("NOP", None)] * 37 + [("WScale", 3)], 3),
        ([("MSS", 1), ("SAckOK", b""), ("Timestamp", (1, 2)), ("NOP", None), ("WScale", 8)], 8),
        ([("EOL", None), ("WScale", 5)], 0),
        ([(254, b"\0"), ("WScale", 5)], 5),
    ],
    ids=["none", "14", "above", "behind padding", "usual", "behind the end", "behind an unknown one"],
)
def test_window_scale(open_bench: Bench, options: Any, scale: int) -> None:
    outcome = Talk(open_bench).say(0, "S", options=options)
    assert outcome.verdict == "forward"
    assert open_bench.flow().client.scale == scale


def test_options_that_lie_about_their_length_do_no_harm(open_bench: Bench) -> None:
    for port, raw in enumerate(
        (b"\x02\x00\x00\x00", b"\x02\xff\x00\x00", b"\x03\x01\x07\x00", b"\x01\x01\x01\x03"), 100
    ):
        segment = TCP(sport=port, dport=80, flags="S", dataofs=6)
        assert open_bench.send(IP(bytes(IP(src=A4, dst=S4, proto=6) / (bytes(segment) + raw)))).verdict == "forward"
    assert {flow.client.scale for _, flow in open_bench.flows()} == {0}


def test_retransmissions_count_as_bytes_but_move_nothing(open_bench: Bench) -> None:
    talk = Talk(open_bench).open()
    talk.say(0, "PA", b"hello")
    talk.say(0, "PA", b"hello", seq=1001)
    talk.say(0, "PA", b"lo wo", seq=1004)
    client = open_bench.flow().client
    assert (client.packets, client.bytes, client.next) == (5, 15, 1009)


def test_sequence_numbers_wrap(open_bench: Bench) -> None:
    talk = Talk(open_bench, isn=BIG - 3).open()
    talk.say(0, "PA", b"0123456789")
    talk.say(1, "A")
    client = open_bench.flow().client
    assert (client.isn, client.next, client.acked) == (BIG - 3, 8, 8)
    talk.say(0, "PA", b"01", seq=BIG - 2)
    assert open_bench.flow().client.next == 8


def test_fin_of_both_sides_ends_the_flow(open_bench: Bench) -> None:
    talk = Talk(open_bench).open()
    assert not ends(talk.say(0, "FA"))
    assert not ends(talk.say(1, "A"))
    assert not ends(talk.say(1, "PFA", b"bye"))
    ((record, last),) = ends(talk.say(0, "A"))
    flow = open_bench.flow()
    assert (flow.end, flow.reported) == (FlowEnd.FIN, 1)
    assert last == flow
    assert (last.client.packets, last.server.packets, last.server.bytes) == (4, 3, 3)
    header = record.header
    assert (header.flow, header.length, header.lease, header.protocol, header.family) == (flow.start, 128, 7, 6, 4)
    assert (abi.unpack_address(header.source), header.source_port) == (A4, 40000)
    assert (abi.unpack_address(header.destination), header.destination_port) == (S4, 80)
    assert not ends(talk.say(0, "A")), "told once"


def test_a_fin_that_is_not_acknowledged_does_not_end_it(open_bench: Bench) -> None:
    talk = Talk(open_bench).open()
    talk.say(0, "FA")
    talk.next[0] -= 1
    talk.say(1, "FA")
    talk.next[0] += 1
    talk.say(0, "A")
    assert open_bench.flow().end == FlowEnd.LIVE


@pytest.mark.parametrize("side", [0, 1])
def test_reset_ends_the_flow(open_bench: Bench, side: int) -> None:
    talk = Talk(open_bench).open()
    outcome = talk.say(side, "RA")
    assert outcome.verdict == "forward"
    assert [record.kind for record in outcome.records] == [Kind.PACKET, Kind.FLOW_END]
    ((_, last),) = ends(outcome)
    assert last.end == FlowEnd.RST
    assert (last.client, last.server)[side].flags & abi.SIDE_F_RST


def test_reset_answers_a_syn(open_bench: Bench) -> None:
    talk = Talk(open_bench)
    talk.say(0, "S")
    ((_, last),) = ends(talk.say(1, "RA", seq=0))
    assert (last.end, last.server.isn, last.server.next, last.client.acked) == (FlowEnd.RST, 0, 0, 1001)


def test_a_reset_out_of_the_window_ends_nothing(open_bench: Bench) -> None:
    talk = Talk(open_bench).open()
    for seq in (talk.next[0] + 70000, talk.next[0] - 1):
        outcome = talk.say(0, "R", seq=seq)
        assert outcome.verdict == "forward"
        assert not ends(outcome)
    assert open_bench.flow().end == FlowEnd.LIVE


def test_packets_of_an_ended_flow_still_pass_recorded(open_bench: Bench) -> None:
    talk = Talk(open_bench).open()
    start = open_bench.flow().start
    talk.say(0, "RA")
    late = talk.say(1, "PA", b"in flight")
    assert (late.verdict, late.packet.header.flow) == ("forward", start)
    assert open_bench.flow().server.bytes == 9


def test_syn_on_an_ended_flow_begins_anew(open_bench: Bench) -> None:
    talk = Talk(open_bench).open()
    first = open_bench.flow().start
    talk.say(0, "RA")
    outcome = Talk(open_bench, isn=1000).say(0, "S")
    assert not ends(outcome), "it was reported already"
    flow = open_bench.flow()
    assert flow.start == outcome.packet.header.flow > first
    assert (flow.end, flow.reported, flow.client.packets, flow.server.packets) == (FlowEnd.LIVE, 0, 1, 0)


def test_syn_with_another_number_begins_anew_and_reports_the_live_one(open_bench: Bench) -> None:
    first = Talk(open_bench).open().bench.flow()
    outcome = Talk(open_bench, isn=77).say(0, "S")
    assert [record.kind for record in outcome.records] == [Kind.FLOW_END, Kind.PACKET]
    ((record, last),) = ends(outcome)
    assert (record.header.flow, last.end, last.client.packets) == (first.start, FlowEnd.IDLE, 2)
    assert open_bench.flow().client.isn == 77


def test_syn_again_is_a_retransmission(open_bench: Bench) -> None:
    first = Talk(open_bench).say(0, "S").packet.header.flow
    assert Talk(open_bench).say(0, "S").packet.header.flow == first
    assert open_bench.flow().client.packets == 2


def test_a_refused_syn_leaves_the_live_flow_alone(open_bench: Bench) -> None:
    first = Talk(open_bench).open().bench.flow()
    open_bench.revoke(A4)
    assert Talk(open_bench, isn=77).say(0, "S").reason is Reason.NO_LEASE
    assert open_bench.flow() == first


def test_the_former_server_opens_one_with_the_same_ports(open_bench: Bench) -> None:
    Talk(open_bench, A4, B4).open().say(0, "RA")
    header = open_bench.send(IP(src=B4, dst=A4) / TCP(sport=80, dport=40000, flags="S", seq=9)).packet.header
    assert (header.side, header.lease) == (abi.Side.CLIENT, 8)
    ((key, flow),) = open_bench.flows()
    assert (abi.unpack_address(key.source), key.source_port, flow.client.isn) == (B4, 80, 9)


def test_upstream_opens_nothing_through_an_ended_flow(open_bench: Bench) -> None:
    Talk(open_bench).open().say(0, "RA")
    assert open_bench.receive(IP(src=S4, dst=A4) / TCP(sport=80, dport=40000, flags="S")).reason is Reason.INBOUND


def test_midstream_packets_of_an_agent_are_picked_up(open_bench: Bench) -> None:
    outcome = open_bench.send(IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags="PA", seq=5000, ack=7000) / b"more")
    assert outcome.verdict == "forward"
    flow = open_bench.flow()
    assert (flow.client.isn, flow.client.next, flow.client.flags) == (5000, 5004, abi.SIDE_F_SEEN)
    assert (flow.server.acked, flow.server.flags) == (7000, abi.SIDE_F_ACKED)
    back = IP(src=S4, dst=A4) / TCP(sport=80, dport=40000, flags="A", seq=7000, ack=5004)
    assert open_bench.receive(back).packet.header.side == abi.Side.SERVER


def test_fast_open_counts_the_syns_payload(open_bench: Bench) -> None:
    Talk(open_bench).say(0, "S", b"GET /")
    client = open_bench.flow().client
    assert (client.isn, client.next, client.bytes) == (1000, 1006, 5)


def test_datagrams_are_counted(open_bench: Bench) -> None:
    open_bench.send(IP(src=A4, dst=S4) / UDP(sport=5000, dport=53) / b"query")
    open_bench.receive(IP(src=S4, dst=A4) / UDP(sport=53, dport=5000) / b"answer")
    flow = open_bench.flow()
    assert (flow.client, flow.server) == (abi.SideState(1, 5), abi.SideState(1, 6))


def test_echo_with_another_identifier_is_another_flow(open_bench: Bench) -> None:
    for identifier in (1, 2, 1):
        open_bench.send(IP(src=A4, dst=S4) / ICMP(id=identifier))
    assert sorted((key.source_port, flow.client.packets) for key, flow in open_bench.flows()) == [(1, 2), (2, 1)]
