"""Real PostgreSQL clients and a real server, with a relay between them that reads the protocol."""

import asyncio
import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy

from appliance.dissect.postgres import Postgres
from tests.dissect import postgres_lab
from tests.dissect.harness import C, S, play
from tests.dissect.postgres_bytes import packet, z
from tests.dissect.postgres_lab import Server
from tests.lab.pki import Pki
from tests.lab.wait import until
from tests.relay import running
from tests.relay.postgres_play import authentication
from tests.relay.running import TOKEN, Begin, Recorded, Running, trusting

NAME = "db.example.com"
START = packet(196608, z("user", "scram", "database", "postgres") + b"\0")
Start = Callable[..., Running]

pytestmark = pytest.mark.skipif(not postgres_lab.available(), reason="needs PostgreSQL 15 and root")


@pytest.fixture(scope="module")
def server(pki: Pki) -> Iterator[Server]:
    with postgres_lab.server(pki.issue(NAME, ("127.0.0.1",))) as one:
        yield one


@pytest.fixture
def start(begin: Begin, server: Server) -> Start:
    """Starts a relay in front of the server; its rule has what is given."""

    def one(role: str = "", password: str = "", former: str = "", seconds: float = 10.0, **more: Any) -> Running:
        secret = running.password("orders", role, password or server.password, former)
        relay = {"application": "postgres"} | ({"secret": secret.name} if role else {}) | more
        return begin(("127.0.0.1", server.port), trusting(secret), relay, handshake_timeout=seconds)

    return one


def dsn(relay: Running, **options: str) -> str:
    asked = {"host": NAME, "hostaddr": "127.0.0.1", "port": str(relay.port), "dbname": "postgres"}
    asked |= {"user": "agent", "sslmode": "verify-full", "sslrootcert": str(relay.ca), "connect_timeout": "10"}
    return " ".join(f"{name}='{value}'" for name, value in (asked | options).items() if value)


