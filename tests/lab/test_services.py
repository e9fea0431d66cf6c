"""Each server of the lab answers its real clients, through a gateway that only routes."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab
from tests.lab.clients import Told, ask
from tests.lab.net import Done
from tests.lab.services import ON_DEMAND, Dns, MariaDb, Redis, Service, tls

UNSET = ""
CUSTOMERS = [[1, "Ada Lovelace", "GB"], [2, "Søren Ødegård", "DK"], [4, "山田 太郎", "JP"]]


@pytest.fixture(scope="module")
def ca(lab: Lab) -> str:
    return str(lab.pki.certificate)


def test_it_starts_when_it_is_needed() -> None:
    with Lab([Dns], on_demand=[Redis]) as small:
        assert list(small.services) == ["dns"]
        address = small.addresses(Redis)[0]
        assert small.agent(1).run(["getent", "ahostsv4", "redis.lab.test"]).output.split()[0] == address
        assert not list(Path("/run/netns").glob(f"{small.prefix}-redis"))
        started = small.redis
        assert small.redis is started
        assert started.addresses[0] == address
        started.processes[0].stop()
        with pytest.raises(AssertionError, match="redis-server on redis ended"):
            small.need(Redis)
        with pytest.raises(KeyError, match="mariadb is not a service of this lab"):
            small.need(MariaDb)


@pytest.mark.parametrize("kind", ON_DEMAND, ids=[kind.name for kind in ON_DEMAND])
def test_it_listens_in_its_own_namespace_only(lab: Lab, kind: type[Service]) -> None:
    inside = lab.need(kind).host.run(["ss", "-Hltn"]).output.replace("[::ffff:", "[").split()
    for address in lab.addresses(kind):
        for opening in kind.openings:
            assert f"[{address}]:{opening.port}" in inside or f"{address}:{opening.port}" in inside
    machines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    assert not [process for process in lab.need(kind).processes if f"pid={process.pid}," in machines]


# -- databases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["shop", "older", "legacy"])
def test_psql_by_tls(lab: Lab, ca: str, user: str) -> None:
    asked = "SELECT current_user, version, (SELECT count(*) FROM orders) FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    done = lab.agent(1).run(
        ["psql", "-XAt", "-h", lab.tls_db.fqdn, "-U", user, "-d", lab.tls_db.database, "-c", asked],
        env={"PGPASSWORD": lab.tls_db.password, "PGSSLMODE": "verify-full", "PGSSLROOTCERT": ca},
    )
    assert done.output == f"{user}|TLSv1.3|400\n"
    kept = lab.tls_db.superuser("postgres", f"SELECT left(rolpassword, 3) FROM pg_authid WHERE rolname = '{user}'")
    assert kept.strip() == ("md5" if user == "older" else "SCR")


@pytest.mark.parametrize(
    ("library", "user", "tls"), [("psycopg", "shop", True), ("asyncpg", "older", True), ("sqlalchemy", "legacy", False)]
)
def test_postgres_libraries(lab: Lab, ca: str, library: str, user: str, tls: bool) -> None:
    server = lab.tls_db
    where = {"host": server.fqdn, "port": 5432, "user": user, "password": server.password, "database": server.database}
    told = ask(lab.agent(1), "postgres", where | {"library": library, "ca": ca if tls else UNSET})
    assert "nonsense" in json.dumps(told["error"])
    if library == "sqlalchemy":
        assert told["customers"] == CUSTOMERS
        assert told["audited"] == 3
    else:
        assert [one["rows"][0][1] for one in told["select"]] == ["Søren Ødegård", "山田 太郎", "Ada Lovelace"]


@pytest.mark.parametrize(
    ("user", "plugin", "options"),
    [("app", "mysql_native_password", ["--skip-ssl"]), ("edapp", "ed25519", ["--ssl-verify-server-cert"])],
)
def test_mariadb_client(lab: Lab, ca: str, user: str, plugin: str, options: list[str]) -> None:
    server = lab.mariadb
    asked = "SELECT current_user(), name FROM customers WHERE id = 2; SHOW STATUS LIKE 'Ssl_version'"
    client = ["mariadb", "--no-defaults", "-h", server.fqdn, "-u", user, "--default-character-set=utf8mb4", "-BN"]
    trust = [] if "--skip-ssl" in options else [f"--ssl-ca={ca}"]
    done = lab.agent(1).run(
        [*client, *options, *trust, server.database, "-e", asked], env={"MYSQL_PWD": server.password}
    )
    version = "TLSv1.3" if trust else ""
    assert done.output == f"{user}@%\tSøren Ødegård\nSsl_version\t{version}\n"
    kept = server.superuser(f"SELECT plugin FROM mysql.user WHERE user = '{user}'")
    assert kept.strip() == plugin


@pytest.mark.parametrize(("library", "user", "tls"), [("pymysql", "edapp", True), ("sqlalchemy", "app", False)])
def test_mariadb_libraries(lab: Lab, ca: str, library: str, user: str, tls: bool) -> None:
    server = lab.mariadb
    server.superuser(f"DELETE FROM {server.database}.audit")
    where = {"host": server.fqdn, "port": 3306, "user": user, "password": server.password, "database": server.database}
    told = ask(lab.agent(1), "mysql", where | {"library": library, "ca": ca if tls else UNSET})
    assert "Unknown column 'nonsense'" in json.dumps(told["error"])
    if library == "sqlalchemy":
        assert told["customers"] == CUSTOMERS
        assert told["audited"] == 3
    else:
        assert told["select"][1] == [2, "Søren Ødegård", None]
        assert told["loaded"] == len(told["kept"]) == 3


def test_redis_cli(lab: Lab, ca: str) -> None:
    server, agent = lab.redis, lab.agent(1)
    clear = ["redis-cli", "-h", server.fqdn]
    assert "NOAUTH" in agent.run([*clear, "ping"]).output
    by_default = agent.run([*clear, "set", "by", "redis-cli"], env={"REDISCLI_AUTH": server.default_password})
    assert by_default.output == "OK\n"
    tls = ["redis-cli", "-h", server.fqdn, "-p", str(server.tls_port), "--tls", "--cacert", ca, "-3"]
    by_user = agent.run([*tls, "--user", server.user, "get", "by"], env={"REDISCLI_AUTH": server.password})
    assert by_user.output == "redis-cli\n"


@pytest.mark.parametrize(("tls", "protocol"), [(False, 2), (True, 3)], ids=["RESP2", "RESP3 over TLS"])
def test_redis_library(lab: Lab, ca: str, tls: bool, protocol: int) -> None:
    server = lab.redis
    who = {"username": server.user, "password": server.password} if tls else {"username": "", "password": UNSET}
    if not tls:
        who["password"] = server.default_password
    where = {"host": server.fqdn, "port": server.tls_port if tls else server.port, "ca": ca if tls else UNSET}
    told = ask(lab.agent(1), "redis", where | who | {"library": "redis", "protocol": protocol})
    assert told["pong"] is True
    assert told["greeting"] == "hello Ω\r\nworld"
    assert told["hash"] == {"name": "Søren", "tier": "silver"}
    assert told["transaction"] == [True, 42]
    assert told["published"] == "something happened"
    assert told["error"].startswith("WRONGTYPE")


# -- shells ------------------------------------------------------------------------------------------------------------


def _ssh(lab: Lab, *more: str, command: str = "echo $USER; cat", env: dict[str, str] | None = None) -> Done:
    options = ["ssh", *lab.ssh.client(lab.agent(1)), *more]
    return lab.agent(1).run([*options, f"{lab.ssh.user}@{lab.ssh.fqdn}", command], input="sent", env=env, check=False)


def test_ssh(lab: Lab) -> None:
    assert _ssh(lab, *lab.ssh.by_key()).output == "worker\nsent"
    terminal = _ssh(lab, "-tt", *lab.ssh.by_key(), command="tty; exit 4")
    assert "/dev/pts/" in terminal.output
    assert terminal.code == 4


def test_ssh_by_password(lab: Lab) -> None:
    only = ["-o", "PubkeyAuthentication=no"]
    assert _ssh(lab, *only, env=lab.ssh.by_password(lab.agent(1), lab.ssh.password)).output == "worker\nsent"
    assert _ssh(lab, *only, env=lab.ssh.by_password(lab.agent(1), "wrong")).code == 255


def test_ssh_by_certificate(lab: Lab) -> None:
    agent = lab.agent(1)
    key = agent.home / "own"
    agent.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
    by_own = ["-i", str(key), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
    assert _ssh(lab, *by_own).code == 255
    certificate = lab.ssh.sign(key.with_suffix(".pub"))
    assert _ssh(lab, *by_own, "-o", f"CertificateFile={certificate}").output == "worker\nsent"


def test_scp_and_sftp(lab: Lab) -> None:
    server, agent = lab.ssh, lab.agent(1)
    options, content = [*server.client(agent), *server.by_key()], lab.web.download
    (agent.home / "sent").write_bytes(content)
    there = f"{server.user}@{server.fqdn}:"
    agent.run(["scp", "-q", *options, agent.home / "sent", f"{there}kept"])
    agent.run(["scp", "-q", "-O", *options, f"{there}kept", agent.home / "back"])
    assert (agent.home / "back").read_bytes() == (server.home / "kept").read_bytes() == content
    batch = "rename kept moved\nls -1\nget moved again\nrm moved\n"
    printed = agent.run(["sftp", "-q", *options, "-b", "-", there.rstrip(":")], input=batch).output
    assert "\nmoved" in printed
    assert (agent.home / "again").read_bytes() == content
    assert not (server.home / "moved").exists()


@pytest.mark.parametrize("by", ["password", "key"])
def test_ssh_library(lab: Lab, by: str) -> None:
    server = lab.ssh
    own = {"password": server.password if by == "password" else UNSET, "key": str(server.key)}
    where = {"host": server.fqdn, "port": 22, "user": server.user, "host_key": server.host_key}
    told = ask(lab.agent(1), "ssh", where | own | {"library": "paramiko"})
    assert told["exec"] == {"output": "sent Ω", "errors": "problem\n", "code": 3}
    assert told["shell"] == {"resized": True, "code": 5}
    assert told["sftp"]["same"] is True


def test_the_account_is_not_the_machines(lab: Lab) -> None:
    assert lab.ssh.user in _ssh(lab, *lab.ssh.by_key(), command="cat /etc/passwd").output
    assert lab.ssh.user not in [line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines()]


# -- HTTP and what runs over it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "url", "version"),
    [
        (["--http1.1"], "https://web.lab.test", "1.1"),
        (["--http2"], "https://web.lab.test", "2"),
        (["--http2-prior-knowledge"], "http://web.lab.test:8080", "2"),
    ],
)
def test_curl(lab: Lab, ca: str, options: list[str], url: str, version: str) -> None:
    command = ["curl", "-sS", "--cacert", ca, *options, "-w", "%{http_version}", "-o", str(lab.agent(1).home / "got")]
    assert lab.agent(1).run([*command, f"{url}/download.bin"]).output == version
    assert (lab.agent(1).home / "got").read_bytes() == lab.web.download


@pytest.mark.parametrize(
    ("library", "version"), [("httpx", "HTTP/1.1"), ("httpx-http2", "HTTP/2"), ("requests", "HTTP/1.1")]
)
def test_http_libraries(lab: Lab, ca: str, library: str, version: str) -> None:
    told = ask(lab.agent(1), "http", {"library": library, "url": f"https://{lab.web.fqdn}", "ca": ca})
    assert told["items"] == 200
    assert told["echo"]["remark"] == "done ✓"
    assert told["download"] == hashlib.sha256(lab.web.download).hexdigest()
    assert told["version"] == version


@pytest.mark.parametrize(
    ("port", "options", "told"),
    [
        (tls.TLS13, [], "TLSv1.3"),
        (tls.TLS13, ["--tls-max", "1.2"], "alert protocol version"),
        (tls.TLS12, [], "TLSv1.2"),
        (tls.EXPIRED, [], "certificate has expired"),
        (tls.MISNAMED, [], "no alternative certificate subject name matches"),
        (tls.UNTRUSTED, [], "unable to get local issuer certificate"),
        (tls.CLIENT_CERTIFICATE, [], "400 No required SSL certificate"),
        (tls.CLIENT_CERTIFICATE, ["with"], "CN=lab-client"),
    ],
)
def test_kinds_of_tls(lab: Lab, ca: str, port: int, options: list[str], told: str) -> None:
    certificate, key = lab.tls.client
    given = ["--cert", str(certificate), "--key", str(key)] if options == ["with"] else options
    url = f"https://{lab.tls.fqdn}:{port}/"
    done = lab.agent(1).run(["curl", "-sS", "--cacert", ca, *given, url], check=False)
    assert told in done.output + done.errors


@pytest.mark.parametrize(("scheme", "compression"), [("ws", False), ("wss", True)])
def test_websocket(lab: Lab, ca: str, scheme: str, compression: bool) -> None:
    settings = {"library": "websockets", "url": f"{scheme}://{lab.websocket.fqdn}", "ca": ca}
    told = ask(lab.agent(1), "websocket", settings | {"compression": compression})
    assert told["same"] == [True] * 5
    assert told["closed"] == [4001, "enough of it"]
    assert ("permessage-deflate" in told["extensions"]) is compression


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "TLS"])
def test_grpc(lab: Lab, ca: str, tls: bool) -> None:
    target = f"{lab.grpc.fqdn}:{lab.grpc.port if tls else lab.grpc.clear_port}"
    told = ask(lab.agent(1), "grpc", {"library": "grpcio", "target": target, "ca": ca if tls else UNSET})
    assert told == {
        "find": "ABACUS",
        "trailers": {"x-found": "1"},
        "long": True,
        "list": ["item 0", "item 1", "item 2"],
        "gather": "one,two,three",
        "chat": ["you said hello", "you said bye"],
        "error": ["NOT_FOUND", "nothing of that name"],
    }


def _talk(lab: Lab, ca: str, library: str) -> Told:
    return ask(
        lab.agent(1), "llm", {"library": library, "url": f"https://{lab.llm.fqdn}", "key": lab.llm.key, "ca": ca}
    )


SAID = "You said: How is the weather in Århus?"
CALLED = ["weather", {"city": "How is the weather in Århus?"}]


def test_openai(lab: Lab, ca: str) -> None:
    told = _talk(lab, ca, "openai")
    assert told["chat"] == {"whole": SAID, "streamed": SAID, "tool": CALLED, "after": "The tool said: sunny ☀"}
    assert told["responses"] == {"whole": SAID, "streamed": SAID, "final": SAID, "tool": CALLED}
    assert told["error"] == 401


def test_anthropic(lab: Lab, ca: str) -> None:
    told = _talk(lab, ca, "anthropic")
    assert told == {
        "whole": SAID,
        "streamed": SAID,
        "tool": CALLED,
        "after": "The tool said: sunny ☀",
        "error": 401,
    }


@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("responses", {"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": {}}]}),
        ("messages", {"max_tokens": 9, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    ],
)
def test_llm_streams_are_the_same_each_time(lab: Lab, ca: str, path: str, question: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "stream": True} | question)
    command = [
        "curl",
        "-sS",
        "--cacert",
        ca,
        "--json",
        "@-",
        "-H",
        f"x-api-key: {lab.llm.key}",
        "-w",
        "%{http_version}",
    ]
    first, second = (
        lab.agent(1).run([*command, url + f"/v1/{path}"], input=body).output
        for url in (f"https://{lab.llm.fqdn}", f"http://{lab.llm.fqdn}")
    )
    assert first.removesuffix("2") == second.removesuffix("1.1")
    assert "data: {" in first
