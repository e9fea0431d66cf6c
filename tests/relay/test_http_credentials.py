"""Whose request it is, and with which credential it goes on: the agent's token ends at the gateway, the rule's own is
never seen by the agent. Sans I/O."""

import base64
from dataclasses import replace

import pytest

from appliance.identity.credential import Kind, Secret
from appliance.identity.secret_text import SecretText
from tests.relay.http_play import AGENT, BEARER, BY_TOKEN, CLIENT, KEY, LEASE, SERVER, Play

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhZ2VudC03In0.c2lnbmF0dXJl"
TOKENS = {TOKEN: AGENT}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BARE = b"GET /a HTTP/1.1\r\nHost: a.example.com\r\n\r\n"


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


def with_field(name: bytes, value: bytes, request: bytes = BARE) -> bytes:
    first, _, rest = request.partition(b"\r\n")
    return first + b"\r\n" + name + b": " + value + b"\r\n" + rest


ASKED = with_field(b"Authorization", b"Bearer " + TOKEN.encode())
PROXIED = b"GET http://a.example.com/a HTTP/1.1\r\nHost: a.example.com\r\n\r\n"
CONNECT = b"CONNECT a.example.com:443 HTTP/1.1\r\nHost: a.example.com:443\r\n\r\n"


def test_a_token_says_who_and_ends_here() -> None:
    play = Play(BY_TOKEN, tokens=TOKENS).agent(ASKED).server(OK)
    assert play.identities == [AGENT]
    assert bytes(play.to_server) == BARE
    assert bytes(play.record[0]) == ASKED.replace(TOKEN.encode(), b"*" * len(TOKEN))


def test_split_at_every_byte() -> None:
    for cut in range(1, len(ASKED)):
        play = Play(BY_TOKEN, tokens=TOKENS).agent(ASKED[:cut], ASKED[cut:])
        assert bytes(play.to_server) == BARE
        assert TOKEN.encode() not in play.record[0]


@pytest.mark.parametrize(
    "asked",
    [
        BARE,
        with_field(b"Authorization", b"Bearer nobody"),
        with_field(b"Authorization", b"Digest x"),
        with_field(b"Authorization", b"Basic ?"),
        with_field(b"Authorization", b"Bearer " + TOKEN.encode(), ASKED),
    ],
    ids=["none", "bad", "another scheme", "no Base64", "two"],
)
def test_without_a_good_token_nothing_goes_on(asked: bytes) -> None:
    play = Play(BY_TOKEN, tokens=TOKENS).agent(asked)
    assert play.status == 401
    assert play.declined == [401]
    assert b'WWW-Authenticate: Bearer realm="verbatim"\r\n' in play.to_agent
    assert not play.dials
    assert TOKEN.encode() not in play.record[0]
    assert b"nobody" not in play.record[0]
    play.agent(ASKED).server(OK)
    assert play.to_agent.endswith(OK), "it may come again on the same connection"


