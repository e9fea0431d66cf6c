"""HTTP/2 that is mediated: streams that pass, streams that are answered, connections that end. Sans I/O."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from appliance.dissect.http2 import Http2 as Dissector
from appliance.relay.http2_block import MAX_BLOCK, MAX_FRAMES
from tests.dissect.harness import C
from tests.dissect.harness import play as dissect
from tests.relay.http_play import AGENT, BEARER, BY_TOKEN, CLIENT, KEY, LEASE, SERVER, Play

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhZ2VudC03In0.c2lnbmF0dXJl"
TOKENS = {TOKEN: AGENT}
SETTINGS = SettingsFrame(0).serialize()
OPEN = PREFACE + SETTINGS
Fields = Sequence[tuple[str, str]]
GET: Fields = [(":method", "GET"), (":scheme", "https"), (":path", "/a"), (":authority", "a.example.com")]
POST: Fields = [(":method", "POST"), *GET[1:]]


class Agent:
    """Writes frames with one encoder."""

    def __init__(self, *, huffman: bool = True) -> None:
        self._encoder = Encoder()
        self._huffman = huffman

    def block(self, fields: Fields, *, indexed: bool = True) -> bytes:
        kind = HeaderTuple if indexed else NeverIndexedHeaderTuple
        return bytes(self._encoder.encode([kind(*field) for field in fields], huffman=self._huffman))

    def headers(self, stream: int, fields: Fields, *flags: str, indexed: bool = True) -> bytes:
        block = self.block(fields, indexed=indexed)
        return HeadersFrame(stream, block, flags=["END_HEADERS", *flags]).serialize()

    def get(self, stream: int, *more: tuple[str, str]) -> bytes:
        return self.headers(stream, [*GET, *more], "END_STREAM")


def data(stream: int, content: bytes, *flags: str, padding: int = 0) -> bytes:
    return DataFrame(stream, content, pad_length=padding, flags=[*flags, *(["PADDED"] if padding else [])]).serialize()


def frames(said: bytes | bytearray) -> list[Frame]:
    found, at, view = [], 0, memoryview(bytes(said))
    while at < len(view):
        frame, length = Frame.parse_frame_header(view[at : at + 9])
        frame.parse_body(view[at + 9 : at + 9 + length])
        found.append(frame)
        at += 9 + length
    return found


def heads(said: bytes | bytearray, decoder: Decoder | None = None) -> dict[int, list[tuple[str, str]]]:
    """Fields by stream; each block must be readable by a decoder that has seen those before."""
    decoder = decoder or Decoder()
    found: dict[int, list[tuple[str, str]]] = {}
    block = b""
    for frame in frames(said):
        if isinstance(frame, HeadersFrame | ContinuationFrame):
            block += frame.data
            if "END_HEADERS" in frame.flags:
                found[frame.stream_id] = [(str(name), str(value)) for name, value in decoder.decode(block)]
                block = b""
    return found


def asked(play: Play) -> dict[int, list[tuple[str, str]]]:
    return heads(bytes(play.to_server).removeprefix(PREFACE))


def answered(play: Play) -> dict[int, list[tuple[str, str]]]:
    return heads(play.to_agent)


def begin(*arguments: object, **named: object) -> Play:
    """An agent that has said hello, and a server too."""
    play = Play(*arguments, connected=True, tls=True, alpn="h2", **named)  # type: ignore[arg-type]
    play.agent(OPEN).server(SETTINGS)
    return play


def test_requests_and_their_bodies_pass_on_the_same_streams() -> None:
    agent, server = Agent(), Encoder()
    first = agent.headers(1, [*POST, ("content-length", "6")])
    second = agent.get(3, ("x", "y" * 40000))
    sent = OPEN + first + data(1, b"abc", padding=9) + second + data(1, b"def", "END_STREAM") + PingFrame(0).serialize()
    said = SETTINGS + HeadersFrame(3, server.encode([(":status", "200")]), flags=["END_HEADERS"]).serialize()
    said += data(3, b"ok", "END_STREAM") + WindowUpdateFrame(0, 9).serialize()
    for seed in range(40):
        chance = random.Random(seed)
        play = Play(connected=True, tls=True, alpn="h2")
        at = 0
        while at < len(sent):
            size = chance.choice((1, 9, 40, 17000)) if seed else len(sent)
            play.agent(sent[at : at + size])
            at += size
        play.server(*(said[at : at + 1] for at in range(len(said))))
        found = asked(play)
        assert found[1] == [*POST, ("content-length", "6")]
        assert found[3] == [*GET, ("x", "y" * 40000)]
        assert b"".join(f.data for f in frames(play.to_server[24:]) if isinstance(f, DataFrame)) == b"abcdef"
        assert bytes(play.record[0]) == sent, "the agent's own bytes"
        assert bytes(play.record[1]) == bytes(play.to_agent) == said
        assert not play.notes


def test_in_clear_the_server_is_connected_by_the_preface() -> None:
    play = Play().agent(PREFACE[:10], PREFACE[10:] + SETTINGS + Agent().get(1))
    assert len(play.dials) == 1
    assert play.to_server.startswith(OPEN)
    assert 1 in asked(play)
    trailing = Play().agent(OPEN)
    assert len(trailing.dials) == 1, "a client may wait for the server's settings"


def test_tokens_say_who_and_end_here() -> None:
    for huffman in (False, True):
        for indexed in (False, True):
            agent = Agent(huffman=huffman)
            play = begin(BY_TOKEN, tokens=TOKENS, secret=BEARER)
            sent = b""
            for stream in (1, 3, 5):
                fields = [*GET, ("authorization", f"Bearer {TOKEN}"), ("n", str(stream))]
                sent += agent.headers(stream, fields, "END_STREAM", indexed=indexed)
            play.agent(sent)
            assert play.identities == [AGENT] * 3
            for fields in asked(play).values():
                assert [value for name, value in fields if name == "authorization"] == ["Bearer real-key-of-the-shop"]
            assert TOKEN.encode() not in play.to_server
            kept = bytes(play.record[0])
            assert len(kept) == len(OPEN + sent)
            for form in (TOKEN.encode(), bytes(Agent().block([("x", f"Bearer {TOKEN}")]))[4:20]):
                assert form not in kept
            read = [m for m in dissect(Dissector, [(C, kept)]).messages if m.kind == "request"]
            assert [message.attrs["stream"] for message in read] == [1, 3, 5], "the record can be read still"
            assert not any("malformed" in message.flags for message in read)
            assert '["n", "5"]' in json.dumps(read[2].attrs)


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("header", ["x-api-key", "x-shop-key"])
def test_a_token_in_the_field_of_the_rules_credential(header: str, huffman: bool) -> None:
    for indexed in (False, True):
        agent = Agent(huffman=huffman)
        play = begin(BY_TOKEN, tokens=TOKENS, secret=replace(KEY, header=header))
        sent = b""
        for stream, value in ((1, TOKEN), (3, TOKEN), (5, "nobody")):
            sent += agent.headers(stream, [*GET, (header, value)], "END_STREAM", indexed=indexed)
        play.agent(sent)
        assert play.identities == [AGENT] * 2
        assert play.declined == [401]
        assert [dict(fields)[header] for fields in asked(play).values()] == ["real-key-of-the-shop"] * 2
        kept = bytes(play.record[0])
        assert len(kept) == len(OPEN + sent)
        for form in (TOKEN.encode(), bytes(Agent().block([("x", TOKEN)]))[6:20], b"nobody"):
            assert form not in kept
            assert form not in play.to_server


@pytest.mark.parametrize("huffman", [False, True])
def test_the_record_keeps_dynamic_tables_as_they_are(huffman: bool) -> None:
    """Tokens of all lengths, which push each other out of the table: what a decoder makes of the record is the same."""
    chance, agent, sent = random.Random(7), Agent(huffman=huffman), b""
    said = []
    for number in range(60):
        length = chance.choice((1, 20, 118, 119, 120, 126, 127, 128, 160, 700, 1700))
        alphabet = chance.choice(("eyJ0123456789abcXYZ._-~+/=", "<{|}"))  # of short codes, of long ones
        token = "".join(chance.choice(alphabet) for _ in range(length))
        said.append([*GET, ("authorization", f"Bearer {token}"), (f"x-{number % 7}", str(number % 3))])
        sent += agent.headers(1 + 2 * number, said[-1], "END_STREAM")
    play = begin(BY_TOKEN, secret=KEY).agent(sent)
    read = heads(bytes(play.record[0])[len(PREFACE) :])
    assert len(read) == len(said)
    for fields, found in zip(said, read.values(), strict=True):
        assert [field for field in found if field[0] != "authorization"] == [
            f for f in fields if f[0] != "authorization"
        ]
        (shown,) = [value for name, value in found if name == "authorization"]
        assert len(shown) == len(dict(fields)["authorization"])
        assert set(shown) <= set("*0<")


def test_without_a_good_token_a_stream_is_answered_and_others_go_on() -> None:
    agent = Agent()
    fields = [*POST, ("authorization", "Bearer nobody")]
    play = begin(BY_TOKEN, tokens=TOKENS, identity=LEASE)
    play.agent(agent.headers(1, fields), agent.get(3), agent.get(5, ("authorization", f"Bearer {TOKEN}")))
    assert {stream: dict(fields)[":status"] for stream, fields in answered(play).items()} == {1: "401", 3: "401"}
    assert list(asked(play)) == [5]
    assert play.declined == [401, 401]
    before = len(play.to_server)
    play.agent(data(1, b"x" * 500, "END_STREAM"), WindowUpdateFrame(1, 5).serialize(), RstStreamFrame(3, 8).serialize())
    assert len(play.to_server) == before, "the server never heard of these streams"
    credits = [frame for frame in frames(play.to_agent) if isinstance(frame, WindowUpdateFrame)]
    assert [(frame.stream_id, frame.window_increment) for frame in credits] == [(0, 500)]
    resets = [frame.stream_id for frame in frames(play.to_agent) if isinstance(frame, RstStreamFrame)]
    assert resets == [1], "its body is not wanted"


def test_the_gateways_answer_stands_between_the_servers_frames() -> None:
    agent = Agent()
    play = begin(permits=lambda name: name == "a.example.com")
    play.agent(agent.get(1))
    play.server(data(1, b"12345678")[:11])
    play.agent(agent.headers(3, [*GET[:3], (":authority", "b.example.com")], "END_STREAM"))
    assert len(play.to_agent) == len(SETTINGS) + 11
    play.server(data(1, b"12345678")[11:])
    *_, whole, own = frames(play.to_agent)
    assert isinstance(whole, DataFrame)
    assert whole.data == b"12345678"
    assert own.stream_id == 3
    assert dict(answered(play)[3])[":status"] == "421"
    early = Play(BY_TOKEN, connected=True, tls=True, alpn="h2").agent(OPEN + Agent().get(1))
    assert not early.to_agent, "the server's settings come first"
    assert [type(frame) for frame in frames(early.server(SETTINGS).to_agent)] == [SettingsFrame, HeadersFrame]


def test_the_rules_credential() -> None:
    play = begin(secret=KEY).agent(Agent().get(1, ("x-api-key", "dummy")))
    assert [value for name, value in asked(play)[1] if name == "x-api-key"] == ["real-key-of-the-shop"]
    assert b"real" not in bytes(play.record[0]) + bytes(play.to_agent)


AMBIGUOUS: dict[str, tuple[Fields, str]] = {
    "transfer coding": ([*POST, ("transfer-encoding", "chunked")], "connection-field"),
    "connection": ([*GET, ("connection", "x")], "connection-field"),
    "upgrade": ([*GET, ("upgrade", "websocket")], "connection-field"),
    "te": ([*GET, ("te", "gzip")], "connection-field"),
    "line break": ([*GET, ("x", "a\r\nTransfer-Encoding: chunked")], "line-break"),
    "line break in a name": ([*GET, ("x\r\ny", "a")], "line-break"),
    "NUL": ([*GET, ("x", "a\0")], "line-break"),
    "upper case": ([*GET, ("Content-Length", "4")], "field-name"),
    "blank in a name": ([*GET, ("transfer-encoding ", "chunked")], "field-name"),
    "colon in a name": ([*GET, ("x:y", "chunked")], "field-name"),
    "two authorities": ([*GET, (":authority", "b")], "pseudo-field"),
    "another Host": ([*GET, ("host", "b.example.com")], "authority"),
    "two Hosts": ([*GET, ("host", "a.example.com"), ("host", "a.example.com")], "authority"),
    "no authority": (GET[:3], "authority"),
    "a user": ([*GET[:3], (":authority", "u@a")], "authority"),
    "pseudo-field behind": ([*GET[:3], ("x", "y"), GET[3]], "pseudo-field"),
    "unknown pseudo-field": ([*GET, (":x", "y")], "pseudo-field"),
    "status": ([*GET, (":status", "200")], "pseudo-field"),
    "no method": (GET[1:], "pseudo-field"),
    "a method of two words": ([(":method", "GET / HTTP/1.1"), *GET[1:]], "pseudo-field"),
    "a path of two words": ([*GET[:2], (":path", "/ HTTP/1.1"), GET[3]], "target"),
    "no path": ([*GET[:2], (":path", ""), GET[3]], "target"),
    "a tunnel": ([(":method", "CONNECT"), *GET[1:]], "target"),
    "two lengths": ([*POST, ("content-length", "1"), ("content-length", "2")], "cl-conflict"),
    "no number": ([*POST, ("content-length", "+1")], "cl-invalid"),
    "length of nothing": ([*POST, ("content-length", "1")], "cl-mismatch"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_request_ends_its_stream(name: str) -> None:
    fields, case = AMBIGUOUS[name]
    agent = Agent()
    play = begin().agent(agent.headers(1, fields, "END_STREAM"), agent.get(3))
    assert play.cases == [case]
    assert dict(answered(play)[1])[":status"] == "400"
    assert list(asked(play)) == [3]
    assert play.failed is None
    assert not play.shut


def test_a_protocol_within_a_stream() -> None:
    fields = [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:]]
    play = begin().agent(Agent().headers(1, fields)).agent(data(1, b"\x81\x80abcd"))
    assert asked(play)[1] == fields
    assert play.to_server.endswith(b"\x81\x80abcd")


def broken() -> dict[str, bytes]:
    head = HeadersFrame(1, Agent().block(GET), flags=[]).serialize()
    opened = Agent().headers(1, [*POST, ("content-length", "3")])
    bomb = Encoder()
    bomb.header_table_size = 4096
    big = [("x", "y" * 3000)]
    bombed = b"".join(
        HeadersFrame(n, bomb.encode([*GET, *big * 40]), flags=["END_HEADERS", "END_STREAM"]).serialize() for n in (1,)
    )
    return {
        "no preface": b"GET / HTTP/1.1\r\n",
        "a frame within a block": OPEN + head + SETTINGS,
        "another stream's part": OPEN + head + ContinuationFrame(3, b"").serialize(),
        "a part of nothing": OPEN + ContinuationFrame(1, b"").serialize(),
        "a flood of parts": OPEN + head + ContinuationFrame(1, b"").serialize() * MAX_FRAMES,
        "a long block": OPEN + head + ContinuationFrame(1, b"x" * 16000).serialize() * (MAX_BLOCK // 16000 + 1),
        "a bomb": OPEN + bombed,
        "garbage": OPEN + HeadersFrame(1, b"\xff\xff\xff\xff\xff\xff", flags=["END_HEADERS"]).serialize(),
        "an index of nothing": OPEN + HeadersFrame(1, b"\xfe", flags=["END_HEADERS"]).serialize(),
        "padding": OPEN + b"\0\0\x02\x01\x0c\0\0\0\x01\xff\x82",
        "padding of data": OPEN + opened + b"\0\0\x02\0\x08\0\0\0\x01\xffx",
        "a server's stream": OPEN + Agent().get(2),
        "stream 0": OPEN + Agent().get(1).replace(b"\0\0\0\x01", b"\0\0\0\0", 1),
        "a body of nothing": OPEN + data(1, b"x"),
        "a window of nothing": OPEN + WindowUpdateFrame(5, 1).serialize(),
        "settings of a stream": OPEN + b"\0\0\0\x04\0\0\0\0\x01",
        "settings of a wrong size": OPEN + b"\0\0\x05\x04\0\0\0\0\0abcde",
        "a promise": OPEN + b"\0\0\x04\x05\x04\0\0\0\x01\0\0\0\x02",
        "a huge frame": OPEN + b"\xff\xff\xff\x01\x04\0\0\0\x01",
        "a body longer than said": OPEN + opened + data(1, b"abcd"),
        "a body shorter than said": OPEN + opened + data(1, b"ab", "END_STREAM"),
        "a body behind its end": OPEN + Agent().get(1) + data(1, b"x"),
        "a second head": OPEN + opened + Agent().headers(1, GET),
        "trailers that decide": OPEN + opened + data(1, b"abc") + Agent().headers(1, [("host", "b")], "END_STREAM"),
    }


@pytest.mark.parametrize("name", broken())
def test_what_breaks_the_connection(name: str) -> None:
    sent = broken()[name]
    for step in (len(sent), 7):
        play = Play(connected=True, tls=True, alpn="h2").server(SETTINGS)
        play.agent(*(sent[at : at + step] for at in range(0, len(sent), step)))
        last = frames(play.to_agent)[-1]
        assert isinstance(last, GoAwayFrame)
        assert last.error_code == 1
        assert play.hung_up == 1
        assert play.shut == [CLIENT]
        assert bytes(play.record[0]) == sent
        play.ended(CLIENT)
        assert play.refused in ("malformed", "smuggling")


def test_trailers_pass() -> None:
    agent = Agent()
    play = begin().agent(agent.headers(1, POST), data(1, b"x"), agent.headers(1, [("x", "y")], "END_STREAM"))
    assert asked(play)[1] == [("x", "y")]
    agent = Agent()
    late = begin().agent(agent.headers(1, POST)).server(RstStreamFrame(1, 8).serialize())
    late.agent(data(1, b"x"), agent.headers(1, [("x", "y")], "END_STREAM"), agent.get(3))
    assert list(asked(late)) == [1, 3], "trailers of a stream that was reset are for nobody"


def test_a_server_that_does_not_speak_it() -> None:
    play = Play(connected=True, tls=True, alpn="h2").agent(OPEN + Agent().get(1))
    play.server(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert dict(answered(play)[1])[":status"] == "502"
    assert play.ended(CLIENT).refused


def test_a_server_that_ends_too_soon() -> None:
    agent = Agent()
    play = begin().agent(agent.get(1), agent.get(3))
    play.server(HeadersFrame(1, Encoder().encode([(":status", "200")]), flags=["END_HEADERS"]).serialize())
    play.ended(SERVER)
    assert {stream: dict(fields)[":status"] for stream, fields in answered(play).items()} == {1: "200", 3: "502"}
    assert play.ended(CLIENT).refused


def test_grpc_is_answered_in_its_own_words() -> None:
    play = begin(BY_TOKEN).agent(Agent().headers(1, [*POST, ("content-type", "application/grpc")]))
    fields = dict(answered(play)[1])
    assert (fields[":status"], fields["grpc-status"]) == ("200", "16")
    assert "access token" in fields["grpc-message"]


@pytest.mark.parametrize(("reason", "status"), [("shutdown", "503"), ("idle", "408"), ("lease-ended", "403")])
def test_an_end_from_outside(reason: str, status: str) -> None:
    play = begin().agent(Agent().get(1)).stop(reason)
    assert dict(answered(play)[1])[":status"] == status
    assert isinstance(frames(play.to_agent)[-1], GoAwayFrame)
    assert play.failed is not None


def test_settings_that_would_fill_memory_are_lowered() -> None:
    play = Play(connected=True, tls=True, alpn="h2").agent(OPEN)
    play.server(SettingsFrame(0, {1: 1 << 30, 3: 100}).serialize())
    (said,) = frames(play.to_agent)
    assert isinstance(said, SettingsFrame)
    assert said.settings == {1: 1 << 16, 3: 100}


def test_streams_at_one_time_are_bounded() -> None:
    agent = Agent()
    play = begin().agent(*(agent.get(1 + 2 * number) for number in range(1030)))
    assert len(asked(play)) == 1024
    assert [f.error_code for f in frames(play.to_agent) if isinstance(f, RstStreamFrame)] == [7] * 6
