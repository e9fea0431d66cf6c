"""gRPC messages and protobuf without a schema."""

import gzip
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissect.grpc import MAX_KEPT
from appliance.dissect.http1 import Http1
from appliance.dissect.http2 import Http2
from appliance.dissect.protobuf import MAX_DEPTH, MAX_FIELDS, MAX_TEXT, readable
from tests.dissect.harness import C, Gap, Played, S, Turn, assert_any_cut, assert_truncated, play
from tests.dissect.http2_bytes import Peer, data, opening, post
from tests.dissect.http2_bytes import settings as said

NESTED = b"\x0a\x05hello\x10\x96\x01\x1a\x04\x08\x01\x12\x00\x25\x00\x00\xc0\x3f\x31" + struct.pack("<d", 2.5)
READ = '1: "hello"\n2: 150\n3 {\n  1: 1\n  2: ""\n}\n4: 0x3fc00000 = 1.5\n6: 0x4004000000000000 = 2.5'


def prefixed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def call(*asked: bytes, answers: bytes, coding: str = "gzip", kind: str = "application/grpc") -> list[Turn]:
    c, s = Peer(), Peer()
    body = b"".join(prefixed(one) for one in asked)
    request = c.headers(1, post("/pkg.Service/Method", ("content-type", kind), ("te", "trailers")))
    head = s.headers(1, [(":status", "200"), ("content-type", kind), ("grpc-encoding", coding)])
    trailers = s.headers(1, [("grpc-status", "5"), ("grpc-message", "no%20such thing")], end=True)
    middle = len(answers) // 2
    return [
        (C, opening() + request + data(1, body[:8]) + data(1, body[8:], end=True)),
        (S, said() + head + data(1, answers[:middle]) + data(1, answers[middle:], pad=3) + trailers),
    ]


def messages(played: Played) -> list[tuple[str, tuple[str, ...]]]:
    return [(m.text, m.flags) for m in played.messages if m.kind == "grpc-message"]


def test_a_call() -> None:
    turns = call(NESTED, b"", answers=prefixed(b"\x08\x01") + prefixed(gzip.compress(b"\x08\x02"), 1))
    played = assert_any_cut(Http2, turns)
    assert messages(played) == [(READ, ()), ("", ()), ("1: 1", ()), ("1: 2", ())]
    first, _, third, fourth = [m for m in played.messages if m.kind == "grpc-message"]
    assert (first.attrs["path"], first.attrs["number"], first.attrs["length"]) == (
        "/pkg.Service/Method",
        1,
        len(NESTED),
    )
    request, response = [m for m in played.messages if m.kind in ("request", "response")]
    assert (third.reply_to, fourth.attrs["encoding"]) == (request.start, "gzip")
    assert played.bytes_of(first).startswith(prefixed(NESTED)[:8])
    assert (response.attrs["grpc_status"], response.attrs["grpc_message"]) == ("NOT_FOUND", "no such thing")
    assert (request.attrs["grpc_messages"], response.attrs["grpc_messages"]) == (2, 2)
    assert "grpc-status: 5" in response.text
    assert all(m.flags == () for m in played.messages)
    assert_truncated(Http2, turns)


@pytest.mark.parametrize(
    ("answers", "coding", "expected"),
    [
        (prefixed(b"\x08\x01")[:-1], "gzip", ("1: ...", ("truncated",))),
        (prefixed(b"no gzip", 1), "gzip", ("", ("undecoded",))),
        (prefixed(b"unknown", 1), "snappy", ("", ("undecoded",))),
        (b"\x42\0\0\0\1x", "gzip", ("", ("malformed",))),
        (prefixed(gzip.compress(bytes(50 << 20)), 1), "gzip", ("...", ("truncated",))),
    ],
)
def test_faults(answers: bytes, coding: str, expected: tuple[str, tuple[str, ...]]) -> None:
    if len(answers) > 16000:
        answers = answers[:5] + answers[5:]
    played = play(Http2, call(answers=answers[:16000], coding=coding), split=1)
    text, flags = messages(played)[-1]
    assert flags == expected[1] or "truncated" in flags
    assert len(text) < 1000


def test_long_message() -> None:
    long = b"\x0a" + b"\xff\xff\x07" + b"x" * 131071
    c = Peer()
    body = prefixed(long)
    frames = b"".join(data(1, body[at : at + 16000]) for at in range(0, len(body), 16000))
    head = opening() + c.headers(1, post("/s/m", ("content-type", "application/grpc+proto")))
    played = play(Http2, [(C, head + frames + data(1, prefixed(b"\x08\x07"), end=True))])
    assert [m.flags for m in played.messages] == [("truncated",), (), ()]
    assert played.messages[1].text == "1: 7"
    assert played.messages[0].attrs["length"] == len(long) > MAX_KEPT


def test_gap() -> None:
    turns = call(NESTED, NESTED, answers=prefixed(b"\x08\x01"))
    whole = turns[0][1]
    assert isinstance(whole, bytes)
    place = whole.index(b"hello")
    played = play(Http2, [(C, whole[:place]), (C, Gap(3)), (C, whole[place + 3 :]), turns[1]])
    assert [flags for _, flags in messages(played)] == [(), ("gap", "truncated"), ()]
    assert next(m for m in played.messages if m.kind == "request").flags == ("gap", "truncated")


def test_grpc_web() -> None:
    """Over HTTP/1.1, with the trailers in the body."""
    body = prefixed(b"\x08\x01") + prefixed(b"grpc-status: 0\r\ngrpc-message: fine\r\n", 0x80)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc-web+proto\r\nContent-Length: %d\r\n\r\n" % len(body)
    turns: list[Turn] = [
        (C, b"POST /s/m HTTP/1.1\r\nContent-Type: application/grpc-web\r\nContent-Length: 0\r\n\r\n"),
        (S, head + body),
    ]
    played = assert_any_cut(Http1, turns)
    assert messages(played) == [("1: 1", ()), ("grpc-status: 0\ngrpc-message: fine", ())]
    assert [m.attrs.get("trailers") for m in played.messages if m.kind == "grpc-message"] == [None, True]


class TestProtobuf:
    def test_forms(self) -> None:
        assert readable(NESTED) == READ
        assert readable(b"\x0b\x08\x01\x0c") == "1 (\n1: 1\n)"
        assert readable(b"\x0a\x02\xff\xfe") == "1: <fffe>"
        assert readable(b"\x0a\x03a\nb") == '1: "a\nb"'
        assert readable(b"\x08\x01\x0f") == "1: 1\n..."
        assert readable("\x0a\x03\u2603".encode()) == '1: "☃"'

    def test_bounds(self) -> None:
        deep = b""
        for _ in range(3 * MAX_DEPTH):
            deep = b"\x0a" + bytes([len(deep)]) + deep if len(deep) < 128 else deep
        assert readable(deep).count("{") <= MAX_DEPTH
        assert readable(b"\x08\x01" * (2 * MAX_FIELDS)).count("\n") == MAX_FIELDS
        assert readable(b"\x0b" * 1000).endswith("...")
        assert len(readable((b"\x0a\x7f" + b"x" * 127) * 3000)) <= MAX_TEXT

    @settings(max_examples=300)
    @given(st.binary(max_size=300))
    def test_anything(self, data: bytes) -> None:
        readable(data).encode()
