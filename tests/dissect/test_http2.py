"""HTTP/2: framing, streams, header blocks, credentials, faults. Real peers: test_http2_live.py; gRPC: test_grpc.py."""

import gzip
import json
from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissect import Match
from appliance.dissect.conversation import Conversation
from appliance.dissect.http2 import Http2
from appliance.dissect.http2_blocks import MAX_BLOCK, MAX_CONTINUATIONS, MAX_FAULTS
from appliance.dissect.http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    SETTINGS,
    WINDOW_UPDATE,
)
from appliance.dissect.http2_messages import MAX_BODIES, MAX_STREAMS, MAX_UNSETTLED
from appliance.dissect.http_message import MAX_CREDENTIAL_BODY
from appliance.model import Message
from tests.dissect.harness import (
    C,
    Gap,
    Played,
    S,
    Turn,
    assert_any_cut,
    assert_survives,
    assert_truncated,
    outcome,
    play,
)
from tests.dissect.http2_bytes import (
    GET,
    Peer,
    data,
    frame,
    goaway,
    opening,
    post,
    reset,
)
from tests.dissect.http2_bytes import settings as said

FORM = "application/x-www-form-urlencoded"
Case = tuple[list[Turn], list[str]]


def simple() -> Case:
    c, s = Peer(), Peer()
    turns: list[Turn] = [
        (C, opening() + c.headers(1, GET, end=True)),
        (S, said() + s.headers(1, [(":status", "200"), ("content-type", "text/plain")]) + data(1, b"hello", end=True)),
    ]
    return turns, ["request", "response"]


def interleaved() -> Case:
    c, s = Peer(), Peer(huffman=False)
    turns: list[Turn] = [
        (C, opening() + c.headers(1, post("/a")) + c.headers(3, post("/b"), pieces=4) + data(1, b"one ")),
        (C, data(3, b"three", pad=7) + frame(PING, 0, bytes(8)) + data(1, b"two", end=True) + data(3, b"", end=True)),
        (S, said() + s.headers(3, [(":status", "404")]) + s.headers(1, [(":status", "200")], pieces=9)),
        (S, data(1, b"for 1") + data(3, b"for 3", end=True, pad=0) + data(1, b"more", end=True)),
    ]
    return turns, ["request", "request", "response", "response"]


def everything() -> Case:
    c, s = Peer(), Peer()
    one, three, five = c.headers(1, GET, end=True), c.headers(3, post("/late")), c.block(GET)
    prioritized = frame(
        HEADERS, 5, b"\x03\0\0\0\1\x10" + five + b"\0\0\0", END_HEADERS | END_STREAM | PADDED | PRIORITIZED
    )
    turns: list[Turn] = [
        (C, opening(table=8192, frame=32768) + frame(WINDOW_UPDATE, 0, b"\0\1\0\0") + one),
        (S, said() + frame(SETTINGS, 0, b"", 1) + s.headers(1, [(":status", "103"), ("link", "</s>")])),
        (S, s.push(1, 2, [*GET[:3], (":path", "/pushed")]) + s.headers(1, [(":status", "200")]) + data(1, b"x")),
        (S, s.headers(1, [("x-sum", "1")], end=True) + s.headers(2, [(":status", "200")]) + data(2, b"p", end=True)),
        (C, frame(0xEE, 1, b"unknown") + three),
        (S, s.headers(3, [(":status", "413")], end=True) + reset(3, 0)),
        (C, prioritized + reset(5, 8)),
        (S, goaway(5, 11, b"too many cats")),
    ]
    return turns, [
        "request", "informational", "push", "response", "response", "response", "request", "reset", "request", "reset",
        "goaway",
    ]  # fmt: skip


