"""What must not pass does not, is told so at once, and is recorded."""

import socket
import time
from typing import Any

from tests.e2e.conftest import Url
from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.task import LOOK, Task
from tests.lab.wait import until

FAST = 2.0  # seconds within which a refused program knows


def refusals(appliance: Appliance, address: str, reason: str) -> list[dict[str, Any]]:
    found = appliance.events(kind="refusal", address=address)
    return [event for event in found if event["attrs"].get("reason") == reason]


def recorded(appliance: Appliance, address: str, reason: str, before: int) -> dict[str, Any]:
    """The newest refusal event, once there are more than `before`."""
    return until(
        lambda: found[0] if len(found := refusals(appliance, address, reason)) > before else None,
        f"a refusal of {address}: {reason}",
        30,
        LOOK,
    )


def _web_sessions(lab: Lab, appliance: Appliance, address: str) -> int:
    """Between this agent and the web server: the agent has others."""
    found = appliance.sessions(address=address)
    return sum(session["server"]["address"] in lab.web.addresses for session in found)


def test_without_a_lease(lab: Lab, appliance: Appliance, url: Url, family: int) -> None:
    agent = lab.agent(2)
    address = agent.nic.addresses[family]
    before = len(refusals(appliance, address, "no-lease"))
    sessions = _web_sessions(lab, appliance, address)
    begun = time.monotonic()
    done = agent.run(["curl", "-sS", "--max-time", "20", url("/")], check=False)
    assert done.code == 7, done.errors  # connection refused
    assert time.monotonic() - begun < FAST
    event = recorded(appliance, address, "no-lease", before)
    assert event["attrs"]["packets"] >= 1
    assert _web_sessions(lab, appliance, address) == sessions


def test_udp_443(task: Task, lab: Lab, appliance: Appliance, family: int) -> None:
    address = task.agent.nic.addresses[family]
    before = len(refusals(appliance, address, "quic"))

    def ask() -> type[Exception] | None:
        with socket.socket(socket.AF_INET6 if family else socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(3)
            asking.connect((lab.web.addresses[family], 443))
            asking.send(b"\xc0\0\0\0\1" + bytes(1195))  # the shape of a QUIC Initial
            try:
                asking.recv(2000)
            except OSError as error:
                return type(error)
        return None

    assert task.agent.call(ask) is not None
    recorded(appliance, address, "quic", before)


def test_port_without_a_rule(task: Task, lab: Lab, appliance: Appliance, family: int) -> None:
    address = task.agent.nic.addresses[family]
    before = len(refusals(appliance, address, "no-rule"))
    begun = time.monotonic()
    done = task.psql("SELECT 1", "-p", "22", host=lab.db.addresses[family], check=False)
    assert done.code == 2
    assert "refused" in done.errors
    assert time.monotonic() - begun < FAST
    recorded(appliance, address, "no-rule", before)


def test_a_borrowed_address(task: Task, lab: Lab, appliance: Appliance) -> None:
    """Agent 2 cannot use agent 1's lease by taking its address: the gateway's other network is not behind that NIC."""
    thief = lab.agent(2)
    stolen = task.agent.nic.addresses[0]
    thief.run(["ip", "addr", "add", f"{stolen}/32", "dev", "eth0"])
    try:
        done = thief.run(
            ["curl", "-sS", "--interface", stolen, "--max-time", "2", f"http://{lab.web.addresses[0]}/"], check=False
        )
    finally:
        thief.run(["ip", "addr", "del", f"{stolen}/32", "dev", "eth0"])
    assert done.code in (7, 28)
    assert done.stdout == b""


def test_from_upstream(task: Task, lab: Lab, family: int) -> None:
    """A server cannot open connections to an agent, lease or not."""
    destination = task.agent.nic.addresses[family]

    def listen() -> socket.socket:
        listener = socket.socket(socket.AF_INET6 if family else socket.AF_INET)
        listener.bind((destination, 8080))
        listener.listen()
        return listener

    def connect() -> bool:
        try:
            socket.create_connection((destination, 8080), 2).close()
        except OSError:
            return False
        return True

    with task.agent.call(listen):
        assert not lab.web.host.call(connect)
