"""The lab by itself: agents reach the servers through the gateway and in no other way, and nothing of it remains."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.lab import Lab, leftovers
from tests.lab.net import NETNS, PYTHON, ROOT, inhabitants
from tests.lab.services import Dns
from tests.lab.wait import until

FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])


@FAMILIES
@pytest.mark.parametrize("number", [1, 2])
def test_psql_through_the_gateway(lab: Lab, family: int, number: int) -> None:
    asked = "SELECT name, inet_client_addr() FROM customers WHERE id = 2"
    printed = lab.agent(number).run(
        ["psql", "-XAt", "-h", lab.db.addresses[family], "-U", lab.db.user, "-d", lab.db.database, "-c", asked],
        env={"PGPASSWORD": lab.db.password},
    )
    assert printed.output == f"Søren Ødegård|{lab.agent(number).nic.addresses[family]}\n"


def test_psql_asks_for_the_password(lab: Lab) -> None:
    done = lab.agent(1).run(
        ["psql", "-XAt", "-h", lab.db.fqdn, "-U", lab.db.user, "-d", lab.db.database, "-c", "SELECT 1"],
        env={"PGPASSWORD": "wrong"},
        check=False,
    )
    assert done.code == 2
    assert "password authentication failed" in done.errors


@FAMILIES
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_download(lab: Lab, family: int, scheme: str) -> None:
    curl = ["curl", "-sS", f"-{6 if family else 4}", "--cacert", str(lab.pki.certificate)]
    got = lab.agent(1).run([*curl, f"{scheme}://{lab.web.fqdn}/download.bin"])
    assert got.stdout == lab.web.download


def test_web_answers(lab: Lab) -> None:
    agent, base = lab.agent(1), f"http://{lab.web.fqdn}"
    items = agent.run(["curl", "-sS", "--compressed", "-D", "-", f"{base}/api/items"]).output
    assert "Content-Encoding: gzip" in items
    assert '"item": "item 199"' in items
    chunks = agent.run(["curl", "-sS", "-D", "-", f"{base}/app/chunks?n=1000"]).output
    assert "Transfer-Encoding: chunked" in chunks
    assert chunks.endswith("chunk 999\n")
    body = os.urandom(70_000)
    assert agent.run(["curl", "-sS", "--data-binary", "@-", f"{base}/app/echo"], input=body).stdout == body


def test_names(lab: Lab) -> None:
    agent = lab.agent(2)
    for name, addresses in ((lab.db.fqdn, lab.db.addresses), (lab.web.fqdn, lab.web.addresses)):
        for kind, address in zip(("A", "AAAA"), addresses, strict=True):
            assert (
                agent.run(["getent", "ahostsv6" if kind == "AAAA" else "ahostsv4", name]).output.split()[0] == address
            )
    assert agent.run(["getent", "ahosts", "nobody.lab.test"], check=False).code == 2


def test_udp_443_answers_without_an_appliance(lab: Lab) -> None:
    """So that its silence behind the appliance means something."""

    def ask() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(5)
            asking.connect((lab.web.addresses[0], 443))
            asking.send(b"hello")
            return asking.recv(100)

    assert lab.agent(1).call(ask) == b"hello"


@FAMILIES
def test_the_gateway_is_the_only_way(lab: Lab, family: int) -> None:
    version = "-6" if family else "-4"
    for host in (*lab.agents, lab.db.host):
        routes = subprocess.run(
            ["ip", version, "-n", host.netns, "route", "show", "default"], capture_output=True, text=True, check=True
        )
        assert len(routes.stdout.strip().splitlines()) == 1
    lab.gateway.sysctl({"net/ipv4/ip_forward": 0, "net/ipv6/conf/all/forwarding": 0})
    try:
        curl = ["curl", "-sS", "--connect-timeout", "1", f"http://{_literal(lab.web.addresses[family])}/"]
        assert lab.agent(1).run(curl, check=False).code in (7, 28)  # no connection
    finally:
        lab.gateway.sysctl({"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1})


def _literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _assert_gone(prefix: str, folder: Path) -> None:
    assert not list(NETNS.glob(f"{prefix}-*"))
    assert not folder.exists()
    assert not (leftovers.REGISTER / f"{prefix}.json").exists()


def test_nothing_remains_after_an_error() -> None:
    small, pids = Lab([Dns]), []

    def fail() -> None:
        with small:
            pids.extend(inhabitants(small.services["dns"].host.netns))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    (pid,) = pids
    _assert_gone(small.prefix, small.folder)
    assert leftovers.birth(pid) is None


HOLD = """
import signal, sys
from tests.lab import Lab
from tests.lab.services import Dns
with Lab([Dns]) as lab:
    print(lab.prefix, lab.folder, flush=True)
    signal.pause()
"""


def _hold() -> tuple["subprocess.Popen[str]", str, Path]:
    holder = subprocess.Popen(
        [PYTHON, "-c", HOLD], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert holder.stdout
    prefix, folder = holder.stdout.readline().split()
    holder.stdout.close()
    return holder, prefix, Path(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_remains_after_a_signal(number: signal.Signals) -> None:
    holder, prefix, folder = _hold()
    holder.send_signal(number)
    assert holder.wait(20) != 0
    _assert_gone(prefix, folder)


def test_the_next_start_removes_what_a_killed_run_left() -> None:
    holder, prefix, folder = _hold()
    assert prefix not in leftovers.sweep()  # it lives
    holder.kill()
    holder.wait()
    assert list(NETNS.glob(f"{prefix}-*"))
    (orphan,) = inhabitants(f"{prefix}-dns")
    assert prefix in leftovers.sweep()
    _assert_gone(prefix, folder)
    until(lambda: leftovers.birth(orphan) is None, "the orphan ended")
