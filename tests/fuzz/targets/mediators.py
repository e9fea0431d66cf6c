"""HTTP in a relay's path: an agent and a server say anything; of what is passed on, another reader must make the same.

    options (1 byte: by token, proxy, HTTP/2, connected first), then a dialogue (see `dialogue`)

What holds: nothing is raised; what was said is on record, in its order, masked or not; the rule's credential is said to
the server alone; and h11 (or hpack, of HTTP/2) reads no request to a host that the rule does not permit.
"""

from collections.abc import Iterable
from typing import Final

import h11
from hpack import Decoder

from appliance.dissect.http2_frames import PREFACE
from appliance.model import Direction
from tests.dissect.harness import C, Gap, S
from tests.fuzz import dialogue
from tests.fuzz.dialogue import Turn
from tests.fuzz.targets import Target
from tests.relay.http_play import AGENT, BEARER, BY_TOKEN, LEASE, RULE, Play
from tests.relay.test_http1 import AMBIGUOUS, ANSWERS, HONEST, HOSTILE, OK, SWITCHED, WEBSOCKET
from tests.relay.test_http_credentials import ASKED, CONNECT, PROXIED, TOKEN

PERMITTED: Final = frozenset(("a", "a.example.com"))
SECRET: Final = BEARER.value.reveal().encode()


def check(data: bytes) -> None:
    options, turns = data[:1] or b"\0", dialogue.decode(data[1:])[1]
    by_token, proxied, second, connected = (bool(options[0] & bit) for bit in (1, 2, 4, 8))
    http2 = second and not proxied
    play = Play(
        BY_TOKEN if by_token else RULE,
        connected=(connected or http2) and not proxied,
        tokens={TOKEN: AGENT},
        secret=BEARER,
        identity=LEASE,
        proxied=proxied,
        tls=http2,
        alpn="h2" if http2 else "",
        permits=lambda name: name in PERMITTED,
    )
    said = bytearray()
    for direction, what in turns:
        if play.failed or play.spliced or play.tunnel:
            break
        if isinstance(what, Gap) or (direction is Direction.SERVER and not play.connected):
            continue
        if what is None:
            play.ended(direction)
        elif direction is Direction.SERVER:
            play.server(what)
        elif play.mediator.limit(Direction.CLIENT):
            play.agent(what)
            said += what
    on_record(bytes(play.record[0]), bytes(said))
    for kept in (*play.record, play.to_agent, repr(play.notes).encode()):
        assert SECRET not in kept, "the credential is not for the agent, nor for the record"
    if http2 or play.to_server.startswith(PREFACE):
        read_http2(bytes(play.to_server))
    elif not proxied and not play.spliced:
        read_http1(bytes(play.to_server))


def on_record(kept: bytes, said: bytes) -> None:
    """Byte by byte what was said, but for what is masked: asterisks, or as many characters in Huffman code."""
    assert len(kept) <= len(said)
    if b"*" not in kept and kept[:3] != PREFACE[:3]:
        assert said.startswith(kept)


def read_http1(said: bytes) -> None:
    reader = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    reader.receive_data(said)
    while True:
        event = reader.next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            return
        if isinstance(event, h11.Request):
            hosts = [
                value.decode().rpartition(":")[0] or value.decode() for name, value in event.headers if name == b"host"
            ]
            assert len(hosts) <= 1
            assert all(host.lower() in PERMITTED for host in hosts), "a host that is not permitted"
        if isinstance(event, h11.EndOfMessage):
            reader.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            reader.send(h11.EndOfMessage())
            if reader.our_state is not h11.DONE or reader.their_state is not h11.DONE:
                return
            reader.start_next_cycle()


def read_http2(said: bytes) -> None:
    at, block, decoder = len(PREFACE), b"", Decoder()
    opened = 0
    while at + 9 <= len(said):
        length, kind, flags = int.from_bytes(said[at : at + 3]), said[at + 3], said[at + 4]
        stream = int.from_bytes(said[at + 5 : at + 9])
        if kind in (1, 9):
            block += said[at + 9 : at + 9 + length]
            if flags & 4:
                fields = {str(name): str(value) for name, value in decoder.decode(block)}
                block = b""
                if stream > opened:
                    opened = stream
                    host = fields.get(":authority", fields.get("host", ""))
                    assert host.rpartition(":")[0] in PERMITTED or host.lower() in PERMITTED, "a host not permitted"
                else:
                    assert not any(name.startswith(":") for name in fields)
        at += 9 + length


def seeds() -> Iterable[bytes]:
    for asked, _ in AMBIGUOUS.values():
        yield b"\0" + dialogue.encode([(C, asked), (S, OK)])
    for honest in HONEST.values():
        yield b"\0" + dialogue.encode([(C, honest), (S, OK), (C, honest), (S, None)])
    for asked, said in ANSWERS.values():
        yield b"\0" + dialogue.encode([(C, asked), (S, said), (C, None), (S, None)])
    for said, _ in HOSTILE.values():
        yield b"\x08" + dialogue.encode([(C, HONEST["get"]), (S, said)])
    yield b"\0" + dialogue.encode([(C, WEBSOCKET), (S, SWITCHED)])
    yield b"\1" + dialogue.encode([(C, ASKED), (S, OK)])
    yield b"\2" + dialogue.encode([(C, PROXIED), (S, OK), (C, PROXIED)])
    yield b"\2" + dialogue.encode([(C, CONNECT)])
    yield from (b"\4" + seed for seed in _second())


def _second() -> list[bytes]:
    from tests.relay.test_http2 import GET, OPEN, POST, Agent, broken, data

    agent = Agent()
    fields = [*POST, ("authorization", f"Bearer {TOKEN}"), ("content-length", "3")]
    turns: list[list[Turn]] = [
        [
            (C, OPEN + agent.headers(1, fields)),
            (C, data(1, b"abc", "END_STREAM")),
            (C, agent.headers(3, GET, "END_STREAM")),
        ]
    ]
    turns += [[(C, sent[:4096])] for sent in broken().values()]
    return [dialogue.encode(each) for each in turns]


WORDS: Final = (
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: ", b"\r\n\r\n", b"Host: a\r\n", b"Host: b\r\n",
    b"HTTP/1.1\r\n", b"Upgrade: websocket\r\n", b"Connection: ", b"Expect: 100-continue\r\n", PREFACE,
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"0\r\n\r\n", b"Authorization: Bearer ", TOKEN.encode(), OK, dialogue.MARK + b"\0", dialogue.MARK + b"\1",
)  # fmt: skip
TARGETS: Final = {"http_relay": Target(check, seeds, WORDS)}
