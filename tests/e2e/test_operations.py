"""What who operates the gateway sees when things are broken for real: `doctor`, `status`, `/healthz`, `/metrics`."""

import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.lab import Lab
from tests.lab.appliance import Appliance, literal, toml
from tests.lab.appliance import settings as lab_settings
from tests.lab.net import PYTHON, Done
from tests.lab.task import Task
from tests.lab.wait import until
from tests.test_docs import rows

QUICK = 5.0  # seconds of wall clock for an examination whose servers answer
LOADED = 3  # times as long when other tests run beside this one
FAULTS = set(rows("When something is wrong"))
EVENTS = set(rows("Findings and events"))
SILENT = 30.0  # seconds in which a stopped process is found out


def status(appliance: Appliance) -> dict[str, Any]:
    done = appliance.verbatim("status", "--json", check=False)
    said: dict[str, Any] = json.loads(done.output)
    assert done.code == (0 if said["healthy"] else 1), done.errors
    for process in said["processes"].values():
        assert set(process["faults"]) <= FAULTS
        assert set(process["repairs"]) <= EVENTS
    return said


def findings(done: Done) -> dict[tuple[str, str], dict[str, str]]:
    """By check and what it is about; of several the gravest."""
    order = ["ok", "unknown", "warn", "fail"]
    found = sorted((json.loads(line) for line in done.output.splitlines()), key=lambda one: order.index(one["level"]))
    assert found, done.errors
    for one in found:
        assert set(one) == {"check", "about", "level", "found", "remedy"}
        assert bool(one["remedy"]) == (one["level"] != "ok"), one
    return {(one["check"], one["about"]): one for one in found}


def examined(appliance: Appliance) -> dict[tuple[str, str], dict[str, str]]:
    done = appliance.verbatim("doctor", "--json", check=False)
    found = findings(done)
    assert done.code == (1 if any(one["level"] == "fail" for one in found.values()) else 0)
    return found


def get(appliance: Appliance, path: str) -> httpx.Response:
    """As a monitor on the gateway asks: without a token."""

    def ask() -> httpx.Response:
        with httpx.Client(verify=False, trust_env=False, timeout=10) as client:
            return client.get(f"{appliance.url()}{path}")

    return appliance.lab.gateway.call(ask)


@contextmanager
def stopped(appliance: Appliance, part: str) -> Iterator[None]:
    """A process that hangs, and goes on afterwards."""
    pid = appliance.pid(part)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_gateway_that_is_well(task: Task, appliance: Appliance, lab: Lab) -> None:
    task.curl(f"http://{lab.web.addresses[0]}/plain.txt", "-o", "/dev/null")
    until(lambda: status(appliance)["healthy"], "the appliance is healthy")
    until(lambda: (status(appliance)["store"]["rows"] or {}).get("sessions"), "the store has counted its rows")
    began = time.monotonic()
    done = appliance.verbatim("doctor", "--json", check=False)
    assert time.monotonic() - began < LOADED * QUICK
    found = findings(done)
    assert [one for one in found.values() if one["level"] in ("fail", "unknown")] == []
    assert done.code == 0
    checks = set(rows("Is it well?"))
    assert {check for check, _ in found} == checks - {"root"}
    said = status(appliance)
    assert said["leases"] >= 2
    assert said["recorded"]["packets_per_second"] is not None
    assert said["journal"]["backlog_seconds"] < 5
    assert {name: process["state"] for name, process in said["processes"].items()} == dict.fromkeys(
        ("wire", "record", "store", "api", "relay"), "ok"
    )
    lines = appliance.verbatim("status").output.splitlines()
    assert [line.split()[0] for line in lines] == list(said["processes"])
    assert {line.split()[1].rstrip(",") for line in lines} == {"ok"}


def test_logs_are_json_lines_of_documented_events(appliance: Appliance) -> None:
    said = [json.loads(line) for line in appliance.log().splitlines() if line.startswith("{")]
    assert {"store-started", "wire-started", "api-started", "lease-granted"} <= {line["event"] for line in said}
    known = set(rows("Logs")) | FAULTS | EVENTS
    assert [line for line in said if line["event"] not in known] == []
    processes = {line["process"].rstrip("0123456789") for line in said}
    assert processes <= {"up", "store", "wire", "record", "api", "relay", "relay-"}
    assert all(line["timestamp"].endswith("Z") and line["level"] for line in said)


