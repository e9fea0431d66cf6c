"""HTTP/1.x: framing, pairing, credentials, faults. Bodies: test_http_body.py; real traffic: test_captures.py."""

import gzip
import hashlib
import json
from collections.abc import Sequence
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissect import Match
from appliance.dissect.http1 import Http1
from appliance.dissect.http_framing import MAX_CHUNK_LINE, MAX_PIPELINE
from appliance.dissect.http_head import MAX_HEAD
from appliance.dissect.http_message import MAX_BODY, MAX_CREDENTIAL_BODY
from appliance.model import Direction, Message
from tests.dissect.harness import C, Gap, Played, S, Turn, assert_any_cut, assert_survives, assert_truncated, play

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


def head(start: str, *fields: str) -> bytes:
    return "\r\n".join([start, *fields, "", ""]).encode("latin-1")


def chunked(*chunks: bytes, trailers: str = "") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailers.encode() + b"\r\n"


def form(**fields: str) -> bytes:
    body = urlencode(fields).encode()
    return head("POST /t HTTP/1.1", "Host: a", f"Content-Type: {FORM}", f"Content-Length: {len(body)}") + body


FORM = "application/x-www-form-urlencoded"
CASES: dict[str, tuple[list[Turn], list[str]]] = {
    "pipelined": ([(C, GET * 3), (S, NO_CONTENT * 3)], ["request"] * 3 + ["response"] * 3),
    "length": (
        [(C, head("POST / HTTP/1.1", "Content-Length: 5") + b"hello"), (S, NO_CONTENT)],
        ["request", "response"],
    ),
    "chunked, extensions, trailers": (
        [
            (C, GET),
            (S, head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Content-Type: text/plain")),
            (S, b'5;name="v"\r\nhello\r\n1 \r\n!\r\n0\r\nX-Sum: 1\r\nX-B: 2\r\n\r\n' + NO_CONTENT),
        ],
        ["request", "response", "response"],
    ),
    "100-continue": (
        [
            (C, head("PUT /x HTTP/1.1", "Expect: 100-continue", "Content-Length: 2")),
            (S, head("HTTP/1.1 100 Continue")),
            (C, b"ok"),
            (S, head("HTTP/1.1 103 Early Hints", "Link: </s>") + head("HTTP/1.1 201 Created", "Content-Length: 0")),
        ],
        ["informational", "request", "informational", "response"],
    ),
    "HEAD, 304 and 204 have no body": (
        [
            (C, b"HEAD / HTTP/1.1\r\n\r\n" + GET + GET + GET),
            (S, head("HTTP/1.1 200 OK", "Content-Length: 1000")),
            (S, head("HTTP/1.1 304 Not Modified", "Content-Length: 1000")),
            (S, head("HTTP/1.1 204 No Content", "Transfer-Encoding: chunked")),
            (S, head("HTTP/1.1 200 OK", "Content-Length: 2") + b"ok"),
        ],
        ["request"] * 4 + ["response"] * 4,
    ),
    "until close": ([(C, GET), (S, b"HTTP/1.0 200 OK\r\n\r\nall of\r\n\r\nthis")], ["request", "response"]),
    "absolute form": (
        [(C, b"GET http://a.example/x?y=1 HTTP/1.1\r\nHost: a\r\n\r\n"), (S, NO_CONTENT)],
        ["request", "response"],
    ),
    "folded and bare LF": (
        [(C, b"GET / HTTP/1.1\nHost: a\nX-Long: one\n  two\n\n"), (S, b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx")],
        ["request", "response"],
    ),
    "empty lines between": (
        [(C, b"\r\n" + GET + b"\r\n\n" + GET), (S, NO_CONTENT * 2)],
        ["request"] * 2 + ["response"] * 2,
    ),
    "early answer": (
        [
            (C, head("POST / HTTP/1.1", "Content-Length: 4") + b"ab"),
            (S, head("HTTP/1.1 413 Too Large", "Content-Length: 0")),
            (C, b"cd"),
        ],
        ["response", "request"],
    ),
    "refused upgrade": (
        [
            (C, head("GET / HTTP/1.1", "Connection: Upgrade", "Upgrade: h2c") + GET),
            (S, NO_CONTENT * 2),
        ],
        ["request", "response", "request", "response"],
    ),
    "refused tunnel": (
        [(C, head("CONNECT a:443 HTTP/1.1") + GET), (S, head("HTTP/1.1 407 Proxy", "Content-Length: 0") + NO_CONTENT)],
        ["request", "response", "request", "response"],
    ),
    "malformed, then well formed": (
        [(C, b"what is this?\r\nAuthorization: Basic c2VjcmV0\r\n\r\n" + GET), (S, NO_CONTENT)],
        ["request", "data", "request", "response"],
    ),
    "bad chunk size": (
        [
            (C, GET),
            (S, head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"2\r\nok\r\nzz\r\nmore\r\n" + NO_CONTENT),
        ],
        ["request", "response", "data", "response"],
    ),
    "bad chunk end": (
        [(C, GET), (S, head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"2\r\nokay\r\n" + NO_CONTENT)],
        ["request", "response", "data", "response"],
    ),
    "token request": (
        [
            (C, form(grant_type="password", username="bob", password="hunter22", client_secret="c/s t")),
            (S, head("HTTP/1.1 200 OK", "Content-Type: application/json", "Transfer-Encoding: chunked")),
            (
                S,
                chunked(
                    b'{"access_token":"abc', b'def", "token_type":"Bearer","refresh_to', b'ken" : "r\\"s","x":"y"}'
                ),
            ),
        ],
        ["request", "response"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_any_cut(name: str) -> None:
    turns, kinds = CASES[name]
    whole = assert_any_cut(Http1, turns)
    assert sorted(whole.kinds()) == sorted(kinds)
    assert_truncated(Http1, turns)


@pytest.mark.parametrize("name", CASES)
def test_ranges_join_up(name: str) -> None:
    """Every byte belongs to exactly one message, empty lines between messages apart."""
    played = play(Http1, CASES[name][0])
    for direction in (C, S):
        ours = sorted((m for m in played.messages if m.direction is direction), key=lambda m: m.start)
        end = 0
        for message in ours:
            assert played.streams[direction][end : message.start].strip(b"\r\n") == b""
            assert message.start >= end
            end = message.end
        assert end == len(played.streams[direction])


def test_trailing_bytes_begin_the_next_message() -> None:
    turns: list[Turn] = [(C, head("POST / HTTP/1.1", "Content-Length: 2") + b"okGET /next")]
    played = assert_any_cut(Http1, turns)
    first, rest = played.messages
    assert played.bytes_of(first).endswith(b"\r\n\r\nok")
    assert first.flags == ()
    assert (played.bytes_of(rest), rest.flags) == (b"GET /next", ("truncated",))


def test_request_and_response() -> None:
    body = b'{"hello": "w\xc3\xb6rld"}'
    ask = (
        head("POST /api?x=1 HTTP/1.1", "Host: api.example:8080", "X-Two: a", "x-two: b", f"Content-Length: {len(body)}")
        + body
    )
    answer = (
        head("HTTP/1.1 404 Not Here", "Content-Type: text/plain; charset=iso-8859-1", "Content-Length: 3") + b"n\xf6t"
    )
    played = play(Http1, [(C, GET), (C, ask), (S, NO_CONTENT), (S, answer)])
    request, response = [m for m in played.messages if m.attrs.get("body_bytes")]
    assert played.bytes_of(request) == ask
    assert played.bytes_of(response) == answer
    assert response.reply_to == request.start == len(GET)
    assert request.attrs == {
        "method": "POST",
        "target": "/api?x=1",
        "host": "api.example:8080",
        "version": "1.1",
        "headers": [["Host", "api.example:8080"], ["X-Two", "a"], ["x-two", "b"], ["Content-Length", str(len(body))]],
        "content_type": "",
        "encoding": "",
        "body_bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    assert request.text.startswith("POST /api?x=1 HTTP/1.1\nHost: api.example:8080\n")
    assert request.text.endswith('\n\n{"hello": "wörld"}')
    assert (response.attrs["status"], response.attrs["reason"]) == (404, "Not Here")
    assert response.text.endswith("\n\nnöt")
    assert played.dissector.attrs == {
        "requests": 2, "responses": 2, "host": "a", "user_agent": "", "server": "",
    }  # fmt: skip


def test_details_are_in_attrs() -> None:
    played = play(Http1, CASES["chunked, extensions, trailers"][0])
    attrs = played.messages[1].attrs
    assert attrs["trailers"] == [["X-Sum", "1"], ["X-B", "2"]]
    assert attrs["chunk_extensions"] is True
    assert played.messages[1].text.endswith("\n\nhello!")
    folded = play(Http1, CASES["folded and bare LF"][0]).messages[0].attrs
    assert folded["headers"] == [["Host", "a"], ["X-Long", "one two"]]
    assert folded["obs_fold"] is folded["bare_lf"] is True


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked, chunked"),
        ("Transfer-Encoding: xchunked, chunked",),
        ("Content-Length: 0", "Content-Length: 5"),
        ("Content-Length: +5",),
        ("Content-Length: 5, 6",),
        ("Content-Length : 5",),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding: chunked, gzip",),
    ],
)
def test_smuggling_is_flagged(fields: Sequence[str]) -> None:
    fields = [fields] if isinstance(fields, str) else list(fields)
    played = assert_any_cut(Http1, [(C, head("POST / HTTP/1.1", *fields) + b"0\r\n\r\n")])
    assert "smuggling" in played.messages[0].flags


def test_equal_lengths_are_no_conflict() -> None:
    played = play(Http1, [(C, head("POST / HTTP/1.1", "Content-Length: 2", "Content-Length: 2") + b"ok")])
    assert [m.flags for m in played.messages] == [()]


class TestSuccessor:
    def test_tunnel(self) -> None:
        ask = head("CONNECT a:443 HTTP/1.1", "Host: a:443")
        early = b"\x16\x03\x01"
        for cut in range(1, len(ask + early)):
            dissector = Http1()
            dissector.receive(C, (ask + early)[:cut], 1)
            dissector.receive(C, (ask + early)[cut:], 1)
            assert dissector.successor is None
            dissector.receive(S, head("HTTP/1.1 200 Connection established") + b"server", 2)
            assert dissector.successor == "auto"
            assert (dissector.rest(C), dissector.rest(S)) == (early, b"server")

    @pytest.mark.parametrize(
        ("field", "name"), [("websocket", "websocket"), ("h2c", "http2"), ("TLS/1.2", "tls"), ("", "raw")]
    )
    def test_upgrade(self, field: str, name: str) -> None:
        dissector = Http1()
        dissector.receive(
            C, head("GET /chat HTTP/1.1", "Connection: keep-alive, Upgrade", f"Upgrade: {field or 'x'}"), 1
        )
        out = dissector.receive(S, head("HTTP/1.1 101 Switching", f"Upgrade: {field}") + b"\x81\x02hi", 2)
        assert dissector.successor == name
        assert dissector.rest(S) == b"\x81\x02hi"
        assert [getattr(item, "kind", None) for item in out] == ["response"]


class TestCredentials:
    @pytest.mark.parametrize(
        ("field", "secret"),
        [
            ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
            ("AUTHORIZATION:\tBasic  dXNlcjpwYXNz  ", "dXNlcjpwYXNz"),
            ("authorization: lonelytoken", "lonelytoken"),
            ("Proxy-Authorization: Digest a=b, c=d", "a=b, c=d"),
            ("X-Api-Key: k-123456", "k-123456"),
            ("api-key:k-123456", "k-123456"),
            ("Authorization : Bearer spaced-name", "spaced-name"),
        ],
    )
    def test_fields(self, field: str, secret: str) -> None:
        turns: list[Turn] = [(C, head("GET / HTTP/1.1", "Cookie: stays", field, "X-After: 1")), (S, NO_CONTENT)]
        played = assert_any_cut(Http1, turns)
        assert played.secrets() == [secret.encode()]
        assert "redacted" in played.messages[0].flags
        assert secret not in repr(played.messages)
        assert "stays" in played.messages[0].text
        assert "*" * len(secret) in played.messages[0].text
        assert_truncated(Http1, turns, secrets=[secret.encode()])

    def test_folded_field(self) -> None:
        turns: list[Turn] = [(C, b"GET / HTTP/1.1\r\nAuthorization: Bearer first\r\n second\r\nHost: a\r\n\r\n")]
        assert assert_any_cut(Http1, turns).secrets() == [b"first", b"second"]

    def test_nothing_else_is_redacted(self) -> None:
        turns: list[Turn] = [
            (C, form(user="x", password="not an OAuth form")),
            (S, head("HTTP/1.1 200 OK", "Set-Cookie: s=1", "Content-Length: 20") + b'{"access_token":"x"}'),
        ]
        assert assert_any_cut(Http1, turns).redactions == []

    def test_token_exchange(self) -> None:
        turns = CASES["token request"][0]
        played = play(Http1, turns)
        secrets = [b"hunter22", b"c%2Fs+t", b"abc", b"def", rb"r\"s"]
        assert played.secrets() == secrets
        request, response = played.messages
        assert request.flags == response.flags == ("redacted",)
        assert request.text.endswith("username=bob&password=********&client_secret=*******")
        assert response.text.endswith(
            '{"access_token":"******", "token_type":"Bearer","refresh_token" : "****","x":"y"}'
        )
        assert "sha256" not in request.attrs
        assert_truncated(Http1, turns, secrets=secrets)

    def test_nothing_of_a_token_exchange_settles_before_its_end(self) -> None:
        dissector = Http1()
        ask = form(grant_type="client_credentials", client_secret="s3cret")
        body = ask.index(b"grant_type")
        dissector.receive(C, ask[:-1], 1)
        assert dissector.settled(C) == body
        dissector.receive(C, ask[-1:], 1)
        assert dissector.settled(C) == len(ask)
        answer = head("HTTP/1.1 200 OK", "Content-Length: 22") + b'{"access_token":"abc"}'
        dissector.receive(S, answer[:-1], 2)
        assert dissector.settled(S) == answer.index(b"{")

    @pytest.mark.parametrize("grant", ["authorization_code", "urn:ietf:params:oauth:grant-type:token-exchange"])
    def test_every_credential_name(self, grant: str) -> None:
        names = ["client_secret", "password", "assertion", "subject_token", "actor_token", "refresh_token", "code"]
        fields = {name: f"secret-{number}" for number, name in enumerate(names)}
        played = play(Http1, [(C, form(grant_type=grant, scope="openid", **fields))])
        assert played.secrets() == [value.encode() for value in fields.values()]

    def test_json_token_request(self) -> None:
        body = json.dumps({"grant_type": "client_credentials", "client_secret": "s3cret", "audience": "x"}).encode()
        ask = head("POST /t HTTP/1.1", "Content-Type: application/json", f"Content-Length: {len(body)}") + body
        answer = head("HTTP/1.1 200 OK", "Content-Length: 22") + b'{"access_token":"abc"}'
        assert assert_any_cut(Http1, [(C, ask), (S, answer)]).secrets() == [b"s3cret", b"abc"]

    def test_escaped_name(self) -> None:
        answer = head("HTTP/1.1 200 OK", "Content-Length: 27") + rb'{"access\u005ftoken":"abc"}'
        assert play(Http1, [(C, form(grant_type="x")), (S, answer)]).secrets() == [b"abc"]

    def test_encoded_answer_is_redacted_as_a_whole(self) -> None:
        body = gzip.compress(b'{"access_token":"abc","token_type":"Bearer"}')
        fields = ("Content-Type: application/json", "Content-Encoding: gzip", "Transfer-Encoding: chunked")
        turns: list[Turn] = [
            (C, form(grant_type="x")),
            (S, head("HTTP/1.1 200 OK", *fields) + chunked(body[:9], body[9:])),
        ]
        played = assert_any_cut(Http1, turns)
        assert played.secrets() == [body[:9], body[9:]]
        assert played.messages[1].text.endswith('{"access_token":"***","token_type":"Bearer"}')
        assert_truncated(Http1, turns, secrets=[body[:9]])

    def test_answer_to_a_request_that_was_not_seen(self) -> None:
        body = b'{"access_token":"abc","token_type":"Bearer"}'
        answer = head("HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {len(body)}") + body
        assert assert_any_cut(Http1, [(S, answer)]).secrets() == [b"abc"]

    def test_long_token_request(self) -> None:
        """Past the limit the rest is redacted, found or not."""
        ask = form(grant_type="password", filler="x" * MAX_CREDENTIAL_BODY, password="hunter22")
        played = assert_any_cut(Http1, [(C, ask)], step=9973)
        assert b"hunter22" not in played.stored(C)
        assert "hunter22" not in repr(played.messages)
        assert played.stored(C).startswith(ask[:1000])
        assert played.messages[0].flags == ("redacted", "truncated")

    def test_long_form_that_is_none(self) -> None:
        played = assert_any_cut(Http1, [(C, form(filler="x" * MAX_CREDENTIAL_BODY, text="findme"))], step=9973)
        assert played.redactions == []
        assert played.messages[0].text.endswith("findme")

    def test_field_in_a_head_that_is_too_long(self) -> None:
        ask = head("GET / HTTP/1.1", "Authorization: Bearer abcdef", "X: " + "y" * MAX_HEAD, "X-Api-Key: ghijkl")
        played = assert_any_cut(Http1, [(C, ask + GET), (S, NO_CONTENT)], step=9973)
        assert played.secrets() == [b"abcdef", b"ghijkl"]
        assert played.messages[0].flags == ("malformed", "redacted")
        assert "request" in played.kinds()[1:]

    def test_field_cut_by_a_gap(self) -> None:
        for place in (b"Authorization: Bearer abc", b"Authorization: Bear", b"X: 1\r\nAuthorization: Bearer abc"):
            turns: list[Turn] = [
                (C, b"GET / HTTP/1.1\r\n" + place),
                (C, Gap(7)),
                (C, b"defgh\r\nX-Api-Key: ijkl\r\n\r\n" + GET),
            ]
            played = play(Http1, turns)
            kept = played.stored(C)
            assert all(secret not in kept for secret in (b"abc", b"defgh", b"ijkl"))
            assert "defgh" not in repr(played.messages)
            assert played.kinds()[-1] == "request"

    @pytest.mark.parametrize("lost", range(3, 30))
    def test_name_hidden_by_a_gap_in_the_body(self, lost: int) -> None:
        """What a form says behind a gap may be anything, so it is not kept."""
        ask = form(grant_type="password", password="hunter22")
        place = ask.index(b"\r\n\r\n") + 4
        played = play(Http1, [(C, ask[:place]), (C, Gap(lost)), (C, ask[place + lost :] + GET)])
        assert b"hunter" not in played.stored(C)
        assert played.kinds() == ["request", "request"]

    def test_field_name_cut_by_a_gap(self) -> None:
        turns: list[Turn] = [(C, b"GET / HTTP/1.1\r\nAuthor"), (C, Gap(5)), (C, b"on: Bearer abcdef\r\n\r\n" + GET)]
        played = play(Http1, turns)
        assert b"abcdef" not in played.stored(C)
        assert played.kinds()[-1] == "request"

    def test_token_answer_without_its_head(self) -> None:
        turns: list[Turn] = [
            (S, b"HTTP/1.1 200"),
            (S, Gap(9)),
            (S, b'\r\n\r\n{"access_token":"abcdef","x":1}'),
            (C, GET),
        ]
        assert play(Http1, turns).secrets() == [b"abcdef"]
        lost: list[Turn] = [(C, b"POST /t"), (C, Gap(9)), (C, b"\r\n\r\ngrant_type=password&password=hunter22")]
        assert play(Http1, lost).secrets() == [b"hunter22"]

    def test_body_cut_by_a_gap(self) -> None:
        ask = form(grant_type="password", password="hunter22", client_secret="tellnobody")
        place = ask.index(b"ter22")
        played = play(Http1, [(C, ask[:place]), (C, Gap(2)), (C, ask[place + 2 :] + GET)])
        assert all(part not in played.stored(C) for part in (b"hun", b"22", b"tellnobody"))
        assert [(m.kind, "gap" in m.flags) for m in played.messages] == [("request", True), ("request", False)]


class TestGap:
    def test_within_a_body_of_known_length(self) -> None:
        answer = head("HTTP/1.1 200 OK", "Content-Length: 10")
        played = play(Http1, [(C, GET * 2), (S, answer + b"abc"), (S, Gap(4)), (S, b"hij" + NO_CONTENT)])
        cut, after = played.messages[2:]
        assert cut.flags == ("gap", "truncated")
        assert cut.attrs["body_bytes"] == 10
        assert cut.end == len(answer) + 10
        assert (after.flags, after.reply_to) == ((), len(GET))

    def test_within_a_chunk(self) -> None:
        answer = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"a\r\nabc"
        played = play(Http1, [(C, GET * 2), (S, answer), (S, Gap(4)), (S, b"hij\r\n0\r\n\r\n" + NO_CONTENT)])
        assert [m.flags for m in played.messages[2:]] == [("gap", "truncated"), ()]

    def test_past_the_end_of_a_body(self) -> None:
        answer = head("HTTP/1.1 200 OK", "Content-Length: 10")
        after = b"er: 1\r\n\r\n" + head("HTTP/1.1 200 OK", "Content-Length: 2") + b"ok"
        turns: list[Turn] = [(C, GET), (S, answer + b"abc"), (S, Gap(20)), (C, GET), (S, after)]
        played = assert_any_cut(Http1, turns)
        said = [m for m in played.messages if m.direction is S]
        assert [m.kind for m in said] == ["response", "data", "response"]
        assert said[0].end == len(answer) + 10
        assert said[2].text.endswith("ok")
        assert said[2].reply_to == len(GET)
        assert played.dissector.attrs["degraded"] is True

    def test_between_messages(self) -> None:
        turns: list[Turn] = [(C, GET), (S, NO_CONTENT), (C, Gap(100)), (C, GET), (S, NO_CONTENT)]
        played = assert_any_cut(Http1, turns)
        assert played.kinds() == ["request", "response", "request", "response"]
        assert played.messages[-1].reply_to == len(GET) + 100

    def test_in_a_body_that_ends_with_the_connection(self) -> None:
        played = play(Http1, [(C, GET), (S, b"HTTP/1.1 200 OK\r\n\r\nabc"), (S, Gap(5)), (S, b"def")])
        assert played.messages[1].flags == ("gap", "truncated")
        assert played.messages[1].attrs["body_bytes"] == 11

    def test_anywhere(self) -> None:
        for name, (turns, _) in CASES.items():
            for number in range(len(turns) + 1):
                for whose in (C, S):
                    play(Http1, [*turns[:number], (whose, Gap(3)), *turns[number:]], split=7)
                    assert name


class TestEvents:
    HEAD = head("HTTP/1.1 200 OK", "Content-Type: text/event-stream; charset=utf-8", "Transfer-Encoding: chunked")

    def test_are_said_before_the_end(self) -> None:
        dissector = Http1()
        dissector.receive(C, GET, 1)
        dissector.receive(S, self.HEAD, 2)
        first = b"data: one\n\ndata: two\n\n"
        out = dissector.receive(S, b"%x\r\n%b\r\n" % (len(first), first), 3)
        assert [(m.kind, m.text) for m in out if isinstance(m, Message)] == [
            ("event", "data: one"),
            ("event", "data: two"),
        ]

    @pytest.mark.parametrize("split", [None, 1, 3, 10])
    def test_whole_stream(self, split: int | None) -> None:
        events = [b"event: a\ndata: {}\n\n", "data: grüße\r\n\r\n".encode(), b"data: tail"]
        turns: list[Turn] = [
            (C, GET),
            (S, self.HEAD),
            *((S, chunked(event)[:-5]) for event in events),
            (S, b"0\r\n\r\n"),
        ]
        played = play(Http1, turns, split=split)
        said = [m for m in played.messages if m.kind == "event"]
        assert "".join(m.text for m in said).replace("\n", "") == "event: adata: {}data: grüßedata: tail"
        assert all(m.reply_to == 0 for m in said)
        for message in said:
            assert message.text.splitlines()[0].encode() in played.bytes_of(message)
        response = played.messages[-1]
        assert (response.kind, response.attrs["events"]) == ("response", len(said))
        assert "data:" not in response.text

    def test_endless_event(self) -> None:
        played = play(Http1, [(C, GET), (S, self.HEAD), (S, b"%x\r\n" % 10**6 + b"x" * 200_000)])
        assert next(m.flags for m in played.messages if m.kind == "event") == ("truncated",)


class TestBounds:
    def test_head_without_end(self) -> None:
        dissector = Http1()
        dissector.receive(C, b"GET / HTTP/1.1\r\n", 1)
        for _ in range(200):
            dissector.receive(C, b"a: b\r\n" * 1000, 1)
            assert len(dissector.rest(C)) <= MAX_HEAD
        assert dissector.settled(C) > MAX_HEAD

    def test_long_chunk_line(self) -> None:
        answer = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"1;" + b"x" * (3 * MAX_CHUNK_LINE)
        played = assert_any_cut(Http1, [(C, GET), (S, answer)], step=4999)
        assert played.messages[1].flags == ("malformed", "truncated")

    def test_long_body_is_counted(self) -> None:
        answer = (
            head("HTTP/1.1 200 OK", "Content-Type: text/plain", f"Content-Length: {3 * MAX_BODY}") + b"y" * 3 * MAX_BODY
        )
        played = play(Http1, [(C, GET), (S, answer)], split=60000)
        response = played.messages[1]
        assert response.flags == ("truncated",)
        assert response.attrs["body_bytes"] == 3 * MAX_BODY
        assert response.end == len(answer)
        assert "sha256" not in response.attrs

    def test_pipeline(self) -> None:
        played = play(Http1, [(C, GET * (2 * MAX_PIPELINE)), (S, NO_CONTENT)], split=65536)
        assert len(played.messages) == 2 * MAX_PIPELINE + 1


class TestDetect:
    @pytest.mark.parametrize("client", [GET, b"\r\n" + GET, b"M-SEARCH * HTTP/1.1\r\n", b"CONNECT a:1 HTTP/1.0\n"])
    def test_request(self, client: bytes) -> None:
        line = client.index(b"HTTP/1.") + len("HTTP/1.1")
        assert Http1.detect(client, b"") is Match.YES
        assert {Http1.detect(client[:length], b"") for length in range(line + 1)} == {Match.MORE}

    @pytest.mark.parametrize(
        "client",
        [
            b"PRI * HTTP/2.0\r\n\r\n",
            b"get / HTTP/1.1\r\n",
            b"GET  / HTTP/1.1\r\n",
            b"GET / HTTP/1.1 x\r\n",
            b"GET / RTSP/1.0\r\n",
            b"GET /\r\n",
            b"\x16\x03\x01",
            b"EHLO there\r\n",
            b"SELECT 1;\n",
            b"\r\n" * 9,
        ],
    )
    def test_something_else(self, client: bytes) -> None:
        assert Http1.detect(client, b"") is Match.NO

    def test_answer_only(self) -> None:
        assert Http1.detect(b"", NO_CONTENT) is Match.YES
        assert Http1.detect(b"", b"HTTP/1.1 20") is Match.MORE
        assert Http1.detect(b"", b"SSH-2.0-x") is Match.NO
        assert Http1.detect(b"GET /very/lo", NO_CONTENT) is Match.YES
        assert Http1.detect(b"\x00\x01", NO_CONTENT) is Match.NO

    def test_decides_on_4096_bytes(self) -> None:
        assert Http1.detect(b"GET /" + b"a" * 5000, b"") is Match.YES
        assert Http1.detect(b"GETX" + b"a" * 5000, b"") is Match.NO
        assert Http1.detect(b"FROB " + b"a" * 5000, b"") is Match.NO
        assert Http1.detect(b"\n" * 5000, b"") is Match.NO

    @given(st.binary(max_size=64), st.binary(max_size=64))
    def test_any(self, client: bytes, server: bytes) -> None:
        Http1.detect(client, server)


PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /t HTTP/1.1\r\n",
        b"CONNECT a HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 101 x\r\n",
        b"HTTP/1.1 100 c\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Connection: upgrade\r\nUpgrade: x\r\n",
        b"Content-Type: application/x-www-form-urlencoded\r\n",
        b"Content-Type: text/event-stream\r\n",
        b"Content-Type: application/json\r\n",
        b"Authorization: Bearer abcdef\r\n",
        b" folded\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"grant_type=x&password=y",
        b'{"access_token":"z"',
        b"data: x\n\n",
        b"\x00\xff",
    ]
)
TURNS = st.lists(
    st.tuples(
        st.sampled_from(list(Direction)),
        st.one_of(st.lists(PIECES, max_size=8).map(b"".join), st.binary(max_size=40), st.integers(1, 50).map(Gap)),
    ),
    max_size=8,
)


@settings(max_examples=400, deadline=None)
@given(TURNS, st.sampled_from([None, 1, 2, 5]))
def test_survives_anything(turns: list[Turn], split: int | None) -> None:
    assert_survives(Http1, turns, split=split)


@settings(max_examples=200, deadline=None)
@given(TURNS)
def test_cut_does_not_matter(turns: list[Turn]) -> None:
    def said(played: Played) -> list[tuple[object, ...]]:
        return [(m.direction, m.kind, m.start, m.end, m.text, m.flags) for m in played.messages if m.kind != "event"]

    whole, pieces = play(Http1, turns), play(Http1, turns, split=1)
    assert said(whole) == said(pieces)
    assert whole.stored(C) == pieces.stored(C)
    assert whole.stored(S) == pieces.stored(S)


def test_lost_lines_are_judged_one_by_one() -> None:
    """A quotation mark in one line must not change what the next one is."""
    head = b"HTTP/1.1 200 OK\r\n"
    rest = b'GET / HTTP/1.1\r\n{"access_token":"z"GET / HTTP/1.1\r\n'
    for turns in ([(C, head), (C, b'"'), (C, rest)], [(C, head + b'"' + rest)]):
        for split in (None, 1):
            assert b'"access_token":"*"' in play(Http1, turns, split=split).stored(C)


@pytest.mark.parametrize("lost", range(1, len(b"Authorization") + 1))
def test_a_credential_whose_name_lost_its_begin(lost: int) -> None:
    line = b"\r\nAuthorization: Bearer sesame\r\n\r\n"
    turns: list[Turn] = [(C, b"GET / HTTP/1.1\r\nHost: h"), (C, Gap(2 + lost)), (C, line[2 + lost :])]
    for split in (None, 1):
        assert b"sesame" not in play(Http1, turns, split=split).stored(C)
