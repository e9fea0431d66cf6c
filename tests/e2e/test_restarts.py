"""The appliance is stopped and started in order: what passed before, meanwhile and after is whole, once."""

from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.task import Task


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
