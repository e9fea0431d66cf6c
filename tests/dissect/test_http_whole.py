"""The short way of HTTP/1: the same messages as the long one, and none where anything is odd or may be secret."""

import pytest

from appliance.dissect.http1 import Http1
from appliance.dissect.http_message import MAX_CREDENTIAL_BODY, Pair
from appliance.dissect.http_whole import request, response
from appliance.model import Direction, Message

C, S = Direction.CLIENT, Direction.SERVER
GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nAccept:  */* \r\n\r\n"
JSON = b'POST /a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"a": 12}'
PUT = "PUT /a HTTP/1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n\r\n☃".encode()
BINARY = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 2\r\n\r\n\xff\0"
OK = b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
EMPTY = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
NAMELESS = b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nhi"
MUTE = b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi"


def said(pieces: list[tuple[Direction, bytes]]) -> tuple[list[Message], dict[str, object]]:
    dissector = Http1()
    out: list[Message] = []
    for direction, data in pieces:
        out += [item for item in dissector.receive(direction, data, 5) if isinstance(item, Message)]
    return out, dissector.attrs


@pytest.mark.parametrize("asked", [GET, JSON, PUT, BINARY])
@pytest.mark.parametrize("answered", [OK, EMPTY, NAMELESS, MUTE])
def test_it_is_taken_and_says_what_the_long_way_says(asked: bytes, answered: bytes) -> None:
    assert request(asked, 0, 5) is not None
    assert response(answered, 0, 5, Pair("GET", 0)) is not None
    whole = said([(C, asked), (S, answered), (C, GET), (S, OK)])
    cut = [(C, asked[:9]), (C, asked[9:]), (S, answered[:9]), (S, answered[9:])]
    assert said([*cut, (C, GET[:9]), (C, GET[9:]), (S, OK[:9]), (S, OK[9:])]) == whole


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(GET.replace(b"Accept", b"Authorization"), id="authorization"),
        pytest.param(GET.replace(b"Accept", b"X-Api-Key"), id="api-key"),
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
    assert request(data, 0, 5) is None


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
    assert response(data, 0, 5, pair) is None
