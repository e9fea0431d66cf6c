"""A lease that ends is told to both ends at once, also where nobody has anything to send."""

import time

from tests.lab import Lab
from tests.lab.appliance import Appliance, literal
from tests.lab.task import Task
from tests.lab.wait import until

AT_ONCE = 3.0  # seconds


def connections(lab: Lab, task: Task, family: int) -> str:
    """The server's established connections with the agent, as ss(8) lists them."""
    return lab.db.host.run(
        ["ss", "-tnH", "state", "established", "dst", literal(task.agent.nic.addresses[family])]
    ).output


def test_a_waiting_psql_and_its_server_learn_of_a_revocation(
    task: Task, lab: Lab, appliance: Appliance, family: int
) -> None:
    host = lab.db.addresses[family]
    process = task.start(
        task.psql_command("-At", "-c", "SELECT 'begun'", "-c", "SELECT pg_sleep(60)", host=host), env=task.password()
    )
    until(lambda: "begun" in process.output(), "psql waits for its answer")
    assert connections(lab, task, family)
    before = time.monotonic()
    task.revoke()
    assert process.popen.wait(AT_ONCE) == 2, process.output()
    until(lambda: not connections(lab, task, family), "the server let go of the connection", AT_ONCE)
    assert time.monotonic() - before < 2 * AT_ONCE
    assert task.session(protocol="postgres")["ending"] == "cut"


def test_a_new_run_cuts_the_connections_of_the_old_one(lab: Lab, appliance: Appliance, run_id: str) -> None:
    token = lab.token("agent-one")
    with Task(appliance, 1, token, run_id) as task:
        process = task.start(
            task.psql_command("-At", "-c", "SELECT 'begun'", "-c", "SELECT pg_sleep(60)", host=lab.db.addresses[0]),
            env=task.password(),
        )
        until(lambda: "begun" in process.output(), "psql waits for its answer")
        with Task(appliance, 1, token, f"{run_id}-next"):
            assert process.popen.wait(AT_ONCE) == 2, process.output()
        assert task.session(protocol="postgres")["ending"] == "cut"