def psql(relay: Running, sql: str, **options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C.UTF-8", "PGCLIENTENCODING": "UTF8"}
    command = ["psql", "-X", "-w", "-qAt", "-d", dsn(relay, **options), "-c", sql]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def recorded(relay: Running) -> list[Recorded]:
    """Every flow, and no credential on any of them."""
    flows = relay.recorded(TOKEN, Server.password)
    for path in (relay.settings.data / "journal").rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()
    return flows


ROLES = [("scram", "scram-sha-256"), ("md5", "md5"), ("plain", "password"), ("open", "trust")]


@pytest.mark.parametrize(("role", "method"), ROLES, ids=[role for role, _ in ROLES])
def test_a_token_opens_a_session_of_the_rules_credential(start: Start, role: str, method: str) -> None:
    relay = start(role, identify="token")
    done = psql(relay, "SELECT current_user, current_database(), 6 * 7", password=TOKEN)
    assert (done.stdout, done.stderr) == (f"{role}|postgres|42\n", "")
    (flow,) = recorded(relay)
    assert flow.login == {"user": role, "method": method, "secret": "orders"}
    (known,) = flow.notes_of("identified")
    assert known["attrs"]["identity"]["subject"] == "agent-7"
    assert known["attrs"]["identity"]["method"] == "postgres-password"
    client, said = map(bytes, flow.data)
    assert client.startswith(b"\0\0\0\x08\x04\xd2\x16\x2f")
    assert b"p" + (5 + len(TOKEN)).to_bytes(4) + b"*" * len(TOKEN) + b"\0" in client
    assert b"SELECT current_user" in client
    assert said.startswith(b"SR\0\0\0\x08\0\0\0\x03R\0\0\0\x08\0\0\0\0S")
    turns = [(C, client[:8]), (S, said[:1]), (C, client[8:]), (S, said[1:])]
    read = {message.kind: message for message in play(Postgres, turns).messages}
    assert read["query"].attrs["sql"].startswith("SELECT current_user")
    assert read["rows"].attrs["rows"] == [[role, "postgres", "42"]]
    assert flow.closed["ending"] == "fin"
    assert not flow.refused


def test_a_lease_is_enough_and_the_agent_is_asked_nothing(start: Start) -> None:
    relay = start("scram")
    assert psql(relay, "SELECT current_user", sslmode="disable").stdout == "scram\n"
    (flow,) = recorded(relay)
    assert bytes(flow.data[1]).startswith(b"R\0\0\0\x08\0\0\0\0")
    assert not flow.notes_of("tls")


def test_no_token_is_asked_for_in_clear(start: Start) -> None:
    relay = start("scram", identify="token")
    done = psql(relay, "SELECT 1", sslmode="disable", password=TOKEN)
    assert "FATAL:  the gateway asks for an access token as password, and only over TLS" in done.stderr
    assert "HINT:  Connect with sslmode=require." in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["cleartext-token"]


def test_a_token_that_is_not_accepted(start: Start) -> None:
    relay = start("scram", identify="token")
    done = psql(relay, "SELECT 1", password="no token at all")
    assert "FATAL:  the gateway does not accept the access token that was given as password" in done.stderr
    assert "it has expired; get a new one" in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["token-refused"]
    assert b"no token" not in flow.data[0]
    assert not flow.notes_of("upstream")


def test_a_client_without_a_password_may_come_again(start: Start) -> None:
    relay = start("scram", identify="token")
    assert "no password supplied" in psql(relay, "SELECT 1").stderr
    (flow,) = recorded(relay)
    assert flow.closed["ending"] == "fin"
    assert not flow.refused


def test_psycopg_and_what_a_session_needs(start: Start) -> None:
    relay = start("scram", identify="token")
    with psycopg.connect(dsn(relay, password=TOKEN), autocommit=True) as one:
        assert one.execute("SELECT %s::int + 1", (41,)).fetchone() == (42,)
        rows = one.execute("SELECT repeat('x', 1000) FROM generate_series(1, 20000)").fetchall()
        assert len(rows) == 20000
        assert one.info.parameter_status("session_authorization") == "scram"
    (flow,) = recorded(relay)
    assert len(flow.data[1]) > 20_000_000


async def by_asyncpg(relay: Running, user: str, password: str, sql: str, *values: object) -> object:
    context = ssl.create_default_context(cafile=str(relay.ca))
    one = await asyncpg.connect(
        host="127.0.0.1", port=relay.port, database="postgres", user=user, password=password, ssl=context, timeout=10
    )
    try:
        return await one.fetchval(sql, *values)
    finally:
        await one.close()


def test_asyncpg_and_sqlalchemy(start: Start) -> None:
    relay = start("scram", identify="token")
    assert asyncio.run(by_asyncpg(relay, "agent", TOKEN, "SELECT $1::int + 1", 41)) == 42
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(dsn(relay, password=TOKEN))
    )
    with engine.connect() as one:
        assert one.execute(sqlalchemy.text("SELECT :a || 'b'"), {"a": "a"}).scalar() == "ab"
    engine.dispose()
    first, second = recorded(relay)
    assert first.closed["ending"] == second.closed["ending"] == "fin"


def test_asyncpg_with_a_password_of_its_own(start: Start, server: Server) -> None:
    """It cannot bind to a channel, and says so: nothing is missing to it."""
    relay = start()
    assert asyncio.run(by_asyncpg(relay, "scram", server.password, "SELECT current_user")) == "scram"
    recorded(relay)


def test_direct_tls_and_a_newer_protocol(start: Start) -> None:
    relay = start("scram", identify="token")
    assert psycopg.pq.version() >= 180000
    options = {"sslnegotiation": "direct", "max_protocol_version": "3.2", "password": TOKEN}
    with psycopg.connect(dsn(relay, **options)) as one:
        assert one.execute("SELECT current_user").fetchone() == ("scram",)
    (flow,) = recorded(relay)
    assert flow.notes_of("tls")[0]["attrs"]["alpn"] == "postgresql"
    assert bytes(flow.data[0])[4:8] == b"\0\3\0\2"
    assert b"v\0\0\0\x0c\0\3\0\0\0\0\0\0" in bytes(flow.data[1])[:100], "the server knows 3.0 only, and said so"


