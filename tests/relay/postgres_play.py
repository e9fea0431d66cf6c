"""Plays a PostgreSQL mediator: what it is told, and what it says to that."""

from appliance.config import RelayRule
from appliance.identity.credential import Kind, Secret
from appliance.identity.secret_text import SecretText
from appliance.model import Direction
from appliance.relay.mediator import Command, Commands, Context, Fail, Mediator, Pass, Say
from tests.dissect.postgres_bytes import packet, typed, z

C, S = Direction.CLIENT, Direction.SERVER
USER, PASSWORD = "svc_orders", "correct horse"
START = packet(196608, z("user", "ada", "database", "shop") + b"\0")
AS_SERVICE = packet(196608, z("user", USER, "database", "shop") + b"\0")
TOKEN = "eyJh.eyJz.c2ln"
ANSWER = typed("p", z(TOKEN))


def secret(kind: Kind = Kind.PASSWORD, former: str = "") -> Secret:
    before = Secret("orders", kind, SecretText(former), USER) if former else None
    return Secret("orders", kind, SecretText(PASSWORD), USER, generation=3, former=before)


def context(*, tls: bool = False, credential: Secret | None = None, **rule: str) -> Context:
    found = RelayRule.model_validate({"application": "postgres", "mode": "mediate"} | rule)
    return Context(found, "10.1.0.7", 40000, "10.2.0.5", 5432, None, credential, tls=tls)


def authentication(code: int, rest: bytes = b"") -> bytes:
    return typed("R", code.to_bytes(4) + rest)


def error(state: str, text: str = "no") -> bytes:
    return typed("E", z("SFATAL", "VFATAL", f"C{state}", f"M{text}") + b"\0")


def merged(commands: Commands) -> Commands:
    """What passes in one direction in several pieces, as one."""
    found: list[Command] = []
    for command in commands:
        last = found[-1] if found else None
        if isinstance(command, Pass) and isinstance(last, Pass) and command.direction is last.direction:
            size = len(last.data)
            moved = tuple((start + size, end + size, what) for start, end, what in command.secrets)
            found[-1] = Pass(last.direction, last.data + command.data, last.secrets + moved)
        else:
            found.append(command)
    return found


def failed(commands: Commands) -> tuple[str, str]:
    """How it ended: SQLSTATE that the agent was told ("": nothing), and the reason."""
    *before, last = commands
    assert isinstance(last, Fail), commands
    assert last.text
    said = before[-1] if before else None
    if not isinstance(said, Say) or said.to is not C or not said.data.startswith(b"E"):
        return "", last.reason
    assert int.from_bytes(said.data[1:5]) == len(said.data) - 1
    parts = {part[:1]: part[1:] for part in said.data[5:-2].split(b"\0")}
    assert parts[b"S"] == parts[b"V"] == b"FATAL"
    assert last.text in parts[b"M"].decode()
    return parts[b"C"].decode(), last.reason


def hear(mediator: Mediator, direction: Direction, data: bytes, size: int = 0) -> Commands:
    """`data` in pieces of `size` bytes (0: as many as the mediator's limit)."""
    out: Commands = []
    while data and not any(isinstance(command, Fail) for command in out):
        limit = size or mediator.limit(direction)
        assert limit > 0, f"the mediator does not read {data!r}"
        out += mediator.receive(direction, data[:limit])
        data = data[limit:]
    return out
