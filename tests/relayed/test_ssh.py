"""SSH through the appliance, as agents use it: commands, files, and what the API tells of them."""

import hashlib
import os
from typing import Any

import pytest

from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.task import Task
from tests.lab.wait import until

CONTENT = os.urandom(2_000_003)

pytestmark = pytest.mark.usefixtures("shell_keys")


def _key(appliance: Appliance) -> str:
    """What the gateway shows to agents."""
    return appliance.verbatim("ca", "ssh").output.splitlines()[0]


def _by_token(task: Task, appliance: Appliance) -> dict[str, Any] | None:
    """The session under the task's leases; its identity is the token's, which has no run."""
    leases = {lease["lease_id"] for lease in task.leases}
    found = [one for one in appliance.sessions() if one["identity"]["lease_id"] in leases]
    return next((one for one in found if one["protocol"] == "ssh" and one["ending"] != "open"), None)


def test_a_lease_opens_a_shell_without_any_key(task: Task, lab: Lab, appliance: Appliance) -> None:
    options = [*lab.ssh.client(task.agent, _key(appliance)), "-o", "BatchMode=yes"]
    host = f"nobody@{lab.ssh.addresses[1]}"
    done = task.run(["ssh", *options, host, "id -un; echo problem >&2; exit 7"], check=False)
    assert (done.code, done.output) == (7, "worker\n")
    assert "problem" in done.errors
    session = task.session(lane="relay", protocol="ssh")
    assert session["coverage"] == "complete"
    assert session["ending"] == "fin"
    assert session["findings"] == []
    assert session["identity"]["method"] == "lease"
    kinds = [message["kind"] for message in appliance.messages(session)]
    assert {"authenticated", "exec", "output", "error-output", "exit"} <= set(kinds)
    assert appliance.search("problem")


def test_a_token_opens_it_and_files_are_told_with_their_hashes(task: Task, lab: Lab, appliance: Appliance) -> None:
    token = lab.token("agent-one")
    (task.agent.home / "mine").write_bytes(CONTENT)
    options = lab.ssh.client(task.agent, _key(appliance))
    host = f"nobody@{lab.ssh.addresses[0]}"
    environment = lab.ssh.by_password(task.agent, token)
    task.run(["scp", *options, task.agent.home / "mine", f"{host}:sent"], env=environment)
    assert (lab.ssh.home / "sent").read_bytes() == CONTENT
    session = until(lambda: _by_token(task, appliance), "the session", 30)
    assert session["coverage"] == "complete"
    assert session["identity"]["method"] == "ssh-keyboard-interactive"
    assert session["identity"]["subject"] == "agent-one"
    assert set(session["findings"]) <= {"redacted", "host-key"}
    (file,) = [message for message in appliance.messages(session) if message["kind"] == "file"]
    assert file["attrs"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert file["attrs"]["direction"] == "upload"
    assert token.encode() not in appliance.stream(session, "client")


def test_no_token_no_session(task: Task, lab: Lab, appliance: Appliance) -> None:
    options = lab.ssh.client(task.agent, _key(appliance))
    host = f"worker@{lab.ssh.addresses[0]}"
    done = task.run(["ssh", *options, *lab.ssh.by_key(), host, "true"], check=False)
    assert done.code == 255
    assert "Permission denied" in done.errors
    session = task.session(lane="relay", protocol="ssh")
    assert session["attrs"]["coverage"]["upstream"] is None