def test_a_query_is_cancelled(start: Start) -> None:
    relay = start("scram", identify="token")
    with psycopg.connect(dsn(relay, password=TOKEN), autocommit=True) as one:
        pid = one.info.backend_pid
        with (
            psycopg.connect(dsn(relay, password=TOKEN), autocommit=True) as other,
            ThreadPoolExecutor(1) as pool,
        ):
            sleeping = pool.submit(one.execute, "SELECT pg_sleep(60)")
            active = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s"
            until(lambda: other.execute(active, (pid,)).fetchone() == (True,), "the query to sleep")
            one.cancel_safe(timeout=10)
            with pytest.raises(psycopg.errors.QueryCanceled):
                sleeping.result(10)
    session, _, cancel = recorded(relay)
    assert bytes(cancel.data[0])[-16:-8] == b"\0\0\0\x10\x04\xd2\x16\x2e"
    assert bytes(cancel.data[0])[-8:] in bytes(session.data[1]), "the key is the server's own"
    assert cancel.closed["ending"] == "fin"
    assert not cancel.refused


def test_replication_commands_pass(start: Start) -> None:
    relay = start("open", identify="token")
    done = psql(relay, "IDENTIFY_SYSTEM", password=TOKEN, replication="database")
    assert done.stdout.endswith("|postgres\n"), done.stderr
    recorded(relay)


def test_the_server_without_tls_is_used_only_where_the_rule_allows_it(start: Start, server: Server) -> None:
    _set_tls(server, on=False)
    try:
        relay = start("scram", identify="token")
        assert psql(relay, "SELECT 1", password=TOKEN).stdout == "1\n"
        (flow,) = recorded(relay)
        assert flow.notes_of("upstream-cleartext")
    finally:
        _set_tls(server, on=True)


def test_the_server_must_have_tls_where_the_rule_requires_it(start: Start, server: Server) -> None:
    _set_tls(server, on=False)
    try:
        relay = start("scram", upstream_tls="require")
        done = psql(relay, "SELECT 1", sslmode="disable")
        assert "FATAL:  the server does not speak TLS, which the gateway's rule requires" in done.stderr
        (flow,) = recorded(relay)
        assert flow.refused == ["upstream-tls"]
    finally:
        _set_tls(server, on=True)


