"""The mediators of PostgreSQL, as in `mediated.py`.

Bytes: the rule; then the steps.
"""

import itertools
from collections.abc import Iterator
from typing import Final

from appliance.relay.mediator import Mediator, Pass, Say, Take
from appliance.relay.postgres import PostgresMediator
from appliance.relay.postgres_upgrade import PostgresUpgrade
from tests.dissect.postgres_bytes import CANCEL, GSS, IDLE, KEY, OK, SSL, typed, z
from tests.fuzz.mediated import WELL, Flow, run, saying
from tests.fuzz.script import Script
from tests.fuzz.targets import Target
from tests.relay.database_play import FORMER, C, S, secret
from tests.relay.postgres_play import ANSWER, START, authentication, context, error

RULES: Final = tuple(
    itertools.product(("lease", "token"), ("", "orders"), ("same", "require"), (False, True), (False, True))
)
OFFER: Final = authentication(10, z("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256") + b"\0")
BARE: Final = b"y,,n=,r=abc"
FIRST: Final = typed("p", z("SCRAM-SHA-256") + len(BARE).to_bytes(4) + BARE)
NOTICE: Final = typed("N", z("SNOTICE", "C00000", "Mx") + b"\0")


class Tokens(Flow):
    """The agent's token does not leave the gateway, either. `expected`: by the rule, there is one."""

    def __init__(self, mediator: Mediator, *, connected: bool, expected: bool) -> None:
        self.expected = expected
        self.shown = False  # it came where none belongs
        super().__init__(mediator, connected=connected)

    def moved(self, command: Pass | Take | Say) -> None:
        super().moved(command)
        if isinstance(command, Say):
            assert self.shown or ANSWER[5:-1] not in command.data, "the agent's token leaves"
        elif command.direction is C:
            self.shown = self.shown or (not command.secrets and ANSWER[5:-1] in command.data)
            assert not (isinstance(command, Pass) and self.expected and not self.mediator.ready)


def check(data: bytes) -> None:
    script = Script(data)
    identify, name, tls, encrypted, splice = RULES[script.byte() % len(RULES)]
    known = secret(former=FORMER) if name else None
    mode = "splice" if splice else "mediate"
    given = {} if splice else {"identify": identify, "secret": name}
    asked = context(tls=encrypted and not splice, credential=known, upstream_tls=tls, mode=mode, **given)
    mediator = PostgresUpgrade(asked) if splice else PostgresMediator(asked)
    run(Tokens(mediator, connected=splice, expected=identify == "token" and not splice), script)


def seeds() -> Iterator[bytes]:
    """Log-ins of every rule, in pieces as they are read."""
    begin = (saying(C, SSL) + WELL, saying(C, GSS), b"")
    identify = saying(C, START) + WELL, saying(C, START) + saying(C, ANSWER) + WELL + WELL
    upgrade = saying(S, b"S") + WELL, saying(S, b"N"), b""
    asked = (
        authentication(3), authentication(5, b"salt"), OFFER, NOTICE, error("28P01"), error("3D000"), b"", b"R\0\0\0",
        authentication(11, b"r=abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"), authentication(7),
    )  # fmt: skip
    ready = saying(S, OK + typed("S", z("a", "b")) + KEY + IDLE)
    for rule in range(len(RULES)):
        for one, two, three, question in itertools.product(begin[:1], identify, upgrade[:2], asked[:6]):
            yield bytes([rule]) + one + two + three + saying(S, question) + saying(C, ANSWER) + ready
        yield bytes([rule]) + begin[1] + saying(C, CANCEL) + WELL + saying(S, b"N") + b"\x08\x07"
        for question in asked:
            yield bytes([rule]) + identify[0] + upgrade[2] + saying(S, question) + saying(C, FIRST) + ready + b"\x07"


WORDS: Final = (
    SSL, GSS, CANCEL, START, ANSWER, OFFER, OK, IDLE, KEY, NOTICE, error("28P01"), FIRST, authentication(3),
    authentication(5, b"salt"), b"R\0\0\0", b"p\0\0\0", b"user\0", b"\0\3\0\2",
)  # fmt: skip

TARGETS: Final = {"postgres_relayed": Target(check, seeds, WORDS, 512)}
