"""A lease that ends takes its connections with it."""

import time
from datetime import UTC, datetime

from tests.e2e.conftest import ONE_FAMILY
from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.process import Process
from tests.lab.task import LOOK, Task
from tests.lab.wait import until


def busy_psql(task: Task, host: str) -> Process:
    """A psql that asks again and again."""
    (task.agent.home / "busy.sql").write_text("SELECT 'begun' \\watch 0.2\n")
    process = task.start(task.psql_command("-At", "-f", "busy.sql", host=host), env=task.password())
    until(lambda: "begun" in process.output(), "psql is connected")
    return process


def ends(process: Process, seconds: float) -> int:
    return process.popen.wait(seconds)


def lost(process: Process) -> bool:
    return "server closed the connection" in process.output() or "Connection reset by peer" in process.output()


@ONE_FAMILY
def test_revocation_cuts_a_live_psql(task: Task, lab: Lab, appliance: Appliance, family: int) -> None:
    process = busy_psql(task, lab.db.addresses[family])
    before = time.monotonic()
    task.revoke()
    assert ends(process, 20) == 2, process.output()
    assert time.monotonic() - before < 15
    assert lost(process), process.output()
    session = task.session(protocol="postgres")
    assert session["ending"] == "cut"
    assert "begun" in "".join(message["text"] for message in appliance.messages(session))


@ONE_FAMILY
def test_expiry_cuts_a_live_psql(lab: Lab, appliance: Appliance, run_id: str, family: int) -> None:
    token = lab.token("agent-one", lifetime=20)
    with Task(appliance, 1, token, run_id, seconds=4) as task:
        process = busy_psql(task, lab.db.addresses[family])
        assert ends(process, 30) == 2, process.output()
        assert lost(process), process.output()
        session = task.session(protocol="postgres")
        assert session["ending"] == "cut"
        assert task.held() == []


def test_renewal_keeps_it(lab: Lab, appliance: Appliance, run_id: str) -> None:
    with Task(appliance, 1, lab.token("agent-one"), run_id, seconds=3) as task:
        process = task.start(
            task.psql_command("-At", "-c", "SELECT pg_sleep(5)", "-c", "SELECT 'done'", host=lab.db.addresses[0]),
            env=task.password(),
        )
        for lease in task.leases:
            path = f"/v1/leases/{lease['lease_id']}/renew"
            assert appliance.curl(1, "POST", path, lab.token("agent-one"), {"seconds": 60})[0] == 200
        assert ends(process, 20) == 0, process.output()
        assert process.output().splitlines()[-1] == "done"


def test_lease_lives_as_long_as_its_token_at_most(lab: Lab, appliance: Appliance, run_id: str) -> None:
    with Task(appliance, 1, lab.token("agent-one", lifetime=30), run_id, seconds=3000) as task:
        for lease in task.leases:
            until_end = _seconds_to(lease["expires"])
            assert 0 < until_end <= 30


def _seconds_to(moment: str) -> float:
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


def test_another_identity_has_to_wait(task: Task, lab: Lab, appliance: Appliance) -> None:
    code, answer = appliance.curl(1, "POST", "/v1/leases", lab.token("agent-two"), {})
    assert code == 409, answer


def test_what_happened_to_leases_is_recorded(lab: Lab, appliance: Appliance, run_id: str) -> None:
    with Task(appliance, 2, lab.token("agent-two", agent=2), run_id) as task:
        ids = {lease["lease_id"] for lease in task.leases}

    def look() -> bool:
        return all(
            ids <= {event["attrs"]["id"] for event in appliance.events(kind=kind)}
            for kind in ("lease-granted", "lease-revoked")
        )

    until(look, "the events of both leases", 30, LOOK)
