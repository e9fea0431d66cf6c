"""Clients of databases with an access token in the place of a password: the gateway's own password is used."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import config
from appliance.journal import RELAY, Frame, FrameKind, JournalKey, Reader
from appliance.journal.relayed import RelayedKind, scan
from appliance.store.client import open_store
from tests.e2e.test_postgres import TABS, of, printed_like_psql
from tests.e2e.test_secrets import found_in, found_in_files, stored
from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.task import Task
from tests.lab.wait import until

pytestmark = pytest.mark.usefixtures("passwords")

CUSTOMERS = "SELECT id, name, country, notes FROM customers ORDER BY id"
TOKENS: set[str] = set()  # that passed in these tests

ORDINARY = {"redacted", "generated", "withheld"}  # of every session that the gateway logs in for

Json = dict[str, Any]


def sessions_of(task: Task, appliance: Appliance, count: int = 1) -> list[Json]:
    """Relayed sessions under the task's leases, oldest first; the token's identity has no run."""
    TOKENS.add(task.token)
    leases = {lease["lease_id"] for lease in task.leases}

    def look() -> list[Json] | None:
        found = [
            one
            for one in appliance.sessions()
            if one["identity"]["lease_id"] in leases and one["lane"] == "relay" and one["ending"] != "open"
        ]
        return found[::-1] if len(found) >= count else None

    return until(look, f"{count} sessions under the leases", 30, 0.1)


def session_of(task: Task, appliance: Appliance, protocol: str) -> Json:
    (session,) = sessions_of(task, appliance)
    is_by_token(session, task, protocol)
    return session


def is_by_token(session: Json, task: Task, protocol: str) -> None:
    assert session["protocol"] == protocol
    assert session["coverage"] == "complete"
    assert session["identity"]["subject"] == "agent-one"
    assert session["identity"]["token_sha256"] == hashlib.sha256(task.token.encode()).hexdigest()
    assert session["identity"]["method"] == {"redis": "redis-auth"}.get(protocol, f"{protocol}-password")
    assert "redacted" in session["findings"]
    assert set(session["findings"]) <= ORDINARY


def rows_of(messages: list[Json]) -> list[list[str | None]]:
    return [row for one in of(messages, "rows") for row in one["attrs"]["rows"]]


def as_text(rows: list[list[Any]]) -> list[list[str | None]]:
    return [[None if cell is None else str(cell) for cell in row] for row in rows]


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


def test_psql(task: Task, lab: Lab, appliance: Appliance, family: int) -> None:
    db = lab.tls_db
    where = f"host={db.fqdn} hostaddr={db.addresses[family]} dbname={db.database} user=whoever sslmode=verify-full"
    done = task.run(
        ["psql", "-X", *TABS, "-d", f"{where} sslrootcert={appliance.trust}", "-c", CUSTOMERS],
        env={"PGPASSWORD": task.token},
    )
    session = session_of(task, appliance, "postgres")
    messages = appliance.messages(session)
    assert "山田 太郎" in done.output
    assert printed_like_psql(of(messages, "rows")) == done.output
    assert task.token.encode() not in appliance.stream(session, "client")


@pytest.mark.parametrize("library", ["psycopg", "asyncpg", "sqlalchemy"])
def test_postgres_libraries(task: Task, lab: Lab, appliance: Appliance, library: str) -> None:
    db = lab.tls_db
    told = task.client(
        "postgres", library=library, host=db.fqdn, port=5432, user="whoever", password=task.token, database=db.database
    )
    session = session_of(task, appliance, "postgres")
    messages = appliance.messages(session)
    recorded = rows_of(messages)
    rows = told["customers"] if library == "sqlalchemy" else [row for one in told["select"] for row in one["rows"]]
    assert rows
    assert all(row in recorded for row in as_text(rows))
    errors = [one["text"] for one in of(messages, "error")]
    assert any("nonsense" in text for text in errors)


# -- MariaDB -----------------------------------------------------------------------------------------------------------


def test_mariadb(task: Task, lab: Lab, appliance: Appliance, family: int) -> None:
    """By IPv4 the gateway logs in by mysql_native_password, by IPv6 with ed25519."""
    command = ["mariadb", "--no-defaults", "-h", lab.mariadb.addresses[family], "-u", "whoever", "-D", "shop", "-BN"]
    command += ["--default-character-set=utf8mb4", "--ssl", f"--ssl-ca={appliance.trust}", "--ssl-verify-server-cert"]
    sql = f"SELECT substring_index(current_user(), '@', 1); {CUSTOMERS};"
    printed = task.run(command, input=sql, env={"MYSQL_PWD": task.token}).output
    session = session_of(task, appliance, "mysql")
    user, *lines = printed.splitlines()
    assert user == (lab.mariadb.user, lab.mariadb.ed25519_user)[family]
    recorded = rows_of(appliance.messages(session))
    cells = [["NULL" if cell is None else cell.replace("\n", "\\n") for cell in row] for row in recorded]
    assert ["\t".join(row) for row in cells] == [user, *lines]
    assert task.token.encode() not in appliance.stream(session, "client")


@pytest.mark.parametrize("library", ["pymysql", "sqlalchemy"])
def test_mysql_libraries(task: Task, lab: Lab, appliance: Appliance, library: str) -> None:
    where = {"host": lab.mariadb.fqdn, "port": 3306, "database": "shop", "user": "whoever", "password": task.token}
    told = task.client("mysql", library=library, **where)
    session = session_of(task, appliance, "mysql")
    messages = appliance.messages(session)
    recorded = rows_of(messages)
    rows = told["select" if library == "pymysql" else "customers"]
    assert rows
    assert all(row in recorded for row in as_text(rows))
    if library == "pymysql":
        assert [[cell] for cell in told["kept"]] == recorded[-len(told["kept"]) :]
        assert told["loaded"] == 3
        assert of(messages, "copy-done")
    assert any("nonsense" in one["text"] for one in of(messages, "error"))


# -- Redis -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "family"), [("-2", 0), ("-3", 1)])
def test_redis_cli(task: Task, lab: Lab, appliance: Appliance, version: str, family: int) -> None:
    where = [
        "-h",
        lab.redis.addresses[family],
        "-p",
        str(lab.redis.tls_port),
        "--tls",
        "--cacert",
        str(appliance.trust),
    ]
    lines = "SET k 'hello Ω'\nGET k\nDEL l\nRPUSH l a b c\nLRANGE l 0 -1\nMULTI\nINCR n\nEXEC\nACL WHOAMI\nLPUSH k x\n"
    command = ["redis-cli", version, "--no-raw", *where]
    printed = task.run(command, input=lines, env={"REDISCLI_AUTH": task.token}).output
    session = session_of(task, appliance, "redis")
    messages = appliance.messages(session)
    asked = [one["text"] for one in messages if one["kind"] == "command"]
    first = next(number for number, text in enumerate(asked) if text.startswith("SET k"))
    answers = [one["text"] for one in messages if one["direction"] == "server"]
    assert [line for line in "\n".join(answers[first:]).splitlines() if line] == [
        line.replace("\\xce\\xa9", "Ω") for line in printed.splitlines() if line
    ]
    assert task.token.encode() not in appliance.stream(session, "client")


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(task: Task, lab: Lab, appliance: Appliance, protocol: int) -> None:
    server = lab.redis
    where = {"host": server.fqdn, "port": server.tls_port, "username": "whoever", "password": task.token}
    told = task.client("redis", library="redis", protocol=protocol, **where)
    assert told["greeting"] == "hello Ω\r\nworld"
    assert told["published"] == "something happened"
    sessions = sessions_of(task, appliance, 2)  # subscribing has a connection of its own
    for session in sessions:
        is_by_token(session, task, "redis")
    said = b"".join(appliance.stream(session, "server") for session in sessions)
    for value in (told["greeting"], told["error"], told["published"], "Søren"):
        assert value.encode() in said
    assert task.token.encode() not in b"".join(appliance.stream(session, "client") for session in sessions)


def test_redis_by_lease(task: Task, lab: Lab, appliance: Appliance) -> None:
    printed = task.run(["redis-cli", "-h", lab.redis.addresses[0], "ACL", "WHOAMI"]).output
    assert printed.strip() == lab.redis.user
    (session,) = sessions_of(task, appliance)
    assert session["coverage"] == "complete"
    assert session["findings"] == []
    assert session["identity"]["method"] == "lease"
    assert appliance.stream(session, "server") == b"$3\r\napp\r\n"


def test_a_wrong_token_is_told_in_the_protocols_own_words(task: Task, lab: Lab, appliance: Appliance) -> None:
    wrong = task.token[:-8] + "AAAAAAAA"
    lab.secrets.add(wrong)
    trust = str(appliance.trust)
    psql = ["psql", "-X", "-d", f"host={lab.tls_db.fqdn} user=x dbname=shop sslmode=verify-full sslrootcert={trust}"]
    mariadb = ["mariadb", "--no-defaults", "-h", lab.mariadb.fqdn, "--ssl", f"--ssl-ca={trust}", "-u", "x"]
    cache = ["redis-cli", "-h", lab.redis.fqdn, "-p", str(lab.redis.tls_port), "--tls", "--cacert", trust, "PING"]
    told = [
        task.run(command, env={name: wrong}, input="SELECT 1", check=False)
        for command, name in ((psql, "PGPASSWORD"), (mariadb, "MYSQL_PWD"), (cache, "REDISCLI_AUTH"))
    ]
    for done, begin in zip(told, ("FATAL:  ", "ERROR 1045 (28000): ", "WRONGPASS "), strict=True):
        assert f"{begin}the gateway does not accept the access token" in done.output + done.errors
    TOKENS.add(wrong)
    for session in sessions_of(task, appliance, 3):
        assert "token-refused" in session["findings"]


# -- credentials -------------------------------------------------------------------------------------------------------


def journaled(data: Path) -> Iterator[tuple[str, bytes]]:
    """What relays journaled, decrypted: every flow's directions each in one piece, and what was noted."""
    key = JournalKey.load_or_create(data)
    for folder in sorted((data / "journal").glob("relay-*")):
        said: dict[tuple[int, int], bytearray] = {}
        with Reader(folder, key, None) as reader:
            while (frame := reader.read()) is not None:
                if isinstance(frame, Frame) and frame.kind is FrameKind.SPAN and frame.layout == RELAY:
                    for record in scan(frame.payload):
                        if record.kind is RelayedKind.DATA:
                            said.setdefault((record.flow, record.direction), bytearray()).extend(record.body)
                        else:
                            yield f"{folder.name} notes", bytes(record.body)
                elif isinstance(frame, Frame):
                    yield f"{folder.name} frames", bytes(frame.payload)
        yield from ((f"{folder.name} {flow}", bytes(data)) for flow, data in said.items())


