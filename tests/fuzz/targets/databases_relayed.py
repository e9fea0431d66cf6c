"""The mediators of MySQL and Redis: whatever agent and server say, and whenever what was asked for comes or fails.

Bytes: the rule; then a step each. Steps 0 to 3 hand over a piece of what a peer says, as much as is read or more; the
others answer what the mediator waits for, end a peer, or end the flow.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from appliance.config import RelayRule
from appliance.identity.credential import Kind, Secret
from appliance.identity.secret_text import SecretText
from appliance.model import Direction, Identity
from appliance.relay.mediator import (
    ANY,
    Command,
    Commands,
    Context,
    Dial,
    Fail,
    HangUp,
    Identify,
    Mediator,
    Pass,
    Say,
    Splice,
    StartTls,
    Take,
)
from appliance.relay.mysql import MysqlMediator
from appliance.relay.mysql_upgrade import MysqlUpgrade
from appliance.relay.redis import RedisMediator
from tests.dissect.mysql_bytes import SCRAMBLE, change_user, error, packet, query, response
from tests.dissect.redis_bytes import OK, command
from tests.fuzz.script import Script
from tests.fuzz.targets import Target
from tests.relay import mysql_play as play

C, S = Direction.CLIENT, Direction.SERVER
PASSWORD, FORMER, TOKEN = "correct horse", "the one before", "eyJh.eyJz.c2ln"
CREDENTIALS: Final = (PASSWORD.encode(), FORMER.encode())
STEPS: Final = 10
RULES: Final = tuple(itertools.product(("lease", "token"), ("", "cache"), ("same", "require"), (False, True)))


def mysql(context: Context) -> Mediator:
    return MysqlUpgrade(context) if context.rule.mode == "splice" else MysqlMediator(context)


class Flow:
    """Tells a mediator what happens, and holds it to what must be."""

    def __init__(self, make: Callable[[Context], Mediator], application: str, rule: int) -> None:
        identify, name, tls, more = RULES[rule % len(RULES)]
        splice = application == "mysql" and more
        given = {} if splice else {"identify": identify, "secret": name}
        mode = "splice" if splice else "mediate"
        settings = {"application": application, "mode": mode, "upstream_tls": tls} | given
        former = Secret("cache", Kind.PASSWORD, SecretText(FORMER), "svc")
        secret = Secret("cache", Kind.PASSWORD, SecretText(PASSWORD), "svc", former=former)
        rules = RelayRule.model_validate(settings)
        encrypted = application == "redis" and more
        known = secret if name and not splice else None
        self.mediator = make(Context(rules, "10.1.0.7", 40000, "10.2.0.5", 1, None, known, tls=encrypted))
        self.clear = application == "redis"  # which sends the password itself
        self.waits: Command | None = None
        self.over = self.connected = self.tls = False
        self.said = {C: b"", S: b""}
        self.recorded = b""
        self.ended: set[Direction] = set()
        self.hear(self.mediator.start())
        if splice:
            self.connected = True
            self.hear(self.mediator.dialled())

    def limit(self, direction: Direction) -> int:
        limit = self.mediator.limit(direction)
        assert 0 <= limit <= ANY
        return limit

    def talks(self, direction: Direction) -> bool:
        return direction not in self.ended and (direction is C or self.connected)

    def say(self, direction: Direction, data: bytes) -> None:
        if data and self.talks(direction):
            self.said[direction] += data
            self.hear(self.mediator.receive(direction, data))

    def answer(self, well: bool) -> None:
        """What the mediator waits for is there, or failed."""
        waited, self.waits = self.waits, None
        match waited:
            case Dial():
                self.connected = well
                self.tls = self.tls or waited.tls
                self.hear(self.mediator.dialled() if well else self.mediator.dial_failed("unreachable", "not there"))
            case StartTls() if well:
                self.tls = self.tls or waited.peer is S
                self.hear(self.mediator.secured(waited.peer))
            case Identify():
                identity = Identity(subject="agent")
                self.hear(self.mediator.identified(identity) if well else self.mediator.unidentified("expired"))
            case StartTls():
                self.hear(self.mediator.stop("tls", "the handshake failed"))

    def hear(self, commands: Commands) -> None:
        for at, each in enumerate(commands):
            assert not self.over, f"{each} behind the end"
            match each:
                case Dial() | StartTls() | Identify():
                    assert self.waits is None, "two things at once"
                    self.waits = each
                    assert not isinstance(each, StartTls) or each.peer is C or self.connected
                case HangUp():
                    self.ended.discard(S)
                    self.connected = self.tls = False
                case Pass() | Take() | Say():
                    self.moved(each)
                case Fail():
                    assert at == len(commands) - 1
                    assert "\0" not in each.text
                    self.over = True
                case Splice():
                    assert at == len(commands) - 1
                    assert self.mediator.ready
                    self.over = True
        if self.over:
            assert self.recorded == self.said[C], "what the agent said is not on record"

    def moved(self, each: Pass | Take | Say) -> None:
        if isinstance(each, Say):
            held = any(secret in each.data for secret in CREDENTIALS)
            assert not held or (each.to is S and (self.tls or self.clear)), "the credential in clear, or to the agent"
            return
        for start, end, what in each.secrets:
            assert 0 <= start < end <= len(each.data)
            assert what
        if each.direction is C:
            self.recorded += each.data


def check(make: Callable[[Context], Mediator], application: str, data: bytes) -> None:
    script = Script(data)
    flow = Flow(make, application, script.byte())
    while script.more and not flow.over:
        step = script.byte() % STEPS
        if step < 4:
            direction = (C, S)[step & 1]
            piece = script.piece()
            if any(secret in flow.said[direction] + piece for secret in CREDENTIALS):
                return  # who knows it already may say it
            while piece and not flow.over:
                size = len(piece) if step >= 2 else flow.limit(direction)
                if not size:
                    break
                flow.say(direction, piece[:size])
                piece = piece[size:]
        elif step < 7:
            flow.answer(well=step != 6)
        elif step < 9:
            direction = (C, S)[step & 1]
            if flow.talks(direction):
                flow.ended.add(direction)
                flow.hear(flow.mediator.ended(direction))
        else:
            flow.hear(flow.mediator.stop("shutdown", "the relay ends"))
    if not flow.over:
        flow.limit(C)
        flow.limit(S)


def _piece(direction: Direction, data: bytes) -> bytes:
    return bytes([direction is S, len(data)]) + data


WELL: Final = b"\5"
SWITCHES: Final = (
    b"\xfemysql_native_password\0" + SCRAMBLE + b"\0", b"\xfecaching_sha2_password\0" + SCRAMBLE + b"\0",
    b"\xfeclient_ed25519\0" + bytes(32), b"\xfemysql_clear_password\0", b"\xfesha256_password\0" + SCRAMBLE, b"\1\4",
    error(1045, "28000"), error(1049),
)  # fmt: skip
OK_PACKET: Final = b"\0\0\0\2\0\0\0"


def mysql_seeds() -> Iterator[bytes]:
    """Log-ins of every rule, in pieces as they are read."""
    clear = _piece(S, play.IN_CLEAR) + _piece(C, play.RESPONSE)
    tls = _piece(S, play.GREETING) + _piece(C, play.ASKS_TLS) + WELL + WELL + _piece(C, play.WITHIN)
    token = _piece(C, packet(4, TOKEN.encode() + b"\0")) + WELL
    for rule in range(len(RULES)):
        for asked in SWITCHES:
            for number, before in ((2, clear), (3, tls), (3, tls + token)):
                said = _piece(S, packet(number, asked)) + _piece(C, packet(number + 1, b"x" * 20))
                done = _piece(S, packet(number + 2, OK_PACKET)) + _piece(C, query("select 1") + change_user())
                yield bytes([rule]) + WELL + before + said + done + b"\x08\x07"
        yield bytes([rule]) + WELL + tls + token + _piece(S, packet(3, OK_PACKET)) + _piece(C, change_user())


def redis_seeds() -> Iterator[bytes]:
    said = (
        command("AUTH", TOKEN), command("AUTH", "u", TOKEN), command("HELLO", "3", "AUTH", "u", TOKEN),
        b"AUTH 'x'\r\n", command("GET", "a"), command("MULTI") + command("RESET") + command("EXEC"),
        command("ACL", "SETUSER", "u", ">x"), b"*0\r\n*1\r\n$4\r\nPI", command("CONFIG", "SET", "requirepass", "x"),
    )  # fmt: skip
    replies = OK, b"%1\r\n+a\r\n:1\r\n", b"-WRONGPASS no\r\n", b"-ERR unknown command\r\n"
    later = itertools.cycle(said[3:])
    for rule in range(len(RULES)):
        for one, reply in itertools.product(said, replies):
            begin = bytes([rule]) + WELL + _piece(C, one) + WELL * 2 + _piece(S, reply)
            yield begin + _piece(C, next(later)) + b"\x08\x07"


WORDS: Final = (
    play.GREETING, play.ASKS_TLS, play.WITHIN, play.RESPONSE, *SWITCHES, OK_PACKET, response(plugin=play.USER),
    b"\1\3", b"\xff\xff\xff\0", b"\x11",
)  # fmt: skip
REDIS_WORDS: Final = (b"*2\r\n$4\r\nAUTH\r\n$1\r\n", b"*-1\r\n", b"$0\r\n\r\n", b"RESET\r\n", b"HELLO", b"\\x41", OK)

TARGETS: Final = {
    "mysql_relayed": Target(partial(check, mysql, "mysql"), mysql_seeds, WORDS, 1024),
    "redis_relayed": Target(partial(check, RedisMediator, "redis"), redis_seeds, REDIS_WORDS, 512),
}
