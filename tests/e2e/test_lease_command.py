"""`verbatim lease` on an agent's host: what it prints and how it ends."""

import json
from pathlib import Path

import pytest

from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.net import PYTHON, Done


class Command:
    """`verbatim lease` on agent 1's host with a token file."""

    def __init__(self, appliance: Appliance, token: Path) -> None:
        self._appliance = appliance
        self._token = token

    def __call__(self, *args: str, gateway: str = "", family: int = 0) -> Done:
        where = ["--gateway", gateway or self._appliance.url(1, family), "--ca", str(self._appliance.ca)]
        command: list[str | Path] = [PYTHON, "-m", "appliance", "lease", *args, *where, "--token-file", self._token]
        return self._appliance.lab.agent(1).run(command, check=False)


@pytest.fixture
def command(lab: Lab, appliance: Appliance) -> Command:
    token = lab.agent(1).home / "token"
    token.write_text(lab.token("agent-one"))
    return Command(appliance, token)


def test_taken_listed_renewed_and_revoked(command: Command, lab: Lab, family: int, run_id: str) -> None:
    taken = json.loads(command("take", "--run-id", run_id, "--json", family=family).output)
    id = taken["lease_id"]
    assert (taken["address"], taken["identity"]["run_id"]) == (lab.agent(1).nic.addresses[family], run_id)
    assert id in [json.loads(line)["lease_id"] for line in command("list", "--json").output.splitlines()]
    assert id in command("list").output
    assert json.loads(command("renew", id, "--json").output)["expires"] >= taken["expires"]
    assert json.loads(command("revoke", id, "--json").output) == {"lease_id": id, "revoked": True}
    assert id not in command("list").output


@pytest.mark.parametrize(
    ("args", "gateway", "code", "says"),
    [
        (["take", "--run-id", "two words"], "", 2, "run_id"),
        (["revoke", "0123456789abcdef"], "", 1, "no live lease of yours"),
        (["take"], "http://10.20.1.1:8443", 2, "must begin with https://"),
        (["take"], "https://127.0.0.1:1", 3, "https://127.0.0.1:1"),
    ],
    ids=["run id", "unknown lease", "no TLS", "nobody there"],
)
def test_exit_codes(command: Command, args: list[str], gateway: str, code: int, says: str) -> None:
    done = command(*args, gateway=gateway)
    assert (done.code, done.output) == (code, "")
    assert says in done.errors
    assert done.errors.startswith("verbatim: ")
    assert "Traceback" not in done.errors
