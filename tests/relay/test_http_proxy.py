"""The explicit proxy with real clients: curl, requests and httpx on one host, servers on another one."""

import json
import os
from collections.abc import Callable, Iterator
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any

import pytest

from appliance.relay.resolve import Resolver
from appliance.relay.worker import Worker
from tests.lab.net import CLONE_NEWNET, NETNS, Host, Nic, _libc, connect, ip
from tests.lab.pki import Pki
from tests.relay.http_lab import BIG, NAME, Nginx, nginx
from tests.relay.running import TOKEN, Recorded, Running, trusting

SERVER = "10.92.0.2"
OTHER, SHUT = "other.example.com", "shut.example.com"
PORT = 3128
Start = Callable[..., Running]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    """The gateway with its agents, and a server's host."""
    folder = tmp_path_factory.mktemp("hosts")
    prefix = f"vb-proxy{os.getpid()}"
    near, far = Host(prefix, "near", folder / "near"), Host(prefix, "far", folder / "far")
    try:
        for host in (near, far):
            host.create()
        wires = [
            Nic("up0", IPv4Interface("10.92.0.1/24"), IPv6Interface("fd92::1/64")),
            Nic("up0", IPv4Interface(f"{SERVER}/24"), IPv6Interface("fd92::2/64")),
        ]
        connect(near, wires[0], far, wires[1])
        yield near, far
    finally:
        for host in (near, far):
            if (NETNS / host.netns).exists():
                ip(f"netns del {host.netns}")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, pki: Pki, hosts: tuple[Host, Host]) -> Iterator[Nginx]:
    within = ("nsenter", f"--net={NETNS / hosts[1].netns}")
    with nginx(tmp_path_factory.mktemp("web"), pki, SERVER, within) as one:
        yield one


