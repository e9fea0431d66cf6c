"""Server-sent events, one message each, as they arrive. Over HTTP/2: test_http2.py."""

import pytest

from appliance.dissect.http1 import Http1
from appliance.dissect.http_events import MAX_EVENT
from tests.dissect.harness import C, Gap, S, Turn, assert_any_cut, assert_truncated, play

GET: Turn = (C, b"GET /v1/stream HTTP/1.1\r\nHost: a\r\n\r\n")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
STREAM = (
    ': ping\n\nevent: delta\nid: 41\ndata: {"text": "grüße"}\n\n'
    "retry: 500\r\n\r\ndata: one\rdata: two\r\r\n\n\ndata: last\n\n"
).encode()
EXPECTED = [
    (": ping", {}),
    ('event: delta\nid: 41\ndata: {"text": "grüße"}', {"event": "delta", "id": "41"}),
    ("retry: 500", {"retry": "500"}),
    ("data: one\ndata: two", {}),
    ("data: last", {}),
]


def identity(body: bytes) -> list[Turn]:
    return [GET, (S, HEAD + b"\r\n" + body)]


def chunked(body: bytes, size: int) -> list[Turn]:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    sent = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    return [GET, (S, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + sent)]


@pytest.mark.parametrize("turns", [identity(STREAM), chunked(STREAM, 7), chunked(STREAM, 1000)])
def test_one_by_one(turns: list[Turn]) -> None:
    played = assert_any_cut(Http1, turns)
    events = [m for m in played.messages if m.kind == "event"]
    said = [(m.text, {name: m.attrs[name] for name in ("event", "id", "retry") if name in m.attrs}) for m in events]
    assert said == EXPECTED
    assert all((m.reply_to, m.flags) == (0, ()) for m in events)
    response = played.messages[-1]
    assert (response.kind, response.attrs["events"], response.attrs["body_bytes"]) == ("response", 5, len(STREAM))
    assert_truncated(Http1, turns)


def test_ranges() -> None:
    played = play(Http1, identity(STREAM))
    delta = played.messages[2]
    assert played.bytes_of(delta) == 'event: delta\nid: 41\ndata: {"text": "grüße"}\n\n'.encode()


def test_they_come_before_the_end() -> None:
    dissector = Http1()
    dissector.receive(C, b"GET / HTTP/1.1\r\n\r\n", 1)
    assert dissector.receive(S, HEAD + b"\r\ndata: o", 2) == []
    (event,) = dissector.receive(S, b"ne\n\n", 3)
    assert getattr(event, "text", "") == "data: one"


def test_long_event() -> None:
    long = b"data: " + b"x" * (2 * MAX_EVENT) + b"\n\ndata: next\n\n"
    played = assert_any_cut(Http1, identity(long), step=9973)
    events = [m for m in played.messages if m.kind == "event"]
    assert [m.flags for m in events] == [("truncated",), ("truncated",), (), ()]
    assert [m.end - m.start for m in events[:2]] == [MAX_EVENT, MAX_EVENT]
    assert events[-1].text == "data: next"


def test_gap() -> None:
    turns = identity(b"data: one\n\ndata: tw")
    played = play(Http1, [*turns, (S, Gap(5)), (S, b"rest\n\ndata: three\n\n")])
    said = [(m.text, m.flags) for m in played.messages if m.kind == "event"]
    assert said == [("data: one", ()), ("data: tw", ("truncated",)), ("rest", ()), ("data: three", ())]


def test_end_within_an_event() -> None:
    played = play(Http1, identity(b"data: never ended"))
    assert [(m.text, m.flags) for m in played.messages if m.kind == "event"] == [("data: never ended", ("truncated",))]
