"""Any process of the appliance can be killed in the middle: what passed before, meanwhile and after is whole, once."""

import pytest

from tests.e2e.test_postgres import of
from tests.lab import Lab
from tests.lab.appliance import Appliance, literal
from tests.lab.task import Task
from tests.lab.wait import until

CHUNKS = 40_000


@pytest.mark.parametrize("part", ["record", "store", "api", "wire"])
def test_killed_in_the_middle(task: Task, lab: Lab, appliance: Appliance, part: str) -> None:
    """A slow download, a connection that was open before, and one that is opened afterwards."""
    psql = task.start(
        [
            *task.psql_command("-At", host=lab.db.addresses[0]),
            "-c",
            "SELECT 1",
            "-c",
            "SELECT pg_sleep(6)",
            "-c",
            "SELECT 2",
        ],
        env=task.password(),
    )
    address = literal(lab.web.addresses[1])
    command = ["curl", "-sS", "--limit-rate", "500k", "-o", "slow.bin", f"http://{address}/download.bin"]
    slow = task.start(command)
    begun = task.agent.home / "slow.bin"
    until(lambda: begun.exists() and begun.stat().st_size > 100_000, "the download is on its way")
    until(lambda: "1\n" in psql.output(), "psql is connected")

    appliance.kill(part)

    task.curl(f"http://{lab.web.addresses[0]}/app/echo", "--data-binary", "after the restart")
    assert slow.popen.wait(60) == 0, slow.output()
    assert psql.popen.wait(60) == 0, psql.output()
    assert begun.read_bytes() == lab.web.download
    begun.unlink()

    download = task.session(protocol="http1", client=task.agent.nic.addresses[1])
    assert appliance.stream(download, "server").endswith(b"\r\n\r\n" + lab.web.download)
    assert download["coverage"] == "complete"
    assert download["findings"] == []
    assert len(appliance.messages(download)) == 2
    queries = of(appliance.messages(task.session(protocol="postgres")), "query")
    assert [query["text"] for query in queries] == ["SELECT 1", "SELECT pg_sleep(6)", "SELECT 2"]
    (echo,) = task.sessions(protocol="http1", client=task.agent.nic.addresses[0])
    assert appliance.stream(echo, "client").endswith(b"after the restart")


def test_everything_stopped_and_started(lab: Lab, appliance: Appliance, run_id: str) -> None:
    """While the appliance is stopped the kernel goes on recording into its ring; leases and records are there after."""
    asked = ["/plain.txt", "/old", "/index.html"]
    with Task(appliance, 1, lab.token("agent-one"), run_id) as task:
        task.curl(f"http://{lab.web.addresses[0]}{asked[0]}")
        before = task.session(protocol="http1")
        assert appliance.stop() == 0
        task.curl("--max-time", "5", f"http://{lab.web.addresses[0]}{asked[1]}")
        appliance.start()
        task.curl(f"http://{lab.web.addresses[0]}{asked[2]}")
        sessions = task.sessions(3, protocol="http1")
    assert sessions[0]["session_id"] == before["session_id"]
    assert [session["coverage"] for session in sessions] == ["complete"] * 3
    assert [appliance.stream(session, "client").split(b" ")[1].decode() for session in sessions] == asked
    assert appliance.stream(sessions[0], "server").endswith(b"line 1999 of a text that compresses well\n")