def test_a_refused_request_with_a_body_ends_the_connection() -> None:
    play = Play(BY_TOKEN).agent(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", b"abc")
    assert play.status == 401
    assert play.shut == [CLIENT]
    assert play.record[0].endswith(b"***"), "late bytes are for nobody to read"


def test_each_request_needs_its_token_once_one_was_given() -> None:
    play = Play(BY_TOKEN, tokens=TOKENS, identity=LEASE).agent(BARE)
    assert play.status == 401, "a lease does not do where the rule asks for a token"
    play = Play(BY_TOKEN, tokens=TOKENS).agent(ASKED).server(OK).agent(BARE)
    assert play.status == 401
    assert bytes(play.to_server).count(BARE) == 1


def test_a_token_in_what_is_refused_is_not_on_record() -> None:
    for bad in (
        ASKED.replace(b"Host", b"Host "),
        ASKED.replace(b"Bearer ", b"Bearer\r\n "),
        ASKED.replace(b"\r\nHost", b"\nHost"),
        ASKED.replace(b"Authorization:", b"Authorization :"),
        ASKED[:-30],
    ):
        play = Play(BY_TOKEN, tokens=TOKENS).agent(bad).ended(CLIENT)
        assert play.status == 400
        assert TOKEN.encode()[:20] not in play.record[0]
        assert len(play.record[0]) == len(bad)


@pytest.mark.parametrize(
    ("secret", "field"),
    [
        (KEY, b"x-api-key: real-key-of-the-shop\r\n"),
        (BEARER, b"authorization: Bearer real-key-of-the-shop\r\n"),
        (
            Secret("shop-api", Kind.PASSWORD, SecretText("real"), user="shop"),
            b"authorization: " + basic("shop", "real") + b"\r\n",
        ),
    ],
    ids=["named field", "bearer", "basic"],
)
def test_the_rules_credential_takes_the_place_of_the_agents(secret: Secret, field: bytes) -> None:
    play = Play(secret=secret).agent(with_field(b"X-API-Key", b"dummy", with_field(b"Authorization", b"Bearer dummy")))
    name = field.partition(b":")[0]
    assert bytes(play.to_server).lower().count(b"\r\n" + name + b":") == 1
    assert field in play.to_server
    for kept in (*play.record, play.to_agent, repr(play.notes).encode()):
        assert b"real" not in kept
    (note,) = play.notes
    assert note.attrs["login"]["secret"] == "shop-api"
    play.server(OK).agent(BARE)
    assert bytes(play.to_server).count(field) == 2
    assert len(play.notes) == 1


def test_a_credential_that_http_has_no_place_for() -> None:
    play = Play(secret=Secret("k", Kind.SSH_KEY, SecretText("real"))).agent(BARE)
    assert play.status == 503
    assert b"real" not in play.to_agent


def test_token_and_credential_together() -> None:
    play = Play(BY_TOKEN, tokens=TOKENS, secret=BEARER).agent(ASKED)
    assert b"\r\nauthorization: Bearer real-key-of-the-shop\r\n" in play.to_server
    assert TOKEN.encode() not in play.to_server


@pytest.mark.parametrize("header", ["x-api-key", "x-shop-key"])
@pytest.mark.parametrize("given", [TOKEN.encode(), b"Bearer " + TOKEN.encode()], ids=["bare", "bearer"])
def test_a_token_in_the_field_of_the_rules_credential(header: str, given: bytes) -> None:
    secret = replace(KEY, header=header)
    asked = with_field(header.title().encode(), given)
    for cut in range(1, len(asked), 7):
        play = Play(BY_TOKEN, tokens=TOKENS, secret=secret).agent(asked[:cut], asked[cut:]).server(OK)
        assert play.identities == [AGENT]
        assert bytes(play.to_server) == BARE[:-2] + header.encode() + b": real-key-of-the-shop\r\n\r\n"
        assert bytes(play.record[0]) == asked.replace(given, b"*" * len(given))
        assert play.agent(BARE).status == 401, "each request needs it"
        assert f"an access token is needed as Authorization: Bearer or {header}".encode() in play.to_agent
    both = with_field(b"Authorization", b"Bearer " + TOKEN.encode(), asked.replace(TOKEN.encode(), b"dummy-key"))
    play = Play(BY_TOKEN, tokens=TOKENS, secret=secret).agent(both)
    assert play.identities == [AGENT]
    assert b"dummy-key" not in play.record[0]
    assert b"dummy-key" not in play.to_server


@pytest.mark.parametrize(
    "asked",
    [
        with_field(b"X-Api-Key", b"nobody"),
        with_field(b"X-Api-Key", TOKEN.encode(), with_field(b"X-Api-Key", TOKEN.encode())),
        with_field(b"X-Other-Key", TOKEN.encode()),
    ],
    ids=["bad", "two", "another field"],
)
def test_what_is_no_token_in_the_field_of_the_rules_credential(asked: bytes) -> None:
    play = Play(BY_TOKEN, tokens=TOKENS, secret=KEY).agent(asked)
    assert play.status == 401
    assert not play.dials
    assert b"nobody" not in play.record[0]
    for no in (None, BEARER, replace(KEY, kind=Kind.PASSWORD, user="shop")):
        assert Play(BY_TOKEN, tokens=TOKENS, secret=no).agent(with_field(b"X-Api-Key", TOKEN.encode())).status == 401


@pytest.mark.parametrize("header", ["x-api-key", "x-shop-key"])
def test_a_token_in_the_field_of_the_rules_credential_that_is_refused_is_not_on_record(header: str) -> None:
    asked = with_field(header.title().encode(), TOKEN.encode())
    for bad in (
        asked.replace(b"Host", b"Host "),
        asked.replace(b"ey: ", b"ey:\r\n "),
        asked.replace(b"\r\nHost", b"\nHost"),
        asked.replace(b"ey: ", b"ey : "),
        asked[:-30],
    ):
        play = Play(BY_TOKEN, tokens=TOKENS, secret=replace(KEY, header=header)).agent(bad).ended(CLIENT)
        assert play.status == 400
        assert TOKEN.encode()[:20] not in play.record[0]
        assert len(play.record[0]) == len(bad)


# -- explicit proxy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [b"Bearer " + TOKEN.encode(), b"bearer " + TOKEN.encode(), basic("user", TOKEN), basic(TOKEN, "")],
    ids=["bearer", "lower case", "password", "user"],
)
def test_a_proxys_token(given: bytes) -> None:
    asked = with_field(b"Proxy-Authorization", given, PROXIED)
    play = Play(proxied=True, tokens=TOKENS).agent(with_field(b"Proxy-Connection", b"keep-alive", asked)).server(OK)
    assert bytes(play.to_server) == BARE
    assert play.identities == [AGENT]
    assert given[7:] not in play.record[0]
    (dial,) = play.dials
    assert (dial.host, dial.port, dial.tls) == ("a.example.com", 80, False)