def test_a_recorder_that_hangs(task: Task, appliance: Appliance, lab: Lab) -> None:
    with stopped(appliance, "record"):
        task.curl(f"http://{lab.web.addresses[0]}/plain.txt", "-o", "/dev/null")

        def silent() -> dict[str, Any] | None:
            said = status(appliance)
            return said if said["processes"]["record"]["state"] == "silent" else None

        said = until(silent, "the recorder counts as silent", SILENT)
        assert "silent" in said["processes"]["record"]["faults"]
        assert said["journal"]["backlog_seconds"] > 8
        assert said["store"]["lag_seconds"] > 8
        found = examined(appliance)["processes", "record"]
        assert (found["level"], "restart" in found["remedy"]) == ("fail", True)
        health = get(appliance, "/healthz")
        assert health.status_code == 503
        assert [(fault["process"], fault["name"]) for fault in health.json()["faults"]] == [("record", "silent")]
        metrics = get(appliance, "/metrics").text.splitlines()
        assert 'verbatim_fault{name="silent",process="record"} 1.0' in metrics
        assert 'verbatim_up{process="record"} 0.0' in metrics
        (backlog,) = [line for line in metrics if line.startswith("verbatim_backlog_seconds ")]
        assert float(backlog.split()[1]) > 8
        stranger = lab.agent(1).run(["curl", "-sk", f"{appliance.url()}/healthz"]).output
        assert json.loads(stranger) == {
            "status": "failing",
            "parts": {"wire": "ok", "record": "failing", "store": "ok", "api": "ok", "relay": "ok"},
            "faults": [],
        }
    until(lambda: status(appliance)["healthy"], "the recorder has caught up")
    assert status(appliance)["journal"]["backlog_seconds"] < 5


def test_a_wire_process_that_hangs_while_the_ring_fills(task: Task, appliance: Appliance, lab: Lab) -> None:
    """24 MB into a ring of 16: what does not fit waits, and comes through whole afterwards."""
    address = literal(lab.web.addresses[0])
    with stopped(appliance, "wire"):
        command = ["sh", "-c", f"for n in 1 2 3 4 5 6 7 8; do curl -sS http://{address}/download.bin | sha256sum; done"]
        download = task.start(command)

        def full() -> dict[str, str] | None:
            found = examined(appliance).get(("ring", ""))
            return found if found and found["level"] == "fail" else None

        found = until(full, "the doctor sees a full ring", SILENT, 0.2)
        assert re.match(r"[4-9]\d % of 16 MiB wait for the journal: agents' traffic waits", found["found"])
        assert "verbatim wire" in found["remedy"]
        assert download.running
        before = status(appliance)["ring"]["fill_bytes"]
        metrics = get(appliance, "/metrics").text.splitlines()
        (shown,) = [line for line in metrics if line.startswith("verbatim_ring_fill_bytes ")]
        assert 0 < before <= float(shown.split()[1]) <= status(appliance)["ring"]["fill_bytes"]
        assert float(shown.split()[1]) > 0.4 * 2**24
        lab.gateway.run(["nft", "delete", "table", "inet", "verbatim"])
        assert examined(appliance)["interlock", ""]["level"] == "fail"
    assert download.popen.wait(60) == 0
    assert set(download.output().split()) == {hashlib.sha256(lab.web.download).hexdigest(), "-"}

    def repaired() -> dict[str, Any] | None:
        said = status(appliance)
        return said if said["processes"]["wire"]["repairs"].get("interlock-restored") else None

    until(repaired, "the watchdog says that it put the table back")
    text = get(appliance, "/metrics").text
    assert re.search(r'^verbatim_repairs_total\{name="interlock-restored"\} [1-9]', text, re.M)
    assert examined(appliance)["processes", "wire repairs"]["level"] == "warn"
    assert examined(appliance)["ring", ""]["level"] == "ok"


@pytest.fixture
def broken(lab: Lab, tmp_path: Path) -> Path:
    """Settings with everything wrong that settings can have wrong and still be read."""
    values = lab_settings(lab, tmp_path / "data")
    wire = values["wire"]
    wire["agents"] = [*wire["agents"], "eth9"]
    wire["bpffs"] = "/sys/fs/bpf/vb-nowhere"
    values["api"]["listen"] = [f"{lab.web.addresses[0]}:8443", f"{lab.gateway_nic(2).addresses[0]}:8443"]
    idp = values["issuers"][0]
    values["issuers"] = [
        {**idp, "issuer": "https://nobody.lab.test"},
        {**idp, "issuer": f"{idp['issuer']}/other"},
        {**idp, "issuer": f"{idp['issuer']}", "jwks_uri": f"{idp['issuer']}/jwks", "algorithms": ["EdDSA"]},
    ]
    values["rules"] = [{"to": "10.0.0.0/8"}, *({"to": net, "unbound": True} for net in ("10.0.0.0/9", "10.128.0.0/9"))]
    path = tmp_path / "broken.toml"
    path.write_text("\n".join(toml(values)) + "\n")
    return path


