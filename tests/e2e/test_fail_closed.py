"""Store and issuer fail under an appliance in use: traffic goes on while it can be recorded, stalls when it cannot, and
afterwards everything is stored exactly once.
"""

import hashlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from appliance import status
from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.services import Idp, Web
from tests.lab.task import LOOK, Task
from tests.lab.wait import until
from tests.wire.sniffer import TCP, Sniffer

STALE = 8.0  # seconds for which known keys serve
SINK = 9009  # a port of the web server's host
JOURNAL = 12 * 2**20
UPLOAD = 2 * JOURNAL
SETTINGS: dict[str, dict[str, Any]] = {
    "wire": {"ring_bytes": 2**20},
    "journal": {"segment_bytes": 2 * 2**20, "max_bytes": JOURNAL, "keep_bytes": 0, "min_free_bytes": 2**20},
    "record": {"snapshot": 0.2},
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab of its own: what fails here must not fail under other tests."""
    with Lab([Web, Idp]) as lab:
        yield lab


@pytest.fixture(scope="module")
def appliance(lab: Lab) -> Iterator[Appliance]:
    appliance = Appliance(lab, lab.folder / "data", SETTINGS)
    keys = f"[[issuers]]\njwks_refresh = 1.0\njwks_max_stale = {STALE}\n"
    sink = f'[[rules]]\nto = "{lab.web.addresses[0]}/32"\nport = {SINK}\nprotocol = "tcp"\n'
    appliance.config.write_text(appliance.config.read_text().replace("[[issuers]]\n", keys) + sink)
    with appliance:
        yield appliance


@pytest.fixture(scope="module", autouse=True)
def neighbour() -> None:
    """None here: it would ask the issuer, which is down at times."""


def health(appliance: Appliance) -> dict[str, Any]:
    """/healthz as a caller on the gateway sees it."""
    shown = appliance.lab.gateway.run(["curl", "-sk", f"{appliance.url()}/healthz"])
    return dict(json.loads(shown.output))


def everywhere(appliance: Appliance, process: str, fault: str) -> bool:
    """/healthz, /metrics and `verbatim status` agree that this is wrong."""
    said = health(appliance)
    if (process, fault) not in {(one["process"], one["name"]) for one in said["faults"]}:
        return False
    metrics = appliance.lab.gateway.run(["curl", "-sk", f"{appliance.url()}/metrics"]).output
    line = f'verbatim_fault{{name="{fault}",process="{process}"}} 1.0'
    shown = appliance.verbatim("status", "--json", check=False).output
    return said["status"] == "failing" and line in metrics and fault in shown


def recorded(appliance: Appliance, kind: str, **attrs: Any) -> bool:
    found = appliance.events(kind=kind)
    return any(attrs.items() <= event["attrs"].items() for event in found)


@contextmanager
def issuer_down(lab: Lab) -> Iterator[None]:
    """It refuses every connection."""
    table = "table inet down { chain in { type filter hook input priority 0; tcp dport 443 reject with tcp reset; }; }"
    lab.idp.host.run(["nft", table])
    try:
        yield
    finally:
        lab.idp.host.run(["nft", "delete table inet down"])


def test_without_the_issuer_leases_live_on_and_new_ones_wait(lab: Lab, appliance: Appliance) -> None:
    page = f"http://{lab.web.addresses[0]}/plain.txt"
    tokens = lab.token("agent-one"), lab.token("agent-two")
    with Task(appliance, 1, tokens[0], "held") as task:
        with issuer_down(lab):
            assert task.curl(page).stdout
            assert len(appliance.lease(2, tokens[1])["lease_id"]) == 16, "with the keys that are known"

            until(lambda: everywhere(appliance, "api", "issuer-unreachable"), "the fault shows", 20, LOOK)

            def refused() -> dict[str, Any] | None:
                code, answer = appliance.curl(2, "POST", "/v1/leases", tokens[1], {"run_id": "later"})
                return answer["error"] if code == 503 else None

            error = until(refused, "known keys serve no longer", STALE + 10, LOOK)
            assert error["code"] == "unavailable"
            assert lab.idp.issuer in error["message"]
            assert "try again when the issuer answers" in error["message"]
            assert task.curl(page).stdout, "the lease that was held lives on"
        until(lambda: health(appliance)["status"] == "ok", "all is well again", 30, LOOK)
        assert appliance.lease(2, tokens[1], run_id="later")
        until(lambda: recorded(appliance, "issuer-unreachable", process="api"), "its beginning is on record", 20, LOOK)
        until(lambda: recorded(appliance, "issuer-unreachable", over=True), "its end is on record", 20, LOOK)
        for agent, token in ((2, tokens[1]),):
            for lease in appliance.curl(agent, "GET", "/v1/leases", token)[1]["leases"]:
                appliance.revoke(agent, token, lease)


def test_other_keys_of_the_issuer_are_on_record(lab: Lab, appliance: Appliance) -> None:
    lab.idp.rotate()
    until(lambda: recorded(appliance, "issuer-keys-changed", issuer=lab.idp.issuer), "the change", 20, LOOK)


@contextmanager
def standing_still(appliance: Appliance, part: str) -> Iterator[None]:
    pid = appliance.pid(part)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Upload:
    """An agent sends `data` to the web server's host, which keeps what it gets."""

    def __init__(self, lab: Lab, data: bytes) -> None:
        address = lab.web.addresses[0], SINK
        self.got = bytearray()
        self._listener = lab.web.host.call(lambda: socket.create_server(address))
        self._agent = lab.agent(1).call(lambda: socket.create_connection(address, 10))
        self._agent.settimeout(120)
        self._upstream, _ = self._listener.accept()
        self._threads = [
            threading.Thread(target=self._run, args=(work,)) for work in (lambda: self._send(data), self._receive)
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _run(work: Callable[[], None]) -> None:
        work()

    def _send(self, data: bytes) -> None:
        with closing(self._agent):
            self._agent.sendall(data)

    def _receive(self) -> None:
        with closing(self._upstream), closing(self._listener):
            while data := self._upstream.recv(1 << 20):
                self.got += data

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()


def stalled(appliance: Appliance) -> bool:
    said = status.read(appliance.data).get("wire")
    return said is not None and "journal-stalled" in said.faults


def test_without_the_store_traffic_goes_on_until_the_journal_is_full_and_nothing_is_lost(
    lab: Lab, appliance: Appliance
) -> None:
    data = os.urandom(UPLOAD)
    with Task(appliance, 1, lab.token("agent-one"), "bulk") as task, Sniffer(lab.web.host.netns) as sniffer:
        with standing_still(appliance, "store"):
            upload = Upload(lab, data)
            until(lambda: stalled(appliance), "the journal is full", 60)
            until(lambda: everywhere(appliance, "wire", "journal-stalled"), "the stall shows", 20, LOOK)
            until(lambda: everywhere(appliance, "store", "silent"), "the store's silence shows", 30, LOOK)
            passed = len(upload.got)
            assert JOURNAL / 4 < passed < UPLOAD, "it went on for a while, and stands still"
            assert bytes(upload.got) == data[:passed]
        upload.wait()
        assert upload.got == data
        session = task.session(port=SINK, seconds=120)
        assert session["coverage"] == "complete"
        assert session["bytes"]["client"] == UPLOAD, "exactly once"
        kept = appliance.stream(session, "client")
        assert hashlib.sha256(kept).digest() == hashlib.sha256(data).digest()
        for kind in ("journal-stalled", "journal-resumed", "silent"):
            until(lambda kind=kind: recorded(appliance, kind), f"{kind} is on record", 20, LOOK)  # type: ignore[misc]
    until(lambda: health(appliance)["status"] == "ok", "all is well again", 30, LOOK)
    seen = [one for one in sniffer.seen({task.agent.nic.addresses[0]}) if one.protocol == TCP and one.ports[1] == SINK]
    start = min(one.place for one in seen if not one.payload) + 1  # of the SYN
    assert sum(len(one.payload) for one in seen) >= UPLOAD
    assert [one.place for one in seen if not _is_kept(one.payload, (one.place - start) & 0xFFFFFFFF, kept)] == []


def _is_kept(payload: bytes, at: int, kept: bytes) -> bool:
    """What was seen on the wire is in the store, at its place."""
    return not payload or kept[at : at + len(payload)] == payload
