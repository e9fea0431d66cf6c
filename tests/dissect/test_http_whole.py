"""The short way of HTTP/1: the same messages as the long one, and none where anything is odd or may be secret."""

import pytest

from appliance.dissect import Output
from appliance.dissect.http1 import Http1
from appliance.dissect.http_head import MAX_HEAD, usual_fields
from appliance.dissect.http_message import MAX_CREDENTIAL_BODY, Pair
from appliance.dissect.http_whole import request, response, whole
from appliance.model import Direction, Message

C, S = Direction.CLIENT, Direction.SERVER
GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nAccept:  */* \r\n\r\n"
JSON = b'POST /a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"a": 12}'
PUT = "PUT /a HTTP/1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n\r\n☃".encode()
BINARY = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 2\r\n\r\n\xff\0"
BEARER = b"POST /a HTTP/1.1\r\nHost: x\r\nAUTHORIZATION: Bearer abc.def \r\nContent-Length: 2\r\n\r\nhi"
KEY = GET.replace(b"Host: x", b"X-Api-Key:\t k k\r\nProxy-Authorization: Basic abc==\r\nHost: x")
OK = b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
EMPTY = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
NAMELESS = b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nhi"
MUTE = b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi"


def asked_in_short(data: bytes) -> Message | None:
    came = whole(data)
    asked = came and request(came, 0, 5)
    return asked[0] if asked else None


def answered_in_short(data: bytes, pair: Pair) -> Message | None:
    came = whole(data)
    return response(came, 0, 5, pair) if came else None


def said(pieces: list[tuple[Direction, bytes]]) -> tuple[Output, dict[str, object]]:
    dissector = Http1()
    out: Output = []
    for direction, data in pieces:
        out += dissector.receive(direction, data, 5)
    return out, dissector.attrs


@pytest.mark.parametrize("asked", [GET, JSON, PUT, BINARY, BEARER, KEY])
@pytest.mark.parametrize("answered", [OK, EMPTY, NAMELESS, MUTE])
def test_it_is_taken_and_says_what_the_long_way_says(asked: bytes, answered: bytes) -> None:
    assert asked_in_short(asked) is not None
    assert answered_in_short(answered, Pair("GET", 0)) is not None
    whole = said([(C, asked), (S, answered), (C, GET), (S, OK)])
    cut = [(C, asked[:9]), (C, asked[9:]), (S, answered[:9]), (S, answered[9:])]
    assert said([*cut, (C, GET[:9]), (C, GET[9:]), (S, OK[:9]), (S, OK[9:])]) == whole


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(GET.replace(b"Accept", b"Authorization ").replace(b":  ", b": "), id="authorization-with-a-space"),
        pytest.param(GET.replace(b"Accept:  */* ", b"X-Api-Key: a\r\n b"), id="api-key-in-two-lines"),
        pytest.param(GET.replace(b"Accept", b"host"), id="a-name-twice"),
        pytest.param(GET.replace(b"Accept", b"Upgrade"), id="upgrade"),
        pytest.param(GET.replace(b"Accept:  */* ", b"Transfer-Encoding: chunked"), id="chunked"),
        pytest.param(GET.replace(b"Accept:", b"Accept :"), id="space-behind-a-name"),
        pytest.param(GET.replace(b"\r\nAccept", b"\r\n Accept"), id="folded"),
        pytest.param(GET.replace(b"\r\nAccept", b"\nAccept"), id="bare-line-feed"),
        pytest.param(GET.replace(b"*/*", b"\xff"), id="not-ascii"),
        pytest.param(GET.replace(b"GET", b"CONNECT"), id="connect"),
        pytest.param(GET[:-1], id="cut"),
        pytest.param(GET + GET, id="two"),
        pytest.param(JSON[:-1], id="body-cut"),
        pytest.param(JSON.replace(b'"a": 12', b'"grant_type"').replace(b": 9", b": 14"), id="token-request"),
        pytest.param(JSON.replace(b"application/json", b"application/x-www-form-urlencoded"), id="form"),
        pytest.param(JSON.replace(b": 9", b": 9, 9"), id="two-lengths"),
        pytest.param(
            JSON[: JSON.index(b"{")].replace(b": 9", b": %d" % (MAX_CREDENTIAL_BODY + 1))
            + bytes(MAX_CREDENTIAL_BODY + 1),
            id="long",
        ),
    ],
)
def test_requests_that_are_left_to_the_long_way(data: bytes) -> None:
    assert asked_in_short(data) is None


