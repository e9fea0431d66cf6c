"""The mediator of PostgreSQL: what it is told, and what it says to that."""

from collections.abc import Callable

import pytest

from appliance.identity.credential import Kind, Secret
from appliance.model import Identity
from appliance.relay.mediator import (
    ANY,
    Commands,
    Dial,
    Fail,
    HangUp,
    Identify,
    Note,
    Pass,
    Say,
    Shut,
    Splice,
    StartTls,
    Take,
)
from appliance.relay.postgres import PostgresMediator
from tests.dissect.postgres_bytes import CANCEL, GSS, IDLE, KEY, OK, SSL, packet, query, typed, z
from tests.relay.database_play import PASSWORD, TOKEN, USER, C, S, hear, merged, secret
from tests.relay.postgres_play import ANSWER, AS_SERVICE, START, authentication, context, error, failed

TLS = StartTls(C, alpn=("postgresql",))
SERVER_TLS = StartTls(S, alpn=("postgresql",))
QUESTION = Say(C, authentication(3))
SETTING = typed("S", z("server_version", "15.1"))
READY = SETTING + KEY + IDLE
AGENT = Identity(subject="agent-7")


def tell_login(user: str, method: str, **more: str) -> Note:
    return Note("upstream", f"logged in as {user}", {"login": {"user": user, "method": method, **more}})


def mediator(*, tls: bool = False, credential: Secret | None = None, **rule: str) -> PostgresMediator:
    return PostgresMediator(context(tls=tls, credential=credential, **rule))


def logging_in(credential: Secret | None = None) -> PostgresMediator:
    """Up to where the server is asked to begin a session, without TLS."""
    one = mediator(credential=credential)
    assert hear(one, C, START)[-1] == Dial()
    assert isinstance(one.dialled()[-1], Say)
    return one


@pytest.mark.parametrize("size", [0, 1])
def test_a_session_by_token_with_the_rules_credential(size: int) -> None:
    one = mediator(credential=secret(), identify="token", secret="orders")
    assert one.start() == []
    assert hear(one, C, SSL, size) == [Take(C, SSL), Say(C, b"S"), TLS]
    assert one.limit(C) == one.limit(S) == 0
    assert one.secured(C) == []
    assert hear(one, C, START, size) == [Take(C, START), QUESTION]
    assert hear(one, C, ANSWER, size) == [
        Take(C, ANSWER, ((5, 5 + len(TOKEN), "token"),)),
        Identify(TOKEN, "postgres-password"),
    ]
    assert one.limit(C) == 0
    assert one.identified(AGENT) == [Dial()]
    assert one.dialled() == [Say(S, SSL)]
    assert one.limit(S) == 1
    assert hear(one, S, b"S", size) == [Take(S, b"S"), SERVER_TLS]
    assert one.secured(S) == [Say(S, AS_SERVICE)]
    password = typed("p", z(PASSWORD))
    assert hear(one, S, authentication(3), size) == [Take(S, authentication(3)), Say(S, password)]
    assert not one.ready
    assert merged(hear(one, S, OK + READY, size)) == [
        Pass(S, OK),
        tell_login(USER, "password", secret="orders"),
        Pass(S, READY),
        Splice(),
    ]
    assert one.ready


@pytest.mark.parametrize("size", [0, 1])
def test_the_agents_own_password(size: int) -> None:
    one = mediator()
    assert hear(one, C, START, size) == [Take(C, START), Dial()]
    assert one.dialled() == [Say(S, START)]
    assert one.limit(C) == 0
    assert hear(one, S, authentication(3), size) == [Pass(S, authentication(3))]
    assert hear(one, C, ANSWER, size) == [Pass(C, ANSWER, ((5, 5 + len(TOKEN), "password"),))]
    assert merged(hear(one, S, OK + READY, size)) == [
        Pass(S, OK),
        tell_login("ada", "password"),
        Pass(S, READY),
        Splice(),
    ]


def test_nothing_is_read_behind_what_is_needed() -> None:
    one = mediator()
    assert one.limit(C) == 8
    assert hear(one, C, SSL[:3]) == []
    assert one.limit(C) == 5
    hear(one, C, SSL[3:])
    one.secured(C)
    assert hear(one, C, START[:8]) == []
    assert one.limit(C) == len(START) - 8
    hear(one, C, START[8:])
    one.dialled()
    hear(one, S, b"N")
    hear(one, S, authentication(5, b"salt"))
    assert one.limit(C) == 5
    hear(one, C, ANSWER[:5])
    assert one.limit(C) == len(ANSWER) - 5
    assert one.limit(S) == ANY


