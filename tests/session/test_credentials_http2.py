"""No credential of HTTP/2 is in any row, Huffman coded or not, whatever happens to the session that it is in."""

from collections.abc import Sequence

import pytest

from appliance.model import Direction
from tests.dissect.http2_bytes import GET, Peer, data, frame, opening, post, settings
from tests.session.test_credentials import CLIENT, FORM, SECRET, SERVER, WEB, conversation, cut, evicted, said
from tests.session.traffic import Recorded, run

Turns = list[tuple[Direction, bytes]]
PING = frame(6, 0, bytes(8))


def talk(*, huffman: bool) -> Turns:
    """The secret as a header field (twice: the second time from the dynamic table), in a form, in a token answer."""
    c, s = Peer(huffman=huffman), Peer(huffman=huffman)
    secret = ("authorization", f"Bearer {SECRET.decode()}")
    key = ("x-api-key", SECRET.decode())
    answer = b'{"access_token":"' + SECRET + b'","token_type":"Bearer"}'
    asked = post("/token", ("content-type", "application/x-www-form-urlencoded"))
    return [
        (CLIENT, opening() + c.headers(1, [*GET, secret, ("accept", "*/*")], end=True)),
        (SERVER, settings() + s.headers(1, [(":status", "204")], end=True)),
        (CLIENT, c.headers(3, [*GET, secret, key], end=True, pieces=3) + PING),
        (SERVER, s.headers(3, [(":status", "204")], end=True)),
        (CLIENT, c.headers(5, asked) + data(5, FORM, end=True) + PING),
        (SERVER, s.headers(5, [(":status", "200"), ("content-type", "application/json")]) + data(5, answer, end=True)),
        (CLIENT, c.headers(7, [*GET, ("x-api-key", SECRET.decode()), ("x-plain", "yes")], end=True) + PING),
        (SERVER, s.headers(7, [(":status", "204")], end=True) + PING),
    ]


def forms() -> list[str]:
    """How bytes of the secret look in `repr`, as they are and Huffman coded behind what may stand before them."""
    found = [SECRET.decode()]
    coder = Peer().encoder.huffman_coder
    for before in (b"", b"Bearer "):
        coded = coder.encode(before + SECRET)
        skipped = len(coder.encode(before)) if before else 0
        found.append(repr(coded[skipped + 1 : -1])[2:-1])
    return found


def assert_kept_secret(found: Recorded) -> None:
    everything = said(found.rows)
    for form in forms():
        for size in range(8, len(form) + 1):
            assert form[:size] not in everything, "the secret's begin is in a row"
            assert form[-size:] not in everything, "the secret's end is in a row"


def session(turns: Sequence[tuple[Direction, bytes]]) -> Recorded:
    return run([*WEB.handshake(), *conversation(WEB, turns)])


@pytest.mark.parametrize("huffman", [False, True])
def test_whole(huffman: bool) -> None:
    found = session(talk(huffman=huffman))
    assert_kept_secret(found)
    assert found.session.protocol == "http2"
    kinds = [row.message.kind for row in found.messages()]
    assert (kinds.count("request"), kinds.count("response")) == (4, 4)
    assert "redacted" in found.session.findings


@pytest.mark.parametrize("huffman", [False, True])
def test_segments_of_a_few_bytes(huffman: bool) -> None:
    turns = [(whose, what[at : at + 5]) for whose, what in talk(huffman=huffman) for at in range(0, len(what), 5)]
    assert_kept_secret(session(turns))


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("number", range(1, 8))
def test_eviction(huffman: bool, number: int) -> None:
    found = evicted(WEB, talk(huffman=huffman), number)
    assert_kept_secret(found)
    assert found.sessions[-1].protocol == "http2"


@pytest.mark.parametrize("at", [-4, 0, 3, 8])
def test_eviction_within_a_header_block(at: int) -> None:
    turns = cut(talk(huffman=False), at)
    for number in range(1, len(turns)):
        assert_kept_secret(evicted(WEB, turns, number))


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("number", range(8))
def test_a_packet_is_missing(huffman: bool, number: int) -> None:
    packets = conversation(WEB, talk(huffman=huffman))
    found = run([*WEB.handshake(), *packets[:number], *packets[number + 1 :]])
    assert_kept_secret(found)


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("number", range(1, 8))
def test_pick_up(huffman: bool, number: int) -> None:
    """The start was not seen, and nothing is known of it."""
    found = run(conversation(WEB, talk(huffman=huffman))[number:])
    assert_kept_secret(found)
    assert found.session.protocol == "http2"


def test_smuggling_is_a_finding() -> None:
    fields = [*GET, ("transfer-encoding", "chunked")]
    found = session([(CLIENT, opening() + Peer().headers(1, fields, end=True))])
    assert "smuggling" in found.session.findings
    found = session([(CLIENT, b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")])
    (finding,) = [row for row in found.findings() if row.kind == "smuggling"]
    assert finding.attrs == {"cases": ["cl-te"]}
    assert (finding.direction, finding.start) == (CLIENT, 0)
