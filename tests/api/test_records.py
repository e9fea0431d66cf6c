"""Records over the API: roles, sessions, exact bytes, ranges, search, errors in one shape."""

from collections.abc import Callable
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from msgspec.structs import replace

from appliance.model import ChunkRow, Direction, Ending
from appliance.store.client import Store
from tests.api.conftest import ANSWER, GAPPED, WHOLE, session, token

Caller = Callable[..., TestClient]
STREAM = f"/v1/sessions/{WHOLE}/stream?direction=server"
READABLE = [
    "/v1/sessions",
    f"/v1/sessions/{WHOLE}",
    f"/v1/sessions/{WHOLE}/messages",
    STREAM,
    "/v1/search?q=ada",
    "/v1/events",
]


@pytest.fixture
def reader(caller: Caller) -> TestClient:
    return caller(token("carol", "auditor"))


@pytest.mark.parametrize("path", READABLE)
def test_records_need_a_reading_role(caller: Caller, path: str) -> None:
    assert caller().get(path).status_code == 401
    assert caller(token("alice")).get(path).status_code == 403
    for role in ("auditor", "investigator", "admin"):
        assert caller(token("carol", role)).get(path).status_code == 200


def test_sessions_newest_first_in_pages(reader: TestClient) -> None:
    first = reader.get("/v1/sessions", params={"limit": 1}).json()
    second = reader.get("/v1/sessions", params={"limit": 1, "cursor": first["next"]}).json()
    assert [first["sessions"][0]["session_id"], second["sessions"][0]["session_id"]] == [str(GAPPED), str(WHOLE)]
    assert second["next"] is None
    shown = second["sessions"][0]
    assert shown["identity"]["subject"] == "alice"
    assert shown["identity"]["act"] == ["robot"]
    assert (shown["client"], shown["server"]) == (
        {"address": "10.0.0.5", "port": 40000},
        {"address": "192.0.2.7", "port": 5432},
    )
    assert shown["bytes"] == {"client": 20, "server": len(ANSWER)}
    assert (shown["coverage"], shown["attrs"]["database"]) == ("complete", "shop")


def test_sessions_by_filter(reader: TestClient) -> None:
    assert len(reader.get("/v1/sessions", params={"finding": "gap"}).json()["sessions"]) == 1
    assert (
        len(reader.get("/v1/sessions", params={"address": "10.0.0.0/8", "protocol": "postgres"}).json()["sessions"])
        == 2
    )
    assert reader.get("/v1/sessions", params={"subject": "mallory"}).json()["sessions"] == []


def test_session_with_findings(reader: TestClient) -> None:
    shown = reader.get(f"/v1/sessions/{GAPPED}").json()
    assert [finding["kind"] for finding in shown["findings_detail"]] == ["gap"]


def test_messages_in_pages(reader: TestClient) -> None:
    first = reader.get(f"/v1/sessions/{WHOLE}/messages", params={"limit": 1}).json()
    second = reader.get(f"/v1/sessions/{WHOLE}/messages", params={"limit": 1, "after": first["next"]}).json()
    assert [first["messages"][0]["kind"], second["messages"][0]["kind"]] == ["query", "rows"]
    assert second["next"] is None


def test_stream_is_exact(reader: TestClient) -> None:
    answer = reader.get(STREAM)
    assert answer.content == ANSWER
    assert answer.headers["content-length"] == str(len(ANSWER))
    assert answer.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("wanted", "expected", "span"),
    [
        ("bytes=0-0", ANSWER[:1], "0-0"),
        ("bytes=4990-5009", ANSWER[4990:5010], "4990-5009"),
        ("bytes=16000-", ANSWER[16000:], f"16000-{len(ANSWER) - 1}"),
        ("bytes=-5", ANSWER[-5:], f"{len(ANSWER) - 5}-{len(ANSWER) - 1}"),
        ("bytes=0-99999999", ANSWER, f"0-{len(ANSWER) - 1}"),
    ],
)
def test_stream_by_range(reader: TestClient, wanted: str, expected: bytes, span: str) -> None:
    answer = reader.get(STREAM, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (206, expected)
    assert answer.headers["content-range"] == f"bytes {span}/{len(ANSWER)}"


@pytest.mark.parametrize("wanted", ["bytes=999999-", "bytes=5-2", "bytes=-0"])
def test_range_that_cannot_be_met(reader: TestClient, wanted: str) -> None:
    answer = reader.get(STREAM, headers={"Range": wanted})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(ANSWER)}"
    assert answer.json()["error"]["code"] == "range-not-satisfiable"


