"""The mediator of Redis: what it is told, and what it says to that."""

from typing import Any

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
    Take,
)
from appliance.relay.redis import MAX_TRIES, NO_AUTH, REFUSED, RedisMediator
from appliance.relay.redis_commands import MAX_HELD, SHORT, Command, Cutter, Malformed
from tests.dissect.redis_bytes import LOGINS, OK, bulk, command
from tests.relay.database_play import PASSWORD, TOKEN, USER, C, S, context, merged, secret

AGENT = Identity(subject="agent-7")
AUTH = command("AUTH", TOKEN)
LOGIN = Say(S, command("AUTH", USER, PASSWORD))
INSTEAD = Say(S, command(REFUSED))
TELLS = Note("upstream", f"logged in as {USER}", {"login": {"user": USER, "method": "auth", "secret": "orders"}})


def mediator(credential: Secret | None = None, *, tls: bool = True, **rule: Any) -> RedisMediator:
    return RedisMediator(context("redis", tls=tls, credential=credential, **rule))


def by_token() -> RedisMediator:
    return mediator(secret(), identify="token", secret="orders")


def opened() -> RedisMediator:
    """Logged in by the gateway, under a lease."""
    one = mediator(secret(), secret="orders")
    assert one.start() == [Dial(tls=True)]
    assert one.dialled() == [LOGIN]
    assert one.receive(S, OK) == [TELLS]
    assert one.ready
    return one


def hear(one: RedisMediator, data: bytes, size: int = 0) -> Commands:
    out: Commands = []
    while data and not any(isinstance(each, Fail) for each in out) and one.limit(C):
        piece = data[: size or len(data)]
        out += one.receive(C, piece)
        data = data[len(piece) :]
    return merged(out)


def ended(commands: Commands) -> tuple[str, str]:
    """What the agent was told last ("": nothing), and the reason."""
    *before, last = commands
    assert isinstance(last, Fail), commands
    said = before[-1] if before else None
    told = said.data.decode() if isinstance(said, Say) and said.to is C else ""
    assert not told or (told.startswith("-") and told.endswith("\r\n") and told.count("\n") == 1)
    return told[1:].split(" ")[0], last.reason


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("words", [("AUTH", TOKEN), ("auth", "any", TOKEN)])
def test_a_session_by_token(words: tuple[str, ...], size: int) -> None:
    one = by_token()
    assert one.start() == []
    said = command(*words)
    end = len(said) - 2
    assert hear(one, said, size) == [
        Take(C, said, ((end - len(TOKEN), end, "token"),)),
        Identify(TOKEN, "redis-auth"),
    ]
    assert one.limit(C) == 0
    assert one.identified(AGENT) == [Dial(tls=True)]
    assert one.dialled() == [LOGIN]
    assert one.receive(S, OK[:2]) == []
    assert one.receive(S, OK[2:]) == [TELLS, Pass(S, OK)]
    assert one.limit(C) == one.limit(S) == ANY
    assert one.receive(S, b"$-1\r\n") == [Pass(S, b"$-1\r\n")]


@pytest.mark.parametrize("size", [0, 1])
def test_what_comes_behind_the_token_waits_for_the_log_in(size: int) -> None:
    one = by_token()
    more = command("CLIENT", "SETINFO", "x", "y") + command("GET", "a")
    assert one.receive(C, AUTH + more)[-1] == Identify(TOKEN, "redis-auth")
    one.identified(AGENT)
    one.dialled()
    assert merged(one.receive(S, OK)) == [TELLS, Pass(S, OK), Pass(C, more)]


def test_hello_has_the_servers_own_reply() -> None:
    one = by_token()
    hello = command("HELLO", "3", "AUTH", "any", TOKEN, "SETNAME", "me")
    assert hear(one, hello)[-1] == Identify(TOKEN, "redis-auth")
    one.identified(AGENT)
    assert one.dialled() == [Say(S, command("HELLO", "3", "AUTH", USER, PASSWORD, "SETNAME", "me"))]
    reply = b"%1\r\n" + bulk(b"proto") + b":3\r\n"
    assert one.receive(S, reply) == [TELLS, Pass(S, reply)]
    one = by_token()
    hear(one, hello)
    one.identified(AGENT)
    one.dialled()
    unknown = b"-ERR unknown command 'HELLO'\r\n"
    assert one.receive(S, unknown) == [Pass(S, unknown)], "the client goes on without"
    assert hear(one, AUTH)[-1] == Identify(TOKEN, "redis-auth")
    assert one.identified(AGENT) == [LOGIN], "connected already"


def test_without_a_credential_the_token_is_not_passed_on() -> None:
    one = mediator(identify="token")
    hear(one, command("HELLO", "3", "AUTH", "any", TOKEN))
    one.identified(AGENT)
    assert one.dialled() == [Say(S, command("HELLO", "3"))]
    one = mediator(identify="token")
    hear(one, AUTH)
    one.identified(AGENT)
    assert one.dialled() == [Say(C, OK)]
    again = hear(one, AUTH)
    assert again[-1] == INSTEAD
    assert TOKEN.encode() not in b"".join(each.data for each in again if isinstance(each, Say | Pass))


