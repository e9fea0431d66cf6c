"""Flows that nobody ended and refusals that nobody carried out."""

import os
from collections.abc import Iterator

import pytest

from appliance import config
from appliance.journal import PLAIN, Frame, FrameKind
from appliance.wire import bpf
from appliance.wire.abi import (
    SIDE_F_ACKED,
    SIDE_F_SEEN,
    Flow,
    FlowEnd,
    FlowKey,
    Kind,
    Owner,
    Quota,
    Reason,
    Record,
    RefusalKey,
    RefusalValue,
    SideState,
    pack_address,
)
from appliance.wire.quotas import Quotas
from appliance.wire.records import records
from appliance.wire.sweep import LINGER, SLICE, Sweeper, Swept, Terms, ending

S = 1_000_000_000
NOW = 10_000 * S
TERMS = Terms(NOW, flow_idle=3600 * S, datagram_idle=60 * S, unanswered_idle=20 * S, cut={66})


def key(port: int = 1000, protocol: int = 6) -> bytes:
    return FlowKey(pack_address("10.0.0.1"), pack_address("10.0.0.2"), port, 80, protocol, 4).pack()


ESTABLISHED = SideState(packets=2, bytes=200, flags=SIDE_F_SEEN | SIDE_F_ACKED)


def flow(
    silence: float, end: FlowEnd = FlowEnd.LIVE, lease: int = 1, reported: int = 0, server: SideState = ESTABLISHED
) -> Flow:
    last = NOW - int(silence * S)
    return Flow(5 * S, last, lease, 1, 1, end, 0, SideState(packets=3, bytes=300), server, reported)


@pytest.mark.parametrize(
    ("protocol", "state", "expected"),
    [
        (6, flow(3599), FlowEnd.LIVE),
        (6, flow(3600), FlowEnd.IDLE),
        (17, flow(59), FlowEnd.LIVE),
        (17, flow(60), FlowEnd.IDLE),
        (6, flow(0, lease=66), FlowEnd.CUT),
        (6, flow(4, FlowEnd.FIN), FlowEnd.LIVE),  # its last retransmissions may come
        (6, flow(5, FlowEnd.FIN), FlowEnd.FIN),
        (6, flow(5, FlowEnd.RST, lease=66), FlowEnd.RST),
        (6, flow(19, server=SideState()), FlowEnd.LIVE),
        (6, flow(20, server=SideState()), FlowEnd.IDLE),  # a SYN that was never answered
        (6, flow(20, server=SideState(packets=1, flags=SIDE_F_SEEN)), FlowEnd.IDLE),  # nor the answer
        (6, flow(20, FlowEnd.RST, server=SideState()), FlowEnd.RST),
        (17, flow(20, server=SideState()), FlowEnd.IDLE),
        (17, flow(20, server=SideState(packets=1)), FlowEnd.LIVE),
        (6, flow(-1), FlowEnd.LIVE),  # a packet came after `now` was read
    ],
)
def test_how_a_flow_ended(protocol: int, state: Flow, expected: FlowEnd) -> None:
    assert ending(key(protocol=protocol), state.pack(), TERMS) is expected


class Kernel:
    """Real maps, as the program has them."""

    def __init__(self) -> None:
        self.fds = [
            bpf.create_map(bpf.HASH, FlowKey.LAYOUT.size, Flow.SIZE, 4096, "flows"),
            bpf.create_map(bpf.LRU_HASH, RefusalKey.LAYOUT.size, RefusalValue.LAYOUT.size, 64, "refusals"),
            bpf.create_map(bpf.HASH, Owner.LAYOUT.size, Quota.LAYOUT.size, 64, "quotas"),
            bpf.create_map(bpf.HASH, Owner.LAYOUT.size, 8, 64, "released"),
        ]
        self.flows, self.refusals, self.quotas, self.released = (bpf.Map(fd) for fd in self.fds)
        self.sweeper = Sweeper(self.flows, self.refusals, Quotas(self.quotas, self.released), config.Wire())

    def sweep(self, now: int, live: set[int]) -> list[tuple[Record, bytes]]:
        """A whole sweep; the records that it wrote."""
        for _ in self.sweeper.survey(live, now):
            pass
        found = []
        while self.sweeper.unfinished:
            swept = self.sweeper.finish(now)
            for span in swept.spans(2**20):
                frame = Frame(1, FrameKind.SPAN, 0, span, 0, 0, PLAIN)
                found += [(record, bytes(data)) for _, record, data in records(frame)]
            self.sweeper.forget(swept)
        return found


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    if os.geteuid():
        pytest.skip("needs root for BPF maps")
    kernel = Kernel()
    yield kernel
    for fd in kernel.fds:
        os.close(fd)


