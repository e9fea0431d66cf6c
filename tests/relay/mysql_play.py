"""Plays a MySQL mediator: what it is told, and what it says to that."""

import hashlib

from appliance.config import RelayRule
from appliance.dissect import mysql_session as session
from appliance.identity.credential import Kind, Secret
from appliance.identity.secret_text import SecretText
from appliance.model import Direction
from appliance.relay.mediator import Commands, Context, Fail, Mediator, Say
from appliance.relay.mysql import MysqlMediator
from tests.dissect.mysql_bytes import SCRAMBLE, VENDOR, greeting, ok, packet, response, ssl_request

C, S = Direction.CLIENT, Direction.SERVER
USER, PASSWORD = "svc_orders", "correct horse"
TOKEN = "eyJh.eyJz.c2ln"
ABLE = VENDOR | session.SSL | session.DEPRECATE_EOF | session.COMPRESS | session.ZSTD
SAID = VENDOR | session.DEPRECATE_EOF
GREETING = greeting(ABLE)
IN_CLEAR = greeting(ABLE & ~session.SSL)
ASKS_TLS = ssl_request(SAID | session.SSL)
WITHIN = response(capabilities=SAID | session.SSL, number=2)
RESPONSE = response(capabilities=SAID)
ASKS_TOKEN = packet(3, b"\xfemysql_clear_password\0")
GIVES_TOKEN = packet(4, TOKEN.encode() + b"\0")
OK = ok()


def secret(kind: Kind = Kind.PASSWORD, former: str = "") -> Secret:
    before = Secret("orders", kind, SecretText(former), USER) if former else None
    return Secret("orders", kind, SecretText(PASSWORD), USER, generation=3, former=before)


def context(*, credential: Secret | None = None, **rule: str) -> Context:
    found = RelayRule.model_validate({"application": "mysql", "mode": "mediate"} | rule)
    return Context(found, "10.1.0.7", 40000, "10.2.0.5", 3306, None, credential)


def mediator(credential: Secret | None = None, **rule: str) -> MysqlMediator:
    return MysqlMediator(context(credential=credential, **rule))


def failed(commands: Commands) -> tuple[int, int, str]:
    """How it ended: number of the packet and of the error that the agent was told (-1: nothing), and the reason."""
    *before, last = commands
    assert isinstance(last, Fail), commands
    assert last.text
    said = before[-1] if before else None
    if not isinstance(said, Say) or said.to is not C or said.data[4:5] != b"\xff":
        return -1, -1, last.reason
    assert int.from_bytes(said.data[:3], "little") == len(said.data) - 4
    assert last.text in said.data.decode("utf-8", "replace")
    return said.data[3], int.from_bytes(said.data[5:7], "little"), last.reason


def hear(one: Mediator, direction: Direction, data: bytes, size: int = 0) -> Commands:
    """`data` in pieces of `size` bytes, and never more than the mediator's limit."""
    out: Commands = []
    while data and not any(isinstance(command, Fail) for command in out):
        limit = one.limit(direction)
        assert limit > 0, f"the mediator does not read {data!r}"
        piece = data[: min(limit, size or limit)]
        out += one.receive(direction, piece)
        data = data[len(piece) :]
    return out


def scrambled(password: str = PASSWORD, scramble: bytes = SCRAMBLE) -> bytes:
    """mysql_native_password: SHA1(password) XOR SHA1(scramble, SHA1(SHA1(password)))."""
    once = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
    twice = hashlib.sha1(once, usedforsecurity=False).digest()
    return _xor(once, hashlib.sha1(scramble + twice, usedforsecurity=False).digest())


def scrambled_sha2(password: str = PASSWORD, scramble: bytes = SCRAMBLE) -> bytes:
    """caching_sha2_password: SHA256(password) XOR SHA256(SHA256(SHA256(password)), scramble)."""
    once = hashlib.sha256(password.encode()).digest()
    return _xor(once, hashlib.sha256(hashlib.sha256(once).digest() + scramble).digest())


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(left ^ right for left, right in zip(one, other, strict=True))


def in_response(packets: bytes) -> tuple[int, bytes, bytes]:
    """Number, user and answer of a handshake response."""
    body = packets[4:]
    end = body.index(b"\0", 32)
    return packets[3], body[32:end], body[end + 2 : end + 2 + body[end + 1]]


def logging_in(
    credential: Secret | None = None, first: bytes = IN_CLEAR, **rule: str
) -> tuple[MysqlMediator, Commands]:
    """Up to where the server is to answer, without TLS; and what was said to it last."""
    one = mediator(credential, **rule)
    one.start()
    one.dialled()
    hear(one, S, first)
    return one, hear(one, C, RESPONSE)
