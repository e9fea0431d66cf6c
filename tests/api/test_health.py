"""Health, metrics and the CA: what strangers see, what the gateway itself sees."""

import errno
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from cryptography import x509
from fastapi.testclient import TestClient

from api.app import check_issuers, create
from api.deps import Parts
from api.metrics import render
from appliance import status
from appliance.config import Issuer, Settings, Wire
from appliance.errors import MalformedInput
from appliance.lock import only
from appliance.overview import look, overview
from appliance.wire import bpf, loader
from tests.api.conftest import token
from tests.lab.wait import until

Caller = Callable[..., TestClient]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for BPF and mounts")
WIRE = {"ring": {"bytes": 100, "fill": 7}, "refusals": {"no-lease": 3}, "journal": {"room": 5, "stalled": False}}


@pytest.fixture
def wire(settings: Settings) -> None:
    status.publish(settings.data, "wire", WIRE | {"interlock": True})
    status.publish(settings.data, "record", {"lag_seconds": 0.5, "rows": 12})


@pytest.mark.usefixtures("wire")
def test_healthy(caller: Caller) -> None:
    answer = caller().get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")


@pytest.mark.usefixtures("wire")
def test_stalled_journal_fails_and_only_the_gateway_hears_why(caller: Caller, settings: Settings) -> None:
    status.publish(settings.data, "wire", WIRE | {"interlock": True, "journal": {"stalled": True}})
    answer = caller(address="127.0.0.1").get("/healthz")
    assert answer.status_code == 503
    said = answer.json()
    assert "journal is full" in said["parts"]["wire"]
    assert [(fault["process"], fault["name"]) for fault in said["faults"]] == [("wire", "journal-stalled")]
    assert "free disk space" in said["faults"][0]["text"]
    for stranger in (caller(), caller("nonsense"), caller(token("alice"))):
        answer = stranger.get("/healthz")
        assert answer.status_code == 503
        assert answer.json()["faults"] == []
        assert set(answer.json()["parts"].values()) == {"failing", "ok"}
    assert caller(token("carol", "auditor")).get("/healthz").json() == said


@pytest.mark.usefixtures("wire")
def test_faults_and_repairs_of_processes(caller: Caller, settings: Settings) -> None:
    fault = "the gate was not attached to eth0; see tc"
    published = {"faults": {"gate-missing": fault}, "repairs": {"filter-restored": 2}}
    status.publish(settings.data, "wire", WIRE | {"interlock": True} | published)
    status.publish(settings.data, "record", {"lag_seconds": 0.0, "repairs": {"filter-restored": 1}})
    gateway = caller(address="127.0.0.1")
    answer = gateway.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["faults"] == [{"process": "wire", "name": "gate-missing", "text": fault}]
    lines = gateway.get("/metrics").text.splitlines()
    assert 'verbatim_fault{name="gate-missing",process="wire"} 1.0' in lines
    assert 'verbatim_repairs_total{name="filter-restored"} 3.0' in lines
    assert "verbatim_healthy 0.0" in lines
    assert not [line for line in lines if line.startswith("verbatim_fault{") and 'process="record"' in line]


@pytest.mark.usefixtures("wire")
def test_missing_process_fails(caller: Caller, settings: Settings) -> None:
    status.withdraw(settings.data, "record")
    answer = caller(address="127.0.0.1").get("/healthz")
    assert "verbatim record" in answer.json()["parts"]["record"]


@pytest.mark.usefixtures("wire")
def test_metrics(caller: Caller) -> None:
    text = caller(address="127.0.0.1").get("/metrics").text
    for line in (
        'verbatim_up{process="wire"} 1.0',
        "verbatim_ring_fill_bytes 7.0",
        'verbatim_refusals_total{reason="no-lease"} 3.0',
        "verbatim_journal_stalled 0.0",
        "verbatim_rows_total 12.0",
    ):
        assert line in text.splitlines()


@needs_root
def test_the_ring_is_the_kernels(tmp_path: Path) -> None:
    """As `verbatim status` shows it: a wire process that hangs said last what was long ago."""
    folder = Path(f"/sys/fs/bpf/vb-metrics-{secrets.token_hex(3)}")
    settings = Settings(data=tmp_path, wire=Wire(bpffs=folder))
    status.publish(tmp_path, "wire", WIRE)
    assert "verbatim_ring_fill_bytes 7.0" in render(settings).decode().splitlines()
    folder.mkdir()
    try:
        ring = bpf.create_map(bpf.RINGBUF, 0, 0, 65536, "ring")
        bpf.pin(ring, folder / "ring")
        os.close(ring)
        lines = render(settings).decode().splitlines()
        assert {"verbatim_ring_fill_bytes 0.0", "verbatim_ring_bytes 65536.0"} <= set(lines)
        shown = overview(None, look(settings), embedded=True)["ring"]
        assert (shown["bytes"], shown["fill_bytes"]) == (65536, 0)
    finally:
        loader.unpin(folder)