def test_an_idle_flow_gets_its_statement_and_is_forgotten(kernel: Kernel) -> None:
    kernel.flows.update(key(1), flow(4000).pack())
    kernel.flows.update(key(2), flow(10).pack())
    ((record, statement),) = kernel.sweep(NOW, {1})
    assert (record.kind, record.time, record.flow, record.lease, record.protocol) == (Kind.FLOW_END, NOW, 5 * S, 1, 6)
    assert (record.source_port, record.destination_port, record.family) == (1, 80, 4)
    ended = Flow.unpack(statement)
    assert (ended.end, ended.reported, ended.client.bytes, ended.server.bytes) == (FlowEnd.IDLE, 1, 300, 200)
    assert list(kernel.flows.keys()) == [key(2)]
    assert kernel.sweeper.alive == 1


def test_a_flow_that_the_program_reported_is_forgotten_silently(kernel: Kernel) -> None:
    kernel.flows.update(key(), flow(10, FlowEnd.FIN, reported=1).pack())
    assert kernel.sweep(NOW, {1}) == []
    assert list(kernel.flows.keys()) == []


def test_an_end_that_the_ring_had_no_room_for_is_reported(kernel: Kernel) -> None:
    kernel.flows.update(key(), flow(10, FlowEnd.RST).pack())
    ((_, statement),) = kernel.sweep(NOW, {1})
    assert Flow.unpack(statement).end == FlowEnd.RST


def test_a_flow_is_cut_when_its_lease_has_been_gone_for_a_while(kernel: Kernel) -> None:
    kernel.flows.update(key(1), flow(0, lease=7).pack())
    kernel.flows.update(key(2), flow(0, lease=0).pack())  # unbound: needs none
    assert kernel.sweep(NOW, {7}) == []
    assert kernel.sweep(NOW + S, set()) == []
    assert kernel.sweep(NOW + S + LINGER - 1, set()) == []
    ((record, statement),) = kernel.sweep(NOW + S + LINGER, set())
    assert (record.lease, Flow.unpack(statement).end) == (7, FlowEnd.CUT)
    assert list(kernel.flows.keys()) == [key(2)]


def test_connections_that_lost_their_lease_are_cut_and_no_others(kernel: Kernel) -> None:
    kernel.flows.update(key(1), flow(0, lease=7).pack())
    kernel.flows.update(key(2), flow(0, lease=0).pack())  # unbound: needs none
    kernel.flows.update(key(3), flow(0, lease=8).pack())  # in force
    kernel.flows.update(key(4), flow(0, lease=9).pack())  # granted while the survey went on
    kernel.flows.update(key(5), flow(0, FlowEnd.FIN, lease=7).pack())  # over
    for _ in kernel.sweeper.survey({8}, NOW):
        pass
    told: list[int] = []
    for _ in kernel.sweeper.cut(lambda: {8, 9}, lambda named, _: told.append(named.source_port)):
        pass
    assert told == [1]


def test_a_lease_that_came_back_does_not_count_as_gone(kernel: Kernel) -> None:
    kernel.flows.update(key(1), flow(0, lease=7).pack())
    kernel.sweep(NOW, set())
    kernel.sweep(NOW + S, {7})
    assert kernel.sweep(NOW + 2 * LINGER, set()) == []