def test_the_default_user_is_not_named() -> None:
    one = mediator(secret(user="default"), secret="orders")
    one.start()
    assert one.dialled() == [Say(S, command("AUTH", PASSWORD))]


def test_before_the_token() -> None:
    one = by_token()
    for said in (command("GET", "a"), b"PING\r\n", command("HELLO", "3"), command("AUTH")):
        assert hear(one, said) == [Take(C, said), Say(C, NO_AUTH)]
    for left in reversed(range(MAX_TRIES)):
        hear(one, AUTH)
        out = one.unidentified("expired")
        if left:
            assert isinstance(out[0], Say)
            assert out[0].data.startswith(b"-WRONGPASS the gateway does not accept the access token")
        else:
            assert ended(out) == ("WRONGPASS", "token-refused")
    assert ended(hear(mediator(secret(), tls=False, identify="token", secret="orders"), AUTH)) == (
        "NOAUTH",
        "cleartext-token",
    )


def test_the_former_credential() -> None:
    one = mediator(secret(former="the one before"), secret="orders")
    one.start()
    one.dialled()
    wrong = b"-WRONGPASS invalid username-password pair\r\n"
    taken, note, *rest = one.receive(S, wrong)
    assert taken == Take(S, wrong)
    assert isinstance(note, Note)
    assert note.kind == "login-refused"
    assert rest == [HangUp(), Dial(tls=True)]
    assert one.dialled() == [Say(S, command("AUTH", USER, "the one before"))]
    assert ended(one.receive(S, wrong)) == ("NOPERM", "login-refused")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"+QUEUED\r\n", "protocol"),
        (b":1\r\n", "protocol"),
        (b"\r\n", "protocol"),
        (b"x" * 70_000, "protocol"),
        (b"-ERR max number of clients reached\r\n", "login-refused"),
        (b"-" + PASSWORD.encode() + b"\r\n", "login-refused"),
    ],
)
def test_a_log_in_that_is_none(said: bytes, reason: str) -> None:
    one = mediator(secret(), secret="orders")
    one.start()
    one.dialled()
    out = one.receive(S, said)
    assert ended(out)[1] == reason
    assert PASSWORD not in str([each for each in out if not isinstance(each, Take)])


@pytest.mark.parametrize(
    "said",
    [
        command("AUTH", "x"),
        command("auth", "u", "x"),
        command("RESET"),
        command("HELLO", "2", "AUTH", "u", "x"),
        command("HELLO", "3", "SETNAME", "AUTH"),
        command("ACL", "SETUSER", "u", "on", ">x"),
        command("acl", "deluser", "u"),
        command("CONFIG", "SET", "maxmemory", "1", "RequirePass", "x"),
        command("CONFIG", "GET", "save", "requirepass"),
        command("config", "get", "*"),
        command("CONFIG", "GET", "r*p??s"),
        command("CONFIG", "GET", "requirepas\\s"),
        command("CONFIG", "GET", "require[\\]p]ass"),
        b'AU"TH" x\r\n',
        b'"\\x41UTH" x\n',
        b"  reset\r\n",
    ],
)
@pytest.mark.parametrize("size", [0, 1])
def test_a_log_in_does_not_pass_the_gateways(said: bytes, size: int) -> None:
    one = opened()
    taken, note, instead, *rest = hear(one, command("GET", "a") + said + command("GET", "b"), size)[1:]
    assert isinstance(taken, Take)
    assert taken.data == said
    assert isinstance(note, Note)
    assert note.kind == "declined"
    assert instead == INSTEAD
    assert rest == [Pass(C, command("GET", "b"))]


@pytest.mark.parametrize(
    "said",
    [
        command("HELLO", "3"),
        command("HELLO", "3", "SETNAME", "me"),
        command("ACL", "WHOAMI"),
        command("CONFIG", "SET", "maxmemory", "requirepass"),
        command("CONFIG", "GET", "maxmemory*", "save"),
        command("SET", "k", "*1\r\n$5\r\nRESET\r\n"),
        command("GETEX", "AUTH"),
        command("RESETS"),
        b"*0\r\n*-1\r\n\r\n" + command("PING"),
        b'SET a "AUTH x"\r\n',
    ],
)
@pytest.mark.parametrize("size", [0, 1, 5])
def test_what_passes(said: bytes, size: int) -> None:
    assert hear(opened(), said, size) == [Pass(C, said)]


