"""The mediators of PostgreSQL: whatever agent and server say, and whenever what was asked for comes or fails.

Bytes: the rule; then a step each. Steps 0 to 3 hand over a piece of what a peer says, as much as is read or more; the
others answer what the mediator waits for, end a peer, or end the flow.
"""

import itertools
from collections.abc import Iterator
from typing import Final

from appliance.model import Direction, Identity
from appliance.relay.mediator import (
    ANY,
    Command,
    Commands,
    Dial,
    Fail,
    HangUp,
    Identify,
    Pass,
    Say,
    Splice,
    StartTls,
    Take,
)
from appliance.relay.postgres import PostgresMediator
from appliance.relay.postgres_upgrade import PostgresUpgrade
from tests.dissect.postgres_bytes import CANCEL, GSS, IDLE, KEY, OK, SSL, typed, z
from tests.fuzz.script import Script
from tests.fuzz.targets import Target
from tests.relay.postgres_play import ANSWER, PASSWORD, START, C, S, authentication, context, error, secret

STEPS: Final = 10
CREDENTIALS: Final = (PASSWORD.encode(), b"the one before")
RULES: Final = tuple(
    itertools.product(("lease", "token"), ("", "orders"), ("same", "require"), (False, True), (False, True))
)
OFFER: Final = authentication(10, z("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256") + b"\0")
BARE: Final = b"y,,n=,r=abc"
FIRST: Final = typed("p", z("SCRAM-SHA-256") + len(BARE).to_bytes(4) + BARE)
NOTICE: Final = typed("N", z("SNOTICE", "C00000", "Mx") + b"\0")


class Flow:
    """Tells a mediator what happens, and holds it to what must be."""

    def __init__(self, rule: int) -> None:
        identify, name, tls, encrypted, splice = RULES[rule % len(RULES)]
        credential = secret(former="the one before") if name else None
        mode = "splice" if splice else "mediate"
        settings = {"identify": identify, "secret": name} if not splice else {}
        asked = context(tls=encrypted and not splice, credential=credential, upstream_tls=tls, mode=mode, **settings)
        self.mediator: PostgresMediator | PostgresUpgrade
        self.mediator = PostgresUpgrade(asked) if splice else PostgresMediator(asked)
        self.mediated = not splice
        self.token = identify == "token" and not splice
        self.waits: Command | None = None
        self.over = self.connected = self.tls = False
        self.said = {C: b"", S: b""}
        self.recorded = b""
        self.shown = False  # the agent's token came where none belongs
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
        for at, command in enumerate(commands):
            assert not self.over, f"{command} behind the end"
            match command:
                case Dial() | StartTls() | Identify():
                    assert self.waits is None, "two things at once"
                    self.waits = command
                    assert not isinstance(command, StartTls) or command.peer is C or self.connected
                case HangUp():
                    self.ended.discard(S)
                    self.connected = self.tls = False
                case Pass() | Take() | Say():
                    self.moved(command)
                case Fail():
                    assert at == len(commands) - 1
                    assert "\0" not in command.text
                    self.over = True
                case Splice():
                    assert at == len(commands) - 1
                    assert self.mediator.ready
                    self.over = True
        if self.over:
            assert self.recorded == self.said[C], "what the agent said is not on record"

    def moved(self, command: Pass | Take | Say) -> None:
        if isinstance(command, Say):
            held = any(each in command.data for each in CREDENTIALS)
            assert not held or (command.to is S and self.tls), "the credential in clear, or told to the agent"
            assert self.shown or ANSWER[5:-1] not in command.data, "the agent's token leaves"
            return
        for start, end, what in command.secrets:
            assert 0 <= start < end <= len(command.data)
            assert what
        if command.direction is C:
            self.recorded += command.data
            self.shown = self.shown or (not command.secrets and ANSWER[5:-1] in command.data)
            assert not (isinstance(command, Pass) and self.token and not self.mediator.ready)


def check(data: bytes) -> None:
    script = Script(data)
    flow = Flow(script.byte())
    while script.more and not flow.over:
        step = script.byte() % STEPS
        if step < 4:
            direction = (C, S)[step & 1]
            piece = script.piece()
            if any(each in flow.said[direction] + piece for each in CREDENTIALS):
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


def seeds() -> Iterator[bytes]:
    """Log-ins of every rule, in pieces as they are read."""
    well = b"\5"
    begin = (_piece(C, SSL) + well, _piece(C, GSS), b"")
    identify = _piece(C, START) + well, _piece(C, START) + _piece(C, ANSWER) + well + well
    upgrade = _piece(S, b"S") + well, _piece(S, b"N"), b""
    asked = (
        authentication(3), authentication(5, b"salt"), OFFER, NOTICE, error("28P01"), error("3D000"), b"", b"R\0\0\0",
        authentication(11, b"r=abc,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"), authentication(7),
    )  # fmt: skip
    ready = _piece(S, OK + typed("S", z("a", "b")) + KEY + IDLE)
    for rule in range(len(RULES)):
        for one, two, three, question in itertools.product(begin[:1], identify, upgrade[:2], asked[:6]):
            yield bytes([rule]) + one + two + three + _piece(S, question) + _piece(C, ANSWER) + ready
        yield bytes([rule]) + begin[1] + _piece(C, CANCEL) + well + _piece(S, b"N") + b"\x08\x07"
        for question in asked:
            yield bytes([rule]) + identify[0] + upgrade[2] + _piece(S, question) + _piece(C, FIRST) + ready + b"\x07"


def _piece(direction: Direction, data: bytes) -> bytes:
    return bytes([direction is S, len(data)]) + data


WORDS: Final = (
    SSL, GSS, CANCEL, START, ANSWER, OFFER, OK, IDLE, KEY, NOTICE, error("28P01"), FIRST, authentication(3),
    authentication(5, b"salt"), b"R\0\0\0", b"p\0\0\0", b"user\0", b"\0\3\0\2",
)  # fmt: skip

TARGETS: Final = {"postgres_relayed": Target(check, seeds, WORDS, 512)}