def test_what_comes_with_the_last_message_passes_too() -> None:
    one = logging_in()
    notice = typed("N", z("SNOTICE", "C00000", "Mhello") + b"\0")
    told = one.receive(S, notice + OK + READY + b"more")
    assert told == [Pass(S, notice), Pass(S, OK), tell_login("ada", "trust"), Pass(S, READY + b"more"), Splice()]


def test_versions_and_options_pass_and_so_does_the_servers_answer() -> None:
    newer = packet(196608 + 2, z("user", "ada", "_pq_.more", "1") + b"\0")
    one = mediator()
    hear(one, C, newer)
    assert one.dialled() == [Say(S, newer)]
    answer = typed("v", (196608).to_bytes(4) + (1).to_bytes(4) + z("_pq_.more"))
    assert hear(one, S, answer) == [Pass(S, answer)]


def test_the_database_is_the_one_that_the_agent_meant() -> None:
    one = mediator(credential=secret(), secret="orders")
    hear(one, C, packet(196608, z("user", "ada", "options", "-c a=b") + b"\0"))
    assert one.dialled() == [Say(S, packet(196608, z("user", USER, "database", "ada", "options", "-c a=b") + b"\0"))]


def test_gssapi_encryption_is_declined() -> None:
    one = mediator()
    assert hear(one, C, GSS) == [Take(C, GSS), Say(C, b"N")]
    assert hear(one, C, SSL) == [Take(C, SSL), Say(C, b"S"), TLS]


@pytest.mark.parametrize("again", [SSL, GSS])
def test_encryption_within_tls_is_refused(again: bytes) -> None:
    assert failed(hear(mediator(tls=True), C, again)) == ("08P01", "protocol")


@pytest.mark.parametrize("early", [b"x", START, b"\x16\x03\x01"])
def test_bytes_before_tls_are_refused(early: bytes) -> None:
    told = mediator().receive(C, SSL + early)
    assert told[1] == Take(C, early)
    assert failed(told) == ("08P01", "before-tls")


@pytest.mark.parametrize("answer", [b"SR", b"S" + OK, b"X", b"E" + error("0A000")])
def test_bytes_of_the_server_before_tls_are_refused(answer: bytes) -> None:
    one = mediator(tls=True)
    hear(one, C, START)
    one.dialled()
    told = one.receive(S, answer)
    assert told[0] == Take(S, answer)
    assert failed(told) == ("08006", "upstream-tls")


def test_a_direct_tls_connection_is_one_to_the_server_too() -> None:
    one = mediator(tls=True, identify="token")
    assert hear(one, C, START) == [Take(C, START), QUESTION]
    hear(one, C, ANSWER)
    one.identified(AGENT)
    assert one.dialled() == [Say(S, SSL)]


def test_a_server_without_tls() -> None:
    for required, end in (("same", ""), ("require", "upstream-tls")):
        one = mediator(tls=True, upstream_tls=required)
        hear(one, C, START)
        one.dialled()
        told = hear(one, S, b"N")
        if end:
            assert failed(told) == ("08006", end)
        else:
            assert [type(command) for command in told] == [Take, Note, Say]
            assert told[-1] == Say(S, START)


BAD_STARTS = [
    ("no terminator", packet(196608, z("user", "ada")), "08P01"),
    ("half a pair", packet(196608, z("user") + b"\0"), "08P01"),
    ("nothing", packet(196608), "08P01"),
    ("no user", packet(196608, z("database", "shop") + b"\0"), "28000"),
    ("an empty user", packet(196608, z("user", "") + b"\0"), "28000"),
    ("two users", packet(196608, z("user", "ada", "user", "eve") + b"\0"), "08P01"),
    ("a parameter twice", packet(196608, z("user", "ada", "options", "", "options", "-c a=b") + b"\0"), "08P01"),
    ("bytes behind the end", packet(196608, z("user", "ada") + b"\0\0x\0y\0\0"), "08P01"),
    ("version 2", packet(131072, bytes(288)), "0A000"),
    ("version 4", packet(4 << 16, z("user", "ada") + b"\0"), "0A000"),
    ("a cancellation without a key", packet(80877102, bytes(4)), "08P01"),
    ("a cancellation that is too long", packet(80877102, bytes(300)), "08P01"),
    ("SSLRequest with more in it", packet(80877103, b"x"), "0A000"),
]


