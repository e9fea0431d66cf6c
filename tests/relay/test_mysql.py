"""The mediator of MySQL: what it is told, and what it says to that."""

import pytest

from appliance.dissect import mysql_session as session
from appliance.identity.credential import Kind
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
from appliance.relay.mysql_commands import Commands as Watched
from appliance.relay.mysql_messages import MAX_PACKET, NATIVE, Greeting
from tests.dissect.mysql_bytes import SCRAMBLE, change_user, command, error, greeting, packet, query, response
from tests.relay.database_play import PASSWORD, TOKEN, USER, C, S, hear, secret
from tests.relay.mysql_play import (
    ABLE,
    ASKS_TLS,
    ASKS_TOKEN,
    GIVES_TOKEN,
    GREETING,
    IN_CLEAR,
    OK,
    RESPONSE,
    SAID,
    WITHIN,
    failed,
    in_response,
    logging_in,
    mediator,
    scrambled,
    within_tls,
)

AGENT = Identity(subject="agent-7")


def last_said(commands: Commands) -> bytes:
    said = [each for each in commands if isinstance(each, Say) and each.to is S]
    return said[-1].data


@pytest.mark.parametrize("size", [0, 1])
def test_a_session_by_token_with_the_rules_credential(size: int) -> None:
    one = mediator(secret(), identify="token", secret="orders")
    assert one.start() == [Dial()]
    assert one.limit(C) == one.limit(S) == 0
    assert one.dialled() == []
    taken, told = hear(one, S, GREETING, size)
    assert taken == Take(S, GREETING)
    assert isinstance(told, Say)
    ours = Greeting.read(told.data[4:])
    assert ours.capabilities == ABLE & ~session.COMPRESS & ~session.ZSTD
    assert ours.scramble != SCRAMBLE
    assert b"\0" not in ours.scramble
    assert ours.plugin == "mysql_native_password"
    upgraded = hear(one, C, ASKS_TLS, size)
    assert upgraded[0] == Take(C, ASKS_TLS)
    assert upgraded[-1] == StartTls(S, mirror=True)
    assert last_said(upgraded) == ASKS_TLS
    assert one.limit(C) == one.limit(S) == 0
    assert one.secured(S) == [StartTls(C)]
    assert one.limit(C) == 0
    assert one.secured(C) == []
    taken, told = hear(one, C, WITHIN, size)
    assert isinstance(taken, Take)
    ((start, end, what),) = taken.secrets
    assert (WITHIN[start:end], what) == (b"01234567890123456789", "password")
    assert told == Say(C, ASKS_TOKEN)
    assert hear(one, C, GIVES_TOKEN, size) == [
        Take(C, GIVES_TOKEN, ((4, 4 + len(TOKEN), "token"),)),
        Identify(TOKEN, "mysql-password"),
    ]
    assert one.limit(C) == 0
    (said,) = one.identified(AGENT)
    assert in_response(last_said([said])) == (2, USER.encode(), scrambled())
    assert last_said([said]).endswith(WITHIN[WITHIN.index(b"shop\0") :]), "database and attributes as they came"
    assert not one.ready
    assert hear(one, S, packet(3, OK), size) == [
        Pass(S, packet(5, OK)),
        Note("upstream", f"logged in as {USER}", {"login": {"user": USER, "method": NATIVE, "secret": "orders"}}),
    ]
    assert one.ready
    assert one.limit(C) == one.limit(S) == ANY
    assert one.receive(C, query("select 1")) == [Pass(C, query("select 1"))]
    assert one.receive(S, b"rows") == [Pass(S, b"rows")]