@pytest.mark.parametrize("wanted", ["rows=1-2", "bytes=1-2,4-5", "bytes=-", "x"])
def test_other_ranges_are_ignored(reader: TestClient, wanted: str) -> None:
    answer = reader.get(STREAM, headers={"Range": wanted})
    assert (answer.status_code, len(answer.content)) == (200, len(ANSWER))


def test_gaps_are_told(reader: TestClient) -> None:
    answer = reader.get(f"/v1/sessions/{GAPPED}/stream?direction=server")
    assert answer.content == ANSWER
    assert answer.headers["verbatim-gaps"] == "100-150"


def test_search(reader: TestClient) -> None:
    hits = reader.get("/v1/search", params={"q": "lovelace subject:alice"}).json()["hits"]
    assert [(hit["session_id"], hit["kind"], hit["session"]["identity"]["subject"]) for hit in hits] == [
        (str(WHOLE), "rows", "alice")
    ]
    assert "Lovelace" in hits[0]["snippet"]


def test_events(reader: TestClient) -> None:
    (event,) = reader.get("/v1/events", params={"kind": "refusal"}).json()["events"]
    assert event["address"] == "10.0.0.9"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/sessions/01990000-0000-7000-8000-0000000000ff", 404, "not-found"),
        ("/v1/sessions/01990000-0000-7000-8000-0000000000ff/messages", 404, "not-found"),
        ("/v1/sessions/x", 400, "malformed"),
        ("/v1/sessions?cursor=x", 400, "malformed"),
        ("/v1/sessions?limit=0", 400, "malformed"),
        ("/v1/sessions?since=someday", 400, "malformed"),
        (f"/v1/sessions/{WHOLE}/stream?direction=up", 400, "malformed"),
        ("/v1/search?q=frob:1", 400, "malformed"),
        ("/v1/search", 400, "malformed"),
        ("/nothing", 404, "not-found"),
    ],
)
def test_errors_have_one_shape(reader: TestClient, path: str, status: int, code: str) -> None:
    answer = reader.get(path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"code", "message"}
    assert answer.json()["error"]["code"] == code


def test_wrong_method(reader: TestClient) -> None:
    answer = reader.put("/v1/sessions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method-not-allowed")


def test_a_stream_that_lacks_recorded_bytes_is_an_error_before_its_first_byte(reader: TestClient, audit: Store) -> None:
    lost = UUID("01990000-0000-7000-8000-000000000003")
    row = replace(session(lost, number=-1000), messages=0, client_bytes=3)
    audit.insert([row, ChunkRow(lost, 0, row.started_ns, Direction.CLIENT, 0, row.started_ns, b"abc")])
    assert reader.get(f"/v1/sessions/{lost}/stream?direction=client").content == b"abc"
    answer = reader.get(f"/v1/sessions/{lost}/stream?direction=server")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged")
    assert f"{len(ANSWER)} of the {len(ANSWER)} bytes of the server" in answer.json()["error"]["message"]


def test_a_stream_of_an_open_session_is_as_long_as_what_is_stored(reader: TestClient, audit: Store) -> None:
    young = UUID("01990000-0000-7000-8000-000000000004")
    row = replace(session(young, number=-2000), messages=0, ending=Ending.OPEN, client_bytes=0, server_bytes=0)
    audit.insert([row, ChunkRow(young, 0, row.started_ns, Direction.SERVER, 0, row.started_ns, b"so far")])
    answer = reader.get(f"/v1/sessions/{young}/stream?direction=server")
    assert (answer.content, answer.headers["content-length"]) == (b"so far", "6")
