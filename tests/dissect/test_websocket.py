"""WebSocket: frames, messages, permessage-deflate, faults. A real server and client: test_http2_live.py."""

import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.extensions import PerMessageDeflate

from appliance.dissect.conversation import Conversation
from appliance.dissect.websocket import WebSocket
from appliance.dissect.websocket_deflate import MAX_FOLLOWED, MAX_INFLATED, WINDOW, Inflater
from appliance.dissect.websocket_frames import MAX_FAULTS, MAX_MESSAGE, unmasked
from appliance.model import Direction, Message
from tests.dissect.harness import C, Gap, S, Turn, assert_any_cut, assert_survives, assert_truncated, outcome, play

DEFLATE = "permessage-deflate"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes = b"", bits: int = 0) -> bytes:
    first = bytes([(0x80 if fin else 0) | bits | opcode])
    masked = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        length = bytes([masked | size])
    elif size < 1 << 16:
        length = bytes([masked | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([masked | 127]) + size.to_bytes(8, "big")
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else payload
    return first + length + mask + body


MASK = b"\x11\x22\x33\x44"


def spoken(extensions: str | None = "") -> WebSocket:
    dissector = WebSocket()
    if extensions is not None:
        dissector.inherit({"extensions": extensions})
    return dissector


def peers(extensions: str = "") -> tuple[Connection, Connection]:
    """wsproto's two ends behind a handshake that agreed on `extensions`."""
    both = []
    for side in (ConnectionType.CLIENT, ConnectionType.SERVER):
        deflate = PerMessageDeflate()
        if extensions:
            if side is ConnectionType.CLIENT:
                deflate.finalize(extensions)
            else:
                deflate.accept(extensions)
        both.append(Connection(side, [deflate] if extensions else []))
    return both[0], both[1]


SAID: list[tuple[Direction, Event]] = [
    (C, TextMessage("hello")),
    (S, TextMessage("größer", message_finished=False)),
    (S, Ping(b"are you there")),
    (S, TextMessage(" hello", message_finished=False)),
    (C, Pong(b"are you there")),
    (S, TextMessage("!")),
    (C, BytesMessage(bytes(10) + b"readable part")),
    (C, TextMessage("hello hello hello hello")),
    (S, TextMessage("")),
    (S, CloseConnection(1001, "good bye")),
    (C, CloseConnection(1001)),
]


def dialogue(extensions: str) -> list[Turn]:
    client, server = peers(extensions)
    return [(whose, (client if whose is C else server).send(event)) for whose, event in SAID]


@pytest.mark.parametrize(
    "extensions",
    [
        "",
        DEFLATE,
        f"{DEFLATE}; client_no_context_takeover",
        f"{DEFLATE}; server_no_context_takeover; client_no_context_takeover",
        f"{DEFLATE}; server_max_window_bits=10; client_max_window_bits=9",
    ],
)
def test_any_cut(extensions: str) -> None:
    turns = dialogue(extensions)
    played = assert_any_cut(lambda: spoken(extensions), turns)
    assert [(m.direction, m.kind, m.text) for m in played.messages] == [
        (C, "text", "hello"),
        (S, "ping", "are you there"),
        (C, "pong", "are you there"),
        (S, "text", "größer hello!"),
        (C, "binary", "readable part"),
        (C, "text", "hello hello hello hello"),
        (S, "text", ""),
        (S, "close", "1001 going away good bye"),
        (C, "close", "1001 going away"),
    ]
    assert all(m.flags == () for m in played.messages)
    assert all(bool(m.attrs.get("compressed")) is bool(extensions) for m in played.messages if m.kind == "text")
    fragmented = played.messages[3]
    assert fragmented.attrs["frames"] == 3
    whole = b"".join(what for whose, what in turns if whose is S and isinstance(what, bytes))
    assert whole.startswith(played.bytes_of(fragmented))
    assert_truncated(lambda: spoken(extensions), turns)


def test_behind_http() -> None:
    extensions = f"{DEFLATE}; server_no_context_takeover"
    turns: list[Turn] = [
        (
            C,
            b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n",
        ),
        (
            S,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: " + extensions.encode() + b"\r\n\r\n",
        ),
        *dialogue(extensions),
    ]
    played = assert_any_cut(Conversation, turns, step=3)
    assert [m.text for m in played.messages if m.kind == "text"] == [
        "hello",
        "größer hello!",
        "hello hello hello hello",
        "",
    ]
    attrs = played.dissector.attrs
    assert (attrs["protocols"], attrs["subprotocol"], attrs["extensions"]) == (
        ["http1", "websocket"],
        "chat",
        extensions,
    )
    assert played.dissector.protocol_of(played.messages[-1]) == "websocket"


class TestDeflate:
    def pack(self, *messages: bytes) -> Iterator[bytes]:
        shared = zlib.compressobj(9, zlib.DEFLATED, -15)
        for message in messages:
            yield (shared.compress(message) + shared.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")

    def test_context_beyond_the_window(self) -> None:
        messages = [bytes([65 + n % 26]) * 1000 + b"%d" % n for n in range(100)]
        inflater = Inflater(C, DEFLATE)
        assert [inflater.inflate(one, whole=True).data for one in self.pack(*messages)] == messages
        assert inflater.held == WINDOW

    def test_blocks_that_end_the_stream(self) -> None:
        """RFC 7692 §7.2.3.5."""
        packed = b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00"
        assert Inflater(C, DEFLATE).inflate(packed, whole=True) == (b"Hello", ())

    def test_a_lost_message_is_never_guessed(self) -> None:
        first, second, third = self.pack(b"some words to repeat", b"some words to repeat", b"\x00\x01\x02 fresh")
        inflater = Inflater(C, DEFLATE)
        inflater.inflate(first, whole=True)
        inflater.lose()
        assert inflater.inflate(second, whole=True) == (b"", ("undecoded",))
        assert inflater.inflate(third, whole=True) == (b"\x00\x01\x02 fresh", ())

    def test_bomb(self) -> None:
        (packed,) = self.pack(bytes(100 << 20))
        inflater = Inflater(C, DEFLATE)
        read = inflater.inflate(packed, whole=True)
        assert (len(read.data), read.flags) == (MAX_INFLATED, ("truncated",))
        assert inflater.held == 0

    def test_context_goes_on_behind_a_long_message(self) -> None:
        long, after = self.pack(bytes(MAX_FOLLOWED // 2) + b"remember this text", b"remember this text")
        inflater = Inflater(C, DEFLATE)
        assert inflater.inflate(long, whole=True).flags == ("truncated",)
        assert inflater.inflate(after, whole=True) == (b"remember this text", ())

    def test_not_agreed(self) -> None:
        played = play(lambda: spoken(""), [(S, frame(1, b"\xff\xff", bits=0x40))])
        assert played.messages[0].flags == ("malformed", "undecoded")

    def test_nobody_knows(self) -> None:
        (packed,) = self.pack(b"was it agreed?")
        played = play(lambda: spoken(None), [(S, frame(1, packed, bits=0x40))])
        assert (played.messages[0].text, played.messages[0].flags) == ("was it agreed?", ())


@pytest.mark.parametrize(
    ("whose", "bad"),
    [
        (C, frame(1, b"unmasked")),
        (S, frame(1, b"masked", mask=MASK)),
        (S, frame(0, b"continues nothing")),
        (S, frame(9, b"x" * 126)),
        (S, frame(9, b"fragmented", fin=False)),
        (S, frame(1, b"reserved", bits=0x20)),
        (S, frame(1, b"\xff\xfe")),
        (S, frame(8, b"\x03")),
        (S, b"\x81\x7e\x00\x05short"),
    ],
)
def test_broken_rules_are_said(whose: Direction, bad: bytes) -> None:
    mask = MASK if whose is C else b""
    played = assert_any_cut(spoken, [(whose, bad + frame(1, b"after", mask=mask))])
    assert played.messages[0].flags == ("malformed",)
    assert (played.messages[1].text, played.messages[1].flags) == ("after", ())


def test_message_within_a_message() -> None:
    turns: list[Turn] = [(S, frame(1, b"never ends", fin=False) + frame(1, b"next"))]
    said = [(m.text, m.flags) for m in assert_any_cut(spoken, turns).messages]
    assert said == [("never ends", ("malformed", "truncated")), ("next", ("malformed",))]


def test_no_frames() -> None:
    turns: list[Turn] = [(S, b"HTTP/1.1 200 OK\r\n\r\n" + frame(1, b"a") + frame(2, b"b") + frame(1, b"c"))]
    played = assert_any_cut(spoken, turns)
    assert [(m.kind, m.text) for m in played.messages] == [
        ("frame", ""),
        ("data", "TP/1.1 200 OK\r\n\r\n"),
        ("text", "a"),
        ("binary", "b"),
        ("text", "c"),
    ]
    assert played.messages[0].attrs["fault"] == "reserved bits"


class TestGap:
    def test_within_a_payload(self) -> None:
        sent = frame(1, b"0123456789", mask=MASK) + frame(1, b"after", mask=MASK)
        played = assert_any_cut(spoken, [(C, sent[:9]), (C, Gap(4)), (C, sent[13:])])
        assert [(m.text, m.flags) for m in played.messages] == [("012789", ("gap", "truncated")), ("after", ())]
        assert played.messages[0].attrs["bytes"] == 10

    def test_beyond(self) -> None:
        sent = frame(1, b"0123456789", mask=MASK)
        after = [frame(1, b"number %d" % n, mask=MASK) for n in range(4)]
        played = assert_any_cut(spoken, [(C, sent[:9]), (C, Gap(20)), (C, b"rest" + b"".join(after))])
        assert [m.text for m in played.messages if m.kind == "text"][1:] == [f"number {n}" for n in range(4)]
        assert played.dissector.attrs["degraded"] is True

    def test_anywhere(self) -> None:
        turns = dialogue(DEFLATE)
        for number in range(len(turns) + 1):
            for whose in (C, S):
                play(lambda: spoken(DEFLATE), [*turns[:number], (whose, Gap(3)), *turns[number:]], split=2)


class TestBounds:
    def test_long_message(self) -> None:
        sent = frame(2, bytes(3 * MAX_MESSAGE), mask=MASK)
        dissector = spoken()
        out = []
        for at in range(0, len(sent), 65536):
            out += dissector.receive(C, sent[at : at + 65536], 1)
            assert dissector.held <= 2 * MAX_MESSAGE
        assert [(item.flags, item.attrs["bytes"]) for item in out if isinstance(item, Message)] == [
            (("truncated",), 3 * MAX_MESSAGE)
        ]

    def test_message_without_end(self) -> None:
        dissector = spoken()
        for _ in range(5000):
            dissector.receive(S, frame(1, b"x" * 1000, fin=False)[:1002], 1)
            assert dissector.held <= 2 * MAX_MESSAGE

    def test_faults(self) -> None:
        played = play(spoken, [(S, (b"\x8f\x00" + frame(1, b"") * 4) * (3 * MAX_FAULTS))])
        assert played.kinds().count("frame") == MAX_FAULTS

    def test_shed(self) -> None:
        dissector = spoken(DEFLATE)
        sent = frame(2, bytes(100_000), mask=MASK)
        dissector.receive(C, sent[:50_000], 1)
        dissector.shed()
        assert dissector.held == 0
        (message,) = dissector.receive(C, sent[50_000:], 2)
        assert message.end == len(sent)
        assert getattr(message, "flags", ()) == ("truncated",)


@given(st.binary(max_size=40), st.binary(min_size=4, max_size=4), st.integers(0, 9))
def test_unmasked(data: bytes, key: bytes, turn: int) -> None:
    plain = bytes(byte ^ key[(at + turn) % 4] for at, byte in enumerate(data))
    assert unmasked(data, int.from_bytes(key, "big"), turn) == plain


TURNS = st.lists(
    st.tuples(
        st.sampled_from([C, S]),
        st.one_of(
            st.builds(
                frame,
                st.integers(0, 15),
                st.binary(max_size=140),
                fin=st.booleans(),
                mask=st.sampled_from([b"", MASK]),
                bits=st.sampled_from([0, 0, 0x40, 0x10]),
            ),
            st.binary(max_size=20),
            st.integers(1, 50).map(Gap),
        ),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(TURNS, st.sampled_from(["", DEFLATE, None]))
def test_cut_does_not_matter(turns: list[Turn], extensions: str | None) -> None:
    whole = play(lambda: spoken(extensions), turns)
    pieces = assert_survives(lambda: spoken(extensions), turns, split=1)
    assert outcome(whole) == outcome(pieces)