@pytest.mark.parametrize("size", [0, 1])
def test_the_agents_own_password(size: int) -> None:
    one = mediator()
    one.start()
    one.dialled()
    plain = greeting(SAID | session.SSL)
    assert hear(one, S, plain, size) == [Pass(S, plain)], "nothing is to be withheld"
    taken, said = hear(one, C, RESPONSE, size)
    assert isinstance(taken, Take)
    assert len(taken.secrets) == 1
    assert said == Say(S, RESPONSE)
    switch = packet(2, b"\xfeclient_ed25519\0" + bytes(32))
    assert hear(one, S, switch, size) == [Pass(S, switch)]
    proof = packet(3, b"p" * 64)
    assert hear(one, C, proof, size) == [Take(C, proof, ((4, 68, "password"),)), Say(S, proof)]
    note = Note("upstream", "logged in as ada", {"login": {"user": "ada", "method": "client_ed25519"}})
    assert hear(one, S, packet(4, OK), size) == [Pass(S, packet(4, OK)), note, Splice()]
    assert one.ready


def test_a_request_for_a_key_is_no_secret() -> None:
    one = mediator()
    one.start()
    one.dialled()
    hear(one, S, greeting(SAID, plugin="caching_sha2_password"))
    hear(one, C, response(capabilities=SAID, plugin="caching_sha2_password"))
    hear(one, S, packet(2, b"\1\4"))
    assert hear(one, C, packet(3, b"\2")) == [Take(C, packet(3, b"\2")), Say(S, packet(3, b"\2"))]
    hear(one, S, packet(4, b"\1-----BEGIN PUBLIC KEY-----"))
    assert hear(one, C, packet(5, b"x" * 256))[0] == Take(C, packet(5, b"x" * 256), ((4, 260, "password"),))
    assert hear(one, S, packet(6, b"\1\3")) == [Pass(S, packet(6, b"\1\3"))]
    assert one.limit(C) == 0, "the server goes on by itself"


def test_numbers_differ_where_only_the_gateway_speaks_tls() -> None:
    one = mediator(upstream_tls="require")
    one.start()
    one.dialled()
    hear(one, S, greeting(SAID | session.SSL))
    upgraded = hear(one, C, RESPONSE)
    assert upgraded[-1] == StartTls(S)
    assert last_said(upgraded)[3] == 1
    assert len(last_said(upgraded)) == 36
    (said,) = one.secured(S)
    assert last_said([said]) == response(capabilities=SAID | session.SSL, number=2)
    told = hear(one, S, packet(3, b"\xfeclient_ed25519\0" + bytes(32)))
    assert told[-1] == Say(C, packet(2, b"\xfeclient_ed25519\0" + bytes(32)))
    assert hear(one, C, packet(3, b"p" * 64))[-1] == Say(S, packet(4, b"p" * 64))
    assert hear(one, S, packet(5, OK))[0] == Pass(S, packet(4, OK))
    assert one.ready


def test_nothing_is_read_behind_what_is_needed() -> None:
    one = mediator(secret(), identify="token", secret="orders")
    one.start()
    one.dialled()
    assert (one.limit(C), one.limit(S)) == (0, 4)
    hear(one, S, GREETING[:4])
    assert one.limit(S) == len(GREETING) - 4
    hear(one, S, GREETING[4:])
    assert one.limit(C) == 4
    hear(one, C, ASKS_TLS[:4])
    assert one.limit(C) == 32
    hear(one, C, ASKS_TLS[4:])
    assert one.limit(C) == 0


def test_a_token_within_the_response_needs_no_question() -> None:
    one = within_tls(secret(), identify="token", secret="orders")
    early = response(TOKEN.encode() + b"\0", SAID | session.SSL, plugin="mysql_clear_password", number=2)
    taken, asked = hear(one, C, early)
    assert asked == Identify(TOKEN, "mysql-password")
    assert isinstance(taken, Take)
    assert [early[start:end] for start, end, _ in taken.secrets] == [TOKEN.encode()]


def test_a_lease_is_enough() -> None:
    one, said = logging_in(secret(), secret="orders")
    assert in_response(last_said(said)) == (1, USER.encode(), scrambled())
    assert hear(one, S, packet(2, OK))[0] == Pass(S, packet(2, OK))


