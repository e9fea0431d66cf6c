"""Health, metrics and the CA: what strangers see, what the gateway itself sees."""

from collections.abc import Callable

import pytest
from cryptography import x509
from fastapi.testclient import TestClient

from appliance import status
from appliance.config import Settings
from tests.api.conftest import token

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
    assert "journal is full" in answer.json()["parts"]["wire"]
    assert caller().get("/healthz").json()["parts"]["wire"] == "failing"


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
