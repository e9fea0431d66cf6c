"""Whose a flow is once a token said so within its protocol."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.model import Identity
from appliance.relay.worker import Worker
from tests.relay.running import Running
from tests.relay.servers import Server, read_all
from tests.relay.test_engine import LEASE, Books, knowing

AGENT = Identity(issuer="https://login.example.com", subject="agent-7", token_sha256="a" * 64)
HELD = replace(AGENT, run_id="nightly-report", lease_id=LEASE, method="lease", token_sha256="b" * 64)
RULE = {"application": "http", "mode": "mediate", "identify": "token"}
RULES = [{"to": "127.0.0.0/8", "lane": "relay", "protocol": "tcp", "relay": RULE}]


def answer(sock: socket.socket) -> None:
    said = b""
    while not said.endswith(b"\r\n\r\n"):
        said += sock.recv(65536)
    sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")


@pytest.mark.parametrize(
    ("holder", "run"),
    [
        (HELD, "nightly-report"),
        (replace(HELD, client="another-client", groups=("ops",)), "nightly-report"),
        (replace(HELD, subject="agent-8"), ""),
        (replace(HELD, issuer="https://elsewhere.example.com"), ""),
    ],
    ids=["the same", "by another client", "another subject", "another issuer"],
)
def test_a_token_of_who_has_the_lease_keeps_its_run(tmp_path: Path, holder: Identity, run: str) -> None:
    def prepare(worker: Worker) -> None:
        async def holds(lease: str) -> Identity:
            return holder

        async def verify(token: str) -> Identity:
            return AGENT

        knowing(Books(LEASE))(worker)
        worker._who.holds = holds  # type: ignore[method-assign]
        worker.around.verify = verify

    with Server(answer) as server, Running(tmp_path, RULES, server.address, prepare) as relay:
        with socket.create_connection(relay.address) as client:
            client.settimeout(10)
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n")
            assert read_all(client).endswith(b"\r\n\r\nok")
        relay.idle()
        relay.stop()
        flow = relay.flow()
    assert flow.opened["identity"]["run_id"] == "nightly-report"
    (known,) = flow.notes_of("identified")
    identity = known["attrs"]["identity"]
    assert (identity["run_id"], identity["method"]) == (run, "http-authorization")
    assert (identity["issuer"], identity["subject"], identity["token_sha256"]) == (AGENT.issuer, "agent-7", "a" * 64)
