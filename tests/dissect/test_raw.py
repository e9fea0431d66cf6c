import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dissect import Match
from appliance.dissect.datagrams import RawDatagrams
from appliance.dissect.raw import MAX_BURST, PAUSE_NS, Raw, printable
from appliance.model import Message
from tests.dissect.harness import START_NS, C, Gap, S, Turn, assert_any_cut, assert_survives, assert_truncated, play


def test_one_message_a_burst() -> None:
    turns: list[Turn] = [(C, b"EHLO me\r\n"), (C, b"NOOP\r\n"), (S, b"250 h\xc3\xa9\r\n"), (C, b"QUIT\r\n")]
    played = assert_any_cut(Raw, turns)
    assert [(m.direction, m.start, m.end, m.text) for m in played.messages] == [
        (C, 0, 15, "EHLO me\r\nNOOP\r\n"),
        (S, 0, 9, "250 hé\r\n"),
        (C, 15, 21, "QUIT\r\n"),
    ]
    assert played.messages[0].end_ns > played.messages[0].ts_ns
    assert_truncated(Raw, turns)


def test_long_burst_is_cut() -> None:
    played = assert_any_cut(Raw, [(S, b"z" * (2 * MAX_BURST + 1))], step=40009)
    assert [m.end - m.start for m in played.messages] == [MAX_BURST, MAX_BURST, 1]


def test_a_pause_and_a_gap_end_a_burst() -> None:
    raw = Raw(client_offset=100)
    raw.receive(C, b"first", START_NS)
    out = raw.receive(C, b"second", START_NS + PAUSE_NS + 1)
    assert [(m.start, m.end) for m in out if isinstance(m, Message)] == [(100, 105)]
    played = play(Raw, [(C, b"before"), (C, Gap(10)), (C, b"behind")])
    assert [(m.start, m.end) for m in played.messages] == [(0, 6), (16, 22)]


def test_everything_is_settled() -> None:
    raw = Raw(3, 4)
    raw.receive(S, b"12345", START_NS)
    assert (raw.settled(C), raw.settled(S)) == (3, 9)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\ttext\n", "plain\ttext\n"),
        ("grüße".encode(), "grüße"),
        (b"\x00\x01user=alice\x00\xffpw\x00password\x02", "user=alice\npassword"),
        (b"\xffstra\xc3\x9fe!\xff", "straße!"),
        (b"\x00\x01\x02short\x03", ""),
        (b"", ""),
    ],
)
def test_printable(data: bytes, text: str) -> None:
    assert printable(data) == text


def test_what_looks_encrypted_has_no_text() -> None:
    noise = random.Random(2).randbytes(50_000)
    (dense,) = play(Raw, [(C, noise)]).messages
    assert (dense.text, dense.attrs) == ("", {"bytes": 50_000, "dense": True})
    (mixed,) = play(Raw, [(C, noise + b"password=hunter22" * 200)]).messages
    assert "hunter22" in mixed.text
    assert "dense" not in mixed.attrs


def test_datagrams_are_messages() -> None:
    played = play(RawDatagrams, [(C, b"one"), (C, b"two"), (S, b"three")])
    assert [(m.start, m.end, m.text) for m in played.messages] == [(0, 3, "one"), (3, 6, "two"), (0, 5, "three")]


@given(st.lists(st.tuples(st.sampled_from([C, S]), st.binary(max_size=300)), max_size=8))
def test_survives_anything(turns: list[Turn]) -> None:
    played = assert_survives(Raw, turns)
    assert sum(m.end - m.start for m in played.messages) == sum(map(len, played.streams.values()))
    assert Raw.detect(bytes(played.streams[C]), bytes(played.streams[S])) is Match.YES
