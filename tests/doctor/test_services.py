"""Processes, ports and issuers; and the whole examination."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.config import Api, Issuer, Settings
from appliance.doctor import Check, Finding, Level, examine, exit_code, network, services
from appliance.status import publish, read
from tests.doctor.conftest import gateway, in_namespace, needs_root, worst


def test_refusals_are_told_by_reason(tmp_path: Path) -> None:
    publish(tmp_path, "wire", {"refusals": {"no-lease": 3, "quic": 0, "fragment": 1}})
    (said,) = services.refusals(read(tmp_path))
    assert (said.level, said.found) == (Level.OK, "packets since the program was loaded: 1 fragment, 3 no-lease")
    publish(tmp_path, "wire", {"refusals": {}})
    (said,) = services.refusals(read(tmp_path))
    assert said.found.endswith(": none")


def processes(settings: Settings) -> list[Finding]:
    return list(services.processes(settings, read(settings.data), time.time()))


def test_processes_that_never_ran_are_no_failure(tmp_path: Path) -> None:
    assert {one.level for one in processes(gateway(tmp_path))} == {Level.WARN}


def test_a_process_that_is_missing_beside_others_is_one(tmp_path: Path) -> None:
    publish(tmp_path, "wire", {})
    found = {one.about: one for one in processes(gateway(tmp_path))}
    assert (found["wire"].level, found["record"].level) == (Level.OK, Level.FAIL)
    assert "verbatim record" in found["record"].remedy


def test_faults_and_repairs_are_told_by_name(tmp_path: Path) -> None:
    text = "nftables: table ip x (a; b) sets packet marks; remove such rules"
    publish(tmp_path, "wire", {"faults": {"ruleset-foreign": text}, "repairs": {"filter-restored": 2}})
    found = {one.about: one for one in processes(gateway(tmp_path))}
    assert found["wire"].found == "ruleset-foreign: nftables: table ip x (a; b) sets packet marks"
    assert found["wire"].remedy == "remove such rules"
    assert (found["wire repairs"].level, "filter-restored 2" in found["wire repairs"].found) == (Level.WARN, True)


def test_a_port_that_another_program_holds(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        settings = gateway(tmp_path, api=Api(listen=(address,)))
        found = worst(services.ports(settings, {}))
        assert (found.level, found.found) == (Level.FAIL, f"{address} is in use by another program")
        publish(tmp_path, "api", {})
        assert worst(services.ports(settings, read(tmp_path))).found == f"{address} is its own"
    assert worst(services.ports(settings, {})).level is Level.OK


def test_a_store_address_that_is_none(tmp_path: Path) -> None:
    found = worst(services.ports(gateway(tmp_path, store={"listen": "here"}), {}), "store")
    assert (found.level, found.remedy) == (Level.FAIL, "write 127.0.0.1:0 or [::1]:0")


@pytest.mark.parametrize("wanted", ["0.0.0.0", "[::]"])
def test_all_addresses_are_not_free_while_one_is_taken(wanted: str, tmp_path: Path) -> None:
    version, host = (socket.AF_INET6, "::1") if wanted == "[::]" else (socket.AF_INET, "127.0.0.1")
    with socket.socket(version) as other:
        other.bind((host, 0))
        other.listen()
        port = other.getsockname()[1]
        found = worst(services.ports(gateway(tmp_path, api=Api(listen=(f"{wanted}:{port}",))), {}))
    assert (found.level, found.found) == (Level.FAIL, f"{wanted}:{port} is in use by another program")


@pytest.mark.parametrize(("lag", "level"), [(0.5, Level.OK), (7200.0, Level.WARN)])
def test_a_recorder_that_is_hours_behind(lag: float, level: Level, tmp_path: Path) -> None:
    publish(tmp_path, "record", {"lag_seconds": lag, "backlog_bytes": 0})
    (found,) = [one for one in processes(gateway(tmp_path)) if one.about == "backlog"]
    assert (found.level, bool(found.remedy)) == (level, level is not Level.OK)
    assert f"{lag:.1f} s behind" in found.found


def test_a_store_that_does_not_answer(tmp_path: Path) -> None:
    settings = gateway(tmp_path, store={"url": "http://writer:opensesame@127.0.0.1:1/verbatim"})
    found = worst(services.store(settings, {}))
    assert (found.level, found.found) == (Level.FAIL, "store at 127.0.0.1:1 does not answer")
    assert worst(services.store(gateway(tmp_path), {})).level is Level.WARN


@pytest.mark.parametrize("url", ["nonsense", "http://me:opensesame@[::1/x", "http://me:opensesame@db:port/x"])
def test_a_store_address_that_cannot_be(url: str, tmp_path: Path) -> None:
    found = worst(services.store(gateway(tmp_path, store={"url": url}), {}))
    assert (found.level, found.remedy) == (Level.FAIL, "correct it")
    assert "opensesame" not in found.sentence


def issuer(url: str) -> Issuer:
    return Issuer(issuer=url, audience=("verbatim",))


def test_an_issuer_that_cannot_be_reached_is_named_once(tmp_path: Path) -> None:
    one = issuer("https://127.0.0.1:1")
    found = worst(services.issuer(gateway(tmp_path), one))
    assert (found.level, found.about) == (Level.FAIL, "https://127.0.0.1:1")
    assert "issuer " not in found.found
    assert found.remedy


def test_an_issuer_whose_keys_have_no_address(tmp_path: Path) -> None:
    one = issuer("https://login.example.com").model_copy(update={"jwks_uri": "https://[::1/jwks"})
    found = worst(services.issuer(gateway(tmp_path), one))
    assert (found.level, found.remedy) == (Level.FAIL, "correct the issuer or jwks_uri")


@pytest.mark.parametrize(("file", "says"), [("nothing.pem", "No such file"), ("empty.pem", ""), (".", "directory")])
def test_a_certificate_file_that_is_none(file: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    one = issuer("https://127.0.0.1:1").model_copy(update={"ca": tmp_path / file})
    found = worst(services.issuer(gateway(tmp_path), one))
    assert (found.level, found.remedy) == (Level.FAIL, "correct issuers[].ca")
    assert found.found.startswith(f"its certificate file {tmp_path / file}: ")
    assert says in found.found


def test_an_issuer_that_never_answers_costs_seconds_only(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ones = tuple(issuer(f"https://127.0.0.1:{silent.getsockname()[1]}/{name}") for name in "abcdefgh")
        began = time.monotonic()
        found = [one for one in examine(gateway(tmp_path, issuers=ones), root=True) if one.check is Check.ISSUERS]
        assert time.monotonic() - began < 10
    assert [one.level for one in found] == [Level.FAIL] * 8


def test_every_finding_that_is_not_fine_has_a_remedy(tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    found = examine(gateway(tmp_path, issuers=(issuer("https://127.0.0.1:1"),)), root=os.geteuid() == 0)
    assert [one for one in found if (one.level is Level.OK) == bool(one.remedy)] == []
    order = list(Check)
    assert [order.index(one.check) for one in found] == sorted(order.index(one.check) for one in found)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "error", [ValueError("odd"), KeyError("odd"), json.JSONDecodeError("odd", "", 0), RuntimeError()]
)
@pytest.mark.parametrize("look", ["network.look", "machine.kernel", "locks.other_tables"])
def test_what_nobody_expected_ends_one_check_only(
    look: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(f"appliance.doctor.{look}", broken)
    found = examine(gateway(tmp_path), root=True)
    checks = {
        "network.look": Check.INTERFACES,
        "machine.kernel": Check.KERNEL,
        "locks.other_tables": Check.OTHER_TABLES,
    }
    told = [one for one in found if one.check is checks[look] and one.level is Level.UNKNOWN]
    assert [type(error).__name__ in one.found and bool(one.remedy) for one in told] == [True]
    assert {Check.DATA, Check.RULES, Check.PROCESSES, Check.STORE} <= {one.check for one in found}


@needs_root
def test_before_the_first_start_nothing_fails_where_the_readme_was_followed(tmp_path: Path) -> None:
    """But for the issuer, who is not here: forwarding is off, and no lock stands."""
    settings = gateway(tmp_path / "data", api=Api(listen=("10.20.1.1:8443",)), issuers=(issuer("https://127.0.0.1:1"),))

    def look() -> list[Finding]:
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            (network.SYSCTL / name).write_text("0")
        return examine(settings, root=True)

    found = in_namespace(look, "ip link set lo up", "ip route add default via 198.51.100.2")
    assert [one for one in found if one.level is Level.FAIL and one.check is not Check.ISSUERS] == []


@pytest.mark.parametrize(
    ("levels", "code"),
    [
        (set(), 0),
        ({Level.OK, Level.WARN}, 0),
        ({Level.WARN, Level.FAIL, Level.UNKNOWN}, 1),
        ({Level.OK, Level.UNKNOWN}, 3),
    ],
)
def test_exit_codes(levels: set[Level], code: int) -> None:
    assert exit_code(levels) == code


STRANGER = """
import json, os, sys
from pathlib import Path
from appliance.config import load
from appliance.doctor import examine
settings = load(Path(sys.argv[1]))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(json.dumps([one.to_json() for one in examine(settings, root=False)]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_without_root_it_says_what_it_could_not_see_and_calls_nothing_of_that_a_failure(tmp_path: Path) -> None:
    """Beside processes that are well: what they hold is not in use by another program."""
    data, config, trust = tmp_path / "data", tmp_path / "verbatim.toml", tmp_path / "idp.pem"
    data.mkdir(mode=0o700)
    trust.touch(mode=0o600)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    for name in ("wire", "record", "store", "api"):
        publish(data, name, {"journal": {"bytes": 1, "room": 1 << 30}})
    with socket.create_server(("127.0.0.1", 0)) as own:
        config.write_text(
            f'data = "{data}"\n[api]\nlisten = ["127.0.0.1:{own.getsockname()[1]}"]\n'
            f'[[issuers]]\nissuer = "https://127.0.0.1:1"\naudience = ["verbatim"]\nca = "{trust}"\n'
        )
        command = [sys.executable, "-c", STRANGER, str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    unseen = {one["check"] for one in found if one["level"] == "unknown"}
    hidden = {"root", "features", "processes", "other-tables", "ports", "store", "journal", "issuers"}
    assert hidden <= unseen
    assert [one for one in found if one["check"] in hidden and one["level"] not in ("unknown", "ok")] == []
    assert all(one["remedy"] for one in found if one["level"] == "unknown")
