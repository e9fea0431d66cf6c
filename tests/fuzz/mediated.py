"""A database's mediator between an agent and a server that say anything, whenever what was asked for comes or fails.

Bytes: steps. Steps 0 to 3 hand over a piece of what a peer says, as much as is read or more; the others answer what the
mediator waits for, end a peer, or end the flow. What holds: one thing is asked for at a time, and nothing behind the
end; what the agent said is on record; the rule's credential goes to the server alone.
"""

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
    Mediator,
    Pass,
    Say,
    Splice,
    StartTls,
    Take,
)
from tests.fuzz.script import Script
from tests.relay.database_play import FORMER, PASSWORD, C, S

STEPS: Final = 10
WELL: Final = b"\5"  # the step at which what the mediator waits for is there
CREDENTIALS: Final = (PASSWORD.encode(), FORMER.encode())


class Flow:
    """Tells a mediator what happens, and holds it to what must be.

    `connected`: the server is there from the start, as for a `Splice`; `clear`: the protocol sends a password itself.
    """

    def __init__(self, mediator: Mediator, *, connected: bool, clear: bool = False) -> None:
        self.mediator = mediator
        self.clear = clear
        self.waits: Command | None = None
        self.over = self.connected = self.tls = False
        self.said = {C: b"", S: b""}
        self.recorded = b""
        self.ended: set[Direction] = set()
        self.hear(self.mediator.start())
        if connected:
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

    def end(self, direction: Direction) -> None:
        if self.talks(direction):
            self.ended.add(direction)
            self.hear(self.mediator.ended(direction))

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
            allowed = command.to is S and (self.tls or self.clear)
            assert not held or allowed, "the credential in clear, or told to the agent"
            return
        for start, end, what in command.secrets:
            assert 0 <= start < end <= len(command.data)
            assert what
        if command.direction is C:
            self.recorded += command.data


def run(flow: Flow, script: Script) -> None:
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
            flow.end((C, S)[step & 1])
        else:
            flow.hear(flow.mediator.stop("shutdown", "the relay ends"))
    if not flow.over:
        flow.limit(C)
        flow.limit(S)


def saying(direction: Direction, data: bytes) -> bytes:
    """The step at which a peer says this, as far as it is read."""
    return bytes([direction is S, len(data)]) + data
