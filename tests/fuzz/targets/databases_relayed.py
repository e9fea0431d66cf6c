"""The mediators of MySQL and Redis, as in `mediated.py`.

Bytes: the rule; then the steps.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from appliance.relay.mediator import Context, Mediator
from appliance.relay.mysql import MysqlMediator
from appliance.relay.mysql_upgrade import MysqlUpgrade
from appliance.relay.redis import RedisMediator
from tests.dissect.mysql_bytes import SCRAMBLE, change_user, error, packet, query, response
from tests.dissect.redis_bytes import OK, command
from tests.fuzz.mediated import WELL, Flow, run, saying
from tests.fuzz.script import Script
from tests.fuzz.targets import Target
from tests.relay import mysql_play as play
from tests.relay.database_play import FORMER, TOKEN, USER, C, S, context, secret

RULES: Final = tuple(itertools.product(("lease", "token"), ("", "orders"), ("same", "require"), (False, True)))


def mysql(context: Context) -> Mediator:
    return MysqlUpgrade(context) if context.rule.mode == "splice" else MysqlMediator(context)


def check(make: Callable[[Context], Mediator], application: str, data: bytes) -> None:
    script = Script(data)
    identify, name, tls, more = RULES[script.byte() % len(RULES)]
    splice, encrypted = application == "mysql" and more, application == "redis" and more
    given = {} if splice else {"identify": identify, "secret": name}
    known = secret(former=FORMER) if name and not splice else None
    mode = "splice" if splice else "mediate"
    asked = context(application, tls=encrypted, credential=known, mode=mode, upstream_tls=tls, **given)
    run(Flow(make(asked), connected=splice, clear=application == "redis"), script)


SWITCHES: Final = (
    b"\xfemysql_native_password\0" + SCRAMBLE + b"\0", b"\xfecaching_sha2_password\0" + SCRAMBLE + b"\0",
    b"\xfeclient_ed25519\0" + bytes(32), b"\xfemysql_clear_password\0", b"\xfesha256_password\0" + SCRAMBLE, b"\1\4",
    error(1045, "28000"), error(1049),
)  # fmt: skip
OK_PACKET: Final = b"\0\0\0\2\0\0\0"


def mysql_seeds() -> Iterator[bytes]:
    """Log-ins of every rule, in pieces as they are read."""
    clear = saying(S, play.IN_CLEAR) + saying(C, play.RESPONSE)
    tls = saying(S, play.GREETING) + saying(C, play.ASKS_TLS) + WELL + WELL + saying(C, play.WITHIN)
    token = saying(C, packet(4, TOKEN.encode() + b"\0")) + WELL
    for rule in range(len(RULES)):
        for asked in SWITCHES:
            for number, before in ((2, clear), (3, tls), (3, tls + token)):
                said = saying(S, packet(number, asked)) + saying(C, packet(number + 1, b"x" * 20))
                done = saying(S, packet(number + 2, OK_PACKET)) + saying(C, query("select 1") + change_user())
                yield bytes([rule]) + WELL + before + said + done + b"\x08\x07"
        yield bytes([rule]) + WELL + tls + token + saying(S, packet(3, OK_PACKET)) + saying(C, change_user())


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
            begin = bytes([rule]) + WELL + saying(C, one) + WELL * 2 + saying(S, reply)
            yield begin + saying(C, next(later)) + b"\x08\x07"


WORDS: Final = (
    play.GREETING, play.ASKS_TLS, play.WITHIN, play.RESPONSE, *SWITCHES, OK_PACKET, response(plugin=USER),
    b"\1\3", b"\xff\xff\xff\0", b"\x11",
)  # fmt: skip
REDIS_WORDS: Final = (b"*2\r\n$4\r\nAUTH\r\n$1\r\n", b"*-1\r\n", b"$0\r\n\r\n", b"RESET\r\n", b"HELLO", b"\\x41", OK)

TARGETS: Final = {
    "mysql_relayed": Target(partial(check, mysql, "mysql"), mysql_seeds, WORDS, 1024),
    "redis_relayed": Target(partial(check, RedisMediator, "redis"), redis_seeds, REDIS_WORDS, 512),
}