def test_tls_to_the_server_for_an_agent_without(start: Start) -> None:
    relay = start("scram", upstream_tls="require")
    done = psql(relay, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", sslmode="disable")
    assert done.stdout == "t\n"
    recorded(relay)


def test_a_server_whose_certificate_is_not_valid(start: Start, pki: Pki, tmp_path: Path) -> None:
    other = Pki(tmp_path / "other")
    relay = start("scram", identify="token", ca=str(other.certificate))
    done = psql(relay, "SELECT 1", password=TOKEN)
    assert "FATAL:  TLS between gateway and server failed: the certificate is not accepted" in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["certificate"]


def _set_tls(server: Server, *, on: bool) -> None:
    with psycopg.connect(server.dsn(server.port), host=str(server.folder), user="postgres", autocommit=True) as one:
        one.execute(f"ALTER SYSTEM SET ssl = {'on' if on else 'off'}".encode())
        one.execute("SELECT pg_reload_conf()")
        until(lambda: one.execute("SHOW ssl").fetchone() == ("on" if on else "off",), "the server to read its settings")


WRONG = "FATAL:  the server refused the credential that the gateway uses for this rule (SQLSTATE 28P01)"


def test_an_agent_that_does_not_trust_the_gateway(start: Start, pki: Pki) -> None:
    relay = start("scram", identify="token")
    done = psql(relay, "SELECT 1", password=TOKEN, sslmode="verify-ca", sslrootcert=str(pki.certificate))
    assert "certificate verify failed" in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["pinned"]
    assert flow.notes_of("refused")[0]["text"] == (
        "TLS between agent and gateway failed: the TLS handshake failed: tlsv1 alert unknown ca; "
        "the agent must trust the gateway's CA"
    )


def test_a_credential_that_the_server_refuses_is_the_administrators(start: Start) -> None:
    relay = start("scram", "not the password", identify="token")
    done = psql(relay, "SELECT 1", password=TOKEN)
    assert WRONG in done.stderr
    assert "secret orders" in done.stderr
    assert "scram" not in done.stderr.replace("scram-sha", ""), "the upstream user is not told"
    (flow,) = recorded(relay)
    (note,) = flow.notes_of("login-refused")
    assert note["attrs"]["message"] == 'password authentication failed for user "scram"'
    assert flow.refused == ["login-refused"]


def test_the_former_credential_while_its_grace_lasts(start: Start, server: Server) -> None:
    relay = start("scram", "rotated here, not there yet", former=server.password, identify="token")
    assert psql(relay, "SELECT current_user", password=TOKEN).stdout == "scram\n"
    (flow,) = recorded(relay)
    assert flow.notes_of("login-refused")[0]["attrs"]["generation"] == 2
    assert not flow.refused


def test_an_error_of_the_server_about_the_session_passes(start: Start) -> None:
    relay = start("scram", identify="token")
    done = psql(relay, "SELECT 1", password=TOKEN, dbname="nowhere")
    assert 'FATAL:  database "nowhere" does not exist' in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["login-refused"]


def test_a_server_that_is_not_there(start: Start) -> None:
    relay = start("scram", identify="token")
    relay.server = ("127.0.0.1", 9)
    done = psql(relay, "SELECT 1", password=TOKEN)
    assert "FATAL:  the gateway did not reach the server: 127.0.0.1 port 9: Connection refused" in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["unreachable"]


# -- the agent's own password ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["scram", "md5", "plain"])
@pytest.mark.parametrize("sslmode", ["disable", "verify-full"])
def test_an_own_password_passes_and_is_kept_by_length_only(
    start: Start, server: Server, role: str, sslmode: str
) -> None:
    relay = start()
    binding = "disable" if sslmode != "disable" else ""
    options = {"user": role, "password": server.password, "sslmode": sslmode, "channel_binding": binding}
    done = psql(relay, "SELECT current_user", **options)
    assert (done.stdout, done.stderr) == (f"{role}\n", "")
    (flow,) = recorded(relay)
    redacted = flow.notes_of("redacted")
    assert [note["attrs"]["what"] for note in redacted] == ([] if role == "scram" else ["password"])
    assert flow.login["user"] == role
    assert b"SCRAM-SHA-256-PLUS" not in flow.data[1]


def test_an_own_password_over_tls_that_the_rule_adds(start: Start, server: Server) -> None:
    relay = start(upstream_tls="require")
    sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    done = psql(relay, sql, user="scram", password=server.password, sslmode="disable")
    assert done.stdout == "t\n", done.stderr
    recorded(relay)


def test_channel_binding_that_was_withheld_has_a_clear_end(start: Start, server: Server) -> None:
    relay = start()
    done = psql(relay, "SELECT 1", user="scram", password=server.password)
    assert "FATAL:  SCRAM with channel binding does not pass a gateway that sees inside TLS" in done.stderr
    assert "HINT:  Connect with channel_binding=disable" in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["channel-binding"]


def test_a_client_without_a_password_of_its_own_may_come_again(start: Start) -> None:
    relay = start()
    assert "no password supplied" in psql(relay, "SELECT 1", user="plain").stderr
    (flow,) = recorded(relay)
    assert flow.closed["ending"] == "fin"
    assert not flow.refused


def test_a_client_that_waits_too_long(start: Start) -> None:
    relay = start(seconds=0.5)
    with socket.create_connection(relay.address) as one:
        one.sendall(START)
        asked = one.recv(100)
        assert asked == authentication(10, z("SCRAM-SHA-256") + b"\0")
        told = b"".join(iter(lambda: one.recv(4096), b""))
    assert told.startswith(b"E")
    assert b"\0C57014\0" in told
    (flow,) = recorded(relay)
    assert flow.refused == ["time-out"]


def test_an_own_password_that_is_wrong(start: Start) -> None:
    relay = start()
    done = psql(relay, "SELECT 1", user="scram", password="wrong one", channel_binding="disable")
    assert 'FATAL:  password authentication failed for user "scram"' in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["login-refused"]


# -- splice mode -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("application", ["postgres", "auto"])
@pytest.mark.parametrize("sslmode", ["disable", "verify-full"])
def test_splice_mode_only_upgrades(start: Start, server: Server, application: str, sslmode: str) -> None:
    relay = start(application=application, mode="splice")
    done = psql(relay, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", user="open", sslmode=sslmode)
    assert done.stdout == ("f\n" if sslmode == "disable" else "t\n"), done.stderr
    (flow,) = recorded(relay)
    assert b"SELECT ssl" in flow.data[0]
    assert bool(flow.notes_of("tls")) == (sslmode != "disable")
    assert flow.closed["ending"] == "fin"


def test_splice_mode_with_tls_for_an_agent_without(start: Start) -> None:
    relay = start(mode="splice", upstream_tls="require")
    done = psql(relay, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", user="open", sslmode="disable")
    assert done.stdout == "t\n", done.stderr
    recorded(relay)