def test_a_client_of_caching_sha2_is_told_that_its_proof_is_enough() -> None:
    one = mediator(secret(), secret="orders")
    one.start()
    one.dialled()
    hear(one, S, IN_CLEAR)
    hear(one, C, response(b"x" * 32, SAID, plugin="caching_sha2_password"))
    assert hear(one, S, packet(2, OK))[:2] == [Say(C, packet(2, b"\1\3")), Pass(S, packet(3, OK))]


def test_the_former_credential() -> None:
    one, _ = logging_in(secret(former="the one before"), secret="orders")
    refused = packet(2, error(1045, "28000", "Access denied for user 'svc_orders'"))
    out = hear(one, S, refused)
    assert out[0] == Take(S, refused)
    assert isinstance(out[1], Note)
    assert out[1].attrs["message"] == "Access denied for user 'svc_orders'"
    assert out[2:] == [HangUp(), Dial()]
    assert one.dialled() == []
    again = hear(one, S, IN_CLEAR)
    assert in_response(last_said(again)) == (1, USER.encode(), scrambled("the one before"))
    assert hear(one, S, packet(2, OK))[0] == Pass(S, packet(2, OK))


def test_another_server_behind_the_same_address() -> None:
    one, _ = logging_in(secret(former="the one before"), secret="orders")
    hear(one, S, packet(2, error(1045, "28000")))
    one.dialled()
    assert failed(hear(one, S, greeting(SAID & ~session.DEPRECATE_EOF))) == (2, 1105, "protocol")


def test_the_credential_is_not_told() -> None:
    one, _ = logging_in(secret(), secret="orders")
    out = hear(one, S, packet(2, error(1045, "28000", f"no {PASSWORD}")))
    assert failed(out) == (2, 1045, "login-refused")
    assert PASSWORD not in str([each for each in out if not isinstance(each, Take)])


def test_an_error_about_the_session_passes() -> None:
    one, _ = logging_in(secret(), secret="orders")
    unknown = packet(2, error(1049, "42000", "Unknown database"))
    assert hear(one, S, unknown)[0] == Pass(S, unknown)
    one = mediator(secret(), secret="orders")
    one.start()
    one.dialled()
    full = packet(0, b"\xff\x10\x04Too many connections")
    assert hear(one, S, full) == [Pass(S, full), Fail("login-refused", "the server refused the session: error 1040")]


@pytest.mark.parametrize(
    ("rule", "said", "ended"),
    [
        ({}, packet(1, b"hello"), (2, 1235, "protocol")),
        ({}, packet(7, RESPONSE[4:]), (1, 1043, "protocol")),
        ({}, response(capabilities=SAID | session.COMPRESS), (1, 1235, "compression")),
        ({}, response(capabilities=SAID | session.ZSTD), (1, 1235, "compression")),
        ({}, response(capabilities=SAID | session.SSL), (1, 1043, "protocol")),
        ({}, packet(1, RESPONSE[4:50]), (1, 1043, "protocol")),
        ({}, (MAX_PACKET + 1).to_bytes(3, "little") + b"\1", (1, 1043, "protocol")),
        ({"identify": "token"}, RESPONSE, (2, 3159, "cleartext-token")),
    ],
)
def test_what_an_agent_must_not_say(rule: dict[str, str], said: bytes, ended: tuple[int, int, str]) -> None:
    one = mediator(secret(), secret="orders", **rule)
    one.start()
    one.dialled()
    hear(one, S, GREETING)
    out = hear(one, C, said)
    assert failed(out)[1:] == ended[1:]
    recorded = b"".join(each.data for each in out if isinstance(each, Take) and each.direction is C)
    assert recorded == said


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"SSH-", "protocol"),
        (packet(0, b"\x09old"), "protocol"),
        (packet(1, GREETING[4:]), "protocol"),
        (packet(0, GREETING[4:40]), "protocol"),
        (greeting(SAID & ~session.PROTOCOL_41), "protocol"),
        (b"\xff\xff\xff\0", "protocol"),
        (packet(0), "protocol"),
    ],
)
def test_a_server_that_is_none(said: bytes, reason: str) -> None:
    one = mediator(secret(), secret="orders")
    one.start()
    one.dialled()
    out = hear(one, S, said)
    assert failed(out)[2] == reason
    assert b"#" not in out[-2].data[:12]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (packet(5, OK), "protocol"),
        (packet(2), "protocol"),
        (packet(2, b"\1\3"), "unsupported-login"),
        (packet(2, b"\xfedialog\0Password: "), "unsupported-login"),
        (packet(2, b"\xfe"), "unsupported-login"),
        (packet(2, b"\xfemysql_native_password\0short\0"), "protocol"),
        (packet(2, b"\xfemysql_clear_password\0"), "cleartext-password"),
        (packet(2, b"\2more"), "unsupported-login"),
        (packet(2, b"\xff"), "protocol"),
    ],
)
def test_a_log_in_that_is_none(said: bytes, reason: str) -> None:
    one, _ = logging_in(secret(), secret="orders")
    out = hear(one, S, said)
    assert failed(out)[2] == reason
    assert PASSWORD.encode() not in b"".join(each.data for each in out if isinstance(each, Say))


