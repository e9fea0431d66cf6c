"""Plays an agent and a server to a mediator, and carries out what it says as `Mediation` would, without sockets."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Self

from appliance.config import RelayRule
from appliance.identity.credential import Kind, Secret
from appliance.identity.secret_text import SecretText
from appliance.model import Direction, Identity
from appliance.relay.http import HttpMediator
from appliance.relay.mediator import (
    Commands,
    Context,
    Dial,
    Fail,
    HangUp,
    Identify,
    Mediator,
    Note,
    Pass,
    Refuse,
    Say,
    Shut,
    Splice,
    Take,
    Tunnel,
)

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
AGENT = Identity(issuer="https://login.example.com", subject="agent-7")
LEASE = Identity(issuer="https://login.example.com", subject="agent-7", method="lease")
RULE = RelayRule(application="http", mode="mediate")
BY_TOKEN = RelayRule(application="http", mode="mediate", identify="token")
KEY = Secret("shop-api", Kind.TOKEN, SecretText("real-key-of-the-shop"), header="x-api-key")
BEARER = Secret("shop-api", Kind.TOKEN, SecretText("real-key-of-the-shop"))


class Play:
    """`tokens`: those that are good, and whose they are. `refused`: why a host cannot be reached."""

    def __init__(
        self,
        rule: RelayRule = RULE,
        *,
        kind: Callable[[Context], Mediator] = HttpMediator,
        connected: bool = False,
        tokens: Mapping[str, Identity] | None = None,
        refused: Mapping[str, tuple[str, str]] | None = None,
        **context: Any,
    ) -> None:
        self._tokens = tokens or {}
        self._refused = refused or {}
        self.to_server, self.to_agent = bytearray(), bytearray()
        self.record = (bytearray(), bytearray())
        self.notes: list[Note] = []
        self.dials: list[Dial] = []
        self.shut: list[Direction] = []
        self.hung_up = 0
        self.failed: Fail | None = None
        self.refused = ""
        self.spliced = False
        self.tunnel: Tunnel | None = None
        self.identities: list[Identity] = []
        self.connected = connected
        self.mediator = kind(Context(rule, "10.0.0.2", 40000, "10.9.0.1", 80, **{"identity": None, **context}))
        self._carry_out(self.mediator.start())
        if connected:
            self._carry_out(self.mediator.dialled())

    def agent(self, *data: bytes) -> Self:
        for piece in data:
            self._hear(CLIENT, piece)
        return self

    def server(self, *data: bytes) -> Self:
        for piece in data:
            self._hear(SERVER, piece)
        return self

    def _hear(self, direction: Direction, data: bytes) -> None:
        if self.failed is None and self.mediator.limit(direction):
            self._carry_out(self.mediator.receive(direction, data))

    def ended(self, direction: Direction) -> Self:
        if self.failed is None:
            self._carry_out(self.mediator.ended(direction))
        return self

    def stop(self, reason: str) -> Self:
        self._carry_out(self.mediator.stop(reason, "a test says so"))
        return self

    @property
    def status(self) -> int:
        """Of the last answer that the agent got, 0 without one."""
        found = re.findall(rb"HTTP/1\.1 (\d{3}) ", self.to_agent)
        return int(found[-1]) if found else 0

    @property
    def cases(self) -> list[str]:
        return [case for note in self.notes if note.kind == "smuggling" for case in note.attrs["cases"]]

    @property
    def declined(self) -> list[int]:
        return [note.attrs["status"] for note in self.notes if note.kind == "declined"]

    def _carry_out(self, commands: Commands) -> None:
        for command in commands:
            if self.failed is not None:
                return
            match command:
                case Pass(direction=Direction.CLIENT):
                    self._keep(0, command.data, command.secrets)
                    if self.connected:
                        self.to_server += command.data
                case Pass():
                    self._keep(1, command.data, command.secrets)
                    self.to_agent += command.data
                case Take(direction=Direction.CLIENT):
                    self._keep(0, command.data, command.secrets)
                case Say(to=Direction.CLIENT):
                    self._keep(1, command.data, command.secrets)
                    self.to_agent += command.data
                case Say():
                    assert self.connected, "said to a server that is not there"
                    self.to_server += command.data
                case Note():
                    assert -len(self.record[0]) <= command.start <= max(0, command.end)
                    self.notes.append(command)
                case Dial():
                    self._dial(command)
                case Identify():
                    self._identify(command)
                case Shut():
                    self.shut.append(command.peer)
                case HangUp():
                    assert self.connected
                    self.connected = False
                    self.hung_up += 1
                case Splice():
                    self.spliced = True
                case Tunnel():
                    self.tunnel = command
                case Refuse():
                    assert not self.refused
                    self.refused = command.reason
                case Fail():
                    self.failed = command

    def _keep(self, number: int, data: bytes, secrets: tuple[tuple[int, int, str], ...]) -> None:
        shown = bytearray(data)
        for start, end, _ in secrets:
            assert 0 <= start < end <= len(data)
            shown[start:end] = b"*" * (end - start)
        self.record[number].extend(shown)

    def _dial(self, command: Dial) -> None:
        assert not self.connected
        self.dials.append(command)
        if command.host in self._refused:
            self._carry_out(self.mediator.dial_failed(*self._refused[command.host]))
            return
        self.connected = True
        self._carry_out(self.mediator.dialled())

    def _identify(self, command: Identify) -> None:
        found = self._tokens.get(command.token)
        if found is None:
            self._carry_out(self.mediator.unidentified("the token is not good"))
        else:
            self.identities.append(found)
            self._carry_out(self.mediator.identified(found))