def test_a_machine_and_settings_full_of_mistakes(lab: Lab, appliance: Appliance, broken: Path) -> None:
    """One look finds all of them, each with its remedy. What runs is not disturbed."""
    here = appliance.lab.gateway_nic(1).name
    hidden = "mount -t tmpfs none /usr/src; mount -t tmpfs none /lib/modules; "
    doctor = f"{hidden} exec {PYTHON} -m appliance doctor --json --config {broken}"
    lab.gateway.sysctl({"net/ipv6/conf/all/forwarding": 0, f"net/ipv4/conf/{here}/rp_filter": 0})
    lab.gateway.sysctl({"net/ipv4/conf/all/rp_filter": 0, f"net/ipv4/conf/{here}/route_localnet": 1})
    try:
        done = lab.gateway.run(["sh", "-c", doctor], check=False, timeout=60)
    finally:
        lab.gateway.sysctl({"net/ipv6/conf/all/forwarding": 1, f"net/ipv4/conf/{here}/rp_filter": 1})
        lab.gateway.sysctl({"net/ipv4/conf/all/rp_filter": 1, f"net/ipv4/conf/{here}/route_localnet": 0})
    assert done.code == 1
    found = findings(done)
    issuer = f"{lab.idp.issuer}"
    for check, about, level, says in (
        ("headers", "", "fail", "apt-get install linux-headers"),
        ("forwarding", "IPv6", "warn", "start it, then sysctl -w net.ipv6.conf.all.forwarding=1"),
        ("rp-filter", here, "warn", f"sysctl -w net.ipv4.conf.{here}.rp_filter=1"),
        ("loopback", here, "fail", f"sysctl -w net.ipv4.conf.{here}.route_localnet=0"),
        ("interfaces", "wire.agents eth9", "fail", "correct wire.agents"),
        ("rules", "number 1 (10.0.0.0/8)", "warn", "remove"),
        ("api", f"{lab.web.addresses[0]}:8443", "fail", "choose an address of this machine"),
        ("api", here, "warn", "add one of its addresses to api.listen"),
        ("ports", "api", "fail", "stop that"),
        ("issuers", "https://nobody.lab.test", "fail", "see that"),
        ("issuers", f"{issuer}/other", "fail", "see that"),
        ("issuers", issuer, "fail", "issuers[].algorithms"),
        ("pins", "", "fail", "start 'verbatim wire'"),
        ("data", "", "warn", "the first start makes it"),
    ):
        one = found[check, about]
        assert (one["level"], says in one["remedy"]) == (level, True), one
    assert not (broken.parent / "data").exists()
    assert status(appliance)["healthy"]


STRANGER = """
import json, os, sys
from pathlib import Path
from appliance.config import load
from appliance.doctor import examine, exit_code
settings = load(Path(sys.argv[1]))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
found = examine(settings, root=False)
for one in found:
    print(json.dumps(one.to_json()))
sys.exit(exit_code({one.level for one in found}))
"""


def test_somebody_who_may_not_look_is_told_of_no_failure(lab: Lab, appliance: Appliance) -> None:
    """Of a gateway that is well, by a user without rights: unknown, and never a remedy that harms."""
    until(lambda: status(appliance)["healthy"], "the appliance is healthy")
    done = lab.gateway.run([PYTHON, "-c", STRANGER, appliance.config], check=False, timeout=60)
    found = findings(done)
    assert [one for one in found.values() if one["level"] == "fail"] == []
    assert done.code == 3, done.errors
    assert {check for (check, _), one in found.items() if one["level"] == "unknown"} >= {
        *("root", "pins", "filters", "interlock", "processes", "ports", "store", "journal", "journal-key", "ca"),
    }


def test_forwarding_that_is_off_while_the_wire_process_runs(lab: Lab, appliance: Appliance) -> None:
    lab.gateway.sysctl({"net/ipv6/conf/all/forwarding": 0})
    try:
        found = examined(appliance)["forwarding", "IPv6"]
    finally:
        lab.gateway.sysctl({"net/ipv6/conf/all/forwarding": 1})
    assert found["level"] == "fail"
    assert found["remedy"].startswith("sysctl -w net.ipv6.conf.all.forwarding=1, in ExecStartPost=")


def test_an_issuer_with_another_certificate(lab: Lab, appliance: Appliance, tmp_path: Path) -> None:
    values = lab_settings(lab, tmp_path / "data")
    values["issuers"][0].pop("ca")
    path = tmp_path / "other.toml"
    path.write_text("\n".join(toml(values)) + "\n")
    done = lab.gateway.run([PYTHON, "-m", "appliance", "doctor", "--json", "--config", path], check=False, timeout=60)
    one = findings(done)["issuers", lab.idp.issuer]
    assert one["level"] == "fail"
    assert "certificate" in one["found"].lower()