@pytest.mark.parametrize(("sent", "state"), [case[1:] for case in BAD_STARTS], ids=[case[0] for case in BAD_STARTS])
def test_a_start_that_is_none(sent: bytes, state: str) -> None:
    told = hear(mediator(), C, sent)
    assert told[0] == Take(C, sent)
    assert failed(told) == (state, "protocol")


@pytest.mark.parametrize("sent", [b"GET / HT", b"\0\0\0\7abcd", b"\0\0\x27\x11\0\3\0\0", b"\xff" * 8])
def test_a_start_of_an_impossible_length(sent: bytes) -> None:
    told = hear(mediator(), C, sent)
    assert told[0] == Take(C, sent)
    assert failed(told) == ("08P01", "protocol")


def test_no_token_is_asked_for_in_clear() -> None:
    assert failed(hear(mediator(identify="token"), C, START)) == ("28000", "cleartext-token")


BAD_ANSWERS = [
    ("another message", query("SELECT 1"), "08P01", "protocol"),
    ("no NUL", typed("p", b"abc"), "08P01", "protocol"),
    ("too long", b"p\0\1\0\0", "08P01", "protocol"),
    ("shorter than its head", b"p\0\0\0\3", "08P01", "protocol"),
    ("empty", typed("p", b"\0"), "28P01", "token-refused"),
    ("no ASCII", typed("p", z("wörd")), "28P01", "token-refused"),
    ("two strings", typed("p", z("a", "b")), "28P01", "token-refused"),
]


@pytest.mark.parametrize(
    ("sent", "state", "reason"), [case[1:] for case in BAD_ANSWERS], ids=[case[0] for case in BAD_ANSWERS]
)
def test_an_answer_that_is_no_token(sent: bytes, state: str, reason: str) -> None:
    one = mediator(tls=True, identify="token")
    hear(one, C, START)
    told = hear(one, C, sent)
    assert failed(told) == (state, reason)
    taken = told[0]
    assert isinstance(taken, Take)
    hidden = {at for start, end, _ in taken.secrets for at in range(start, end)}
    assert set(range(5, len(sent) - sent.endswith(b"\0"))) <= hidden


def test_a_token_that_is_not_accepted() -> None:
    one = mediator(tls=True, identify="token")
    hear(one, C, START + ANSWER)
    told = one.unidentified("token: it has expired")
    assert failed(told) == ("28P01", "token-refused")
    assert b"it has expired" in told[0].data  # type: ignore[union-attr]
    assert one.identified(AGENT) == [], "it is over"


def test_a_token_is_not_given_to_a_server() -> None:
    one = mediator(tls=True, identify="token")
    hear(one, C, START + ANSWER)
    one.identified(AGENT)
    one.dialled()
    hear(one, S, b"N")
    assert failed(hear(one, S, authentication(3))) == ("28000", "no-credential")


def test_a_secret_of_another_kind() -> None:
    one = mediator(credential=secret(Kind.TOKEN), secret="orders")
    assert failed(hear(one, C, START)) == ("28000", "secret")


def test_an_agent_that_leaves_before_the_server_is_known() -> None:
    one = mediator(tls=True, identify="token")
    hear(one, C, START + ANSWER[:8])
    assert one.ended(C) == [Take(C, ANSWER[:8], ((0, 8, "password"),)), Shut(C)]
    assert one.stop("time-out", "too late") == []


def test_an_agent_that_leaves_while_the_server_waits_for_it() -> None:
    one = logging_in()
    hear(one, S, authentication(3))
    assert one.ended(C) == [Shut(S)]
    assert one.ended(S) == [Shut(C)]


def test_a_server_that_leaves() -> None:
    one = logging_in()
    one.receive(S, OK[:4])
    told = one.ended(S)
    assert told[0] == Take(S, OK[:4])
    assert failed(told) == ("08006", "server-gone")


HOSTILE = [
    ("a message of another phase", [SETTING]),
    ("rows", [typed("D", b"\0\0")]),
    ("ready before log-in", [IDLE]),
    ("a second question behind the end", [OK, authentication(3)]),
    ("a question without a code", [typed("R", b"\0")]),
    ("a message without end", [b"R\x7f\xff\xff\xff"]),
    ("no message at all", [b"HTTP/1.1 400 Bad Request\r\n"]),
]


