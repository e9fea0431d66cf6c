"""Real Redis clients and a real server, with a relay between them that reads the protocol."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.dissect import redis_lab
from tests.dissect.redis_bytes import OK, command
from tests.dissect.redis_lab import Server
from tests.lab.pki import Pki
from tests.relay import running
from tests.relay.running import TOKEN, Begin, Recorded, Running, trusting

NAME = "cache.example.com"
REFUSED = "REFUSED-the-gateway-has-logged-in-for-you"
Start = Callable[..., Running]

pytestmark = pytest.mark.skipif(not redis_lab.available(), reason="needs Redis")


@pytest.fixture(scope="module")
def server(pki: Pki) -> Iterator[Server]:
    with redis_lab.server(pki.issue(NAME, ("127.0.0.1",))) as one:
        yield one


@pytest.fixture
def start(begin: Begin, server: Server) -> Start:
    """Starts a relay in front of the server; its rule has what is given, and its credential is of user `alice`."""

    def one(password: str = "", former: str = "", *, tls: bool = True, **relay: Any) -> Running:
        secret = running.password("cache", "alice", password or server.password, former)
        port = server.tls_port if tls else server.port
        return begin(("127.0.0.1", port), trusting(secret), {"application": "redis"} | relay)

    return one


def cli(relay: Running, *words: str, token: str = TOKEN, tls: bool = True, input: str = "") -> str:
    """What redis-cli prints."""
    by_tls = ["--tls", "--cacert", str(relay.ca)] if tls else []
    environment = os.environ | ({"REDISCLI_AUTH": token} if token else {})
    done = subprocess.run(
        ["redis-cli", "-p", str(relay.port), *by_tls, *words],
        input=input, env=environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def client(relay: Running, **more: Any) -> Any:
    asked: dict[str, Any] = {"password": TOKEN, "ssl": True, "ssl_ca_certs": str(relay.ca), "decode_responses": True}
    return redis.Redis(host="127.0.0.1", port=relay.port, socket_timeout=10, **(asked | more))


def recorded(relay: Running, *more: str) -> list[Recorded]:
    """Every flow, and no credential on any of them."""
    return relay.recorded(TOKEN, Server.password, *more)


def test_a_token_opens_a_session_of_the_rules_credential(start: Start) -> None:
    relay = start(identify="token", secret="cache")
    assert cli(relay, "ACL", "WHOAMI") == "alice\n"
    (flow,) = recorded(relay)
    assert flow.login == {"user": "alice", "method": "auth", "secret": "cache"}
    (known,) = flow.notes_of("identified")
    assert known["attrs"]["identity"]["subject"] == "agent-7"
    assert known["attrs"]["identity"]["method"] == "redis-auth"
    client, said = map(bytes, flow.data)
    assert client.startswith(command("AUTH", "*" * len(TOKEN)))
    assert said.startswith(OK)
    assert said.endswith(b"alice\r\n")
    assert not flow.refused


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("username", [None, "anybody"])
def test_redis_py_and_what_a_session_needs(start: Start, protocol: int, username: str | None) -> None:
    relay = start(identify="token", secret="cache")
    one = client(relay, protocol=protocol, username=username)
    assert one.acl_whoami() == "alice"
    one.set("big", "Ω" * 400_000)
    assert one.get("big") == "Ω" * 400_000
    with one.pipeline(transaction=False) as pipeline:
        for number in range(3000):
            pipeline.set(f"key:{number}", number).get(f"key:{number}")
        assert pipeline.execute()[1::2] == [str(number) for number in range(3000)]
    with one.pipeline(transaction=True) as transaction:
        assert transaction.set("counter", 41).incr("counter").execute() == [True, 42]
    with one.pubsub() as listening:
        listening.subscribe("news")
        assert listening.get_message(timeout=5)["type"] == "subscribe"
        assert one.publish("news", "something happened") == 1
        assert listening.get_message(timeout=5)["data"] == "something happened"
    with one.monitor() as monitor:
        one.ping()
        assert monitor.next_command()["command"] == "PING"
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        one.lpush("big", "x")
    one.close()
    flows = recorded(relay)
    assert all(not flow.refused for flow in flows)
    assert sum(len(flow.data[0]) for flow in flows) > 800_000


def test_the_answers_keep_their_order(start: Start) -> None:
    """Commands that are refused in the middle of others."""
    relay = start(identify="token", secret="cache")
    lines = "SET a 1\nAUTH mallory geheim\nGET a\nRESET\nHELLO 2 AUTH mallory geheim\nACL SETUSER mallory on >geheim\n"
    lines += "CONFIG SET maxmemory 0 requirepass geheim\nMULTI\nSET a 2\nAUTH geheim\nEXEC\nGET a\nACL WHOAMI\n"
    printed = cli(relay, input=lines).splitlines()
    printed = [REFUSED if REFUSED in line else line for line in printed if line]
    assert printed == [
        "OK", REFUSED, "1", REFUSED, REFUSED, REFUSED, REFUSED, "OK", "QUEUED", REFUSED,
        "EXECABORT Transaction discarded because of previous errors.", "1", "alice",
    ]  # fmt: skip
    (flow,) = recorded(relay, "geheim")
    assert [note["attrs"]["command"] for note in flow.notes_of("declined")] == [
        "AUTH", "RESET", "HELLO", "ACL", "CONFIG", "AUTH",
    ]  # fmt: skip


def test_a_pipeline_in_one_piece(start: Start) -> None:
    relay = start(secret="cache", tls=False)
    with socket.create_connection(relay.address, 10) as sock:
        sock.sendall(command("PING") + command("AUTH", "geheim") + command("ECHO", "x") + b"PING\r\n")
        said = b""
        while not said.endswith(b"x\r\n+PONG\r\n"):
            more = sock.recv(4096)
            assert more, said
            said += more
    assert said.startswith(b"+PONG\r\n-ERR unknown command 'REFUSED-the-gateway")
    assert said.count(b"\r\n") == 5
    recorded(relay, "geheim")


def test_a_lease_is_enough(start: Start) -> None:
    relay = start(secret="cache", tls=False)
    assert cli(relay, "ACL", "WHOAMI", token="", tls=False) == "alice\n"
    (flow,) = recorded(relay)
    assert bytes(flow.data[1]) == b"$5\r\nalice\r\n", "the agent does not see the gateway's log-in"


def test_nothing_but_a_token_is_taken_first(start: Start) -> None:
    relay = start(identify="token", secret="cache")
    assert "NOAUTH Authentication required." in cli(relay, "GET", "a", token="")
    printed = cli(relay, "GET", "a", token="no token")
    assert "WRONGPASS the gateway does not accept the access token" in printed
    assert "it has expired; get a new one" in printed
    assert "NOAUTH" in printed
    first, second = recorded(relay, "no token")
    assert not first.refused
    assert second.notes_of("token-refused")


def test_no_token_is_taken_in_clear(start: Start) -> None:
    relay = start(identify="token", secret="cache", tls=False)
    assert "NOAUTH the gateway takes an access token as password only over TLS" in cli(relay, "PING", tls=False)
    (flow,) = recorded(relay)
    assert flow.refused == ["cleartext-token"]


def test_a_credential_that_the_server_refuses_is_the_administrators(start: Start) -> None:
    relay = start("not the password", identify="token", secret="cache")
    printed = cli(relay, "PING")
    assert "NOPERM the server refused the credential that the gateway uses for this rule (WRONGPASS)" in printed
    assert "secret cache" in printed
    (flow,) = recorded(relay, "not the password")
    assert flow.refused == ["login-refused"]
    assert flow.notes_of("login-refused")[0]["attrs"]["message"].startswith("WRONGPASS invalid")


def test_the_former_credential_while_its_grace_lasts(start: Start) -> None:
    relay = start("rotated here", former=Server.password, identify="token", secret="cache")
    assert cli(relay, "-3", "ACL", "WHOAMI") == "alice\n"
    (flow,) = recorded(relay, "rotated here")
    assert flow.notes_of("login-refused")[0]["attrs"]["generation"] == 2
    assert not flow.refused


def test_a_server_that_is_not_there(start: Start) -> None:
    relay = start(identify="token", secret="cache")
    relay.server = ("127.0.0.1", 9)
    assert "ERR the gateway did not reach the server: 127.0.0.1 port 9: Connection refused" in cli(relay, "PING")
    (flow,) = recorded(relay)
    assert flow.refused == ["unreachable"]


def test_tls_to_the_server_for_an_agent_without(start: Start) -> None:
    relay = start(secret="cache", upstream_tls="require")
    assert cli(relay, "ACL", "WHOAMI", token="", tls=False) == "alice\n"
    (flow,) = recorded(relay)
    assert flow.notes_of("upstream")[0]["attrs"]["tls"]


def test_an_own_password_passes_and_is_kept_by_length_only(start: Start) -> None:
    relay = start(tls=False)
    password = Server.password
    assert cli(relay, "--user", "alice", "ACL", "WHOAMI", token=password, tls=False).endswith("alice\n")
    assert cli(relay, "ACL", "SETUSER", "bob", "on", ">geheim", token="", tls=False) == "OK\n"
    assert cli(relay, "--user", "bob", "-3", "ACL", "WHOAMI", token="geheim", tls=False)
    flows = recorded(relay, "geheim")
    assert all(flow.notes_of("redacted") for flow in flows)


def test_what_is_no_command_ends_the_flow(start: Start) -> None:
    relay = start(secret="cache", tls=False)
    with socket.create_connection(relay.address, 10) as sock:
        sock.sendall(command("PING") + b"*1\r\n$4\r\nPING\n*")
        said = b""
        while more := sock.recv(4096):
            said += more
    assert said.endswith(b"-ERR Protocol error: an argument that does not end where its length says\r\n")
    (flow,) = recorded(relay)
    assert flow.refused == ["protocol"]
