"""PostgreSQL in splice mode: the upgrade to TLS, and nothing else."""

import pytest

from appliance.relay.mediator import Pass, Say, Shut, Splice, StartTls, Take
from appliance.relay.postgres_upgrade import PostgresUpgrade
from tests.dissect.postgres_bytes import CANCEL, GSS, SSL
from tests.relay.database_play import C, S, hear, merged
from tests.relay.postgres_play import START, context, error, failed

SERVER_FIRST = StartTls(S, alpn=("postgresql",), mirror=True)
SERVER_ONLY = StartTls(S, alpn=("postgresql",))
THEN_AGENT = StartTls(C, alpn=("postgresql",))


def upgrade(upstream_tls: str = "same") -> PostgresUpgrade:
    one = PostgresUpgrade(context(mode="splice", upstream_tls=upstream_tls))
    assert one.start() == one.dialled() == []
    return one


@pytest.mark.parametrize("size", [0, 1])
def test_tls_with_the_server_comes_first(size: int) -> None:
    one = upgrade()
    assert one.limit(C) == 8
    assert one.limit(S) == 0
    assert hear(one, C, SSL, size) == [Pass(C, SSL)]
    assert (one.limit(C), one.limit(S)) == (0, 1)
    assert hear(one, S, b"S", size) == [Pass(S, b"S"), SERVER_FIRST]
    assert one.limit(C) == one.limit(S) == 0
    assert one.secured(S) == [THEN_AGENT]
    assert not one.ready
    assert one.secured(C) == [Splice()]
    assert one.ready


def test_what_came_before_the_server_was_connected() -> None:
    one = PostgresUpgrade(context(mode="splice"))
    assert one.receive(C, SSL) == []
    assert one.dialled() == [Pass(C, SSL)]


def test_a_server_without_tls() -> None:
    one = upgrade()
    hear(one, C, SSL)
    assert hear(one, S, b"N") == [Pass(S, b"N")]
    assert merged(hear(one, C, START[:8])) == [Pass(C, START[:8]), Splice()]


def test_gssapi_encryption_is_declined() -> None:
    one = upgrade()
    assert hear(one, C, GSS) == [Take(C, GSS), Say(C, b"N")]
    assert hear(one, C, SSL) == [Pass(C, SSL)]
    assert hear(one, S, b"S")[-1] == SERVER_FIRST


@pytest.mark.parametrize(
    "sent", [START, CANCEL, b"GET / HTTP/1.1", b"\x16\x03\x01\x02\0\1\0\1", b"\0\0\0\x08\x04\xd2\x16\x31"]
)
@pytest.mark.parametrize("size", [1, 3, 8, 1000])
def test_anything_else_passes(sent: bytes, size: int) -> None:
    one, out, rest = upgrade(), [], sent
    while rest and not one.ready:
        out += one.receive(C, rest[:size])
        rest = rest[size:]
    assert merged(out) == [Pass(C, sent[: len(sent) - len(rest)]), Splice()]


@pytest.mark.parametrize("request_", [SSL, GSS])
def test_encryption_is_asked_for_once(request_: bytes) -> None:
    one = upgrade()
    hear(one, C, request_)
    if request_ == SSL:
        hear(one, S, b"N")
    assert failed(hear(one, C, request_)) == ("08P01", "protocol")


def test_bytes_before_tls_are_refused() -> None:
    told = upgrade().receive(C, SSL + b"x")
    assert told[0] == Take(C, SSL + b"x")
    assert failed(told) == ("08P01", "before-tls")
    one = upgrade()
    hear(one, C, SSL)
    told = one.receive(S, b"SE")
    assert told[0] == Take(S, b"SE")
    assert failed(told) == ("08P01", "before-tls")


def test_a_server_that_answers_otherwise() -> None:
    one = upgrade()
    hear(one, C, SSL)
    said = error("0A000", "unsupported frontend protocol")
    assert one.receive(S, said) == [Pass(S, said), Splice()]


def test_tls_that_the_rule_requires() -> None:
    one = upgrade(upstream_tls="require")
    assert hear(one, C, START[:8]) == [Say(S, SSL)]
    assert (one.limit(C), one.limit(S)) == (0, 1)
    assert hear(one, S, b"S") == [Take(S, b"S"), SERVER_ONLY]
    assert one.secured(S) == [Pass(C, START[:8]), Splice()]


@pytest.mark.parametrize("asked", [SSL, START[:8]])
def test_a_server_without_the_tls_that_the_rule_requires(asked: bytes) -> None:
    one = upgrade(upstream_tls="require")
    hear(one, C, asked)
    assert failed(hear(one, S, b"N")) == ("08006", "upstream-tls")


def test_an_end_before_anything_is_known() -> None:
    one = upgrade()
    hear(one, C, SSL[:5])
    assert one.ended(C) == [Pass(C, SSL[:5]), Shut(S)]
    assert one.ended(S) == [Shut(C)]


def test_an_end_from_outside() -> None:
    assert failed(upgrade().stop("time-out", "too late")) == ("08006", "time-out")
    one = upgrade()
    hear(one, C, SSL)
    hear(one, S, b"S")
    assert failed(one.stop("certificate", "not valid")) == ("", "certificate"), "the agent is in its handshake"
    one = upgrade(upstream_tls="require")
    hear(one, C, START[:8])
    hear(one, S, b"S")
    assert failed(one.stop("certificate", "not valid")) == ("08006", "certificate")