def running() -> Iterator[tuple[str, bytes]]:
    """Command lines and environments of the appliance's processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if b"appliance" in command and int(folder.name) != os.getpid():
                yield f"{folder.name} command", command
                yield f"{folder.name} environment", (folder / "environ").read_bytes()
        except OSError:
            continue


def test_no_token_or_password_is_kept_anywhere(task: Task, lab: Lab, appliance: Appliance) -> None:
    """What passed in the tests above: the agents' tokens, and the passwords that the gateway used for them."""
    passwords = {lab.tls_db.password, lab.mariadb.password, lab.redis.password}
    used = [secret.encode() for secret in passwords | TOKENS]
    assert len(used) > 12
    assert passwords | TOKENS <= lab.secrets

    def everything() -> dict[bytes, str]:
        with open_store(config.load(appliance.config), "reader", embed=False) as store:
            return found_in(stored(store), [*used, b"substring_index"])

    assert list(lab.gateway.call(everything)) == [b"substring_index"], "what is looked for can be found"
    assert list(found_in(journaled(appliance.data), [*used, b"substring_index"])) == [b"substring_index"]
    assert found_in(running(), [secret.encode() for secret in lab.secrets]) == {}
    assert list(running())
    assert found_in([("log", appliance.log().encode())], [secret.encode() for secret in lab.secrets]) == {}
    assert found_in([("log", appliance.log().encode())], [b"relay"])
    assert found_in_files(lab, appliance.data, passwords | TOKENS) == []
