"""HTTP/1.x framing that two parsers may read differently: flagged, and the case named. HTTP/2's: test_http2.py."""

import pytest

from appliance.dissect.http1 import Http1
from appliance.model import Message
from tests.dissect.harness import C, S, Turn, assert_any_cut, play

POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
CASES: dict[str, tuple[bytes, set[str]]] = {
    "both framings": (POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {"cl-te"}),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", {"cl-conflict"}),
    "two lengths in a list": (POST + b"Content-Length: 1, 2\r\n\r\nab", {"cl-conflict"}),
    "signed length": (POST + b"Content-Length: +2\r\n\r\nab", {"cl-invalid"}),
    "hexadecimal length": (POST + b"Content-Length: 0x2\r\n\r\nab", {"cl-invalid"}),
    "unknown coding": (POST + b"Transfer-Encoding: xchunked, chunked\r\n\r\n0\r\n\r\n", {"te-unknown"}),
    "identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", {"te-unknown", "te-not-last"}),
    "empty coding": (POST + b"Transfer-Encoding:\r\nContent-Length: 0\r\n\r\n", {"te-unknown"}),
    "chunked twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", {"te-repeated"}),
    "chunked first": (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n", {"te-not-last"}),
    "coding in HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {"te-version"}),
    "space before colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", {"space-before-colon"}),
    "tab before colon": (POST + b"Content-Length\t: 0\r\n\r\n", {"space-before-colon"}),
    "folded": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", {"obs-fold"}),
    "folded elsewhere": (POST + b"X: 1\r\n\tContent-Length: 5\r\n\r\n", {"obs-fold"}),
    "bare LF in the head": (b"POST / HTTP/1.1\r\nHost: a\nContent-Length: 0\r\n\r\n", {"bare-lf"}),
    "bare LF in the start line": (b"POST / HTTP/1.1\nHost: a\r\n\r\n", {"bare-lf"}),
    "bare CR": (POST + b"X: 1\rTransfer-Encoding: chunked\r\n\r\n", {"bare-cr"}),
    "NUL": (POST + b"X: \x00\r\n\r\n", {"nul"}),
    "no chunk size": (CHUNKED + b"zz\r\n", {"chunk-size"}),
    "prefixed chunk size": (CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n", {"chunk-size"}),
    "chunk size past 60 bits": (CHUNKED + b"10000000000000002\r\nab\r\n", {"chunk-size"}),
    "space behind a chunk size": (CHUNKED + b"2 \r\nab\r\n0\r\n\r\n", {"chunk-space"}),
    "bare LF behind a chunk size": (CHUNKED + b"2\nab\r\n0\r\n\r\n", {"bare-lf"}),
    "bare LF in an extension": (CHUNKED + b"2;a\nab\r\n0\r\n\r\n", {"bare-lf"}),
    "bare LF behind a chunk": (CHUNKED + b"2\r\nab\n0\r\n\r\n", {"bare-lf"}),
    "chunk longer than said": (CHUNKED + b"2\r\nabc\r\n0\r\n\r\n", {"chunk-end"}),
    "several hosts": (POST + b"Host: b\r\nContent-Length: 0\r\n\r\n", {"host"}),
    "a length with an underscore": (POST + b"Content_Length: 2\r\n\r\n", {"field-name"}),
    "a coding with an underscore": (POST + b"Transfer_Encoding: chunked\r\n\r\n", {"field-name"}),
    "Connection that takes": (POST + b"Connection: close, Host\r\n\r\n", {"connection-field"}),
    "framing in trailers": (CHUNKED + b"0\r\nContent-Length: 3\r\n\r\n", {"trailer"}),
    "folded trailer": (CHUNKED + b"0\r\nX: 1\r\n Content-Length: 3\r\n\r\n", {"obs-fold"}),
}  # fmt: skip
HONEST = {
    "length": POST + b"Content-Length: 2\r\n\r\nab",
    "equal lengths": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    "chunked": CHUNKED + b"2;ext=1\r\nab\r\n0\r\nX: 1\r\n\r\n",
    "usual fields of a connection": POST + b"Connection: Keep-Alive, TE\r\nX_Y: 1\r\nContent-Length: 0\r\n\r\n",
    "compressed": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
}


def first(sent: bytes) -> Message:
    turns: list[Turn] = [(C, sent)]
    return assert_any_cut(Http1, turns).messages[0]


@pytest.mark.parametrize("name", CASES)
def test_requests(name: str) -> None:
    sent, cases = CASES[name]
    message = first(sent)
    assert message.attrs["smuggling"] == sorted(cases)
    assert "smuggling" in message.flags


@pytest.mark.parametrize("name", HONEST)
def test_nothing_to_flag(name: str) -> None:
    message = first(HONEST[name])
    assert "smuggling" not in message.flags
    assert "smuggling" not in message.attrs


def test_responses() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    played = play(Http1, [(C, b"GET / HTTP/1.1\r\n\r\n"), (S, answer)])
    assert played.messages[1].attrs["smuggling"] == ["cl-te"]
