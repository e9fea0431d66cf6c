"""Health, metrics and the CA: what strangers see, what the gateway itself sees."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from cryptography import x509
from fastapi.testclient import TestClient

from api.app import create
from api.deps import Parts
from appliance import status
from appliance.config import Settings
from tests.api.conftest import token
from tests.lab.wait import until

Caller = Callable[..., TestClient]
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


def test_the_issuers_are_asked_again_whatever_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.app.TEND_SECONDS", 0.01)
    asked: list[None] = []

    def tend(changed: object) -> None:
        asked.append(None)
        raise RuntimeError("what nobody thought of")

    verifier = SimpleNamespace(tend=tend, faults=dict)
    with TestClient(create(cast(Parts, SimpleNamespace(settings=Settings(data=tmp_path), verifier=verifier)))):
        until(lambda: len(asked) >= 3, "the issuers are asked again")