@pytest.mark.usefixtures("wire")
def test_the_apis_own_faults_count(caller: Caller, settings: Settings) -> None:
    fault = "issuer https://idp: does not answer; see that it can be reached"
    status.publish(settings.data, "api", {"faults": {"issuer-down": fault}})
    try:
        answer = caller(address="127.0.0.1").get("/healthz")
        assert (answer.status_code, answer.json()["parts"]["api"]) == (503, fault)
    finally:
        status.withdraw(settings.data, "api")


def test_the_gateway_may_ask_its_own_address(caller: Caller) -> None:
    here = caller(address="10.0.0.1")
    here.base_url = "https://10.0.0.1"
    assert here.get("/metrics").status_code == 200
    here.base_url = "https://10.0.0.2"
    assert here.get("/metrics").status_code == 401


def test_metrics_are_not_for_agents(caller: Caller) -> None:
    assert caller().get("/metrics").status_code == 401
    assert caller(token("alice")).get("/metrics").status_code == 403
    assert caller(token("carol", "auditor")).get("/metrics").status_code == 200


def test_ca_needs_no_token(caller: Caller) -> None:
    shown = caller().get("/v1/ca").json()
    file = caller().get("/v1/ca.crt")
    assert file.text == shown["pem"]
    assert file.headers["verbatim-fingerprint-sha256"] == shown["fingerprint_sha256"]
    assert x509.load_pem_x509_certificate(file.content).issuer.rfc4514_string() == "CN=Verbatim CA gateway"


def verbatim_api(data: Path, *before: str) -> tuple[int, str]:
    """Exit code and standard error of `verbatim api`, which is to end by itself."""
    command = [*before, sys.executable, "-m", "appliance", "api", "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_one_api_at_a_time(tmp_path: Path) -> None:
    with only(tmp_path, "api"):
        code, errors = verbatim_api(tmp_path)
    assert (code, f"'verbatim api' is running (process {os.getpid()}); stop that first" in errors) == (1, True)


@needs_root
def test_a_disk_that_is_read_only_ends_the_start(tmp_path: Path) -> None:
    status.run_folder(tmp_path)
    mounts = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,ro,bind {tmp_path}"
    code, errors = verbatim_api(tmp_path, "unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh")
    assert (code, errors.count("\n")) == (3, 1), errors
    assert errors.startswith(f"verbatim: {tmp_path}/run/api.lock: Read-only file system; mount it for writing")


def test_a_disk_that_takes_no_status_ends_no_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves on, shows as silent, and speaks again when the disk takes it; and it ends without a traceback."""
    asked: list[None] = []

    def refuse(*arguments: object) -> None:
        asked.append(None)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("api.app.publish", refuse)
    monkeypatch.setattr("api.app.withdraw", refuse)
    monkeypatch.setattr("api.app.STATUS_SECONDS", 0.01)
    verifier = SimpleNamespace(tend=lambda changed: None, faults=dict)
    with TestClient(
        create(cast(Parts, SimpleNamespace(settings=Settings(data=tmp_path), verifier=verifier)))
    ) as client:
        until(lambda: len(asked) >= 3, "it tries to publish again")
        assert client.get("/v1/openapi.json").status_code == 200


@pytest.mark.parametrize("file", ["none.pem", "empty.pem"])
def test_a_certificate_file_that_is_none_ends_the_start(file: str, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    one = Issuer(issuer="https://idp.example", audience=("verbatim",), ca=tmp_path / file)
    with pytest.raises(MalformedInput, match=r"its certificate file .*; correct issuers\[\]\.ca$"):
        check_issuers(Settings(data=tmp_path, issuers=(one,)))
    config = tmp_path / "verbatim.toml"
    config.write_text(f'[[issuers]]\nissuer = "{one.issuer}"\naudience = ["verbatim"]\nca = "{one.ca}"\n')
    command = [sys.executable, "-m", "appliance", "api", "--config", str(config), "--data", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "correct issuers[].ca" in done.stderr) == (2, True)


def test_the_issuers_are_asked_again_whatever_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.app.TEND_SECONDS", 0.01)
    asked: list[None] = []

    def tend(changed: object) -> None:
        asked.append(None)
        raise RuntimeError("what nobody thought of")

    verifier = SimpleNamespace(tend=tend, faults=dict)
    with TestClient(create(cast(Parts, SimpleNamespace(settings=Settings(data=tmp_path), verifier=verifier)))):
        until(lambda: len(asked) >= 3, "the issuers are asked again")