def test_a_proxy_asks_for_a_token() -> None:
    play = Play(proxied=True, tokens=TOKENS).agent(CONNECT)
    assert play.status == 407
    assert b'Proxy-Authenticate: Basic realm="verbatim"\r\nProxy-Authenticate: Bearer realm' in play.to_agent
    play.agent(with_field(b"Proxy-Authorization", basic("u", TOKEN), CONNECT))
    assert play.tunnel is not None
    assert (play.tunnel.host, play.tunnel.port) == ("a.example.com", 443)
    assert play.to_agent.endswith(b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert not play.to_server


def test_a_lease_is_enough_for_a_proxy() -> None:
    assert Play(proxied=True, identity=LEASE).agent(CONNECT).tunnel
    assert bytes(Play(proxied=True, identity=LEASE).agent(PROXIED).to_server) == BARE


def test_a_token_that_is_given_twice_does_not_reach_the_server() -> None:
    both = with_field(b"Proxy-Authorization", b"Bearer " + TOKEN.encode(), PROXIED)
    both = with_field(b"Authorization", b"Bearer " + TOKEN.encode(), both)
    play = Play(proxied=True, tokens=TOKENS).agent(both)
    assert bytes(play.to_server) == BARE
    assert TOKEN.encode() not in play.record[0]
    key = with_field(
        b"X-Api-Key", TOKEN.encode(), with_field(b"Proxy-Authorization", b"Bearer " + TOKEN.encode(), PROXIED)
    )
    play = Play(proxied=True, tokens=TOKENS, secret=KEY).agent(key)
    assert TOKEN.encode() not in play.to_server
    assert TOKEN.encode() not in play.record[0]
    own = with_field(b"Authorization", b"Bearer of-the-server", PROXIED)
    own = with_field(b"Proxy-Authorization", b"Bearer " + TOKEN.encode(), own)
    assert b"Bearer of-the-server" in Play(proxied=True, tokens=TOKENS).agent(own).to_server


def test_several_hosts_on_one_connection_to_a_proxy() -> None:
    play = Play(proxied=True, identity=LEASE).agent(PROXIED).server(OK).agent(PROXIED).server(OK)
    play.agent(PROXIED.replace(b"a.example", b"b.example")).server(OK)
    assert [dial.host for dial in play.dials] == ["a.example.com", "b.example.com"]
    assert play.hung_up == 1
    assert bytes(play.to_agent) == OK * 3


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (with_field(b"Connection", b"close", PROXIED), OK),
        (PROXIED.replace(b"HTTP/1.1", b"HTTP/1.0"), OK),
        (PROXIED, with_field(b"Connection", b"close", OK)),
        (PROXIED, OK.replace(b"HTTP/1.1", b"HTTP/1.0")),
    ],
    ids=["agent", "agent's version", "server", "server's version"],
)
@pytest.mark.parametrize("ends", [True, False], ids=["server ends", "server stays"])
def test_a_last_answer_through_a_proxy_is_the_end(asked: bytes, answered: bytes, *, ends: bool) -> None:
    play = Play(proxied=True, identity=LEASE).agent(asked).server(answered)
    if ends:
        play.ended(SERVER)
    assert bytes(play.to_agent) == answered
    assert play.shut == [CLIENT]
    assert play.hung_up == 1


def test_who_asks_for_one_answer_is_not_kept_when_the_gateway_gives_it() -> None:
    play = Play(BY_TOKEN, tokens=TOKENS).agent(with_field(b"Connection", b"close", BARE))
    assert play.status == 401
    assert play.shut == [CLIENT]


@pytest.mark.parametrize("reason", ["refused-by-rule", "unreachable", "time-out", "certificate"])
def test_a_proxy_that_cannot_connect(reason: str) -> None:
    status = {"refused-by-rule": 403, "time-out": 504}.get(reason, 502)
    for asked in (PROXIED, CONNECT):
        play = Play(proxied=True, identity=LEASE, refused={"a.example.com": (reason, "so it is")}).agent(asked)
        assert play.status == status
        assert not play.tunnel


@pytest.mark.parametrize(
    "asked",
    [
        BARE,
        b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        CONNECT.replace(b":443", b""),
        CONNECT.replace(b":443", b":0"),
        CONNECT.replace(b":443", b":99999"),
        CONNECT.replace(b"Host: a", b"Host: b"),
        CONNECT[:-2] + b"Content-Length: 3\r\n\r\nabc",
        CONNECT + b"\x16\x03\x01",
        PROXIED.replace(b"Host: a", b"Host: b"),
        PROXIED.replace(b"//a", b"//user:password@a"),
    ],
)
def test_what_no_proxy_takes(asked: bytes) -> None:
    play = Play(proxied=True, identity=LEASE).agent(asked)
    assert play.status == 400
    assert not play.to_server
    assert not play.tunnel


@pytest.mark.parametrize(
    ("target", "noted"), [(b"ftp://a/", []), (b"http//a/", ["smuggling"]), (b"a:80", ["smuggling"])]
)
def test_another_scheme_is_no_smuggling(target: bytes, noted: list[str]) -> None:
    play = Play(proxied=True, identity=LEASE).agent(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert play.status == 400
    assert [note.kind for note in play.notes] == noted
