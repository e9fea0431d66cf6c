"""Streams without a known begin: nothing is lost, nothing depends on the cut, and no credential is shown."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissect import Torn
from appliance.dissect.http1 import Http1
from appliance.dissect.http_lost import MAX_LINE
from appliance.dissect.unframed import Unframed
from tests.dissect.harness import C, Gap, S, Turn, assert_any_cut, assert_survives, assert_truncated, play

HEAD = b"GET /a HTTP/1.1\r\nAuthorization: Bearer tellnobody77\r\nHost: a\r\n\r\n"
TAILS = [
    b"ation: Bearer tellnobody77\r\nHost: a\r\n\r\n",
    b"r tellnobody77\r\nHost: a\r\n\r\n",
    b"tellnobody77\r\n\r\n",
    b"ient_secret=tellnobody77&scope=a\r\n",
    b"=tellnobody77\r\n",
    b"tellnobody77&scope=a\r\n",
    b'tellnobody77","expires_in":5}\r\n',
    b'ess_token" : "tellnobody77"}\r\n',
    b'": "tellnobody77"}\r\n',
    b"p\0\0\0\x11tellnobody77\0",
    b"eyJhbGciOiJSUzI1NiJ9.tellnobody77\r\n",
]
PLAIN = [
    b"hello world\r\nand more\r\n",
    b"hello",
    b"\1\2\3query\0",
    b"+OK\r\n",
    b"a: b",
    b"SELECT 1;\n",
    b"x=1 & y\n",
    b"&",
    b"=",
    b"p\0\0\0\4words",
]


def unseen() -> Unframed:
    one = Unframed()
    for direction in (C, S):
        one.resume(direction, None)
    return one


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("direction", [C, S])
def test_the_rest_of_a_credential(tail: bytes, direction: str) -> None:
    turns: list[Turn] = [(C if direction == C else S, tail), (S if direction == C else C, b"ok\r\n"), (C, b"more\r\n")]
    played = assert_any_cut(unseen, turns)
    assert b"tellnobody77" in b"".join(played.secrets())
    assert "tellnobody77" not in "".join(message.text for message in played.messages)
    assert_truncated(unseen, turns, secrets=[b"tellnobody77"] if tail[:1] in b"ai=p" else [])


@pytest.mark.parametrize("said", PLAIN)
def test_what_is_no_credential_is_kept(said: bytes) -> None:
    played = assert_any_cut(unseen, [(C, said), (S, said), (C, said)])
    assert played.redactions == []
    assert b"".join(played.bytes_of(message) for message in played.messages) == said * 3
    assert played.kinds() == ["data"] * 3


def test_a_start_line_is_handed_over() -> None:
    played = play(unseen, [(C, b"and so on\r\n" + HEAD)], close=False)
    assert played.dissector.successor == "http1"
    assert played.dissector.rest(C) == HEAD
    assert played.dissector.settled(C) == len(b"and so on\r\n")


def test_a_line_does_not_wait_for_its_end_when_the_other_side_speaks() -> None:
    played = play(unseen, [(C, b"ask\r\nask"), (S, b"answer"), (C, b"ask\r\n")], close=False)
    assert played.dissector.settled(C) >= len(b"ask\r\nask")
    assert played.dissector.settled(S) == len(b"answer")
    secret: list[Turn] = [(C, b"x\r\nx\r\nAuthorization: Bearer tell"), (S, b"answer"), (C, b"nobody77\r\nmore\r\n")]
    assert play(unseen, secret).secrets() == [b"tell", b"nobody77\r"]


def test_a_line_is_bounded() -> None:
    played = play(unseen, [(C, b"\1" * MAX_LINE), (C, b"\1\1")], close=False)
    assert played.dissector.settled(C) == MAX_LINE + 2
    assert played.dissector.held >= MAX_LINE
    assert played.dissector.shed() != []
    assert played.dissector.held == 0


@pytest.mark.parametrize("kind", [Unframed, Http1])
def test_what_is_torn_is_hidden(kind: type[Unframed] | type[Http1]) -> None:
    def resumed(torn: Torn) -> Unframed | Http1:
        one = kind()
        one.resume(C, torn)
        return one

    said = b"tell\nnobody\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert play(lambda: resumed(Torn(line=True)), [(C, said)], close=False).secrets() == [b"tell"]
    assert play(lambda: resumed(Torn(size=6)), [(C, said)], close=False).secrets() == [b"tell\nn"]
    assert play(lambda: resumed(Torn(upto=1000)), [(C, said)], close=False).secrets() == [b"tell\nnobody\n"]
    assert play(lambda: resumed(Torn(upto=3)), [(C, said)], close=False).secrets() == [b"tel"]
    assert play(lambda: resumed(Torn()), [(C, said)], close=False).secrets() == []
    for torn in (Torn(line=True), Torn(size=6), Torn(upto=3)):
        assert_any_cut(partial(resumed, torn), [(C, b"tell\nnobody\n\1\2")])


def test_what_follows_when_it_breaks_off() -> None:
    def torn(*turns: Turn) -> Torn:
        found: Torn = play(unseen, turns, close=False).dissector.torn(C)
        return found

    assert torn((C, b"x\r\ny\r\nAuthorization: Be")) == Torn(line=True)
    assert torn((C, b"x\r\ny\r\nAuthorization: Bearer x\r\n")) == Torn()
    assert torn((C, b"x\r\ny\r\nAuthor"), (S, b"x")) == Torn(line=True)
    assert torn((C, b"words")) == Torn()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([C, S]),
            st.one_of(
                st.binary(max_size=60), st.sampled_from([*TAILS, *PLAIN, HEAD]), st.builds(Gap, st.integers(1, 50))
            ),
        ),
        max_size=8,
    ),
    st.sampled_from([None, 1, 7]),
)
@settings(max_examples=200, deadline=None)
def test_survives_anything(turns: list[Turn], split: int | None) -> None:
    assert_survives(unseen, [turn for turn in turns if turn[1]], split=split)
