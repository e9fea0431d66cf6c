"""Plays a PostgreSQL mediator: what it is told, and what it says to that."""

from appliance.identity.credential import Secret
from appliance.relay.mediator import Commands, Context, Fail, Say
from tests.dissect.postgres_bytes import packet, typed, z
from tests.relay import database_play
from tests.relay.database_play import TOKEN, USER, C

START = packet(196608, z("user", "ada", "database", "shop") + b"\0")
AS_SERVICE = packet(196608, z("user", USER, "database", "shop") + b"\0")
ANSWER = typed("p", z(TOKEN))


def context(*, tls: bool = False, credential: Secret | None = None, **rule: str) -> Context:
    return database_play.context("postgres", tls=tls, credential=credential, **rule)


def authentication(code: int, rest: bytes = b"") -> bytes:
    return typed("R", code.to_bytes(4) + rest)


def error(state: str, text: str = "no") -> bytes:
    return typed("E", z("SFATAL", "VFATAL", f"C{state}", f"M{text}") + b"\0")


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