@pytest.mark.parametrize("size", [0, 1])
def test_own_passwords_are_kept_by_length_only(size: int) -> None:
    one = mediator(tls=False)
    assert one.start() == [Dial()]
    assert one.dialled() == []
    said = b"".join(data for direction, data in LOGINS if direction is C and isinstance(data, bytes))
    out = hear(one, said, size)
    (passed,) = out
    assert isinstance(passed, Pass)
    assert passed.data == said
    shown = bytearray(said)
    for start, end, _ in passed.secrets:
        shown[start:end] = b"*" * (end - start)
    assert b"wachtwoord" not in shown
    assert b"geheim" not in shown


@pytest.mark.parametrize(
    "said",
    [
        b"*1\r\n$4\r\nPINGxx",
        b"*1\r\n:4\r\n",
        b"*x\r\n",
        b"*01\r\n$4\r\n",
        b"*1\rX$4\rXAUTH\r\n",
        b"*2\r\n$4\r\nAUTH\r\n+x\r\n",
        b"*2\r\n$4\r\nAUTH\r\n$%d\r\n" % (MAX_HELD + 1),
        b"A\0UTH x\r\n",
        b"x" * 70_000,
    ],
)
@pytest.mark.parametrize("size", [0, 1])
def test_what_is_no_command_ends_the_flow(said: bytes, size: int) -> None:
    one = opened()
    if len(said) > 1000 and size:
        size = 4096
    out = hear(one, command("PING") + said, size)
    assert out[0] == Pass(C, command("PING")) or out[0] == Pass(C, command("PING") + b"*1\r\n$4\r\nPING")
    assert ended(out) == ("ERR", "protocol")


def test_ends() -> None:
    one = opened()
    begun = b"*2\r\n$3\r\nGET\r\n$9\r\nab"
    assert one.receive(C, begun) == [Pass(C, begun)]
    assert one.receive(C, b"cdefghi\r") == [Pass(C, b"cdefghi")]
    assert one.ended(C) == [Pass(C, b"\r"), Shut(S)]
    assert one.ended(S) == [Shut(C)]
    one = by_token()
    one.receive(C, AUTH[:-4])
    assert one.ended(C) == [Take(C, AUTH[:-4], ((0, len(AUTH) - 4, "password"),)), Shut(C)]
    one = mediator(secret(), secret="orders")
    one.start()
    one.dialled()
    assert ended(one.ended(S)) == ("ERR", "server-gone")
    assert ended(mediator(secret(Kind.TOKEN), secret="orders").start()) == ("ERR", "secret")


def test_words_for_reasons_from_outside() -> None:
    one = by_token()
    assert ended(one.stop("time-out", "log-in took too long")) == ("ERR", "time-out")
    one = opened()
    assert ended(one.stop("lease-ended", "the lease ended")) == ("ERR", "lease-ended")
    one = opened()
    one.receive(S, b"$10\r\nabc")
    assert one.stop("lease-ended", "over") == [Fail("lease-ended", "over")], "it would be read as part of a value"


# -- where commands begin ----------------------------------------------------------------------------------------------


def cut(stream: bytes, size: int) -> list[bytes | Command]:
    one = Cutter()
    out: list[bytes | Command] = []
    for at in range(0, len(stream), size):
        one.feed(stream[at : at + size])
        while (piece := one.next()) is not None:
            out.append(piece)
    return out


@pytest.mark.parametrize("length", [0, 1, 9, 10, 19, 99, 100, SHORT - 1, SHORT, SHORT + 1, 1000])
@pytest.mark.parametrize("arguments", [1, 2, 5, 6, 7, 40])
def test_arguments_of_any_length_are_passed_over(length: int, arguments: int) -> None:
    value = (b"*2\r\n$4\r\nAUTH\r\n$1\r\nx\r\n" * 60)[:length]
    stream = command("SET", *[value] * arguments) * 3 + command("AUTH", "x") + command("GET", "a")
    for size in (len(stream), 1, 3, 64):
        found = cut(stream, size)
        assert b"".join(one if isinstance(one, bytes) else one.data for one in found) == stream
        assert [one.data for one in found if isinstance(one, Command)] == [command("AUTH", "x")]


def test_a_length_that_lies_is_found() -> None:
    for stream in (
        b"*2\r\n$3\r\nGET\r\n$2\r\nabc\r\n",
        b"*1\r\n$4\r\nPINGS\r\n",
        b"*2\r\n$3\r\nGET\r\n$3\r\na\r\n*1\r\n",
    ):
        with pytest.raises(Malformed):
            cut(stream + command("PING"), 1000)


def test_a_long_command_that_is_looked_at_costs_what_it_is_long() -> None:
    """Byte for byte, and with as many arguments as there may be."""
    stream = command("CONFIG", "SET", *["x"] * 4000)
    one = Cutter()
    found: list[bytes | Command | None] = []
    for at in range(len(stream)):
        one.feed(stream[at : at + 1])
        found.append(one.next())
    assert [len(each.words) for each in found if isinstance(each, Command)] == [4002]
