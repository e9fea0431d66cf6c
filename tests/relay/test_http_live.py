"""Real clients and servers of HTTP/1.1, HTTP/2, gRPC and WebSocket, with a relay between them that mediates."""

import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import requests
from websockets.sync.client import connect as websocket

from appliance.identity.credential import Kind, Secret
from appliance.identity.secret_text import SecretText
from appliance.model import Identity
from tests.lab.net import PYTHON, ROOT
from tests.lab.pki import Pki
from tests.lab.services.grpc_app import pack, unpack
from tests.lab.wait import until
from tests.relay.http_lab import BIG, NAME, Nginx, free_ports, nginx
from tests.relay.running import AGENT, TOKEN, Begin, Recorded, Running, trusting
from tests.relay.servers import read_all

KEY = "the-real-key-of-the-shop"
SECRET = Secret("shop-api", Kind.TOKEN, SecretText(KEY), header="x-api-key")
Start = Callable[..., Running]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Nginx]:
    with nginx(tmp_path_factory.mktemp("web"), pki) as one:
        yield one


@pytest.fixture
def start(begin: Begin) -> Start:
    """Starts a relay in front of a port; its rule has what is given."""

    def one(port: int, secret: Secret | None = None, **relay: Any) -> Running:
        named = {} if secret is None else {"secret": secret.name}
        return begin(("127.0.0.1", port), trusting(secret), {"application": "http"} | relay | named)

    return one


def curl(relay: Running, *arguments: str, scheme: str = "https", path: str = "/hello") -> bytes:
    where = ["--connect-to", f"{NAME}:443:127.0.0.1:{relay.port}", "--connect-to", f"{NAME}:80:127.0.0.1:{relay.port}"]
    command = ["curl", "-sS", "--max-time", "20", "--cacert", str(relay.ca), *where, *arguments]
    done = subprocess.run([*command, f"{scheme}://{NAME}{path}"], capture_output=True, timeout=30)
    assert not done.returncode, done.stderr
    return done.stdout


def recorded(relay: Running) -> list[Recorded]:
    """Every flow, and no credential on any of them."""
    return relay.recorded(TOKEN, KEY)


AUTHORIZED = ("-H", f"Authorization: Bearer {TOKEN}")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_with_token_and_credential(start: Start, web: Nginx, version: str) -> None:
    relay = start(web.tls, SECRET, identify="token")
    path = f"/hello?{version}"
    said = curl(relay, version, *AUTHORIZED, "-D", "-", path=path)
    assert said.endswith(b"hello GET\n")
    assert b" 200" in said
    assert KEY.encode() not in said
    (line,) = [line for line in web.shown(KEY) if "HTTP/" + ("1.1" if version == "--http1.1" else "2.0") in line][-1:]
    assert f"auth=- key={KEY} " in line
    (flow,) = recorded(relay)
    assert flow.notes_of("identified")[0]["attrs"]["identity"]["subject"] == "agent-7"
    assert flow.notes_of("redacted")
    assert flow.closed["ending"] == "fin", (flow.closed, flow.notes)
    assert b"hello GET\n" in flow.data[1]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_without_a_token(start: Start, web: Nginx, version: str) -> None:
    relay = start(web.tls, SECRET, identify="token")
    said = curl(relay, version, "-D", "-", "-o", "/dev/null")
    assert b" 401" in said
    assert b'ww-authenticate: bearer realm="verbatim"' in said.lower()
    said = curl(relay, version, "-D", "-", "-o", "/dev/null", "-H", "Authorization: Bearer no")
    assert b" 401" in said
    first, second = recorded(relay)
    assert first.notes_of("declined")[0]["attrs"] == {"status": 401, "reason": "token"}
    assert second.notes_of("token-refused")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_bytes_in_both_directions(start: Start, web: Nginx, tmp_path: Path, version: str) -> None:
    relay = start(web.tls)
    (tmp_path / "big").write_bytes(BIG)
    assert curl(relay, version, path="/big") == BIG
    assert curl(relay, version, "-T", str(tmp_path / "big"), path="/upload") == b"%d\n" % len(BIG)
    download, upload = recorded(relay)
    assert len(download.data[1]) > len(BIG)
    assert len(upload.data[0]) > len(BIG)
    if version == "--http1.1":
        assert download.data[1].endswith(BIG)
        assert upload.data[0].endswith(BIG)


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_in_clear(start: Start, web: Nginx, version: str) -> None:
    relay = start(web.clear if version == "--http1.1" else web.h2c, SECRET, identify="token")
    assert curl(relay, version, *AUTHORIZED, scheme="http", path="/big") == BIG
    (flow,) = recorded(relay)
    assert len(flow.data[1]) > len(BIG)
    assert not flow.notes_of("tls")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_both_legs_are_counted_and_an_ordinary_session_has_no_findings(start: Start, web: Nginx, version: str) -> None:
    relay = start(web.tls)
    assert curl(relay, version, path="/big") == BIG
    (flow,) = recorded(relay)
    agent, upstream = (flow.closed["legs"][leg]["socket"] for leg in ("agent", "upstream"))
    assert agent["acked"] > len(BIG)
    assert upstream["received"] > len(BIG)
    assert {note["kind"] for note in flow.notes} == {"tls", "upstream"}


