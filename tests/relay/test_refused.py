"""What is refused before any server hears of it: the agent is told in its protocol's words."""

import socket
import struct
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.relay.worker import Worker
from tests.lab.pki import Pki
from tests.lab.wait import until
from tests.relay.running import TOKEN, Begin, Running, trusting
from tests.relay.servers import Server, echo, read_all, server_context

MOST = 2
MEDIATED = {"application": "http", "mode": "mediate"}
WORDS = b"more than 2 connections of one lease at one time"
START_UP = b"\0\x03\0\0user\0app\0\0"


ASKED = {  # in each protocol; the words with which that is refused come behind an error's code
    "http": b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
    "postgres": struct.pack(">I", len(START_UP) + 4) + START_UP,
    "mysql": b"",
    "redis": b"PING\r\n",
}


@pytest.mark.parametrize(
    ("application", "code"),
    [
        ("http", b"HTTP/1.1 429 "),
        ("postgres", b"C53300\0"),
        ("mysql", struct.pack("<BH", 0xFF, 1040)),
        ("redis", b"-ERR "),
    ],
)
def test_too_many_connections_in_clear(begin: Begin, application: str, code: bytes) -> None:
    limits = {"max_connections_per_lease": MOST, "handshake_timeout": 1}
    with Server(echo) as server:
        relay = begin(server.address, trusting(), {"application": application}, **limits)
        with _within(relay), socket.create_connection(relay.address) as beyond:
            beyond.sendall(ASKED[application])
            told = read_all(beyond)
            assert code in told
            assert WORDS in told
        flow = relay.recorded()[-1]
        assert server.accepted <= MOST
    assert bytes(flow.data[1]) == told
    assert flow.refused == ["too-many-connections"]
    assert not flow.notes_of("unreachable")


@pytest.mark.parametrize(
    ("application", "code"),
    [
        ("http", b"HTTP/1.1 503 "),
        ("postgres", b"C28000\0"),
        ("mysql", struct.pack("<BH", 0xFF, 1045)),
        ("redis", b"-ERR "),
    ],
)
def test_a_credential_that_is_missing(begin: Begin, application: str, code: bytes) -> None:
    with Server(echo) as server:
        relay = begin(server.address, _as_it_is, {"application": application, "secret": "shop"})
        with socket.create_connection(relay.address) as agent:
            agent.sendall(ASKED[application])
            told = read_all(agent)
            assert code in told
            assert b"secret shop: there is none" in told
        flow = relay.recorded()[-1]
        assert not server.accepted
    assert bytes(flow.data[1]) == told
    assert flow.refused == ["secret"]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_credential_that_is_missing_over_tls(begin: Begin, pki: Pki, version: str) -> None:
    heard: list[bytes] = []

    def listen(sock: socket.socket) -> None:
        heard.append(read_all(sock))

    with Server(listen, server_context(pki, "api.example.com", alpn=("h2", "http/1.1"))) as server:
        relay = begin(server.address, _as_it_is, {"application": "http", "secret": "shop"})
        done = _curl(relay, version)
        assert done.stdout.split()[1] == b"503", done
        assert b"secret shop: there is none" in done.stdout
        assert relay.recorded()[-1].refused == ["secret"]
    assert not b"".join(heard)


def _as_it_is(worker: Worker) -> None:
    """Nothing is prepared: there is no secret."""


def _curl(relay: Running, *options: str) -> subprocess.CompletedProcess[bytes]:
    where = ["--cacert", str(relay.ca), "--connect-to", f"api.example.com:443:127.0.0.1:{relay.port}"]
    asked = ["curl", "-sSi", "--max-time", "20", *where, *options, "https://api.example.com/"]
    return subprocess.run(asked, capture_output=True, timeout=30, check=False)


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_too_many_connections_over_tls(begin: Begin, version: str) -> None:
    with Server(echo) as server:
        rule = {"application": "http", "identify": "token"}
        relay = begin(server.address, trusting(), rule, max_connections_per_lease=MOST)
        with _within(relay):
            done = _curl(relay, "-H", f"Authorization: Bearer {TOKEN}", version)
        assert done.stdout.split()[1] == b"429", done
        assert WORDS in done.stdout
        assert not server.accepted
        flow = relay.recorded(TOKEN)[-1]
        assert flow.refused == ["too-many-connections"]
        assert flow.notes_of("tls")[0]["attrs"]["sni"] == "api.example.com"


def test_who_does_not_ask_is_not_waited_for_beyond_as_many_again(begin: Begin) -> None:
    with Server(echo) as server:
        relay = begin(server.address, trusting(), {"application": "http"}, max_connections_per_lease=MOST)
        with _within(relay), _within(relay, more=MOST), socket.create_connection(relay.address) as beyond:
            beyond.settimeout(2)
            assert beyond.recv(1) == b""


def test_workers_count_together(tmp_path: Path) -> None:
    rules = [{"to": "127.0.0.0/8", "protocol": "tcp", "lane": "relay", "unbound": True, "relay": MEDIATED}]
    limits = {"max_connections_per_lease": MOST}
    with Server(echo) as server, Running(tmp_path, rules, server.address, relay=limits) as one, _within(one):
        with Running(tmp_path, rules, server.address, relay=limits) as other:
            assert _asks(other).startswith(b"HTTP/1.1 429 ")
        one.stop()
        with Running(tmp_path, rules, server.address, relay=limits) as other:
            assert not _asks(other).startswith(b"HTTP/1.1 429 ")


def _asks(relay: Running) -> bytes:
    with socket.create_connection(relay.address) as sock:
        sock.settimeout(10)
        sock.sendall(ASKED["http"])
        return sock.recv(65536)


def _within(relay: Running, more: int = 0) -> ExitStack:
    """As many connections as a lease may have, of which nothing is heard."""
    with ExitStack() as opened:
        for _ in range(MOST):
            opened.enter_context(socket.create_connection(relay.address))
        until(lambda: relay.worker.values()["flows"] == MOST + more, "them to be accepted")
        return opened.pop_all()