def test_a_flow_that_moved_during_the_survey_lives_on(kernel: Kernel) -> None:
    kernel.flows.update(key(), flow(4000).pack())
    for _ in kernel.sweeper.survey({1}, NOW):
        pass
    kernel.flows.update(key(), flow(0).pack())
    assert kernel.sweeper.finish(NOW) == Swept()


def test_ended_flows_go_sooner_from_a_crowded_table(kernel: Kernel) -> None:
    settings = config.Wire(max_flows=400)
    sweeper = Sweeper(kernel.flows, kernel.refusals, Quotas(kernel.quotas, kernel.released), settings)
    for port in range(101):
        kernel.flows.update(key(port), flow(1 if port else 0, FlowEnd.FIN if port else FlowEnd.LIVE, reported=1).pack())
    list(sweeper.survey({1}, NOW))
    assert sweeper.crowded
    list(sweeper.survey({1}, NOW))
    assert len(sweeper.finish(NOW).flows) == 100


def test_flows_are_ended_a_slice_at_a_time(kernel: Kernel) -> None:
    for port in range(600):
        kernel.flows.update(key(port), flow(4000).pack())
    for _ in kernel.sweeper.survey({1}, NOW):
        pass
    sizes, ended = [], set()
    while kernel.sweeper.unfinished:
        swept = kernel.sweeper.finish(NOW)
        sizes.append(len(swept.flows))
        ended |= {name for name, _ in swept.flows}
        kernel.sweeper.forget(swept)
    assert (max(sizes), sum(sizes), len(ended)) == (SLICE, 600, 600)
    assert list(kernel.flows.keys()) == []


def test_a_flow_that_began_anew_while_the_former_was_ended_lives_on(kernel: Kernel) -> None:
    kernel.flows.update(key(1), flow(10, FlowEnd.FIN, reported=1).pack())
    kernel.flows.update(key(2), flow(10, FlowEnd.FIN, reported=1).pack())
    kernel.refusals.update(
        RefusalKey(pack_address("10.0.0.1"), Reason.NO_RULE, 0).pack(), RefusalValue(NOW - 2 * S, 41).pack()
    )
    for _ in kernel.sweeper.survey({1}, NOW):
        pass
    swept = kernel.sweeper.finish(NOW)
    kernel.flows.update(key(1), flow(0).pack())
    (burst,) = kernel.refusals.keys()
    kernel.refusals.update(burst, RefusalValue(NOW, 2).pack())
    kernel.sweeper.forget(swept)
    assert list(kernel.flows.items()) == [(key(1), flow(0).pack())]
    assert RefusalValue.unpack(kernel.refusals.lookup(burst) or b"") == RefusalValue(NOW, 2)


def test_a_survey_goes_in_steps(kernel: Kernel) -> None:
    for port in range(2500):
        kernel.flows.update(key(port), flow(0).pack())
    assert len(list(kernel.sweeper.survey({1}, NOW))) == 2
    assert kernel.sweeper.alive == 2500


def test_the_rest_of_a_burst_of_refusals_is_reported(kernel: Kernel) -> None:
    def put(address: str, reason: Reason, recorded: int, count: int) -> None:
        value = RefusalValue(recorded, count).pack()
        kernel.refusals.update(RefusalKey(pack_address(address), reason, 0).pack(), value)

    put("10.0.0.1", Reason.NO_RULE, NOW - 2 * S, 41)
    put("10.0.0.2", Reason.NO_RULE, NOW - S, 41)  # may still go on
    put("10.0.0.3", Reason.NO_RULE, NOW - 9 * S, 0)  # all told
    ((record, data),) = kernel.sweep(NOW, set())
    assert (record.kind, record.reason, record.count, data) == (Kind.REFUSAL, Reason.NO_RULE, 41, b"")
    assert record.source == pack_address("10.0.0.1")
    assert kernel.sweep(NOW, set()) == []


def test_spans_stay_within_the_limit() -> None:
    swept = Swept([b"a" * 40, b"b" * 40, b"c" * 40])
    assert list(swept.spans(80)) == [b"a" * 40 + b"b" * 40, b"c" * 40]