def test_without_a_credential_the_server_must_do_without_one() -> None:
    one = within_tls(identify="token")
    hear(one, C, WITHIN)
    hear(one, C, GIVES_TOKEN)
    said = one.identified(AGENT)
    assert in_response(last_said(said)) == (2, b"ada", b"")
    assert failed(hear(one, S, packet(3, b"\xfemysql_native_password\0" + SCRAMBLE + b"\0")))[2] == "no-credential"


@pytest.mark.parametrize("said", [b"", b"\0", b"\xc3\xa4\0", b"a\0b\0"])
def test_what_cannot_be_a_token(said: bytes) -> None:
    one = within_tls(secret(), identify="token", secret="orders")
    hear(one, C, WITHIN)
    assert failed(hear(one, C, packet(4, said))) == (5, 1045, "token-refused")


def test_a_secret_of_another_kind() -> None:
    one = mediator(secret(Kind.TOKEN), secret="orders")
    one.start()
    assert failed(one.dialled())[2] == "secret"


def test_the_rule_requires_tls() -> None:
    one = mediator(secret(), secret="orders", upstream_tls="require")
    one.start()
    one.dialled()
    assert failed(hear(one, S, IN_CLEAR))[2] == "upstream-tls"


def test_a_server_without_tls_for_an_agent_with() -> None:
    one = mediator(secret(), identify="token", secret="orders")
    one.start()
    one.dialled()
    hear(one, S, IN_CLEAR)
    _, note, tls = hear(one, C, ASKS_TLS)
    assert isinstance(note, Note)
    assert note.kind == "upstream-cleartext"
    assert tls == StartTls(C)


def test_other_capabilities_within_tls_than_before() -> None:
    one = within_tls(secret(), identify="token", secret="orders")
    other = response(capabilities=(SAID | session.SSL) & ~session.LOCAL_FILES, number=2)
    assert failed(hear(one, C, other)) == (2, 1043, "protocol")


def test_a_server_that_speaks_between_the_request_for_tls_and_the_handshake() -> None:
    one = mediator(secret(), identify="token", secret="orders")
    one.start()
    one.dialled()
    hear(one, S, GREETING)
    assert one.receive(S, b"\1") == []
    assert failed(hear(one, C, ASKS_TLS))[2] == "before-tls"


@pytest.mark.parametrize(("reason", "alert"), [("certificate", 49), ("tls", 80), ("time-out", 80)])
def test_who_begins_tls_is_told_by_an_alert(reason: str, alert: int) -> None:
    one = mediator(secret(), identify="token", secret="orders")
    one.start()
    one.dialled()
    hear(one, S, GREETING)
    hear(one, C, ASKS_TLS)
    said, last = one.stop(reason, "why")
    assert said == Say(C, bytes((21, 3, 3, 0, 2, 2, alert)))
    assert isinstance(last, Fail)
    assert last.reason == reason