def credentials() -> Case:
    c, s = Peer(), Peer()
    body = urlencode({"grant_type": "password", "password": "hunter22", "client_secret": "tellnobody"}).encode()
    answer = b'{"access_token":"abcdefgh","token_type":"Bearer"}'
    bearer = ("authorization", "Bearer sesame-open-1")
    turns: list[Turn] = [
        (C, opening() + c.headers(1, [*GET, bearer, ("x-api-key", "key-4711-xyz")], end=True, pieces=3)),
        (C, c.headers(3, [*GET, bearer], end=True)),
        (C, c.headers(5, [*GET, ("proxy-authorization", "Basic cHJveHk6cHc=")], never=["proxy-authorization"])),
        (C, c.headers(7, post("/t", ("content-type", FORM))) + data(7, body[:30]) + data(5, b"ab", end=True)),
        (C, data(7, body[30:], end=True)),
        (S, said() + s.headers(7, [(":status", "200"), ("content-type", "application/json")]) + data(7, answer[:20])),
        (S, s.headers(1, [(":status", "204")], end=True) + data(7, answer[20:], end=True)),
    ]
    return turns, ["request"] * 4 + ["response"] * 2


SECRETS = (b"sesame-open-1", b"key-4711-xyz", b"cHJveHk6cHc=", b"hunter22", b"tellnobody", b"abcdefgh")
CASES: dict[str, Callable[[], Case]] = {
    "simple": simple,
    "interleaved": interleaved,
    "everything": everything,
    "credentials": credentials,
}


@pytest.mark.parametrize("name", CASES)
def test_any_cut(name: str) -> None:
    turns, kinds = CASES[name]()
    whole = assert_any_cut(Http2, turns)
    assert sorted(whole.kinds()) == sorted(kinds)
    assert not any("malformed" in m.flags for m in whole.messages)
    assert "degraded" not in whole.dissector.attrs
    assert_truncated(Http2, turns, secrets=SECRETS)
    assert outcome(assert_any_cut(Conversation, turns, step=7)) == outcome(whole)


def test_what_messages_say() -> None:
    played = play(Http2, interleaved()[0])
    a, b = [m for m in played.messages if m.kind == "request"]
    assert a.text == "POST /a HTTP/2\n:scheme: http\n:authority: a.example\n\none two"
    assert b.text.endswith("\n\nthree")
    assert {name: a.attrs[name] for name in ("method", "target", "host", "scheme", "stream", "version")} == {
        "method": "POST", "target": "/a", "host": "a.example", "scheme": "http", "stream": 1, "version": "2",
    }  # fmt: skip
    assert played.bytes_of(a).startswith(Peer().headers(1, post("/a")))
    assert played.bytes_of(a).endswith(data(1, b"two", end=True))
    assert played.bytes_of(b).endswith(data(3, b"", end=True))
    three, one = [m for m in played.messages if m.kind == "response"]
    assert (three.attrs["status"], three.reply_to) == (404, b.start)
    assert (one.attrs["status"], one.reply_to, one.text) == (200, a.start, "HTTP/2 200\n\nfor 1more")
    assert played.dissector.attrs["host"] == "a.example"


def test_trailers_pushes_resets() -> None:
    played = play(Http2, everything()[0])
    by = {(m.kind, m.attrs.get("stream")): m for m in played.messages}
    assert by["response", 1].attrs["trailers"] == [["x-sum", "1"]]
    assert by["push", 2].attrs["target"] == "/pushed"
    assert by["push", 2].direction is S
    assert by["response", 2].text == "HTTP/2 200\n\np"
    assert (by["request", 3].attrs["reset"], by["request", 3].flags) == ("NO_ERROR", ("reset", "truncated"))
    assert by["request", 5].flags == ()
    assert by["reset", 5].attrs["error"] == "CANCEL"
    goaway = played.messages[-1]
    assert (goaway.kind, goaway.text) == ("goaway", "GOAWAY ENHANCE_YOUR_CALM too many cats")


