"""Real MariaDB clients and a real server, with a relay between them that reads the protocol."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from tests.dissect import mysql_lab
from tests.dissect.mysql_lab import Server
from tests.lab.pki import Pki
from tests.lab.wait import until
from tests.relay import running
from tests.relay.running import Begin, Recorded, Running, trusting

NAME = "db.example.com"
TOKEN = running.TOKEN + "A" * 700  # more than a length byte could tell
Start = Callable[..., Running]

pytestmark = pytest.mark.skipif(not mysql_lab.available(), reason="needs MariaDB and root")


@pytest.fixture(scope="module")
def server(pki: Pki) -> Iterator[Server]:
    with mysql_lab.server(pki.issue(NAME, ("127.0.0.1",))) as one:
        yield one


@pytest.fixture
def start(begin: Begin, server: Server) -> Start:
    """Starts a relay in front of the server; its rule has what is given."""

    def one(user: str = "", password: str = "", former: str = "", **relay: Any) -> Running:
        secret = running.password("orders", user, password or server.password, former)
        named = {"secret": secret.name} if user else {}
        return begin(("127.0.0.1", server.port), trusting(secret, TOKEN), {"application": "mysql"} | named | relay)

    return one


def mariadb(
    relay: Running, sql: str, *options: str, password: str = TOKEN, user: str = "agent", tls: bool = True
) -> subprocess.CompletedProcess[str]:
    verified = ["--ssl", f"--ssl-ca={relay.ca}", "--ssl-verify-server-cert"] if tls else ["--skip-ssl"]
    command = ["mariadb", "--no-defaults", *verified, "-h", "127.0.0.1", "-P", str(relay.port), "-u", user]
    command += ["-D", "shop", "-BN", "--default-character-set=utf8mb4", *options]
    environment = os.environ | ({"MYSQL_PWD": password} if password else {})
    return subprocess.run(command, input=sql, env=environment, capture_output=True, text=True, timeout=30, check=False)


def connect(relay: Running, *, tls: bool = True, **more: Any) -> Any:
    verified: dict[str, Any] = {"ssl": {"ca": str(relay.ca), "check_hostname": True}} if tls else {"ssl_disabled": True}
    asked: dict[str, Any] = {
        "user": "agent",
        "password": TOKEN,
        "database": "shop",
        "charset": "utf8mb4",
        "local_infile": True,
    }
    return pymysql.connect(host="127.0.0.1", port=relay.port, connect_timeout=10, **(asked | verified | more))


def recorded(relay: Running) -> list[Recorded]:
    """Every flow, and no credential on any of them."""
    return relay.recorded(TOKEN, Server.password)


USERS = [("native", "mysql_native_password"), ("ed", "client_ed25519")]


@pytest.mark.parametrize(("user", "method"), USERS, ids=[user for user, _ in USERS])
def test_a_token_opens_a_session_of_the_rules_credential(start: Start, user: str, method: str) -> None:
    relay = start(user, identify="token")
    done = mariadb(relay, "SELECT substring_index(current_user(), '@', 1), database(), 6 * 7, 'Ω'")
    assert (done.stdout, done.stderr) == (f"{user}\tshop\t42\tΩ\n", "")
    (flow,) = recorded(relay)
    assert flow.login == {"user": user, "method": method, "secret": "orders"}
    (known,) = flow.notes_of("identified")
    assert known["attrs"]["identity"]["subject"] == "agent-7"
    assert known["attrs"]["identity"]["method"] == "mysql-password"
    client, said = map(bytes, flow.data)
    assert b"*" * len(TOKEN) + b"\0" in client
    assert b"SELECT substring_index" in client
    assert b"\xfemysql_clear_password\0" in said
    assert not flow.refused


def test_a_lease_is_enough_and_what_the_agent_gives_does_not_matter(start: Start) -> None:
    relay = start("ed")
    done = mariadb(relay, "SELECT current_user()", password="", tls=False)
    assert (done.stdout, done.stderr) == ("ed@%\n", "")
    (flow,) = recorded(relay)
    assert not flow.notes_of("tls")
    assert not flow.refused


def test_no_token_is_asked_for_in_clear(start: Start) -> None:
    relay = start("native", identify="token")
    done = mariadb(relay, "SELECT 1", tls=False)
    assert "ERROR 3159 (HY000): the gateway asks for an access token as password, and only over TLS" in done.stderr
    assert "Connect with TLS, as by --ssl" in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["cleartext-token"]


def test_a_token_that_is_not_accepted(start: Start) -> None:
    relay = start("native", identify="token")
    done = mariadb(relay, "SELECT 1", password="no token at all")
    assert "ERROR 1045 (28000): the gateway does not accept the access token" in done.stderr
    assert "it has expired; get a new one" in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["token-refused"]
    assert b"no token" not in flow.data[0]


def test_pymysql_and_what_a_session_needs(start: Start, tmp_path: Path) -> None:
    relay = start("ed", identify="token")
    file = tmp_path / "rows"
    file.write_text("".join(f"{number}\tx{number}\n" for number in range(5000)))
    with connect(relay) as one, one.cursor() as cursor:
        cursor.execute("CREATE OR REPLACE TABLE loaded (a int, b text)")
        assert cursor.execute("LOAD DATA LOCAL INFILE %s INTO TABLE loaded", [str(file)]) == 5000
        cursor.execute("SELECT count(*), sum(a) FROM loaded")
        assert cursor.fetchone() == (5000, sum(range(5000)))
    recorded(relay)


def test_a_message_of_several_packets_passes(start: Start, server: Server) -> None:
    server.root("SET GLOBAL max_allowed_packet = 67108864")
    relay = start("ed", identify="token")
    with connect(relay, max_allowed_packet=1 << 26) as one, one.cursor() as cursor:
        cursor.execute("SELECT length(%s)", ["y" * 17_000_000])
        assert cursor.fetchone() == (17_000_000,)
        cursor.execute("SELECT 'still here'")
        assert cursor.fetchone() == ("still here",)
    (flow,) = recorded(relay)
    assert len(flow.data[0]) > 17_000_000


def test_the_user_is_not_changed_behind_the_gateway(start: Start, server: Server) -> None:
    relay = start("ed")
    library = mysql_lab.Library(relay.port)
    try:
        with pytest.raises(RuntimeError, match="COM_CHANGE_USER is refused: the gateway has logged in for the agent"):
            library.change_user("native", server.password)
    finally:
        library.close()
    (flow,) = recorded(relay)
    assert flow.refused == ["change-user"]
    assert flow.notes_of("redacted")


def test_the_server_must_have_tls_where_the_rule_requires_it(start: Start, server: Server) -> None:
    relay = start("native", upstream_tls="require")
    done = mariadb(relay, "SHOW STATUS LIKE 'Ssl_version'", password="", tls=False)
    assert done.stdout.startswith("Ssl_version\tTLSv1"), done.stderr
    recorded(relay)


def test_a_server_whose_certificate_is_not_valid(start: Start, tmp_path: Path) -> None:
    other = Pki(tmp_path / "other")
    relay = start("native", identify="token", ca=str(other.certificate))
    done = mariadb(relay, "SELECT 1")
    assert "alert access denied" in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["certificate"]


def test_without_tls_the_same_can_be_told(start: Start, tmp_path: Path) -> None:
    other = Pki(tmp_path / "other")
    relay = start("native", upstream_tls="require", ca=str(other.certificate))
    done = mariadb(relay, "SELECT 1", tls=False)
    assert "TLS between gateway and server failed: the certificate is not accepted" in done.stderr
    recorded(relay)


def test_a_credential_that_the_server_refuses_is_the_administrators(start: Start) -> None:
    relay = start("native", "not the password", identify="token")
    done = mariadb(relay, "SELECT 1")
    assert "the server refused the credential that the gateway uses for this rule (error 1045)" in done.stderr
    assert "secret orders" in done.stderr
    assert "'native'" not in done.stderr, "the upstream user is not told"
    (flow,) = recorded(relay)
    (note,) = flow.notes_of("login-refused")
    assert note["attrs"]["message"].startswith("Access denied for user 'native'@")
    assert flow.refused == ["login-refused"]


@pytest.mark.parametrize("user", ["native", "ed"])
def test_the_former_credential_while_its_grace_lasts(start: Start, server: Server, user: str) -> None:
    relay = start(user, "rotated here, not there yet", former=server.password, identify="token")
    assert mariadb(relay, "SELECT current_user()").stdout == f"{user}@%\n"
    (flow,) = recorded(relay)
    assert flow.notes_of("login-refused")[0]["attrs"]["generation"] == 2
    assert not flow.refused


def test_an_error_of_the_server_about_the_session_passes(start: Start) -> None:
    relay = start("native", identify="token")
    with pytest.raises(pymysql.err.OperationalError) as caught:
        connect(relay, database="nowhere")
    assert caught.value.args[0] in (1044, 1049)
    (flow,) = recorded(relay)
    assert flow.refused == ["login-refused"]


def test_a_server_that_is_not_there(start: Start) -> None:
    relay = start("native", identify="token")
    relay.server = ("127.0.0.1", 9)
    done = mariadb(relay, "SELECT 1")
    assert "the gateway did not reach the server: 127.0.0.1 port 9: Connection refused" in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["unreachable"]


# -- the agent's own password ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["native", "ed", "open"])
@pytest.mark.parametrize("tls", [False, True])
def test_an_own_password_passes_and_is_kept_by_length_only(start: Start, server: Server, user: str, tls: bool) -> None:
    relay = start()
    password = "" if user == "open" else server.password
    done = mariadb(relay, "SELECT current_user()", password=password, user=user, tls=tls)
    assert (done.stdout, done.stderr) == (f"{user}@%\n", "")
    (flow,) = recorded(relay)
    assert bool(flow.notes_of("redacted")) == (user != "open")
    assert flow.login["user"] == user
    assert bool(flow.notes_of("tls")) == tls


def test_an_own_password_over_tls_that_only_the_gateway_speaks(start: Start, server: Server) -> None:
    """The numbers of packets differ on both sides."""
    relay = start(upstream_tls="require")
    asked = "SHOW STATUS LIKE 'Ssl_version'"
    done = mariadb(relay, asked, password=server.password, user="ed", tls=False)
    assert done.stdout.startswith("Ssl_version\tTLSv1"), done.stderr
    recorded(relay)


def test_an_own_password_that_is_wrong(start: Start) -> None:
    relay = start()
    done = mariadb(relay, "SELECT 1", user="native", password="wrong one")
    assert "ERROR 1045 (28000): Access denied for user 'native'@" in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["login-refused"]


def test_compression_is_not_offered(start: Start) -> None:
    relay = start("native")
    done = mariadb(relay, "SHOW STATUS LIKE 'Compression'", "--compress", tls=False)
    assert done.stdout == "Compression\tOFF\n", done.stderr
    recorded(relay)


# -- splice mode -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("application", ["mysql", "auto"])
@pytest.mark.parametrize("tls", [False, True])
def test_splice_mode_only_upgrades(start: Start, server: Server, application: str, tls: bool) -> None:
    relay = start(application=application, mode="splice")
    done = mariadb(relay, "SHOW STATUS LIKE 'Ssl_version'", user="ed", password=server.password, tls=tls)
    assert done.stdout.startswith("Ssl_version\tTLSv1" if tls else "Ssl_version\t\n"), done.stderr
    (flow,) = recorded(relay)
    assert b"SHOW STATUS" in flow.data[0]
    assert bool(flow.notes_of("tls")) == tls


def test_splice_mode_requires_tls_of_the_agent_where_the_server_must_get_it(start: Start, server: Server) -> None:
    relay = start(mode="splice", upstream_tls="require")
    done = mariadb(relay, "SELECT 1", user="ed", password=server.password, tls=False)
    assert "the gateway's rule requires TLS to the server, and the client did not ask for it" in done.stderr
    (flow,) = recorded(relay)
    assert flow.refused == ["upstream-tls"]


def test_the_worker_serves_others_meanwhile(start: Start) -> None:
    relay = start("native", identify="token")
    with connect(relay) as one, connect(relay) as two, one.cursor() as first, two.cursor() as second:
        first.execute("SELECT connection_id()")
        second.execute("SELECT connection_id()")
        assert first.fetchone() != second.fetchone()
    until(lambda: not relay.worker.values()["flows"], "both flows to end")
    recorded(relay)
