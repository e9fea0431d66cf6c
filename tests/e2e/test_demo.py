"""The demo's own work and comparisons: all hold, and each notices when the record is not what the programs saw."""

from dataclasses import replace

from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.demo import verify
from tests.lab.demo.steps import keep_secrets
from tests.lab.demo.work import work


def test_demo(lab: Lab, appliance: Appliance) -> None:
    keep_secrets(lab, appliance)
    commands: list[str] = []
    done = work(lab, appliance, lambda host, command: commands.append(f"{host}: {command}"))
    recorded = verify.read_back(appliance, done)
    checks = verify.checks(lab, appliance, done, recorded)
    assert [check for check in checks if not check.good] == []
    assert not any(secret in command for secret in lab.secrets for command in commands)

    forged = replace(
        done,
        token=lab.token("agent-one"),
        second_token=lab.token("agent-two", agent=2),
        psql=done.psql.replace("Ada", "Eve"),
        psql_errors="",
        items=done.items.replace(b"item 7", b"item 8"),
        download=done.download[:-1] + bytes([done.download[-1] ^ 1]),
        echo=done.echo + b" ",
        program=done.program | {"select": done.program["select"][:-1]},
        told=dict.fromkeys(done.told, "something else"),
        second_psql=done.second_psql.replace("1", "2"),
        refused={"too slow": 5.0},
    )
    bad = [check.what for check in verify.checks(lab, appliance, forged, recorded) if not check.good]
    good = [check.what for check in checks if check.what not in bad]
    assert good == [
        "HTTPS is recorded as what it is",
        "every byte that was acknowledged is there",
    ]  # about the record only