@pytest.fixture
def start(tmp_path: Path, pki: Pki, hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts the proxy on the gateway. Names below example.com are the server's."""
    resolve = Resolver.addresses

    async def names(self: Resolver, owner: str, host: str, port: int, seconds: float) -> list[str]:
        return [SERVER] if host.endswith("example.com") else await resolve(self, owner, host, port, seconds)

    monkeypatch.setattr(Resolver, "addresses", names)
    begun: list[Running] = []

    def prepare(worker: Worker) -> None:
        trusting()(worker)
        with (NETNS / hosts[0].netns).open("rb") as namespace:
            assert not _libc.setns(namespace.fileno(), CLONE_NEWNET)

    def begin(mode: str = "mediate") -> Running:
        relay = {"application": "http", "mode": mode, "ca": str(pki.certificate)}
        rules: list[dict[str, Any]] = [
            {"to": "10.0.0.0/8", "lane": "relay", "protocol": "tcp", "relay": relay},
            {"host": OTHER, "lane": "relay", "protocol": "tcp", "relay": relay | {"verify": False}},
            {"host": SHUT, "lane": "refuse"},
        ]
        one = Running(tmp_path / "data", rules, (SERVER, 1), prepare, relay={"proxy": [f"127.0.0.1:{PORT}"]})
        begun.append(one.__enter__())
        return one

    yield begin
    for one in begun:
        one.stop()


def curl(near: Host, relay: Running, *arguments: str, user: str = f"agent:{TOKEN}") -> str:
    """Output, and the proxy's and the server's status."""
    who = ["--proxy-user", user] if user else []
    show = ["-w", " %{http_connect}/%{http_code}", "--cacert", str(relay.ca), "--max-time", "20"]
    done = near.run(["curl", "-s", "-x", f"http://127.0.0.1:{PORT}", *who, *show, *arguments], check=False)
    return done.output


def recorded(relay: Running) -> list[Recorded]:
    return relay.recorded(TOKEN, "YWdlbnQ6")  # which begins it in Base64


@pytest.mark.parametrize("mode", ["splice", "mediate"])
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_tunnel(start: Start, hosts: tuple[Host, Host], web: Nginx, mode: str, version: str) -> None:
    relay = start(mode)
    assert curl(hosts[0], relay, version, f"https://{NAME}:{web.tls}/hello") == "hello GET\n 200/200"
    (flow,) = recorded(relay)
    client, said = map(bytes, flow.data)
    assert client.startswith(b"CONNECT api.example.com:%d HTTP/1.1\r\n" % web.tls)
    assert b"Proxy-Authorization: Basic ****" in client
    assert said.startswith(b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert b"hello GET\n" in said, "the tunnel's plaintext"
    assert flow.notes_of("tls")[0]["attrs"]["sni"] == NAME
    assert flow.notes_of("identified")[0]["attrs"]["identity"]["method"] == "http-proxy"
    assert not flow.refused
    assert flow.closed["ending"] == "fin" or flow.closed["reason"] == "server-reset", "nginx may end HTTP/2 with an RST"


def test_requests_for_a_proxy(start: Start, hosts: tuple[Host, Host], web: Nginx) -> None:
    relay = start()
    urls = [f"http://{name}:{web.clear}/hello" for name in (NAME, OTHER, NAME)]
    said = curl(hosts[0], relay, *urls)
    assert said == "hello GET\n 000/200" * 3
    lines = [line for line in web.shown(OTHER) if f":{web.clear}" in line][-3:]
    assert all("proxy=- " in line and line.startswith("GET /hello ") for line in lines)
    (flow,) = recorded(relay)
    assert len(flow.notes_of("upstream")) == 3, "each server in its turn, on one connection"
    assert len(flow.notes_of("identified")) == 1


PYTHON_CLIENTS = """
import json, ssl, sys
import httpx, requests
clear, secure, ca, proxy = sys.argv[1:]
said = []
with requests.Session() as session:
    session.trust_env, session.proxies = False, {"http": proxy, "https": proxy}
    for url in (clear, secure, clear, secure):
        said.append([session.get(url, verify=ca, timeout=20).text])
for http2 in (False, True):
    context = ssl.create_default_context(cafile=ca)
    with httpx.Client(proxy=proxy, verify=context, http2=http2, trust_env=False) as client:
        for url in (clear, secure, clear, secure):
            answer = client.get(url)
            said.append([answer.text, answer.http_version])
print(json.dumps(said))
"""


def test_python_clients(start: Start, hosts: tuple[Host, Host], web: Nginx) -> None:
    relay = start()
    urls = [f"http://{NAME}:{web.clear}/hello", f"https://{NAME}:{web.tls}/hello"]
    proxy = f"http://agent:{TOKEN}@127.0.0.1:{PORT}"
    done = hosts[0].run(["python", "-c", PYTHON_CLIENTS, *urls, relay.ca, proxy])
    said = json.loads(done.output)
    assert [each[0] for each in said] == ["hello GET\n"] * 12
    assert [each[1] for each in said[4:]] == ["HTTP/1.1"] * 5 + ["HTTP/2", "HTTP/1.1", "HTTP/2"]
    assert len(recorded(relay)) == 6


def test_without_a_good_token(start: Start, hosts: tuple[Host, Host], web: Nginx) -> None:
    relay = start()
    near = hosts[0]
    assert curl(near, relay, f"https://{NAME}:{web.tls}/hello", user="") == " 407/000"
    assert curl(near, relay, f"https://{NAME}:{web.tls}/hello", user="agent:no") == " 407/000"
    assert curl(near, relay, f"http://{NAME}:{web.clear}/hello", user="").endswith(" 000/407")
    challenged = curl(near, relay, "--proxy-anyauth", f"http://{NAME}:{web.clear}/hello")
    assert challenged.endswith("hello GET\n 000/200"), "once asked, it comes again with its token"
    assert all(flow.notes_of("declined") or flow.notes_of("token-refused") for flow in recorded(relay))


@pytest.mark.parametrize(
    ("where", "status", "reason"),
    [
        (f"{SHUT}:443", 403, "refused-by-rule"),
        ("127.0.0.1:443", 403, "refused-by-rule"),
        ("[::1]:443", 403, "refused-by-rule"),
        ("0.0.0.0:443", 403, "refused-by-rule"),
        ("10.92.0.1:443", 403, "refused-by-rule"),
        ("192.0.2.1:443", 403, "refused-by-rule"),
        ("169.254.169.254:80", 403, "refused-by-rule"),
        ("nothing.invalid:443", 502, "unreachable"),
        (f"{NAME}:1", 502, "unreachable"),
    ],
    ids=["rule", "loopback", "loopback 6", "unspecified", "own", "no rule", "link-local", "no name", "nobody listens"],
)  # fmt: skip
def test_what_is_not_connected(start: Start, hosts: tuple[Host, Host], where: str, status: int, reason: str) -> None:
    relay = start()
    assert curl(hosts[0], relay, f"https://{where}/") == f" {status}/000"
    assert curl(hosts[0], relay, f"http://{where}/").endswith(f" 000/{status}")
    for flow in recorded(relay):
        assert flow.refused == [reason]
        assert not flow.notes_of("upstream")


def test_what_is_in_a_tunnel_is_of_its_rule(start: Start, hosts: tuple[Host, Host], web: Nginx) -> None:
    relay = start()
    to_other = ["--connect-to", f"{OTHER}:{web.tls}:{NAME}:{web.tls}"]
    said = curl(hosts[0], relay, *to_other, f"https://{OTHER}:{web.tls}/hello")
    assert said == " 200/000", "CONNECT of one name, TLS of another one"
    (flow,) = recorded(relay)
    assert flow.refused == ["refused-by-rule"]


def test_a_large_answer_to_a_slow_agent(start: Start, hosts: tuple[Host, Host], web: Nginx) -> None:
    relay = start()
    done = hosts[0].run(
        [
            "curl",
            "-s",
            "-x",
            f"http://agent:{TOKEN}@127.0.0.1:{PORT}",
            "--limit-rate",
            "16M",
            f"http://{NAME}:{web.clear}/big",
        ]
    )
    assert done.stdout == BIG
    (flow,) = recorded(relay)
    assert flow.data[1].endswith(BIG)
