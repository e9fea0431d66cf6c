"""HTTP/1.1 that is mediated: what passes unchanged, what is refused and why, and what ends how. Sans I/O."""

import pytest

from tests.relay.http_play import CLIENT, SERVER, Play

GET = b"GET /a HTTP/1.1\r\nHost: a.example.com\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.example.com\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

AMBIGUOUS: dict[str, tuple[bytes, str]] = {
    "both framings": (POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "cl-te"),
    "both, the other way": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", "cl-te"),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", "cl-conflict"),
    "two equal lengths": (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab", "cl-conflict"),
    "lengths in a list": (POST + b"Content-Length: 2, 2\r\n\r\nab", "cl-conflict"),
    "signed length": (POST + b"Content-Length: +2\r\n\r\nab", "cl-invalid"),
    "negative length": (POST + b"Content-Length: -2\r\n\r\nab", "cl-invalid"),
    "hexadecimal length": (POST + b"Content-Length: 0x2\r\n\r\nab", "cl-invalid"),
    "empty length": (POST + b"Content-Length:\r\n\r\nab", "cl-invalid"),
    "length with a tail": (POST + b"Content-Length: 2 2\r\n\r\nab", "cl-invalid"),
    "Arabic digits": (POST + "Content-Length: ٢\r\n\r\nab".encode(), "cl-invalid"),
    "unknown coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "te-unknown"),
    "identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", "te-unknown"),
    "quoted coding": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', "te-unknown"),
    "chunked in a list": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "te-unknown"),
    "chunked not last": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "te-unknown"),
    "empty coding": (POST + b"Transfer-Encoding:\r\n\r\n", "te-unknown"),
    "chunked twice": (POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n", "te-repeated"),
    "chunked and another": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", "te-repeated"),
    "coding in HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "te-version"),
    "vertical tab": (POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", ""),
    "underscore": (POST + b"Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n", "field-name"),
    "underscore in a length": (POST + b"Content_Length: 3\r\n\r\nabc", "field-name"),
    "space before colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "space-before-colon"),
    "tab before colon": (POST + b"Content-Length\t: 0\r\n\r\n", "space-before-colon"),
    "no name": (POST + b": chunked\r\n\r\n", "name-invalid"),
    "no colon": (POST + b"Transfer-Encoding\r\n\r\n", "name-invalid"),
    "name with a slash": (POST + b"Transfer/Encoding: chunked\r\n\r\n", "name-invalid"),
    "folded": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", "obs-fold"),
    "folded elsewhere": (POST + b"X: 1\r\n\tContent-Length: 5\r\n\r\n", "obs-fold"),
    "first field folded": (b"GET / HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n", "obs-fold"),
    "bare LF": (b"POST / HTTP/1.1\r\nHost: a\nContent-Length: 0\r\n\r\n", "bare-lf"),
    "bare LF in the start line": (b"POST / HTTP/1.1\nHost: a\r\n\r\n", "bare-lf"),
    "bare LF at the end": (POST + b"X: 1\r\n\n", "bare-lf"),
    "bare LF first": (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "bare-lf"),
    "bare CR": (POST + b"X: 1\rTransfer-Encoding: chunked\r\n\r\n", "bare-cr"),
    "two CR": (POST + b"X: 1\r\r\n\r\n", "bare-cr"),
    "bare CR in the start line": (b"GET / HTTP/1.1\rX: 1\r\nHost: a\r\n\r\n", "bare-cr"),
    "NUL": (POST + b"X: \0\r\n\r\n", "nul"),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", "host"),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "host"),
    "a Host with a user": (b"GET / HTTP/1.1\r\nHost: b@a\r\n\r\n", "host"),
    "a Host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "host"),
    "two names in a Host": (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "host"),
    "absolute target and another Host": (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "host"),
    "absolute target and another port": (b"GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", "host"),
    "absolute target with a user": (b"GET http://a@b/ HTTP/1.1\r\nHost: a\r\n\r\n", "target"),
    "target without a slash": (b"GET a/b HTTP/1.1\r\nHost: a\r\n\r\n", "target"),
    "asterisk": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", "target"),
    "fragment": (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", "target"),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "target"),
    "Connection that takes": (POST + b"Connection: Content-Length\r\nContent-Length: 0\r\n\r\n", "connection-field"),
    "no chunk size": (CHUNKED + b"zz\r\n", "chunk-size"),
    "empty chunk size": (CHUNKED + b"\r\n", "chunk-size"),
    "signed chunk size": (CHUNKED + b"+2\r\nab\r\n0\r\n\r\n", "chunk-size"),
    "prefixed chunk size": (CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n", "chunk-size"),
    "chunk size past 60 bits": (CHUNKED + b"10000000000000002\r\nab\r\n", "chunk-size"),
    "space behind a chunk size": (CHUNKED + b"2 \r\nab\r\n0\r\n\r\n", "chunk-space"),
    "space before an extension": (CHUNKED + b"2 ;a\r\nab\r\n0\r\n\r\n", "chunk-space"),
    "bare LF behind a chunk size": (CHUNKED + b"2\nab\r\n0\r\n\r\n", "bare-lf"),
    "bare CR behind a chunk size": (CHUNKED + b"2\rab\r\n0\r\n\r\n", "bare-cr"),
    "bare LF in an extension": (CHUNKED + b"2;a\nab\r\n0\r\n\r\n", "bare-lf"),
    "bare CR in an extension": (CHUNKED + b"2;a\r0\r\n\r\n", "bare-cr"),
    "bare LF behind a chunk": (CHUNKED + b"2\r\nab\n0\r\n\r\n", "bare-lf"),
    "chunk longer than said": (CHUNKED + b"2\r\nabc\r\n0\r\n\r\n", "chunk-end"),
    "folded trailer": (CHUNKED + b"0\r\nX: 1\r\n Content-Length: 3\r\n\r\n", "obs-fold"),
    "framing in trailers": (CHUNKED + b"0\r\nContent-Length: 3\r\n\r\n", "trailer"),
    "Host in trailers": (CHUNKED + b"0\r\nHost: b\r\n\r\n", "trailer"),
    "authorization in trailers": (CHUNKED + b"0\r\nAuthorization: Bearer x\r\n\r\n", "trailer"),
    "bare LF in trailers": (CHUNKED + b"0\r\nX: 1\n\r\n", "bare-lf"),
}  # fmt: skip
MALFORMED: dict[str, tuple[bytes, int]] = {
    "HTTP/0.9": (b"GET /\r\n", 505),
    "HTTP/2.0 in words": (b"GET / HTTP/2.0\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n", 505),
    "lower case": (b"GET / http/1.1\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\n", 400),
    "a tab": (b"GET\t/ HTTP/1.1\r\n", 400),
    "no target": (b"GET HTTP/1.1\r\n", 505),
    "not ASCII": ("GET /ü HTTP/1.1\r\n".encode(), 400),
    "two empty lines": (b"\r\n\r\nGET / HTTP/1.1\r\n", 400),
    "a long field": (POST + b"X: " + b"x" * 65536, 431),
    "a long start line": (b"GET /" + b"x" * 65536, 431),
    "many fields": (POST + b"X: 1\r\n" * 300, 431),
    "a long extension": (CHUNKED + b"2;" + b"x" * 4096, 400),
    "long trailers": (CHUNKED + b"0\r\n" + (b"X: " + b"x" * 4000 + b"\r\n") * 5, 431),
}
HONEST = {
    "get": GET,
    "absolute target": b"GET http://a.example.com/x?y HTTP/1.1\r\nHost: A.example.com:80\r\n\r\n",
    "options": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "old": b"GET / HTTP/1.0\r\n\r\n",
    "an address": b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n",
    "length": POST + b"Content-Length: 3\r\n\r\nabc",
    "no body": POST + b"Content-Length: 0\r\n\r\n",
    "chunked": CHUNKED + b"2;ext=1\r\nab\r\n000A\r\n0123456789\r\n0\r\nX: 1\r\n\r\n",
    "case of the coding": POST + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
    "blanks around a value": b"GET / HTTP/1.1\r\nHost: \t a \t\r\nX:\r\n\r\n",
    "body that looks like a request": POST + b"Content-Length: %d\r\n\r\n" % len(GET) + GET,
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_two_readers_may_differ_about_is_refused(name: str) -> None:
    sent, case = AMBIGUOUS[name]
    play = Play().agent(sent)
    assert play.status == 400
    assert play.cases == ([case] if case else [])
    assert SERVER not in play.shut
    assert CLIENT in play.shut
    assert not play.connected
    assert play.failed is None, "it has time to read the answer"
    assert bytes(play.record[0]) == sent
    assert bytes(play.to_server) == b"" or sent.startswith(bytes(play.to_server)), "the bad line is not passed"
    play.agent(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n").ended(CLIENT)
    assert play.failed is None
    assert play.refused == ("smuggling" if case else "malformed")
    assert b"late" not in play.to_server
    assert play.record[0].endswith(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n")


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_in_single_bytes_not_one_more_passes(name: str) -> None:
    sent, case = AMBIGUOUS[name]
    play = Play().agent(*(sent[at : at + 1] for at in range(len(sent))))
    assert (play.status, play.cases) == (400, [case] if case else [])
    assert bytes(play.record[0]) == sent
    if sent.startswith(CHUNKED):
        passed = bytes(play.to_server).removeprefix(CHUNKED)
        assert passed in (b"", b"0\r\n", b"2\r\n", b"2\r\nab", b"0\r\nX: 1\r\n"), "whole lines that were judged"
    else:
        assert not play.to_server


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_http(name: str) -> None:
    sent, status = MALFORMED[name]
    play = Play().agent(sent)
    assert play.status == status
    assert not play.cases
    play.ended(CLIENT)
    assert play.refused == "malformed"


@pytest.mark.parametrize("name", HONEST)
def test_what_is_clear_passes_as_it_came(name: str) -> None:
    sent = HONEST[name]
    whole = Play().agent(sent).server(OK)
    assert bytes(whole.to_server) == bytes(whole.record[0]) == sent
    assert bytes(whole.to_agent) == bytes(whole.record[1]) == OK
    assert not whole.notes
    assert not whole.shut
    for cut in range(1, len(sent)):
        play = Play().agent(sent[:cut], sent[cut:]).server(*(OK[at : at + 1] for at in range(len(OK))))
        assert bytes(play.to_server) == sent
        assert bytes(play.to_agent) == OK
    assert len(Play().agent(sent).server(OK).agent(GET).dials) == 1


def test_an_empty_line_before_a_request_ends_here() -> None:
    play = Play().agent(b"\r", b"\n", GET).server(OK)
    assert bytes(play.to_server) == GET
    assert bytes(play.record[0]) == b"\r\n" + GET


def test_requests_that_are_sent_ahead_wait_for_their_turn() -> None:
    play = Play().agent(GET + CHUNKED + b"1\r\nx\r\n0\r\n\r\n" + GET)
    assert bytes(play.to_server) == GET
    play.server(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK)
    assert bytes(play.to_server) == GET + CHUNKED + b"1\r\nx\r\n0\r\n\r\n"
    play.server(OK).server(OK)
    assert bytes(play.to_agent).count(OK) == 3
    assert bytes(play.to_server).count(GET) == 2


def test_a_bad_request_behind_a_good_one_is_answered_behind_it() -> None:
    play = Play().agent(GET + b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    assert not play.to_agent
    play.server(OK)
    assert bytes(play.to_agent).startswith(OK + b"HTTP/1.1 400 Bad Request\r\n")
    assert play.cases == ["host"]


def test_what_is_sent_ahead_is_bounded() -> None:
    play = Play().agent(GET)
    for _ in range(100):
        play.agent(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 8000)
    assert not play.mediator.limit(CLIENT)


ANSWERS: dict[str, tuple[bytes, bytes]] = {
    "length": (GET, OK),
    "chunked": (GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: 1\r\n\r\n"),
    "nothing": (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
    "not modified": (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
    "head": (GET.replace(b"GET", b"HEAD"), b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
    "interim": (GET, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK),
    "no reason": (GET, b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
    "old": (GET, b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_where_an_answer_ends(name: str) -> None:
    asked, said = ANSWERS[name]
    for cut in range(len(said)):
        play = Play().agent(asked).server(said[:cut], said[cut:]).agent(GET).server(OK)
        assert bytes(play.to_agent) == bytes(play.record[1]) == said + OK
        assert bytes(play.to_server) == asked + GET


HOSTILE: dict[str, tuple[bytes, str]] = {
    "both framings": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", "cl-te"),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n", "cl-conflict"),
    "no number": (b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n", "cl-invalid"),
    "coding": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: cow\r\n\r\n", "te-unknown"),
    "coding in HTTP/1.0": (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "te-version"),
    "folded": (b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n\r\n", "obs-fold"),
    "bare LF": (b"HTTP/1.1 200 OK\nX: 1\r\n\r\n", "bare-lf"),
    "body where there is none": (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", "body-forbidden"),
    "another protocol": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", "unasked"),
    "HTTP/0.9": (b"<html>\r\n", ""),
    "garbage": (b"\x16\x03\x01\r\n", ""),
    "long": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000, ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_server(name: str) -> None:
    said, case = HOSTILE[name]
    for cut in (0, 5, len(said) - 1):
        play = Play().agent(GET).server(said[:cut], said[cut:])
        assert play.status == 502
        assert play.cases == ([case] if case else [])
        assert play.hung_up == 1
        assert b"200 OK" not in play.to_agent
        play.ended(CLIENT)
        assert play.refused


def test_answers_that_nobody_asked_for() -> None:
    early = Play(connected=True).server(OK)
    assert not early.to_agent
    assert early.cases == ["unasked"]
    twice = Play().agent(GET).server(OK + OK)
    assert bytes(twice.to_agent) == OK
    assert twice.cases == ["unasked"]
    head = Play().agent(GET.replace(b"GET", b"HEAD")).server(OK)
    assert bytes(head.to_agent) == OK[:-2]
    assert head.cases == ["unasked"]


def test_a_chunked_answer_that_goes_wrong_ends_the_flow() -> None:
    play = Play().agent(GET).server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok", b"ay\r\n")
    assert play.to_agent.endswith(b"2\r\nok"), "and no status of the gateway within it"
    assert play.cases == ["chunk-end"]
    assert CLIENT in play.shut


def test_until_the_end_of_the_connection() -> None:
    play = Play().agent(GET).server(b"HTTP/1.1 200 OK\r\n\r\nall", b" of it").ended(SERVER)
    assert play.to_agent.endswith(b"all of it")
    assert play.shut == [CLIENT]
    assert play.failed is None
    play.ended(CLIENT)
    assert play.failed is None


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"", 502),
        (b"HTTP/1.1 200", 502),
        (OK[:-1], 200),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
    ],
)
def test_a_server_that_ends_too_soon(said: bytes, status: int) -> None:
    play = Play().agent(GET).server(said).ended(SERVER).ended(CLIENT)
    assert play.status == status
    assert play.refused == "server-gone"


def test_an_agent_that_ends_within_a_head() -> None:
    play = Play().agent(GET[:-2]).ended(CLIENT)
    assert play.status == 400
    assert play.refused
    assert bytes(play.record[0]) == GET[:-2]


def test_an_agent_that_half_closes_gets_its_answer() -> None:
    play = Play().agent(GET).ended(CLIENT)
    assert play.shut == [SERVER]
    play.server(OK)
    assert bytes(play.to_agent) == OK
    assert CLIENT in play.shut
    assert play.failed is None


def test_an_agent_that_half_closes_behind_two_requests() -> None:
    play = Play().agent(GET + GET).ended(CLIENT)
    assert not play.shut
    play.server(OK).server(OK)
    assert bytes(play.to_agent) == OK + OK
    assert play.shut[-1] is CLIENT


def test_an_agent_that_ends_within_a_body() -> None:
    play = Play().agent(POST + b"Content-Length: 9\r\n\r\nabc").ended(CLIENT)
    assert play.shut == [SERVER]
    assert [note.kind for note in play.notes] == ["truncated"]


def test_a_body_waits_for_the_servers_word() -> None:
    head = POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    play = Play().agent(head).server(b"HTTP/1.1 100 Continue\r\n\r\n").agent(b"abc").server(OK).agent(GET).server(OK)
    assert bytes(play.to_server) == head + b"abc" + GET
    refused = Play().agent(head).server(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
    assert refused.shut == [CLIENT], "whether a body follows now, nobody can tell"
    refused.agent(GET)
    assert bytes(refused.to_server) == head


def test_an_early_answer() -> None:
    play = Play().agent(POST + b"Content-Length: 6\r\n\r\nabc").server(OK).agent(b"def" + GET).server(OK)
    assert play.to_server.endswith(b"abcdef" + GET)
    assert bytes(play.to_agent) == OK + OK


WEBSOCKET = (
    b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def test_websocket_is_spliced_once_the_server_agrees() -> None:
    play = Play().agent(WEBSOCKET + b"\x81\x80abcd").server(SWITCHED + b"\x81\x00")
    assert play.spliced
    assert bytes(play.to_server) == WEBSOCKET + b"\x81\x80abcd"
    assert bytes(play.to_agent) == SWITCHED + b"\x81\x00"
    refused = Play().agent(WEBSOCKET + GET).server(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
    assert not refused.spliced
    assert bytes(refused.to_server) == WEBSOCKET + GET, "what came behind is a request, and judged as one"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\n", b""),
        (b"Upgrade: h2c\r\nConnection: close, Upgrade, HTTP2-Settings\r\n", b"Connection: close\r\n"),
        (b"Upgrade: tcp\r\nConnection: Upgrade\r\n", b""),
        (b"Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n", b""),
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b""),
    ],
)  # fmt: skip
def test_an_upgrade_to_anything_else_is_taken_out(given: bytes, kept: bytes) -> None:
    asked = b"GET / HTTP/1.1\r\nHost: a\r\n" + given + b"\r\n"
    play = Play().agent(asked)
    assert bytes(play.to_server) == b"GET / HTTP/1.1\r\nHost: a\r\n" + kept + b"\r\n"
    assert bytes(play.record[0]) == asked
    assert Play().agent(asked).server(SWITCHED).cases == ["unasked"]


def test_another_host_than_the_connections_is_misdirected() -> None:
    play = Play(permits=lambda name: name == "a.example.com").agent(GET).server(OK)
    play.agent(GET.replace(b"a.example", b"b.example"))
    assert play.status == 421
    assert bytes(play.to_server) == GET
    play.ended(CLIENT)
    assert play.refused == "host"
    old = Play(permits=lambda name: name == "sni.example.com", server_name="sni.example.com", tls=True)
    assert old.agent(b"GET / HTTP/1.0\r\n\r\n").to_server


@pytest.mark.parametrize(
    ("reason", "status"), [("time-out", 504), ("unreachable", 502), ("refused-by-rule", 403), ("certificate", 502)]
)
def test_a_server_that_cannot_be_reached(reason: str, status: int) -> None:
    play = Play(refused={"": (reason, "so it is")}).agent(GET.replace(b"GET", b"HEAD"))
    assert play.status == status
    assert play.to_agent.endswith(b"\r\n\r\n"), "no body to HEAD"
    assert bytes(play.record[0]) == GET.replace(b"GET", b"HEAD")


@pytest.mark.parametrize(
    ("reason", "status"),
    [("idle", 408), ("time-out", 408), ("shutdown", 503), ("lease-ended", 403), ("too-many-connections", 429)],
)
def test_an_end_from_outside(reason: str, status: int) -> None:
    assert Play().agent(GET).stop(reason).status == status
    idle = Play().agent(GET).server(OK).stop(reason)
    assert bytes(idle.to_agent) == OK, "nobody waits for an answer"
    assert Play().agent(GET).server(OK[:-1]).stop(reason).to_agent == OK[:-1]
    waiting = Play().agent(GET[:9]).stop(reason)
    assert waiting.status == status
    assert bytes(waiting.record[0]) == GET[:9]
    assert Play().stop(reason).failed is not None


def test_every_answer_of_the_gateway_is_a_whole_one() -> None:
    for sent, _ in [*AMBIGUOUS.values(), *MALFORMED.values()]:
        play = Play().agent(sent)
        head, _, body = bytes(play.to_agent).partition(b"\r\n\r\n")
        assert b"\r\nContent-Length: %d\r\n" % len(body) in head + b"\r\n"
        assert b"\r\nConnection: close" in head
        for piece in (b"example", b"xchunked", b"0x2", b"Bearer"):
            assert piece not in body, "nothing of what the agent sent"
