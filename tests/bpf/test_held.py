"""Windows that are held: nothing more is opened, and the acknowledgement is kept to be sent again."""

import struct

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from appliance import config
from appliance.wire import abi, maps
from appliance.wire.windows import reopening
from tests.bpf.bench import Bench
from tests.bpf.windows import A4, A6, BRINK, CLAMP, FLOOR, HOLD, RING, S4, S6, Talk, fill, held


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
def test_a_held_window_opens_nothing_and_its_acknowledgement_is_kept(full: Bench, v6: bool) -> None:
    talk = Talk(full, v6).open()
    first = talk.say(1, "A", 8)
    fill(full, BRINK + 2000)
    seen = talk.say(1, "PA", 65000, b"answer", options=[("NOP", None), ("NOP", None), ("Timestamp", (77, 88))])
    assert seen.edge == first.edge
    assert full.counters()["held"] == 1
    ((key, kept),) = held(full)
    assert (key.source, key.source_port) == (abi.pack_address(S6 if v6 else S4), 80)
    address, raw = reopening(key, kept)
    again = (IPv6 if v6 else IP)(raw)
    assert address == again.dst == (A6 if v6 else A4)
    tcp = again[TCP]
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack) == (80, 40000, talk.next[1], talk.next[0])
    assert (tcp.flags, tcp.window, bytes(tcp.payload)) == ("A", -(-FLOOR // 128), b"")
    assert dict(tcp.options)["Timestamp"] == (77, 88)
    assert (again.hlim if v6 else again.ttl) == 63
    checksum = tcp.chksum
    del again[TCP].chksum
    assert type(again)(bytes(again))[TCP].chksum == checksum


def test_what_was_sent_again_is_not_taken_back(full: Bench) -> None:
    talk = Talk(full, syn_window=0).open()
    fill(full, BRINK + 2000)
    talk.say(1, "A", 65000)
    assert len(full.map("held").take()) == 1
    opened = talk.next[0] + (-(-FLOOR // 128) << 7)
    talk.say(0, "A", 0, bytes(1000))
    seen = talk.say(1, "A", 65000)
    assert 0 <= seen.edge - opened < 128
    assert [key.source_port for key, _ in held(full)] == [80], "and kept again, as little is left"


def test_a_later_acknowledgement_takes_the_place_of_the_one_before(full: Bench) -> None:
    talk = Talk(full, syn_window=4000).open()
    fill(full, BRINK + 2000)
    for _ in range(3):
        talk.say(0, "A", 0, bytes(500))
        talk.say(1, "A", 65000)
    ((_, kept),) = held(full)
    assert struct.unpack("!I", kept.header[28:32]) == (talk.next[0],)


def test_a_window_that_opens_by_itself_is_not_sent_again(full: Bench) -> None:
    """An answer to a probe, when the ring has drained."""
    talk = Talk(full, syn_window=0).open()
    fill(full, BRINK + 2000)
    talk.say(1, "A", 65000)
    assert len(held(full)) == 1
    full.ring.drain()
    assert talk.say(1, "A", 65000).window == 65536
    assert not held(full)


def test_who_sends_much_is_held_before_who_sends_little(full: Bench) -> None:
    much, little = (Talk(full, port=port, next=[1000, 2000], syn_window=0).open() for port in (40000, 40001))
    fill(full, BRINK - 28000)
    before = little.say(0, "A", 500, b"a small message")
    for _ in range(20):
        much.say(0, "A", 500, bytes(1000))
    assert much.say(1, "A", 65000).window == 0
    assert little.say(1, "A", 65000).window == -(-FLOOR // 128) << 7
    fill(full, BRINK + 2000)
    assert little.say(0, "A", 65000, b"x").edge == before.edge


def test_a_window_that_nothing_was_taken_from_is_not_kept(full: Bench) -> None:
    talk = Talk(full, syn_window=0).open()
    fill(full, BRINK + 2000)
    talk.say(1, "A", 0)
    assert not held(full)
    talk.say(1, "A", 10)
    ((_, kept),) = held(full)
    assert kept.window == 10, "no more than the receiver said"


def test_a_new_connection_has_nothing_of_the_one_before(full: Bench) -> None:
    talk = Talk(full, syn_window=0).open()
    fill(full, BRINK + 2000)
    talk.say(0, "A", 65000)
    assert len(held(full)) == 1
    Talk(full, syn_window=0, next=[70000, 2000]).open()
    assert not held(full)


def test_a_full_map_holds_nobody(full: Bench) -> None:
    talk = Talk(full, syn_window=0).open()
    entries = full.map("held")
    for number in range(entries.max_entries):
        entries.update(struct.pack("<40x")[:36] + struct.pack("<I", number), bytes(abi.Held.LAYOUT.size))
    fill(full, BRINK + 2000)
    assert talk.say(1, "A", 65000).window == -(-FLOOR // 128) << 7


def test_the_level_below_which_windows_open_is_between_the_others() -> None:
    assert CLAMP < maps.reopening_level(config.Wire(ring_bytes=RING)) < HOLD
