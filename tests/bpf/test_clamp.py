"""Windows by the ring's fill: what goes in, what comes out, and that the checksum fits."""

from itertools import pairwise
from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, PadN
from scapy.layers.l2 import Ether

from appliance.wire import abi
from tests.bpf.bench import Bench
from tests.bpf.windows import A6, BIG, BRINK, CLAMP, FLOOR, HOLD, OPTIONS, S6, Talk, fill, held


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_calm_ring_leaves_windows_alone(full: Bench, v6: bool, side: int) -> None:
    talk = Talk(full, v6).open()
    fill(full, CLAMP - 1000)
    assert talk.say(side, "A", 500).field == 500
    assert "clamped" not in full.counters()


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
def test_but_cuts_them_to_what_it_could_take(full: Bench, v6: bool) -> None:
    talk = Talk(full, v6).open()
    used = full.ring.fill
    assert talk.say(0, "A", 60000).field == -(-(HOLD - used) // 128)


def test_of_many_flows_each_may_begin_with_some_when_it_is_calm(full: Bench) -> None:
    talk = Talk(full).open()
    full.map("pressure").update(bytes(4), abi.Pressure(1, now=1000, before=3, pressed=0, held=0).pack())
    assert talk.say(0, "A", 60000).window == 65536


def test_and_has_no_less_than_it_makes_use_of(full: Bench) -> None:
    talk = Talk(full).open()
    for _ in range(40):
        talk.say(0, "A", 500, bytes(1000))
    assert talk.say(1, "A", 60000, less=40000).window == -(-160000 // 128) * 128


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("level", [CLAMP + 4096, HOLD - 40000, HOLD - 20000])
def test_a_window_is_what_is_left_up_to_the_level_where_it_is_held(
    full: Bench, v6: bool, side: int, level: int
) -> None:
    talk = Talk(full, v6).open()
    used = fill(full, level)
    seen = talk.say(side, "A", 60000)
    assert seen.field == -(-min(HOLD - used, 65536) // 128)
    assert full.counters()["clamped"] == 1


@pytest.mark.parametrize("side", [0, 1])
def test_near_that_level_it_is_four_segments(full: Bench, side: int) -> None:
    talk = Talk(full).open()
    fill(full, HOLD - 3000)
    assert talk.say(side, "A", 60000).field == -(-FLOOR // 128)
    fill(full, HOLD + 3000)
    assert talk.say(side, "A", 60000).field == -(-FLOOR // 128), "a flow that sends little is not held"


@pytest.mark.parametrize(
    ("options", "floor"),
    [
        (([("WScale", 0)], [("WScale", 0)]), 4 * 536),
        (([("MSS", 1400), ("WScale", 0)], [("MSS", 9000), ("WScale", 0)]), 4 * 1400),
        (([("MSS", 1), ("WScale", 0)], [("WScale", 0)]), 4 * 88),
    ],
    ids=["no option", "the smaller", "nonsense"],
)
def test_segments_are_of_the_size_that_both_take(full: Bench, options: Any, floor: int) -> None:
    talk = Talk(full, options=options, syn_window=100).open()
    fill(full, HOLD - 50)
    assert talk.say(0, "A", 60000).window == floor


def test_without_the_option_segments_of_ipv6_are_larger(full: Bench) -> None:
    talk = Talk(full, v6=True, options=([], []), syn_window=100).open()
    fill(full, HOLD - 50)
    assert talk.say(0, "A", 60000).window == 4 * 1220


@pytest.mark.parametrize(
    ("options", "scales"),
    [
        (([], []), (0, 0)),
        ((OPTIONS, [("MSS", 1460)]), (0, 0)),
        ((OPTIONS, [("MSS", 1460), ("WScale", 0)]), (7, 0)),
        (([("MSS", 1460), ("WScale", 0)], [("MSS", 1460), ("WScale", 14)]), (0, 14)),
    ],
    ids=["none", "one side only", "7 and 0", "0 and 14"],
)
@pytest.mark.parametrize("side", [0, 1])
def test_scales_count_when_both_sides_offer_them(full: Bench, options: Any, scales: Any, side: int) -> None:
    talk = Talk(full, options=options).open()
    used = fill(full, HOLD - 20000)
    seen = talk.say(side, "A", 65535)
    assert talk.scale == list(scales)
    assert seen.field == -(-(HOLD - used) // 2 ** scales[side])


@pytest.mark.parametrize("window", [0, 1, 20, FLOOR // 128])
@pytest.mark.parametrize("level", [HOLD - 3000, BRINK + 2000])
def test_a_small_window_stays(full: Bench, window: int, level: int) -> None:
    """Zero too: the receiver's own word, and the answers to probes of it."""
    talk = Talk(full, syn_window=0).open()
    fill(full, level)
    seen = talk.say(1, "A", window)
    assert seen.field == (window if level < HOLD else 0)
    assert talk.say(0, "A", 0).field == 0
    talk.say(1, "A", 0, less=1)  # as a probe is


def test_windows_are_never_raised(full: Bench) -> None:
    talk = Talk(full, syn_window=65535).open()
    talk.say(0, "A", 60000)
    fill(full, HOLD - 20000)
    for window in (50000, 300, 100, 0):
        assert talk.say(0, "A", window).field <= window


def test_a_right_edge_is_never_taken_back(full: Bench) -> None:
    talk = Talk(full).open()
    edges = [talk.say(1, "A", 500).edge]
    for level in range(CLAMP, BRINK + 16384, 4096):
        fill(full, level)
        talk.say(0, "A", 1000, bytes(900))
        edges.append(talk.say(1, "A", 20000).edge)
    moves = [(after - before + 2**31) % BIG - 2**31 for before, after in pairwise(edges)]
    assert min(moves) >= 0
    assert max(moves) > 0
    assert moves[-1] < 128, "held at last, but for what is rounded up"


def test_where_the_edge_is_already_it_stays(full: Bench) -> None:
    """The window of before was 64,000 bytes: it shrinks only as they are used."""
    talk = Talk(full).open()
    first = talk.say(1, "A", 500)
    fill(full, HOLD - 3000)
    talk.say(0, "A", 1000, bytes(1000))
    seen = talk.say(1, "A", 500)
    assert (seen.edge - first.edge) % BIG < 128, "rounded up, never down"


def test_the_record_has_the_packet_as_it_arrived(full: Bench) -> None:
    talk = Talk(full).open()
    fill(full, HOLD - 20000)
    full.ring.drain()
    fill(full, HOLD - 20000)
    packet = talk.network(0) / TCP(sport=40000, dport=80, flags="PA", seq=talk.next[0], ack=talk.next[1], window=65000)
    outcome = full.send(packet / b"hello")
    record = full.ring.drain()[-1]
    assert record.data == bytes(packet / b"hello")
    assert record.header.window == 65000
    assert Ether(outcome.frame)[TCP].window < 65000


@pytest.mark.parametrize(
    "more",
    [
        {"options": [("NOP", None), ("NOP", None), ("SAck", (1, 2, 3, 4, 5, 6))]},
        {"options": [("Timestamp", (5, 6)), ("NOP", None), ("NOP", None)]},
        {"options": [("NOP", None)] * 40},
        {"options": [(254, b"\xff" * 38)]},
        {"body": b"data on the way back"},
        {"body": bytes(2000), "gso": 1000},
        {"flags": "PAU", "urgptr": 7, "body": b"urgent!"},
        {"flags": "FA"},
        {"flags": "AEC"},
    ],
    ids=["sack", "timestamp", "flood", "unknown", "data", "super-packet", "urgent", "fin", "congestion"],
)
@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
def test_nothing_else_is_changed(full: Bench, v6: bool, more: dict[str, Any]) -> None:
    talk = Talk(full, v6).open()
    used = fill(full, HOLD - 20000)
    seen = talk.say(0, more.pop("flags", "A"), 65000, **more)
    assert seen.field == -(-(HOLD - used) // 128)


def test_behind_extension_headers(full: Bench) -> None:
    talk = Talk(full, v6=True).open()
    fill(full, BRINK + 2000)
    inner = IPv6(src=A6, dst=S6) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(60))])
    talk.say(0, "A", 65000, inner=inner)
    assert not held(full), "too long to keep"
    assert talk.say(0, "A", 65000, inner=inner).field == -(-FLOOR // 128), "then it must not be shut"


@pytest.mark.parametrize(("side", "flags"), [(0, "S"), (1, "SA"), (0, "R"), (0, "RA"), (1, "RA")])
def test_syns_and_resets_are_left_alone(full: Bench, side: int, flags: str) -> None:
    fill(full, HOLD - 3000)
    talk = Talk(full)
    if flags == "SA":
        talk.say(0, "S", 65535, options=OPTIONS)
    elif "R" in flags:
        talk.open()
    assert talk.say(side, flags, 65535).field == 65535


@pytest.mark.parametrize("seen", [(), (0,), (1,)], ids=["none", "client's", "server's"])
def test_without_both_syns_the_scale_is_unknown(full: Bench, seen: tuple[int, ...]) -> None:
    talk = Talk(full)
    if 0 in seen:
        talk.say(0, "S", 1000, options=OPTIONS)
    talk.say(0, "A", 65000)
    if 1 in seen:
        talk.say(1, "SA", 1000, options=OPTIONS)
    fill(full, BRINK + 2000)
    assert [talk.say(side, "A", 65000).field for side in (0, 1)] == [65000, 65000]
    assert not held(full)


def test_an_acknowledgement_of_what_was_never_sent_moves_nothing(full: Bench) -> None:
    talk = Talk(full).open()
    fill(full, HOLD - 20000)
    assert talk.say(0, "A", 65000, less=-5000).field == 65000
    assert talk.say(0, "A", 65000).field < 200


def test_a_ring_that_was_full_a_moment_ago_counts(full: Bench) -> None:
    """What drains in one go would fill again in one go."""
    talk = Talk(full).open()
    fill(full, HOLD - 20000)
    talk.say(0, "A", 65000)
    full.ring.drain()
    assert talk.say(0, "A", 65000).window == 65536


def test_many_share_what_is_left(full: Bench) -> None:
    talk = Talk(full).open()
    full.map("pressure").update(bytes(4), abi.Pressure(1, now=4, before=3, pressed=0, held=0).pack())
    used = fill(full, HOLD - 40000)
    assert talk.say(1, "A", 65000).field == -(-((HOLD - used) // 4) // 128)


def test_who_sends_much_is_counted_once(full: Bench) -> None:
    talks = [Talk(full, port=port, next=[1000, 2000]).open() for port in range(40000, 40003)]
    before = talks[2].say(0, "A", 500, bytes(1000))
    for talk in talks[:2]:
        for _ in range(40):
            talk.say(0, "A", 500, bytes(1000))
        full.ring.drain()
    pressure = abi.Pressure.unpack(full.map("pressure").lookup(bytes(4)) or b"")
    assert 1 <= max(pressure.now, pressure.before) <= 2, "of the two; one, if a tick ended between them"
    assert before.field == 500


@pytest.mark.parametrize("clamp", [0.0, 1.0])
def test_it_can_be_turned_off(full: Bench, clamp: float) -> None:
    talk = Talk(full).open()
    full.set(clamp=clamp)
    fill(full, BRINK + 2000)
    assert talk.say(0, "A", 65000).field == 65000