def test_ends() -> None:
    one = mediator(secret(), secret="orders")
    one.start()
    one.dialled()
    hear(one, S, GREETING)
    hear(one, C, RESPONSE[:20])
    assert one.ended(C) == [Take(C, RESPONSE[:20]), HangUp(), Shut(C)]
    one, _ = logging_in(secret(), secret="orders")
    assert failed(one.ended(S))[2] == "server-gone"
    one, _ = logging_in(secret(), secret="orders")
    hear(one, S, packet(2, OK))
    assert one.receive(C, b"\1\0") == []
    assert one.ended(C) == [Pass(C, b"\1\0"), Shut(S)]
    assert one.ended(S) == [Shut(C)]


def test_words_for_reasons_from_outside() -> None:
    one = mediator(secret(), secret="orders")
    one.start()
    words = packet(0, b"\xff\x51\x04the gateway did not reach the server: nobody there")
    assert one.dial_failed("unreachable", "nobody there")[0] == Say(C, words), "in a greeting's place without SQLSTATE"
    one, _ = logging_in(secret(), secret="orders")
    assert failed(one.stop("shutdown", "the relay ends")) == (2, 1053, "shutdown")
    one, _ = logging_in(secret(), secret="orders")
    hear(one, S, packet(2, OK))
    assert failed(one.stop("idle", "no byte for 60 s")) == (0, 4031, "idle")
    one, _ = logging_in(secret(), secret="orders")
    hear(one, S, packet(2, OK))
    assert one.stop("lease-ended", "over") == [Fail("lease-ended", "over")], "an answer may be under way"


# -- behind the log-in -------------------------------------------------------------------------------------------------


def watched(stream: bytes, size: int) -> tuple[bytes, bytes]:
    one = Watched()
    passed = b""
    for at in range(0, len(stream), size or len(stream)):
        some, refused = one.take(stream[at : at + (size or len(stream))])
        passed += some
        if refused:
            return passed, refused
    return passed + one.rest(), b""


FILE = b"".join(packet(number & 0xFF, b"\x11 a line\n") for number in range(2, 700)) + packet(700 & 0xFF)


@pytest.mark.parametrize("size", [0, 1, 3, 5, 4096])
@pytest.mark.parametrize(
    "before",
    [
        b"",
        query("select 1") * 3,
        packet(0) + query("x"),
        query("load data local infile 'x'") + FILE,
        query("load data local infile 'x'") + packet(2),
        query("load data local infile 'x'") + b"".join(packet(n & 255, b"x") for n in range(2, 255)) + packet(255),
    ],
)
def test_com_change_user_does_not_pass(before: bytes, size: int) -> None:
    passed, refused = watched(before + change_user() + query("select 2"), size)
    assert passed == before
    assert refused.startswith(change_user()[:5])
    assert watched(before + query("select 2"), size) == (before + query("select 2"), b"")


def test_a_message_of_several_packets() -> None:
    big = b"\xff\xff\xff\0\x03" + bytes(0xFFFFFF - 1) + packet(1, b"\x11 not a command")
    assert watched(big + query("x"), 1 << 18) == (big + query("x"), b"")
    assert watched(big + change_user(), 1 << 18) == (big, change_user())
    assert watched(b"\xff\xff\xff\0\x03" + bytes(0xFFFFFF - 1) + packet(1) + change_user(), 0)[1] == change_user()


def test_it_is_told_by_an_error() -> None:
    one, _ = logging_in(secret(), secret="orders")
    hear(one, S, packet(2, OK))
    out = one.receive(C, query("x") + change_user())
    assert out[0] == Pass(C, query("x"))
    assert out[1] == Take(C, change_user(), ((5, len(change_user()), "password"),))
    assert failed(out) == (1, 1227, "change-user")
    multi = command(0xFE, b"\x11")
    one, _ = logging_in(secret(), secret="orders")
    hear(one, S, packet(2, OK))
    assert failed(one.receive(C, multi))[2] == "change-user"
