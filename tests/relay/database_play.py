"""What tests of the mediators of databases share: an agent's token, the rule's credential, and bytes in pieces."""

from appliance.config import RelayRule
from appliance.identity.credential import Kind, Secret
from appliance.identity.secret_text import SecretText
from appliance.model import Direction
from appliance.relay.mediator import Command, Commands, Context, Fail, Mediator, Pass

C, S = Direction.CLIENT, Direction.SERVER
USER, PASSWORD, FORMER = "svc_orders", "correct horse", "the one before"
TOKEN = "eyJh.eyJz.c2ln"


def secret(kind: Kind = Kind.PASSWORD, former: str = "", user: str = USER) -> Secret:
    before = Secret("orders", kind, SecretText(former), user) if former else None
    return Secret("orders", kind, SecretText(PASSWORD), user, generation=3, former=before)


def context(application: str, *, tls: bool = False, credential: Secret | None = None, **rule: str) -> Context:
    """`tls`: of the agent's leg, before the mediator begins."""
    found = RelayRule.model_validate({"application": application, "mode": "mediate"} | rule)
    return Context(found, "10.1.0.7", 40000, "10.2.0.5", 1, None, credential, tls=tls)


def hear(mediator: Mediator, direction: Direction, data: bytes, size: int = 0) -> Commands:
    """`data` in pieces of `size` bytes, and never more than the mediator's limit."""
    out: Commands = []
    while data and not any(isinstance(command, Fail) for command in out):
        limit = mediator.limit(direction)
        assert limit > 0, f"the mediator does not read {data!r}"
        piece = data[: min(limit, size or limit)]
        out += mediator.receive(direction, piece)
        data = data[len(piece) :]
    return out


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