def test_many_streams_at_a_time(start: Start, web: Nginx) -> None:
    relay = start(web.tls, SECRET, identify="token")
    said = curl(relay, "--http2", "-Z", *AUTHORIZED, *[f"https://{NAME}/big"] * 6)
    assert len(said) == 6 * len(BIG) + len(b"hello GET\n")
    assert sum(len(flow.data[1]) for flow in recorded(relay)) > 6 * len(BIG)


def test_h2c_is_not_agreed_upon_in_the_path(start: Start, web: Nginx) -> None:
    relay = start(web.clear)
    assert b"HTTP/1.1 200" in curl(relay, "--http2", "-D", "-", scheme="http")
    (flow,) = recorded(relay)
    assert b"Upgrade: h2c" in flow.data[0]


def test_a_server_that_is_not_there(start: Start) -> None:
    (port,) = free_ports("127.0.0.1", 1)
    relay = start(port)
    assert b"502" in curl(relay, "-D", "-", "-o", "/dev/null", scheme="http")
    assert b" 502" in curl(relay, "--http2-prior-knowledge", "-D", "-", "-o", "/dev/null", scheme="http")
    for flow in recorded(relay):
        assert flow.refused == ["unreachable"]
        assert flow.notes_of("unreachable")


def test_requests_and_httpx(start: Start, web: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = start(web.tls, SECRET, identify="token")
    url, headers = f"https://127.0.0.1:{relay.port}/hello", {"Authorization": f"Bearer {TOKEN}"}
    with requests.Session() as session:
        session.verify, session.trust_env = str(relay.ca), False
        for _ in range(3):
            assert session.get(url, headers=headers, timeout=10).text == "hello GET\n"
    context = ssl.create_default_context(cafile=str(relay.ca))
    for http2 in (False, True):
        with httpx.Client(verify=context, http2=http2, headers=headers, trust_env=False) as client:
            for _ in range(3):
                answer = client.post(url, content=b"x" * 1000)
                assert answer.status_code in (200, 405)
                assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    flows = recorded(relay)
    assert len(flows) == 3
    assert len([note for flow in flows for note in flow.notes_of("identified")]) == 3


@pytest.fixture(scope="module")
def rpc(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[tuple[int, int]]:
    """Ports of a gRPC server: TLS, in clear."""
    ports = free_ports("127.0.0.1", 2)
    certificate, key = pki.issue("grpc.example.com", ("127.0.0.1",))
    command = [
        str(PYTHON),
        "-m",
        "tests.lab.services.grpc_app",
        str(certificate),
        str(key),
        *map(str, ports),
        "127.0.0.1",
    ]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        until(lambda: grpc.channel_ready_future(grpc.insecure_channel(f"127.0.0.1:{ports[1]}")).result(10) is None, "")
    except grpc.FutureTimeoutError:
        process.terminate()
        raise
    except AssertionError:
        process.terminate()
        raise
    yield ports[0], ports[1]
    process.terminate()
    process.wait(10)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "clear"])
def test_grpc(start: Start, rpc: tuple[int, int], tls: bool) -> None:
    relay = start(rpc[0] if tls else rpc[1], SECRET, identify="token")
    where = f"127.0.0.1:{relay.port}"
    channel = grpc.insecure_channel(where)
    if tls:
        channel = grpc.secure_channel(where, grpc.ssl_channel_credentials(relay.ca.read_bytes()))
    who = (("authorization", f"Bearer {TOKEN}"),)
    as_bytes = {"request_serializer": pack, "response_deserializer": unpack}
    with channel:
        find = channel.unary_unary("/lab.Shop/Find", **as_bytes)
        assert find("a shirt", metadata=who) == "A SHIRT"
        with pytest.raises(grpc.RpcError) as missing:
            find("missing", metadata=who)
        assert missing.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as nobody:
            find("a shirt")
        assert nobody.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "access token" in nobody.value.details()
        assert len(list(channel.unary_stream("/lab.Shop/List", **as_bytes)("2000", metadata=who))) == 2000
        gather = channel.stream_unary("/lab.Shop/Gather", **as_bytes)
        assert len(gather(iter(["x" * 50_000] * 40), metadata=who)) == 40 * 50_001 - 1
        chat = channel.stream_stream("/lab.Shop/Chat", **as_bytes)(iter(["one", "two"]), metadata=who)
        assert list(chat) == ["you said one", "you said two"]
    (flow,) = recorded(relay)
    assert b"A SHIRT" in flow.data[1]
    assert b"a shirt" in flow.data[0]
    assert [note["attrs"]["status"] for note in flow.notes_of("declined")] == [401]


