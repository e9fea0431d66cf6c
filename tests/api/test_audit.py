"""Who reads records is on record, before the answer."""

from collections.abc import Callable

from fastapi.testclient import TestClient

from api.deps import Parts
from appliance.config import Settings
from appliance.store.client import open_store
from tests.api.conftest import ISSUER, WHOLE, token

Caller = Callable[..., TestClient]


def seen(caller: Caller, subject: str) -> list[tuple[str, str]]:
    answer = caller(token("chief", "auditor")).get("/v1/audit", params={"actor": f"{subject} {ISSUER}"})
    assert answer.status_code == 200
    return [(row["action"], row["object"]) for row in answer.json()["audit"]]


def test_every_reading_is_there(caller: Caller) -> None:
    reader = caller(token("dora", "investigator"))
    reader.get("/v1/search", params={"q": "lovelace"})
    reader.get(f"/v1/sessions/{WHOLE}")
    reader.get(f"/v1/sessions/{WHOLE}/stream?direction=client")
    reader.get("/v1/search", params={"q": "frob:1"})
    assert seen(caller, "dora") == [
        ("search", "/v1/search?q=frob%3A1"),
        ("stream", f"/v1/sessions/{WHOLE}/stream?direction=client"),
        ("session", f"/v1/sessions/{WHOLE}"),
        ("search", "/v1/search?q=lovelace"),
    ]


def test_reading_the_audit_is_audited_and_paged(caller: Caller) -> None:
    eve = caller(token("eve", "admin"))
    eve.get("/v1/sessions")
    eve.get("/v1/events")
    first = eve.get("/v1/audit", params={"actor": f"eve {ISSUER}", "limit": 1}).json()
    second = eve.get("/v1/audit", params={"actor": f"eve {ISSUER}", "limit": 2, "cursor": first["next"]}).json()
    assert [row["action"] for row in first["audit"] + second["audit"]] == ["audit", "events", "sessions"]


def test_the_audit_is_for_auditors(caller: Caller) -> None:
    assert caller(token("dora", "investigator")).get("/v1/audit").status_code == 403
    assert caller(token("frank")).get("/v1/search", params={"q": "x"}).status_code == 403
    assert seen(caller, "frank") == []


def test_no_record_of_it_no_answer(caller: Caller, settings: Settings) -> None:
    client = caller(token("gina", "auditor"))
    state = client.app.state  # type: ignore[attr-defined]
    whole: Parts = state.parts
    with open_store(settings, "writer", embed=False) as closed:
        pass
    state.parts = Parts(whole.settings, whole.verifier, whole.authority, whole.store, closed, whole.wire)
    answer = client.get("/v1/search", params={"q": "lovelace"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert "Lovelace" not in answer.text
