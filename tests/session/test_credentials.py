"""No credential is in any row, whatever happens to the session that it is in: eviction, lost state, gaps, copies."""

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from appliance.dissect.http1 import Http1
from appliance.dissect.postgres import Postgres
from appliance.journal import FrameKind
from appliance.model import Direction, Ending, Row
from tests.session.traffic import MS, PSH, SECOND, T0, Peer, Recorded, assembler, feed, frame, run, span

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
WEB = Peer(server_port=80)
DB = Peer()
OTHER = Peer(client="10.0.0.9")
SECRET = b"hunter2-kX93sQ"
FORM = b"grant_type=client_credentials&client_id=robot&client_secret=" + SECRET + b"&scope=read"
POST = b"POST /token HTTP/1.1\r\nHost: idp\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
TOKEN_REQUEST = POST % (b"application/x-www-form-urlencoded", len(FORM)) + FORM
HEAD = b"GET /a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + SECRET + b"\r\nAccept: */*\r\n\r\n"
ANSWER = b'{\n "token_type": "Bearer",\n "access_token": "' + SECRET + b'"\n}\n'
GRANTED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
GRANTED += b"%x\r\n" % len(ANSWER) + ANSWER + b"\r\n0\r\n\r\n"
STARTUP = struct.pack("!II", 20, 3 << 16) + b"user\0alice\0\0"
PASSWORD = b"p" + struct.pack("!I", 4 + len(SECRET) + 1) + SECRET + b"\0"
ASKS = b"R" + struct.pack("!II", 8, 3)
READY = b"R" + struct.pack("!II", 8, 0) + b"Z\0\0\0\x05I"
QUERY = b"Q" + struct.pack("!I", 4 + 9) + b"SELECT 1\0"
DONE = b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I"


def conversation(peer: Peer, turns: Sequence[tuple[Direction, bytes]], since: int = SECOND) -> list[bytes]:
    """Each turn as one packet, 10 ms apart, that acknowledges what came."""
    sent = {CLIENT: 0, SERVER: 0}
    packets = []
    for number, (direction, data) in enumerate(turns):
        side = 0 if direction is CLIENT else 1
        at, acked = sent[direction], sent[direction.other]
        packets.append(peer.packet(side, PSH, at, data, acked=acked, time=since + number * 10 * MS))
        sent[direction] += len(data)
    return packets


def said(rows: Sequence[Row]) -> str:
    return "\n".join(map(repr, rows))


def assert_kept_secret(found: Recorded) -> None:
    everything = said(found.rows)
    for size in range(6, len(SECRET) + 1):
        assert SECRET[-size:].decode() not in everything, "the end of the secret is in a row"
    assert SECRET[:6].decode() not in everything, "the begin of the secret is in a row"


def cut(turns: Sequence[tuple[Direction, bytes]], at: int) -> list[tuple[Direction, bytes]]:
    """The turn that holds the secret in two packets: cut `at` bytes behind the secret's begin."""
    out: list[tuple[Direction, bytes]] = []
    for direction, data in turns:
        place = data.find(SECRET) + at
        out += [(direction, data)] if SECRET not in data else [(direction, data[:place]), (direction, data[place:])]
    return out


def evicted(peer: Peer, turns: Sequence[tuple[Direction, bytes]], number: int) -> Recorded:
    """Only one session may be open; another one begins behind `number` packets."""
    packets = conversation(peer, turns)
    other = OTHER.handshake(time=SECOND + number * 10 * MS - 5 * MS)[:1]
    found = run([*peer.handshake(), *packets[:number], *other, *packets[number:]], max_sessions=1)
    assert len(found.sessions) == 3
    return found


HTTP = {
    "form": [(CLIENT, TOKEN_REQUEST), (SERVER, GRANTED.replace(SECRET, b"x")), (CLIENT, HEAD.replace(SECRET, b"x"))],
    "head": [(CLIENT, HEAD), (SERVER, b"HTTP/1.1 204 No Content\r\n\r\n"), (CLIENT, HEAD.replace(SECRET, b"x"))],
    "answer": [(CLIENT, TOKEN_REQUEST.replace(SECRET, b"z" * len(SECRET))), (SERVER, GRANTED), (CLIENT, HEAD[:30])],
}


@pytest.mark.parametrize("at", [-len(b"ient_secret="), -4, 0, 3, 8])
@pytest.mark.parametrize("what", HTTP)
def test_eviction_within_a_credential_of_http(what: str, at: int) -> None:
    turns = cut(HTTP[what], at)
    first = next(
        number for number, (_, data) in enumerate(turns) if number and turns[number - 1][0] is turns[number][0]
    )
    found = evicted(WEB, turns, first)
    assert_kept_secret(found)
    after = found.sessions[-1]
    assert after.protocol == "http1"
    assert "redacted" in after.findings


def test_a_connection_is_dissected_on_behind_an_eviction() -> None:
    turns = [(CLIENT, HEAD), (SERVER, b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"text " * 800)]
    later = [
        (SERVER, b"text " * 999 + b"end.\n"),
        (CLIENT, HEAD),
        (SERVER, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ]
    found = evicted(WEB, [*turns, *later], 2)
    assert_kept_secret(found)
    after = found.sessions[-1]
    assert sorted(row.message.kind for row in found.messages(after)) == ["data", "request", "response"]
    assert found.stream(SERVER, after)[:4995] == b"text " * 999


LOGIN = [(CLIENT, STARTUP), (SERVER, ASKS), (CLIENT, PASSWORD), (SERVER, READY), (CLIENT, QUERY), (SERVER, DONE)]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("at", [-5, -3, 0, 5])
def test_eviction_while_postgres_logs_in(number: int, at: int) -> None:
    found = evicted(DB, cut(LOGIN, at), number)
    assert_kept_secret(found)
    assert found.sessions[-1].protocol == "postgres"
    assert "query" in [row.message.kind for row in found.messages(found.sessions[-1])]


def test_eviction_behind_the_log_in_of_postgres_costs_no_bytes() -> None:
    data = b"d" + struct.pack("!I", 4 + 200) + b"1\tone\n" * 33 + b"2\n"
    copy = [(CLIENT, b"Q\0\0\0\x16COPY t FROM STDIN\0"), (SERVER, b"G\0\0\0\x07\0\0\0"), (CLIENT, data * 20)]
    turns = [*LOGIN, *copy, (CLIENT, data * 20), (CLIENT, data * 20)]
    found = evicted(DB, turns, len(LOGIN) + 3)
    after = found.sessions[-1]
    assert (after.protocol, after.attrs["midstream"]) == ("postgres", True)
    assert "redacted" not in after.findings
    assert found.stream(CLIENT, after) == data * 40
    assert {row.message.kind for row in found.messages(after)} == {"copy"}


def test_eviction_of_what_was_raw_or_tls_goes_on_as_that() -> None:
    words = [(CLIENT, b"\1hello there " + SECRET), (SERVER, b"\2hi"), (CLIENT, SECRET * 3), (SERVER, b"bye")]
    found = evicted(DB, words, 2)
    assert found.stream(CLIENT, found.sessions[-1]) == SECRET * 3
    record = b"\x17\3\3\0\x20" + bytes(range(32))
    hello = b"\x16\3\1\0\x2d\1\0\0\x29\3\3" + bytes(32) + b"\0\0\2\x13\1\1\0"
    found = evicted(DB, [(CLIENT, hello), (CLIENT, record), (SERVER, record), (CLIENT, record), (SERVER, record)], 3)
    assert found.sessions[-1].protocol == "tls"


def test_a_new_connection_between_the_same_ports_owes_nothing() -> None:
    packets = conversation(WEB, cut(HTTP["form"], 3))[:1]
    other = OTHER.handshake(time=2 * SECOND)[:1]
    again = Peer(server_port=80, client_isn=70_000, server_isn=80_000)
    plain = conversation(again, [(CLIENT, b"\1plain words")], since=4 * SECOND)
    found = run([*WEB.handshake(), *packets, *other, *again.handshake(time=3 * SECOND), *plain], max_sessions=1)
    assert found.stream(CLIENT, found.sessions[-1]) == b"\1plain words"
    assert found.sessions[-1].protocol == "raw"


def test_the_order_of_the_peers_may_be_unknown_behind_an_eviction() -> None:
    """The server speaks first then, and the ports don't tell: who is the client turns round."""
    peer = Peer(client_port=8080, server_port=61000)
    turns = cut(HTTP["form"], 3)
    found = evicted(peer, turns, 1)
    assert_kept_secret(found)


def midstream(peer: Peer, turns: Sequence[tuple[Direction, bytes]]) -> Recorded:
    """The start is not in the capture; nor is anything known of it: a snapshot that was lost."""
    return run(conversation(peer, turns))


@pytest.mark.parametrize("at", [-len(b"client_secret="), -len(b"ient_secret="), -1, 0, 3])
def test_pick_up_within_a_form(at: int) -> None:
    rest = TOKEN_REQUEST[TOKEN_REQUEST.find(SECRET) + at :]
    turns = [(CLIENT, rest), (SERVER, GRANTED), (CLIENT, HEAD), (SERVER, b"HTTP/1.1 204 No Content\r\n\r\n")]
    found = midstream(WEB, turns)
    everything = said(found.rows)
    assert SECRET[3:].decode() not in everything
    assert "redacted" in found.session.findings


@pytest.mark.parametrize("at", [-len(b"horization: Bearer "), -len(b": Bearer "), 0, 2])
def test_pick_up_within_a_head(at: int) -> None:
    found = midstream(WEB, [(CLIENT, HEAD[HEAD.find(SECRET) + at :]), (CLIENT, HEAD)])
    assert_kept_secret(found)
    assert found.session.protocol == "http1"
    assert [row.message.kind for row in found.messages()] == ["data", "request"]


def test_pick_up_of_bytes_that_nobody_knows() -> None:
    """They are all kept, without waiting for the end of a line when the other side speaks."""
    turns = [(CLIENT, b"\1\2ask 1"), (SERVER, b"\3answer 1"), (CLIENT, b"\1\2ask 2"), (SERVER, b"\3answer 2\n" * 9)]
    found = midstream(DB, turns)
    assert (found.session.protocol, found.session.findings) == ("raw", ("midstream",))
    assert found.stream(CLIENT) == b"\1\2ask 1\1\2ask 2"
    assert [row.message.direction for row in found.messages()] == [CLIENT, SERVER, CLIENT, SERVER]


@pytest.mark.parametrize("server", [READY, ASKS[:5] + b"\0\0\0\0" + b"S\0\0\0\x0cTZ\0UTC\0\0"])
def test_pick_up_at_a_password(server: bytes) -> None:
    found = midstream(DB, [(CLIENT, PASSWORD), (SERVER, server), (CLIENT, QUERY), (SERVER, DONE)])
    assert_kept_secret(found)
    assert found.session.protocol == "postgres"
    assert "query" in [row.message.kind for row in found.messages()]


@pytest.mark.parametrize("at", [1, 3, 5, 8, 14])
def test_pick_up_within_a_password(at: int) -> None:
    found = midstream(DB, [(CLIENT, PASSWORD[at:]), (SERVER, READY), (CLIENT, QUERY), (SERVER, DONE)])
    assert_kept_secret(found)
    assert found.session.protocol == "postgres"
    assert "query" in [row.message.kind for row in found.messages()]


def test_pick_up_at_a_password_without_an_answer() -> None:
    assert_kept_secret(midstream(DB, [(CLIENT, PASSWORD)]))


def test_pick_up_within_a_copy() -> None:
    data = b"d" + struct.pack("!I", 4 + 8) + b"1\tone--\n"
    done = b"C\0\0\0\x0bCOPY 8\0Z\0\0\0\5I"
    found = midstream(DB, [(CLIENT, data * 4), (CLIENT, data * 4 + b"c\0\0\0\4"), (SERVER, done)])
    assert found.session.protocol == "postgres"
    assert found.stream(CLIENT)[: len(data)] == data


def test_a_reboot_within_a_form() -> None:
    packets = conversation(WEB, cut(HTTP["form"], 3))
    said = {"node": "gw", "source": "wire", "ring": "r1", "position": 0}
    opened = [frame(0, FrameKind.OPEN, json.dumps(said | {"boot": boot}).encode()) for boot in ("b1", "b2")]
    clock = frame(0, FrameKind.CLOCK, struct.pack("<QQ", T0, T0))
    before, after = [*WEB.handshake(), packets[0]], packets[1:]
    frames = [opened[0], clock, span(0, *before), opened[1], clock, span(0, *after)]
    machine = assembler()
    rows = [row for number, one in enumerate(frames, 1) for row in machine.feed(replace(one, number=number))]
    found = Recorded(rows + feed([frame(9, FrameKind.CLOSE)], machine))
    assert [session.ending for session in found.sessions] == [Ending.INTERRUPTED, Ending.OPEN]
    assert_kept_secret(found)


def late(turns: list[tuple[Direction, bytes]], number: int, peer: Peer = WEB) -> Recorded:
    """One packet comes 1 s after all others, which were acknowledged."""
    packets = conversation(peer, turns)
    sent = sum(len(data) for direction, data in turns if direction is CLIENT)
    acks = [peer.packet(1, 0, 0, acked=sent, time=2 * SECOND + at * 100 * MS) for at in range(3)]
    held = packets.pop(number)
    return run([*peer.handshake(), *packets, *acks, held, *peer.goodbye(sent, 0, time=5 * SECOND)])


@pytest.mark.parametrize("cut_at", [32, 40, 46, 52])
def test_late_bytes_of_a_head(cut_at: int) -> None:
    turns = [(CLIENT, HEAD[:20]), (CLIENT, HEAD[20:cut_at]), (CLIENT, HEAD[cut_at:64]), (CLIENT, HEAD[64:])]
    for number in (1, 2):
        found = late(turns, number)
        assert {"gap", "late"} <= set(found.session.findings)
        assert_kept_secret(found)


@pytest.mark.parametrize("number", [1, 2])
def test_late_bytes_of_a_form(number: int) -> None:
    turns = cut([(CLIENT, TOKEN_REQUEST)], 3)
    place = len(turns[0][1]) - 20
    turns = [(CLIENT, turns[0][1][:place]), (CLIENT, turns[0][1][place:]), turns[1], (CLIENT, HEAD)]
    found = late(turns, number)
    assert_kept_secret(found)


def test_a_gap_that_may_have_hidden_what_a_body_is() -> None:
    said = b'{"grant_type": "password",\n "password": "' + SECRET + b'"}'
    turns = [POST % (b"application/json", len(said)), said[:5], said[5:]]
    assert_kept_secret(late([(CLIENT, data) for data in turns], 1))


def test_late_bytes_of_a_password() -> None:
    startup = [(CLIENT, STARTUP), (CLIENT, PASSWORD[:8]), (CLIENT, PASSWORD[8:15]), (CLIENT, PASSWORD[15:])]
    for number in (1, 2):
        found = late([*startup, (CLIENT, QUERY)], number, DB)
        assert "late" in found.session.findings
        assert_kept_secret(found)


def test_late_bytes_of_a_body_are_kept() -> None:
    head = b"PUT /a HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 300\r\n\r\n"
    turns = [(CLIENT, head), (CLIENT, b"a" * 100), (CLIENT, b"b" * 100), (CLIENT, b"c" * 100)]
    found = late(turns, 2)
    assert found.stream(CLIENT) == head + b"a" * 100 + b"b" * 100 + b"c" * 100
    assert "redacted" not in found.session.findings


def test_bytes_before_the_start() -> None:
    """They get no place in the stream, so its redactions don't cover them."""
    packets = conversation(WEB, [(CLIENT, HEAD), (CLIENT, HEAD.replace(SECRET, b"x"))])
    found = run([packets[1], *[WEB.packet(1, 0, 0, acked=2 * len(HEAD), time=2 * SECOND)], packets[0]])
    assert_kept_secret(found)


def test_a_copy_of_a_head() -> None:
    """An attacker sends a head twice, with and without the credential."""
    safe = HEAD.replace(SECRET, b"x" * len(SECRET))
    packets = conversation(WEB, [(CLIENT, safe)])
    again = [WEB.packet(0, PSH, 30, HEAD[30:], time=2 * SECOND)]
    found = run([*WEB.handshake(), *packets, *again, *WEB.goodbye(len(safe), 0, time=3 * SECOND)])
    assert "overlap" in found.session.findings
    assert_kept_secret(found)


@pytest.mark.parametrize("at", [-10, 0, 5])
def test_a_dissectors_bug(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for dissector, turns, peer in ((Http1, HTTP["head"], WEB), (Http1, HTTP["form"], WEB), (Postgres, LOGIN, DB)):
        parts = cut(turns, at)
        for failing in range(1, len(parts)):
            seen = 0
            receive = dissector.receive

            def broken(self: Any, *given: Any, receive: Any = receive, failing: int = failing) -> Any:
                nonlocal seen
                seen += 1
                if seen == failing:
                    raise KeyError("bug")
                return receive(self, *given)

            with monkeypatch.context() as patch:
                patch.setattr(dissector, "receive", broken)
                found = run([*peer.handshake(), *conversation(peer, parts)])
            assert "raw" in found.session.attrs.get("protocols", [])
            assert_kept_secret(found)


def test_more_redactions_than_are_remembered() -> None:
    body = b"{" + b",".join(b'"code":"%s"' % SECRET for _ in range(2600)) + b"}"
    assert len(body) < 1 << 16
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    pieces = [(SERVER, answer[at : at + 1400]) for at in range(0, len(answer), 1400)]
    found = run([*WEB.handshake(), *conversation(WEB, [(CLIENT, TOKEN_REQUEST), *pieces])])
    assert_kept_secret(found)
    short = b"{" + b",".join([b'"code":"x"'] * 5900) + b"}"
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(short) + short
    pieces = [(SERVER, answer[:9000]), (SERVER, answer[9000:])]
    found = run([*WEB.handshake(), *conversation(WEB, [(CLIENT, TOKEN_REQUEST), *pieces])])
    assert b'"x"' not in found.stream(SERVER)


JSON = b'{"grant_type": "password",\n "username": "a",\n "password": "' + SECRET + b'"}'
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"
ANYWHERE = {
    "form": (WEB, [(CLIENT, TOKEN_REQUEST), (SERVER, NOTHING)]),
    "json": (WEB, [(CLIENT, POST % (b"application/json", len(JSON)) + JSON), (SERVER, NOTHING)]),
    "head": (WEB, [(CLIENT, HEAD), (SERVER, NOTHING)]),
    "answer": (WEB, [(CLIENT, TOKEN_REQUEST.replace(SECRET, b"z" * len(SECRET))), (SERVER, GRANTED)]),
    "password": (DB, LOGIN),
}


@pytest.mark.parametrize("what", ANYWHERE)
def test_cut_anywhere(what: str) -> None:
    """Evicted there, picked up there without knowing anything, or 7 bytes from there on are late."""
    peer, turns = ANYWHERE[what]
    number = next(number for number, (_, data) in enumerate(turns) if SECRET in data)
    direction, data = turns[number]
    for at in range(1 + len(what) % 3, len(data), 3):
        parts = [*turns[:number], (direction, data[:at]), (direction, data[at:]), *turns[number + 1 :]]
        assert_kept_secret(evicted(peer, parts, number + 1))
        if at <= data.find(SECRET) + len(SECRET) - 6:
            assert_kept_secret(midstream(peer, parts[number + 1 :]))
        if direction is CLIENT and at + 7 < len(data):
            three = [(direction, data[:at]), (direction, data[at : at + 7]), (direction, data[at + 7 :])]
            assert_kept_secret(late([*turns[:number], *three, *turns[number + 1 :]], number + 1, peer))
