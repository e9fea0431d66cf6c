"""Leases over the API: who gets one, for which address, until when, and who may end it."""

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from tests.api.conftest import Leases, token

Caller = Callable[..., TestClient]


def test_lease_binds_the_peer_address_to_the_token(caller: Caller, leases: Leases) -> None:
    bearer = token(act={"sub": "robot"}, client_id="agent-one", groups=["red"])
    answer = caller(bearer).post("/v1/leases", json={"run_id": "nightly"}, headers={"X-Forwarded-For": "10.9.9.9"})
    assert answer.status_code == 201
    lease = answer.json()
    assert lease["address"] == "10.0.0.5", "not what a header claims"
    assert lease["identity"] | {} == {
        "issuer": "https://idp.example",
        "subject": "alice",
        "client": "agent-one",
        "act": ["robot"],
        "groups": ["red"],
        "run_id": "nightly",
    }
    assert bearer not in answer.text
    (held,) = leases.list()
    assert (held.id, held.identity.method, len(held.identity.token_sha256)) == (lease["lease_id"], "lease", 64)


def test_lease_ends_with_the_token_or_sooner(caller: Caller, leases: Leases) -> None:
    caller(token(seconds=60)).post("/v1/leases", json={"seconds": 3000})
    caller(token(seconds=6000), "10.0.0.6").post("/v1/leases", json={"seconds": 5})
    first, second = (lease.expires_ns - lease.granted_ns for lease in leases.list())
    assert 50e9 < first <= 60e9
    assert 4e9 < second <= 5e9


def test_ipv4_mapped_peer_is_its_ipv4_address(caller: Caller) -> None:
    assert caller(token(), "::ffff:10.0.0.8").post("/v1/leases", json={}).json()["address"] == "10.0.0.8"


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({}, "no access token"),
        ({"Authorization": "Basic eA=="}, "no access token"),
        ({"Authorization": "Bearer x"}, "JWT"),
    ],
)
def test_without_a_good_token(caller: Caller, header: dict[str, str], says: str) -> None:
    answer = caller().post("/v1/leases", json={}, headers=header)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["error"]["code"] == "unauthenticated"
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [{"run_id": "a b"}, {"seconds": 0}, {"frob": 1}, [], "x"])
def test_malformed_requests(caller: Caller, body: object) -> None:
    answer = caller(token()).post("/v1/leases", json=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


def test_address_of_another_identity_is_a_conflict(caller: Caller) -> None:
    assert caller(token("alice")).post("/v1/leases", json={}).status_code == 201
    answer = caller(token("mallory")).post("/v1/leases", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


def test_list_shows_own_leases_and_all_to_admin(caller: Caller) -> None:
    caller(token("alice")).post("/v1/leases", json={})
    caller(token("bob"), "10.0.0.6").post("/v1/leases", json={})
    assert [one["identity"]["subject"] for one in caller(token("bob")).get("/v1/leases").json()["leases"]] == ["bob"]
    assert len(caller(token("root", "admin")).get("/v1/leases").json()["leases"]) == 2


def test_renew_keeps_the_lease_and_moves_its_end(caller: Caller) -> None:
    lease = caller(token(seconds=60)).post("/v1/leases", json={}).json()
    renewed = caller(token(seconds=600)).post(f"/v1/leases/{lease['lease_id']}/renew", json={}).json()
    assert renewed["lease_id"] == lease["lease_id"]
    assert renewed["expires"] > lease["expires"]
    foreign = caller(token("mallory")).post(f"/v1/leases/{lease['lease_id']}/renew", json={})
    assert foreign.status_code == 404
    admin = caller(token("root", "admin")).post(f"/v1/leases/{lease['lease_id']}/renew", json={})
    assert admin.status_code == 409, "an admin may end a lease, not prolong it under another name"


def test_revoke_own_or_any_as_admin(caller: Caller, leases: Leases) -> None:
    first = caller(token()).post("/v1/leases", json={}).json()["lease_id"]
    assert caller(token("mallory")).delete(f"/v1/leases/{first}").status_code == 404
    assert caller(token()).delete(f"/v1/leases/{first}").status_code == 204
    second = caller(token()).post("/v1/leases", json={}).json()["lease_id"]
    assert caller(token("root", "admin")).delete(f"/v1/leases/{second}").status_code == 204
    assert leases.list() == ()


def test_wire_down_is_said_clearly(caller: Caller, leases: Leases) -> None:
    leases.down = True
    answer = caller(token()).post("/v1/leases", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert "retry-after" in answer.headers