@pytest.mark.parametrize("said", [case[1] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_a_server_that_says_what_has_no_place(said: list[bytes]) -> None:
    one = logging_in()
    told: Commands = []
    for data in said:
        told += hear(one, S, data)
    assert failed(told) == ("08P01", "protocol")
    assert not one.ready


def test_an_error_of_the_server_passes() -> None:
    one = logging_in()
    told = hear(one, S, error("53300", "too many"))
    assert told[0] == Pass(S, error("53300", "too many"))
    assert told[1:] == [Fail("login-refused", "the server refused the session: SQLSTATE 53300")]


@pytest.mark.parametrize("body", [b"", b"\0", b"C\0\0", z("Cab\n'c") + b"\0", b"\xff\xfe"])
def test_an_error_of_the_server_that_is_none(body: bytes) -> None:
    told = hear(logging_in(), S, typed("E", body))
    assert told[-1] == Fail("login-refused", "the server refused the session: SQLSTATE unknown")


def test_the_server_may_not_tell_of_the_credential() -> None:
    one = logging_in(secret())
    said = error("28P01", f"no user {USER} with {PASSWORD}")
    told = hear(one, S, said)
    assert told[0] == Take(S, said)
    attrs = {"sqlstate": "28P01", "secret": "orders", "generation": 3}
    assert told[1] == Note("login-refused", "the server refused the gateway's credential", attrs)
    assert failed(told) == ("28000", "login-refused")
    assert USER.encode() not in told[2].data  # type: ignore[union-attr]


def test_the_former_credential_is_tried_once() -> None:
    one = logging_in(secret(former="the one before"))
    told = hear(one, S, authentication(5, b"salt"))
    assert isinstance(told[1], Say)
    told = hear(one, S, error("28P01"))
    assert [type(command) for command in told] == [Take, Note, HangUp, Dial]
    assert one.dialled() == [Say(S, AS_SERVICE)]
    again = hear(one, S, authentication(5, b"salt"))
    assert again[1] != told[1]
    assert failed(hear(one, S, error("28P01"))) == ("28000", "login-refused")


def test_a_cancellation_goes_to_the_server_as_it_is() -> None:
    one = mediator(tls=True, identify="token")
    assert hear(one, C, CANCEL) == [Take(C, CANCEL), Dial()]
    assert one.dialled() == [Say(S, SSL)]
    assert hear(one, S, b"S") == [Take(S, b"S"), SERVER_TLS]
    assert one.secured(S) == [Say(S, CANCEL)]
    assert one.limit(C) == 1, "its end is looked for"
    assert one.ended(S) == [Shut(C)]
    assert one.ended(C) == [Shut(S)]


def test_a_cancellation_is_all_that_is_said() -> None:
    one = mediator()
    hear(one, C, CANCEL)
    assert one.dialled() == [Say(S, CANCEL)]
    told = hear(one, C, b"x")
    assert told == [Take(C, b"x"), Fail("protocol", "bytes behind a CancelRequest")]


def test_a_cancellation_that_does_not_reach_the_server() -> None:
    one = mediator()
    hear(one, C, CANCEL)
    assert failed(one.dial_failed("unreachable", "10.2.0.5 port 5432: refused")) == ("", "unreachable")


STOPS = [("time-out", "57014"), ("too-many-connections", "53300"), ("lease-ended", "57P01"), ("shutdown", "57P01")]
STOPS += [("idle", "57P05"), ("server-gone", "08006"), ("journal-full", "53100"), ("certificate", "08006")]
REACHED: list[tuple[str, Callable[[], PostgresMediator]]] = [
    ("begun", mediator),
    ("logging in", logging_in),
]


@pytest.mark.parametrize(("reason", "state"), STOPS)
@pytest.mark.parametrize("begin", [case[1] for case in REACHED], ids=[case[0] for case in REACHED])
def test_an_end_from_outside(reason: str, state: str, begin: Callable[[], PostgresMediator]) -> None:
    one = begin()
    assert failed(one.stop(reason, "something is over")) == (state, reason)
    assert one.receive(S, OK) == []


def test_nothing_is_said_within_a_handshake() -> None:
    one = mediator()
    hear(one, C, SSL)
    assert failed(one.stop("tls", "the agent does not trust the gateway")) == ("", "tls")


def test_the_server_is_not_reached() -> None:
    for reason, state in (("unreachable", "08006"), ("time-out", "57014"), ("refused-by-rule", "08004")):
        one = mediator()
        hear(one, C, START)
        assert failed(one.dial_failed(reason, "10.2.0.5 port 5432: why")) == (state, reason)