@pytest.mark.parametrize(
    ("data", "pair"),
    [
        pytest.param(OK, Pair("POST", 0, credential=True), id="answer-to-a-token-request"),
        pytest.param(OK, Pair("HEAD", 0), id="head"),
        pytest.param(OK, Pair("CONNECT", 0, upgrade=True), id="connect"),
        pytest.param(OK.replace(b"200 OK", b"204 OK"), Pair("GET", 0), id="no-content"),
        pytest.param(OK.replace(b"200 OK", b"100 Continue"), Pair("GET", 0), id="informational"),
        pytest.param(OK.replace(b"application/json", b"text/event-stream"), Pair("GET", 0), id="events"),
        pytest.param(OK.replace(b"Content-Length: 2\r\n", b""), Pair("GET", 0), id="until-close"),
        pytest.param(OK.replace(b"Server: s", b"Content-Encoding: gzip"), Pair("GET", 0), id="gzip"),
    ],
)
def test_responses_that_are_left_to_the_long_way(data: bytes, pair: Pair) -> None:
    assert answered_in_short(data, pair) is None


@pytest.mark.parametrize("length", [MAX_HEAD, MAX_HEAD + 1])
def test_a_head_of_any_length_reads_the_same_in_one_piece_and_in_two(length: int) -> None:
    fill = length - len(GET) - len("X: \r\n")
    data = GET[:-2] + b"X: " + b"y" * fill + b"\r\n\r\n"
    assert len(data) == length
    in_one = said([(C, data)])
    assert in_one == said([(C, data[:-3]), (C, data[-3:])])
    flags = [item.flags for item in in_one[0] if isinstance(item, Message)]
    assert flags == [() if length <= MAX_HEAD else ("malformed",)]


CHUNKED = b"HTTP/1.1 200 OK\r\nServer: s\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: y\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata: a\n\n"
TWICE = b"HTTP/1.1 200 OK\r\nX: y\r\nx: z\r\nContent-Length: 2\r\n\r\nhi"
UNBOUNDED = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nhi"
NOTHING = b"HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
TOKEN = b"POST /t HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 37\r\n\r\n"
TOKEN += b'{"grant_type":"password","code":"x" }'


@pytest.mark.parametrize("asked", [GET, JSON, TOKEN, BINARY, BEARER, KEY])
@pytest.mark.parametrize("answered", [OK, CHUNKED, EVENTS, TWICE, HINTS + OK, NOTHING, UNBOUNDED])
def test_a_head_that_comes_before_its_body_reads_the_same(asked: bytes, answered: bytes) -> None:
    ask, answer = asked.index(b"\r\n\r\n") + 4, answered.rindex(b"\r\n\r\n", 0, answered.rindex(b"\r\n") + 3) + 4
    parted = [(C, asked[:ask]), (C, asked[ask:]), (S, answered[:answer]), (S, answered[answer:])]
    assert whole(asked[:ask]) is not None
    cut = [(direction, data[at : at + 1]) for direction, data in parted for at in range(len(data))]
    assert said([*parted, (C, GET)]) == said([*cut, (C, GET[:9]), (C, GET[9:])])


def test_a_credential_is_masked_and_not_remembered() -> None:
    for line in (b"Authorization: Bearer s3cr3t", b"x-api-key: s3cr3t"):
        data = GET.replace(b"Host: x", line)
        came = whole(data)
        assert came is not None
        assert [data[start:end] for start, end, _ in came.secrets] == [b"s3cr3t"]
        assert "s3cr3t" not in came.shown
        assert not any("s3cr3t" in value for value in came.named.values())
        with pytest.raises(ValueError, match="not remembered"):
            usual_fields([line.decode()], len(line), masked=False)
