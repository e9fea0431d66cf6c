"""ICMP echo: what pings carry."""

import random
import struct

from hypothesis import given
from hypothesis import strategies as st

from appliance.dissect import Match
from appliance.dissect.conversation import Conversation
from appliance.dissect.echo import MAX_LENGTHS, MAX_WAITING, Echo
from tests.dissect.harness import C, S, play

PING = bytes(range(16, 72))  # as iputils fills it


def request(payload: bytes, sequence: int = 1, kind: int = 8) -> bytes:
    return struct.pack("!BBHHH", kind, 0, 0, 77, sequence) + payload


def reply(payload: bytes, sequence: int = 1, kind: int = 0) -> bytes:
    return request(payload, sequence, kind)


def test_a_ping() -> None:
    played = play(Echo, [(C, request(PING)), (S, reply(PING)), (C, request(PING, 2, 128)), (S, reply(PING, 2, 129))])
    assert played.kinds() == ["request", "reply", "request", "reply"]
    asked, answered = played.messages[:2]
    assert asked.attrs == {"id": 77, "sequence": 1, "bytes": 56}
    assert answered.attrs == {"id": 77, "sequence": 1, "bytes": 56, "changed": False}
    assert played.dissector.attrs["echo"] == {
        "requests": 2, "replies": 2, "client_bytes": 112, "server_bytes": 112, "longest": 56, "changed": 0,
        "lengths": 1, "entropy": 5.807,
    }  # fmt: skip


def test_a_tunnel() -> None:
    draw = random.Random(1)
    turns = []
    for number in range(60):
        turns += [(C, request(draw.randbytes(900 + number), number)), (S, reply(draw.randbytes(300), number))]
    found = play(Echo, turns).dissector.attrs["echo"]
    assert (found["requests"], found["changed"], found["longest"], found["lengths"]) == (60, 60, 959, 61)
    assert found["client_bytes"] == sum(range(900, 960))
    assert found["entropy"] > 7.9


def test_text_in_a_ping_is_found() -> None:
    (message,) = play(Echo, [(C, request(b"user=alice secret=geheim"))]).messages
    assert message.text == "user=alice secret=geheim"


def test_what_is_kept_is_bounded() -> None:
    turns = [(C, request(bytes(number), number)) for number in range(3 * MAX_WAITING)]
    played = play(Echo, [*turns, (S, reply(b"", 0)), (S, reply(b"", 3 * MAX_WAITING - 1))])
    assert played.dissector.attrs["echo"]["lengths"] == MAX_LENGTHS
    forgotten, known = played.messages[-2:]
    assert "changed" not in forgotten.attrs
    assert known.attrs["changed"] is True


def test_detection() -> None:
    assert Echo.detect(request(b""), b"") is Match.YES
    assert Echo.detect(b"", reply(b"")) is Match.YES
    assert Echo.detect(b"", b"") is Match.MORE
    for other in (b"\x08\0\0", b"\x03\x01" + bytes(20), b"\x08\x01" + bytes(6)):
        assert Echo.detect(other, b"") is Match.NO
    conversation = Conversation("icmp")
    conversation.receive(C, request(PING), 1)
    assert conversation.protocol == "echo"
    assert Conversation("udp").receive(C, request(PING), 1)[0].kind == "data"  # type: ignore[union-attr]


@given(st.lists(st.tuples(st.sampled_from([C, S]), st.binary(max_size=100)), max_size=20))
def test_any_bytes(turns: list[tuple[object, bytes]]) -> None:
    played = play(Echo, [turn for turn in turns if turn[1]])  # type: ignore[misc]
    assert len(played.messages) == sum(bool(data) for _, data in turns)
