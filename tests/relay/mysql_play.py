"""Plays a MySQL mediator: what it is told, and what it says to that."""

import hashlib
from typing import Any

from appliance.dissect import mysql_session as session
from appliance.identity.credential import Secret
from appliance.relay.mediator import Commands, Fail, Say
from appliance.relay.mysql import MysqlMediator
from tests.dissect.mysql_bytes import SCRAMBLE, VENDOR, greeting, ok, packet, response, ssl_request
from tests.relay.database_play import PASSWORD, TOKEN, C, S, context, hear

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


def mediator(credential: Secret | None = None, **rule: Any) -> MysqlMediator:
    return MysqlMediator(context("mysql", credential=credential, **rule))


def within_tls(credential: Secret | None = None, **rule: Any) -> MysqlMediator:
    """Up to where both legs are encrypted; the agent's response comes next."""
    one = mediator(credential, **rule)
    one.start()
    one.dialled()
    hear(one, S, GREETING)
    hear(one, C, ASKS_TLS)
    one.secured(S)
    one.secured(C)
    return one


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


def scrambled(password: str = PASSWORD, scramble: bytes = SCRAMBLE) -> bytes:
    """mysql_native_password: SHA1(password) XOR SHA1(scramble, SHA1(SHA1(password)))."""
    once = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
    twice = hashlib.sha1(once, usedforsecurity=False).digest()
    return _xor(once, hashlib.sha1(scramble + twice, usedforsecurity=False).digest())


def scrambled_sha2(scramble: bytes = SCRAMBLE) -> bytes:
    """caching_sha2_password: SHA256(password) XOR SHA256(SHA256(SHA256(password)), scramble)."""
    once = hashlib.sha256(PASSWORD.encode()).digest()
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