ECHO = """
import sys
from websockets.sync.server import serve
def echo(connection):
    for message in connection:
        connection.send(message)
with serve(echo, "127.0.0.1", int(sys.argv[1])) as server:
    print("up", flush=True)
    server.serve_forever()
"""


def test_websocket(start: Start) -> None:
    (port,) = free_ports("127.0.0.1", 1)
    with subprocess.Popen([sys.executable, "-c", ECHO, str(port)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        relay = start(port, SECRET, identify="token")
        with websocket(
            f"ws://127.0.0.1:{relay.port}/chat", additional_headers={"Authorization": f"Bearer {TOKEN}"}, proxy=None
        ) as client:
            for message in ("hello", b"\0" * 300_000):
                client.send(message)
                assert client.recv(timeout=10) == message
        (flow,) = recorded(relay)
        assert b"HTTP/1.1 101 Switching Protocols" in flow.data[1]
        assert flow.closed["ending"] == "fin", (flow.closed, flow.notes)
        process.terminate()


def test_one_connection_has_one_identity(start: Start, web: Nginx) -> None:
    relay = start(web.clear, identify="token")
    other = Identity(issuer="https://login.example.com", subject="agent-8")

    async def verify(token: str) -> Identity:
        return AGENT if token == TOKEN else other

    relay.worker.around.verify = verify
    with requests.Session() as session:
        session.trust_env = False
        url, said = f"http://127.0.0.1:{relay.port}/hello", []
        for each in (TOKEN, "another", TOKEN):
            said.append(session.get(url, headers={"Authorization": f"Bearer {each}"}, timeout=10).status_code)
    assert said == [200, 401, 200]
    (flow,) = recorded(relay)
    assert [note["attrs"]["identity"]["subject"] for note in flow.notes_of("identified")] == ["agent-7"]
    assert flow.notes_of("token-refused")


@pytest.mark.parametrize("mode", ["splice", "mediate"])
def test_rules_by_host_in_clear(tmp_path: Path, web: Nginx, mode: str) -> None:
    """The Host decides, however late it comes; and no other one may follow on the same connection."""
    rules: list[dict[str, Any]] = [
        {"to": "127.0.0.0/8", "lane": "relay", "protocol": "tcp", "relay": {"application": "http", "mode": mode}},
        {"host": "shut.example.com", "lane": "refuse"},
    ]
    with Running(tmp_path / "data", rules, ("127.0.0.1", web.clear)) as relay:
        with socket.create_connection(relay.address) as client:
            client.sendall(b"GET /hello HTTP/1.1\r\n")
            until(lambda: relay.worker.values()["flows"], "the first line to arrive")
            client.sendall(b"Host: shut.example.com\r\n\r\n")
            assert read_all(client).startswith(b"HTTP/1.1 403 Forbidden\r\n")
        relay.idle()
        if mode == "mediate":
            with socket.create_connection(relay.address) as client:
                client.sendall(
                    b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: shut.example.com\r\n\r\n"
                )
                said = read_all(client)
            assert said.index(b"hello GET\n") < said.index(b"HTTP/1.1 421 Misdirected Request\r\n")
            relay.idle()
        relay.stop()
        flows = relay.flows()
    assert flows[0].refused == ["refused-by-rule"]
    assert [flow.refused for flow in flows[1:]] == [["host"]] * (mode == "mediate")


def test_tls_to_the_server_where_the_agent_speaks_none(start: Start, web: Nginx) -> None:
    relay = start(web.tls, upstream_tls="require")
    said = curl(relay, "--connect-to", f"127.0.0.1:80:127.0.0.1:{relay.port}", "http://127.0.0.1/hello", scheme="http")
    assert said.startswith(b"hello GET\n")
    first = recorded(relay)[0]
    assert first.notes_of("upstream")[0]["attrs"]["tls"]["version"]
    assert not first.notes_of("tls")
