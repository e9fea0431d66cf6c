"""Packets of agents reach relays, and nothing else does: leases, sources, restarts, kills."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance import status
from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.net import Done
from tests.lab.task import Task
from tests.lab.wait import until

DOWNLOAD = "/download.bin"


def test_what_tls_hides_is_recorded(task: Task, lab: Lab, appliance: Appliance, family: int) -> None:
    printed = task.curl("-6" if family else "-4", f"https://{lab.web.fqdn}{DOWNLOAD}").stdout
    assert printed == lab.web.download
    session = task.session(lane="relay")
    assert session["protocol"] == "http2"
    assert session["coverage"] == "complete"
    assert session["findings"] == []
    assert session["ending"] in ("fin", "rst")  # rst: curl went before it had read TLS's last words
    assert session["server"] == {"address": lab.web.addresses[family], "port": 443}
    assert session["client"]["address"] == task.agent.nic.addresses[family]
    assert session["identity"]["subject"]
    legs = session["attrs"]["coverage"]
    for leg in ("agent", "upstream"):
        assert legs[leg]["kernel"]["sent"] == legs[leg]["socket"]["received"] > 0
    assert session["bytes"]["server"] > len(printed)
    kinds = [message["kind"] for message in appliance.messages(session)]
    assert {"request", "response"} <= set(kinds)


def test_http1_within_tls_is_kept_byte_for_byte(task: Task, lab: Lab, appliance: Appliance) -> None:
    printed = task.curl("--http1.1", "-D", "headers", f"https://{lab.web.fqdn}{DOWNLOAD}").stdout
    session = task.session(lane="relay")
    headers = (task.agent.home / "headers").read_bytes()
    assert appliance.stream(session, "server") == headers + printed
    assert session["protocol"] == "http1"


def test_the_server_sees_the_address_that_the_rule_says(task: Task, lab: Lab, family: int) -> None:
    seen = task.psql("SELECT host(inet_client_addr())", "-At", host=lab.db.addresses[family]).output.strip()
    assert seen == task.agent.nic.addresses[family]
    session = task.session(lane="relay")
    assert session["protocol"] == "postgres"
    assert session["coverage"] == "complete"


def test_without_a_lease_nothing_is_relayed(appliance: Appliance, lab: Lab) -> None:
    done = lab.agent(2).run(["curl", "-sSk", "-m", "5", f"https://{lab.web.addresses[0]}/"], check=False)
    assert done.code == 7, done.errors


def test_a_revoked_lease_cuts_its_relayed_flows(appliance: Appliance, lab: Lab, run_id: str) -> None:
    with Task(appliance, 1, lab.token("agent-one"), run_id) as task:
        psql = task.start(task.psql_command("-c", "SELECT pg_sleep(60)", host=lab.db.addresses[0]), env=task.password())
        task.sessions(lane="relay", protocol="postgres", ended=False)
        task.revoke()
        until(lambda: psql.popen.poll() is not None, "psql to be cut", 20)
        (session,) = task.sessions(lane="relay")
    assert session["ending"] == "cut"
    assert "refused" in session["findings"]


def _workers(appliance: Appliance) -> dict[str, int]:
    return {
        name: said.pid
        for name, said in status.read(appliance.data).items()
        if name.startswith("relay-") and said.live and said.values.get("taking")
    }


@contextmanager
def _asking(task: Task, url: str) -> Iterator[list[Done]]:
    """Requests on new connections, one after the other, until the block ends."""
    answers: list[Done] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(task.curl("-m", "20", "-o", "/dev/null", "-w", "%{http_code}", url, check=False))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


def test_a_new_generation_refuses_nobody(appliance: Appliance, lab: Lab, run_id: str) -> None:
    """New flows go to the new workers, those that are open go on with the old ones."""
    with Task(appliance, 1, lab.token("agent-one"), run_id) as task:
        former = _workers(appliance)
        psql = task.start(
            task.psql_command("-At", "-c", "SELECT pg_sleep(8), 'still here'", host=lab.db.addresses[0]),
            env=task.password(),
        )
        task.sessions(lane="relay", protocol="postgres", ended=False)
        with _asking(task, f"https://{lab.web.fqdn}/plain.txt") as answers:
            until(lambda: answers, "a first answer")
            os.kill(appliance.pid("relay"), signal.SIGHUP)
            until(lambda: len(set(_workers(appliance).values()) - set(former.values())) == len(former), "new workers")
            seen = len(answers)
            until(lambda: len(answers) > seen + 3, "answers of the new workers")
        assert [answer.output for answer in answers] == ["200"] * len(answers)
        until(lambda: psql.popen.poll() is not None, "the old flow to end by itself", 30)
        assert psql.popen.returncode == 0
        assert "still here" in psql.output()
        sessions = task.sessions(len(answers) + 1, lane="relay")
    assert {session["coverage"] for session in sessions} == {"complete"}
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in former.values()), "the old workers to end", 30)


def test_a_worker_that_is_killed_loses_its_flows_only(appliance: Appliance, lab: Lab, run_id: str) -> None:
    with Task(appliance, 1, lab.token("agent-one"), run_id) as task:
        psql = task.start(task.psql_command("-c", "SELECT pg_sleep(60)", host=lab.db.addresses[0]), env=task.password())
        task.sessions(lane="relay", protocol="postgres", ended=False)
        before = _workers(appliance)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: psql.popen.poll() is not None, "psql to see its connection reset", 20)
        assert task.curl("-m", "30", f"https://{lab.web.fqdn}/plain.txt").code == 0
        until(lambda: len(set(_workers(appliance).values()) - set(before.values())) == len(before), "new workers", 30)
        sessions = task.sessions(2, lane="relay")
    cut = next(session for session in sessions if session["protocol"] == "postgres")
    assert cut["ending"] == "interrupted"
    assert cut["coverage"] == "partial"
    appliance.wait()
