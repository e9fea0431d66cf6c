"""What floods of lease requests leave to others, and what lookups and sessions say of how much an agent got out."""

import base64
import random
import signal
import time
from typing import Any

from tests.evasion.subnet import flood
from tests.lab import Lab
from tests.lab.appliance import API_PORT, Appliance
from tests.lab.task import LOOK, Task
from tests.lab.wait import until

# Opens TLS connections to the API without end and sends half a request on each.
STORM = """
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
held = []
while True:
    sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
    sock.settimeout(1)
    try:
        sock.connect((sys.argv[1], int(sys.argv[2])))
        sock = context.wrap_socket(sock)
        sock.send(b"POST /v1/leases HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer x\\r\\n")
        held.append(sock)
    except OSError:
        sock.close()
    if len(held) > 300:
        held.pop(0).close()
"""
PATIENCE = 10.0  # seconds that another agent waits for its lease at most


def test_a_storm_of_lease_requests_leaves_room_for_others(lab: Lab, appliance: Appliance) -> None:
    stormy, calm = lab.agent(2), lab.token("agent-one")
    storms = [
        flood(stormy.netns, STORM, lab.gateway_nic(2).addresses[family], str(API_PORT))
        for family in (0, 1)
        for _ in "ab"
    ]
    try:
        for _ in range(5):
            begun = time.monotonic()
            with Task(appliance, 1, calm, "beside-a-storm"):
                assert time.monotonic() - begun < PATIENCE
    finally:
        for storm in storms:
            storm.send_signal(signal.SIGKILL)
            storm.wait()


def test_what_lookups_carried_is_counted_by_session_and_lease(task: Task, lab: Lab, appliance: Appliance) -> None:
    """Bytes leave in names that are asked once each: the sums say how many, and how little they are words."""
    draw = random.Random(7)
    names = []
    for _ in range(12):
        text = base64.b32encode(draw.randbytes(60)).decode().lower().rstrip("=")
        names.append(f"{text[:48]}.{text[48:]}.lab.test")
    server = lab.services["dns"].addresses[0]
    asked = "\n".join(f"{name} TXT" for name in names)
    task.run(["dig", f"@{server}", "+tries=1", "+short", "-f", "-"], input=asked + "\n", check=False)

    def all_of_them() -> list[dict[str, Any]] | None:
        """Each lookup has a port of its own, and ends as a session of its own."""
        found = task.sessions(1, protocol="dns", server=server, seconds=60)
        asked = sum(session["attrs"]["lookups"]["queries"] for session in found)
        return found if asked >= len(names) else None

    sessions = until(all_of_them, "all lookups are on record", 60, LOOK)
    assert {session["identity"]["lease_id"] for session in sessions} == {task.leases[0]["lease_id"]}
    found = [session["attrs"]["lookups"] for session in sessions]
    assert sum(each["queries"] for each in found) == len(names)
    assert sum(each["name_bytes"] for each in found) == sum(len(name) - name.count(".") for name in names)
    assert max(each["longest_label"] for each in found) == 48
    assert min(each["entropy"] for each in found) > 4.0
    assert all(set(each["types"]) == {"TXT"} for each in found)
    (message,) = [each for each in appliance.messages(sessions[0]) if each["kind"] == "query"][:1]
    assert message["attrs"]["sizes"]["longest_label"] == 48