class TestCredentials:
    def test_redacted_on_the_wire_and_in_rows(self) -> None:
        played = assert_any_cut(Http2, credentials()[0])
        kept = played.stored(C) + played.stored(S)
        rows = repr(played.messages)
        for secret in SECRETS:
            assert secret not in kept
            assert secret.decode() not in rows
            assert Peer().encoder.huffman_coder.encode(secret)[1:-1] not in kept  # as it is within a longer string
        first, again = [m for m in played.messages if m.attrs.get("stream") in (1, 3) and m.kind == "request"]
        assert ["authorization", "Bearer *************"] in first.attrs["headers"]
        assert first.flags == ("redacted",)
        assert ["authorization", "Bearer *************"] in again.attrs["headers"]  # from the dynamic table
        assert "sesame" not in repr(played.dissector.__dict__)

    def test_what_is_redacted_is_the_string_only(self) -> None:
        c = Peer(huffman=False)
        head = c.headers(1, [*GET, ("authorization", "Bearer abc"), ("x", "y")], end=True)
        played = play(Http2, [(C, opening() + head)])
        assert played.secrets() == [b"Bearer abc"]
        assert played.stored(C) == (opening() + head).replace(b"Bearer abc", b"**********")

    def test_the_table_stays_in_step(self) -> None:
        """Masked values take the room of what they stand for."""
        c = Peer()
        fields = [("authorization", "Bearer " + "s" * 1500), *((f"x-{n}", "v" * 300) for n in range(20))]
        head = opening() + c.headers(1, [*GET, *fields], end=True)
        again = b"".join(c.headers(number, [*GET, *fields], end=True) for number in range(3, 40, 2))
        played = play(Http2, [(C, head + again)])
        assert {json.dumps(m.attrs["headers"][1:]) for m in played.messages} == {
            json.dumps([list(field) for field in fields[1:]])
        }

    def test_settled_with_the_end_of_the_block(self) -> None:
        c = Peer(huffman=False)
        dissector = Http2()
        head = c.headers(1, [*GET, ("authorization", "Bearer abc")], end=True, pieces=5)
        begun = opening()
        dissector.receive(C, begun + head[:-1], 1)
        assert dissector.settled(C) == len(begun)
        dissector.receive(C, head[-1:], 2)
        assert dissector.settled(C) == len(begun + head)

    def test_a_token_request_does_not_hold_up_others_for_ever(self) -> None:
        c = Peer()
        dissector = Http2()
        held = opening() + c.headers(1, post("/t", ("content-type", FORM))) + data(1, b"password=hun")
        dissector.receive(C, held + c.headers(3, post("/up")), 1)
        for _ in range(2 * MAX_UNSETTLED // 16000):
            dissector.receive(C, data(3, bytes(16000)), 1)
        assert dissector._sides[C].received - dissector.settled(C) <= MAX_UNSETTLED + 16500
        out = dissector.receive(C, data(1, b"ter22", end=True), 2)
        assert [item.end - item.start for item in out if not isinstance(item, Message)] == [5]

    def test_lost_head(self) -> None:
        """A gap took the head: whose body it is nobody knows."""
        c = Peer()
        first = opening() + c.headers(1, GET, end=True)
        lost = c.headers(3, post("/t", ("content-type", FORM)))
        body = data(3, b"grant_type=password&password=hunter22", end=True)
        after = c.headers(5, [*GET, ("authorization", "Bearer unknowable")], end=True) + frame(PING, 0, bytes(8))
        turns: list[Turn] = [(C, first), (C, Gap(len(lost))), (C, body + after)]
        played = assert_any_cut(Http2, turns)
        assert b"hunter22" not in played.stored(C)
        assert Peer().encoder.huffman_coder.encode(b"unknowable")[1:-1] not in played.stored(C)
        last = played.messages[-1]
        assert (last.attrs["stream"], last.attrs["target"]) == (5, "/")
        assert played.dissector.attrs["degraded"] is True

    def test_names_that_only_a_lost_block_tells(self) -> None:
        c = Peer(huffman=False)
        begun = opening() + c.headers(1, [*GET, ("x-api-key", "first-one")], end=True)
        lost = c.headers(3, [*GET, ("x-plain", "1")], end=True)
        after = c.headers(5, [*GET, ("x-api-key", "second-two"), ("x-plain", "2"), ("x-new", "3")], end=True)
        again = c.headers(7, [*GET, ("x-new", "3")], end=True)
        played = play(Http2, [(C, begun), (C, Gap(len(lost))), (C, after + again)])
        assert b"second-two" not in played.stored(C)
        five, seven = [m for m in played.messages if m.kind == "request"][1:]
        assert "undecoded" in five.flags
        assert ["x-new", "3"] in five.attrs["headers"]
        assert ["x-new", "3"] in seven.attrs["headers"]  # the newest entries are known again

    def test_kind_of_body_that_only_a_lost_block_tells(self) -> None:
        """`content-type` is an index into what was lost, so the form may be one, and what answers it a token."""
        c, s = Peer(), Peer()
        kind = ("content-type", FORM)
        begun = opening()
        lost = c.headers(1, post("/t", kind)) + data(1, b"", end=True)
        after = c.headers(3, post("/t", kind)) + data(3, b"password=hunter22&grant_type=password")
        long = (
            c.headers(5, post("/t", kind)) + b"".join(data(5, b"y" * 16000) for _ in range(6)) + data(5, b"", end=True)
        )
        answer = s.headers(3, [(":status", "200"), ("content-type", "application/json")])
        answer += data(3, b'{"access_token":"abcdefgh"}', end=True)
        turns: list[Turn] = [
            (C, begun),
            (C, Gap(len(lost))),
            (C, after + data(3, b"", end=True) + long),
            (S, said() + answer),
        ]
        played = assert_any_cut(Http2, turns, step=499)
        assert b"hunter22" not in played.stored(C)
        assert "hunter22" not in repr(played.messages)
        assert b"abcdefgh" not in played.stored(S)
        assert played.stored(C).count(b"y") == 6 * 16000 - MAX_CREDENTIAL_BODY

    @pytest.mark.parametrize("lost", [1, 5, 9, 10, 12, 40])
    @pytest.mark.parametrize("split", [None, 1])
    def test_gap_anywhere_in_a_block(self, lost: int, split: int | None) -> None:
        c = Peer(huffman=False)
        begun = opening()
        head = c.headers(1, [*GET, ("authorization", "Bearer sesame-open-1")], end=True)
        rest = c.headers(3, [*GET, ("x-new", "3")], end=True) * 1 + frame(PING, 0, bytes(8))
        for place in range(len(head) - lost):
            turns: list[Turn] = [(C, begun + head[:place]), (C, Gap(lost)), (C, head[place + lost :] + rest)]
            played = play(Http2, turns, split=split)
            kept = played.stored(C)
            whole = head.index(b"sesame-open-1")
            if not whole - lost < place < whole + 13:
                assert b"sesame-open-1" not in kept
            assert b"sesame" not in kept
            assert b"open-1" not in kept

    def test_bytes_of_a_reset_stream(self) -> None:
        c, s = Peer(), Peer()
        ask = c.headers(1, GET, end=True) + reset(1, 8)
        answer = s.headers(3, [(":status", "200")]) + data(1, b"still on its way")
        played = play(Http2, [(C, opening() + ask), (S, said() + answer)])
        assert played.redactions == []


class TestGap:
    def test_within_data(self) -> None:
        c, s = Peer(), Peer()
        turns: list[Turn] = [
            (C, opening() + c.headers(1, GET, end=True) + c.headers(3, GET, end=True)),
            (S, said() + s.headers(1, [(":status", "200")]) + data(1, b"abcdefghij")[:12]),
            (S, Gap(4)),
            (S, b"hij" + data(1, b"k", end=True) + s.headers(3, [(":status", "204")], end=True)),
        ]
        played = assert_any_cut(Http2, turns)
        one, three = [m for m in played.messages if m.kind == "response"]
        assert (one.flags, one.attrs["body_bytes"]) == (("gap", "truncated"), 11)
        assert (three.flags, three.reply_to is not None) == ((), True)
        assert "degraded" not in played.dissector.attrs

    def test_start_not_seen(self) -> None:
        c, s = Peer(), Peer()
        c.headers(1, [*GET, ("x-old", "1")])
        ask = c.headers(3, [*GET, ("x-old", "1"), ("authorization", "Bearer sesame-open-1")], end=True)
        answer = s.headers(3, [(":status", "200")]) + data(3, b"found me", end=True)
        conversation = Conversation()
        conversation.unseen(C)
        conversation.unseen(S)
        out = conversation.receive(C, ask + frame(PING, 0, bytes(8)), 1) + conversation.receive(S, answer, 2)
        out += conversation.close(C, 3) + conversation.close(S, 3)
        assert conversation.protocol == "http2"
        messages = [item for item in out if isinstance(item, Message)]
        assert [(m.kind, m.flags) for m in messages] == [
            ("request", ("redacted", "undecoded")),
            ("response", ()),
        ]
        assert messages[1].text == "HTTP/2 200\n\nfound me"
        assert messages[1].reply_to == 0

    def test_anywhere(self) -> None:
        for make in CASES.values():
            turns, _ = make()
            for number in range(len(turns) + 1):
                for whose in (C, S):
                    played = play(Http2, [*turns[:number], (whose, Gap(11)), *turns[number:]], split=7)
                    kept = played.stored(C) + played.stored(S)
                    assert not any(secret in kept for secret in SECRETS)


class TestFaults:
    def one(self, bytes_of_client: bytes, *, any_cut: bool = True) -> Played:
        c = Peer()
        turns: list[Turn] = [(C, opening() + c.headers(1, GET, end=True) + bytes_of_client)]
        return assert_any_cut(Http2, turns) if any_cut else play(Http2, turns)

    @pytest.mark.parametrize(
        ("bad", "fault"),
        [
            (frame(DATA, 0, b"x"), "stream"),
            (frame(HEADERS, 0, b"\x82", END_HEADERS), "stream"),
            (frame(PING, 0, b"short"), "size"),
            (frame(SETTINGS, 0, b"12345"), "size"),
            (frame(WINDOW_UPDATE, 3, b""), "size"),
            (frame(CONTINUATION, 3, b"\x82"), "continuation"),
            (frame(DATA, 1, b"\x09x", PADDED), "padding"),
            (frame(HEADERS, 3, b"\x09\x82", PADDED | END_HEADERS), "padding"),
            (frame(HEADERS, 3, b"\x82") + frame(PING, 0, bytes(8)), "interrupted"),
            (frame(DATA, 1, bytes(20000)), "size"),
        ],
    )
    def test_a_broken_rule_is_said(self, bad: bytes, fault: str) -> None:
        played = self.one(bad + frame(PING, 0, bytes(8)) * 2, any_cut=len(bad) < 1000)
        assert [m.attrs.get("fault") for m in played.messages if m.kind == "frame"] == [fault]
        assert all("malformed" in m.flags for m in played.messages if m.kind == "frame")

    def test_a_block_that_cant_be_read(self) -> None:
        c = Peer(huffman=False)
        bad = c.block(GET) + b"\xff\xff\xff\xff\xff\xff" + b"\x40\x0dauthorization\x0aBearer abc"
        ok = c.headers(5, GET, end=True)
        played = self.one(frame(HEADERS, 3, bad, END_HEADERS | END_STREAM) + ok)
        assert [m.flags for m in played.messages][1:] == [("malformed", "redacted"), ("undecoded",)]
        assert b"Bearer abc" not in played.stored(C)

    @pytest.mark.parametrize(
        ("fields", "case"),
        [
            ([*GET, ("transfer-encoding", "chunked")], "connection-field"),
            ([*GET, ("x", "a\r\nhost: evil")], "line-break"),
            ([*GET, ("x\r\ny", "a")], "line-break"),
            ([*GET, ("X-Upper", "a")], "field-name"),
            ([*GET, ("x y", "a")], "field-name"),
            ([("x", "y"), *GET], "pseudo-field"),
            ([*GET, (":path", "/b")], "pseudo-field"),
            ([*GET, ("host", "b.example")], "authority"),
            ([*GET, ("content-length", "5")], "cl-mismatch"),
            ([*GET, ("content-length", "0"), ("content-length", "5")], "cl-conflict"),
            ([*GET, ("content-length", "+5")], "cl-invalid"),
        ],
    )
    def test_smuggling_is_named(self, fields: list[tuple[str, str]], case: str) -> None:
        # the encoder must not lower-case names: what hpack encodes is what is sent
        played = assert_any_cut(Http2, [(C, opening() + Peer().headers(1, fields, end=True))])
        message = played.messages[0]
        assert message.attrs["smuggling"] == [case]
        assert {"malformed", "smuggling"} <= set(message.flags)
        assert "\nhost: evil" not in message.text

    def test_preface_is_none(self) -> None:
        dissector = Http2()
        out = dissector.receive(C, b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + bytes(30), 1)
        assert next(item.attrs for item in out if isinstance(item, Message))["fault"] == "preface"

    def test_faults_are_bounded(self) -> None:
        played = self.one(frame(PING, 0, b"short") * (3 * MAX_FAULTS), any_cut=False)
        assert played.kinds().count("frame") == MAX_FAULTS

    def test_wrong_direction(self) -> None:
        turns, _ = credentials()
        for split in (None, 1):
            played = play(Http2, [(whose.other, what) for whose, what in turns], split=split)
            kept = played.stored(C) + played.stored(S)
            assert not any(secret in kept for secret in SECRETS)


class TestBounds:
    @pytest.mark.parametrize("size", [0, 1, 1000])
    def test_continuation_flood(self, size: int) -> None:
        """CVE-2024-27316: header blocks without an end."""
        dissector = Http2()
        out = dissector.receive(C, opening() + frame(HEADERS, 1, Peer().block(GET)), 1)
        for _ in range(4 * MAX_CONTINUATIONS):
            out += dissector.receive(C, frame(CONTINUATION, 1, b"\x82" * size), 1)
        assert dissector.held < 2 * MAX_BLOCK
        assert dissector.settled(C) > dissector._sides[C].received - MAX_BLOCK
        (message,) = (item for item in out if isinstance(item, Message))
        assert (message.kind, message.attrs["fault"], message.flags) == (
            "request",
            "header block",
            ("malformed", "redacted", "truncated"),
        )
        out = dissector.receive(C, frame(CONTINUATION, 1, b"", END_HEADERS) + Peer().headers(3, GET, end=True), 2)
        assert [item.kind for item in out if isinstance(item, Message)] == ["request"]

    def test_frame_larger_than_a_block(self) -> None:
        c = Peer(huffman=False)
        big = frame(HEADERS, 1, b"\x40\x01x\x7f" + bytes(2 * MAX_BLOCK) + b"Bearer abc", END_HEADERS)
        turns: list[Turn] = [(S, said(frame=1 << 20)), (C, opening() + big + c.headers(3, GET, end=True))]
        played = assert_any_cut(Http2, turns, step=29989)
        assert [m.flags for m in played.messages] == [("malformed", "redacted", "truncated"), ()]
        assert b"Bearer abc" not in played.stored(C)

    def test_header_bomb(self) -> None:
        """One long entry of the dynamic table, over and over."""
        c = Peer()
        block = c.block([*GET, ("x-long", "v" * 3000)]) + b"\xbe" * 12000
        played = play(Http2, [(C, opening() + frame(HEADERS, 1, block, END_HEADERS | END_STREAM))])
        (message,) = played.messages
        assert message.flags == ("truncated",)
        assert len(message.text) < 300_000
        assert len(message.attrs["headers"]) < 100

    def test_table_larger_than_is_remembered(self) -> None:
        c = Peer()
        c.encoder.header_table_size = 1 << 20
        fields = [(f"x-{n}", "v" * 1000) for n in range(50)]
        heads = [c.headers(1 + 2 * n, [*GET, (f"x-{n}", "v" * 1000)], end=True) for n in range(200)]
        heads += [c.headers(1001, [*GET, *fields], end=True)]
        played = play(Http2, [(C, opening() + b"".join(heads))])
        assert played.messages[-1].flags == ("undecoded",)
        assert played.dissector.held < 1 << 18

    def test_body_bomb(self) -> None:
        c, s = Peer(), Peer()
        packed = gzip.compress(bytes(50 << 20))
        body = b"".join(data(1, packed[at : at + 16000]) for at in range(0, len(packed), 16000)) + data(
            1, b"", end=True
        )
        head = s.headers(1, [(":status", "200"), ("content-encoding", "gzip"), ("content-type", "text/plain")])
        played = play(Http2, [(C, opening() + c.headers(1, GET, end=True)), (S, said() + head + body)])
        assert played.messages[-1].flags == ("truncated",)
        assert len(played.messages[-1].text) < 2 << 20

    def test_streams(self) -> None:
        c = Peer()
        dissector = Http2()
        out = dissector.receive(C, opening(), 1)
        for number in range(3 * MAX_STREAMS):
            out += dissector.receive(C, c.headers(1 + 2 * number, post("/")) + data(1 + 2 * number, b"x"), 1)
        assert len(dissector._streams) == MAX_STREAMS
        assert len([item for item in out if isinstance(item, Message)]) == 2 * MAX_STREAMS

    def test_bodies(self) -> None:
        c = Peer()
        dissector = Http2()
        dissector.receive(C, opening(), 1)
        for number in range(40):
            dissector.receive(C, c.headers(1 + 2 * number, post("/")), 1)
            for _ in range(63):
                dissector.receive(C, data(1 + 2 * number, bytes(16384)), 1)
        assert dissector.held < MAX_BODIES + (2 << 20)

    def test_trailers_over_and_over(self) -> None:
        c = Peer()
        dissector = Http2()
        dissector.receive(C, opening() + c.headers(1, post("/")), 1)
        for _ in range(3000):
            dissector.receive(C, c.headers(1, [("x-trailer", "t" * 100)]), 1)
        assert dissector.held < 1 << 14
        (message,) = dissector.receive(C, data(1, b"", end=True), 2)
        assert isinstance(message, Message)
        assert message.flags == ("malformed",)

    def test_bodies_in_pieces_of_a_byte(self) -> None:
        """Where the pieces of a body that may be a token request lie is forgotten once it is known."""
        c = Peer()
        dissector = Http2()
        dissector.receive(C, opening(), 1)
        for number in range(1, 9, 2):
            dissector.receive(C, c.headers(number, post("/", ("content-type", FORM))), 1)
            dissector.receive(C, data(number, b"y") * (MAX_CREDENTIAL_BODY + 1), 1)
        assert dissector.held < 4 * (MAX_CREDENTIAL_BODY + 8192)

    def test_strays(self) -> None:
        dissector = Http2()
        dissector.receive(C, opening(), 1)
        for number in range(5000):
            dissector.receive(C, data(1 + 2 * number, b"x"), 1)
        assert dissector.held < 1 << 17
        sizes = [len(dissector.receive(C, data(1, bytes(16384)), 1)) for _ in range(MAX_CREDENTIAL_BODY // 16384 + 2)]
        assert sizes == [1] * 4 + [0] * 2


class TestUpgrade:
    ASK = (
        b"GET /old HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABk\r\n\r\n"
    )
    SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"

    def test_h2c(self) -> None:
        c, s = Peer(), Peer()
        turns: list[Turn] = [
            (C, self.ASK),
            (S, self.SWITCH + said() + s.headers(1, [(":status", "200")]) + data(1, b"one", end=True)),
            (C, opening() + c.headers(3, GET, end=True)),
            (S, s.headers(3, [(":status", "204")], end=True)),
        ]
        played = assert_any_cut(Conversation, turns)
        assert [(m.kind, m.reply_to) for m in played.messages] == [
            ("request", None),
            ("response", 0),
            ("response", 0),
            ("request", None),
            ("response", len(self.ASK) + len(opening())),
        ]
        assert played.dissector.attrs["protocols"] == ["http1", "http2"]

    def test_in_a_tunnel(self) -> None:
        inner, _ = simple()
        turns: list[Turn] = [
            (C, b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"),
            (S, b"HTTP/1.1 200 OK\r\n\r\n"),
            *inner,
        ]
        played = assert_any_cut(Conversation, turns)
        assert played.dissector.protocol == "http2"
        assert played.messages[-1].text == "HTTP/2 200\ncontent-type: text/plain\n\nhello"


def test_extended_connect_is_a_websocket() -> None:
    """RFC 8441."""
    c, s = Peer(), Peer()
    ask = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/c"),
        (":authority", "a"),
    ]
    turns: list[Turn] = [
        (C, opening() + c.headers(1, ask)),
        (S, said() + s.headers(1, [(":status", "200")])),
        (C, data(1, b"\x81\x82\x01\x02\x03\x04" + bytes([ord("h") ^ 1])) + data(1, bytes([ord("i") ^ 2]))),
        (S, data(1, b"\x81\x05hello\x88\x00", end=True)),
    ]
    played = assert_any_cut(Http2, turns)
    assert [(m.direction, m.kind, m.text) for m in played.messages[:3]] == [
        (C, "text", "hi"),
        (S, "text", "hello"),
        (S, "close", ""),
    ]
    assert played.bytes_of(played.messages[1]) == b"\x81\x05hello"


def test_events_come_one_by_one() -> None:
    c, s = Peer(), Peer()
    head = s.headers(1, [(":status", "200"), ("content-type", "text/event-stream")])
    turns: list[Turn] = [
        (C, opening() + c.headers(1, GET, end=True)),
        (S, said() + head + data(1, b"event: delta\nid: 7\ndata: {}\n\ndata: tw") + data(1, b"o\n\n")),
        (S, data(1, b"", end=True)),
    ]
    played = assert_any_cut(Http2, turns)
    first, second, response = played.messages[1:]
    assert (first.text, first.attrs["event"], first.attrs["id"]) == ("event: delta\nid: 7\ndata: {}", "delta", "7")
    assert (second.text, second.reply_to) == ("data: two", len(opening()))
    assert played.bytes_of(first) == b"event: delta\nid: 7\ndata: {}\n\n"
    assert (response.kind, response.attrs["events"]) == ("response", 2)


class TestDetect:
    def test_the_server_may_speak_first(self) -> None:
        turns, _ = simple()
        played = assert_any_cut(Conversation, [(S, said()), turns[0], turns[1]])
        assert played.dissector.protocol == "http2"
        assert played.kinds() == ["request", "response"]

    def test_preface(self) -> None:
        assert Http2.detect(PREFACE + b"rest", b"") is Match.YES
        assert {Http2.detect(PREFACE[:length], b"") for length in range(len(PREFACE))} == {Match.MORE}
        assert Http2.detect(b"PRI * HTTP/1.1\r\n", b"") is Match.NO
        assert Http2.detect(b"", said(table=1)) is Match.MORE
        assert Http2.detect(b"", b"HTTP/1.1 200 OK\r\n") is Match.NO
        assert Http2.detect(b"", b"\x00\x1d\x12\x34\x81\x80\x00\x01\x00\x01") is Match.NO

    @given(st.binary(max_size=64), st.binary(max_size=64))
    def test_any(self, client: bytes, server: bytes) -> None:
        Http2.detect(client, server)


def _pieces() -> st.SearchStrategy[bytes]:
    c = Peer()
    secret = [*GET, ("authorization", "Bearer abcdef")]
    known = [
        c.headers(1, secret, end=True),
        c.headers(1, secret),
        c.headers(3, post("/t", ("content-type", FORM)), pieces=3),
        c.headers(3, [(":status", "200"), ("content-type", "application/json")]),
        c.headers(1, [(":status", "200"), ("content-type", "text/event-stream")]),
        c.headers(5, post("/g", ("content-type", "application/grpc"))),
        c.push(1, 2, GET),
        data(1, b"data: x\n\n"),
        data(3, b"grant_type=x&password=y", end=True),
        data(3, b'{"access_token":"z"', pad=3),
        data(5, b"\0\0\0\0\3\x08\x01"),
        data(1, b"", end=True),
        reset(3, 8),
        goaway(1, 0),
        said(table=0, frame=20000),
        frame(HEADERS, 7, b"\x82"),
        frame(CONTINUATION, 7, b"\x84", END_HEADERS),
        frame(PING, 0, bytes(8)),
        frame(0x20, 1, b"?"),
        opening(),
        b"\x00\x00",
        b"\xff",
    ]
    return st.sampled_from(known)


TURNS = st.lists(
    st.tuples(
        st.sampled_from([C, S]),
        st.one_of(st.lists(_pieces(), max_size=8).map(b"".join), st.binary(max_size=40), st.integers(1, 50).map(Gap)),
    ),
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(TURNS, st.booleans())
def test_cut_does_not_matter(turns: list[Turn], begun: bool) -> None:
    turns = [(C, opening()), *turns] if begun else turns
    whole, pieces = play(Http2, turns), assert_survives(Http2, turns, split=1)
    assert outcome(whole) == outcome(pieces)
