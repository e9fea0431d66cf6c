"""The read side, over HTTP and within the process."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from appliance.errors import MalformedInput
from appliance.model import Coverage, Direction, Ending, EventRow, Identity
from appliance.store import query, streams, times, unfinished
from appliance.store.client import Store
from appliance.store.query import SessionFilter
from tests.store import samples
from tests.store.test_language import queries

EVENTS = 5_000_000  # first position, and nanoseconds after the start, of the events here


@pytest.fixture(scope="module", autouse=True)
def _rows(store: Store) -> None:
    """Sessions 501 to 506 with two revisions each, in source `query`."""
    batch: list[Any] = []
    for of in range(501, 507):
        for revision in (0, 1):
            batch.append(samples.session(of, revision, source="query", client_address=f"10.5.0.{of - 500}"))
    changes: dict[str, Any] = {
        "source": "query",
        "identity": Identity(subject="bob", issuer="https://other", client="web", run_id="run-2", lease_id="1" * 16),
        "server_address": "192.0.2.9",
        "server_port": 80,
        "protocol": "http1",
        "coverage": Coverage.PARTIAL,
        "ending": Ending.RST,
        "findings": ("midstream", "overlap"),
        "lane": "relay",
        "node": "second",
        "ended_ns": samples.started(600),
        "attrs": {"host": "shop.example", "sni": "shop.example"},
    }
    batch.append(samples.session(507, 0, **changes))
    batch += [
        samples.message(501, 0, "SELECT Customer_ID FROM users\nWHERE mail='a@b.c' -- ÄRGER", sql="SELECT Customer_ID"),
        samples.message(501, 1, "drop   table students; cost 100% 10.0.0.1", Direction.SERVER, "rows"),
        samples.message(502, 0, "x" * 20_000 + " needle " + "y" * 100, big="z"),
        samples.message(
            507, 0, "GET /v1/users?id=7", kind="request", method="GET", target="/v1/users?id=7", host="a.b"
        ),
        samples.message(507, 1, "404", Direction.SERVER, "response", status=404),
        samples.message(507, 2, "GET http://a.b/v1/x", kind="request", method="POST", target="http://a.b/v1/x#y"),
        samples.finding(501, 0),
        samples.finding(501, 1, "overlap"),
        *(samples.event("query", EVENTS + at) for at in range(5)),
        samples.event("query", EVENTS + 9, "restart", ""),
    ]
    store.insert(batch)


def ids(page: query.Page) -> list[int]:
    return [int(item["session_id"].replace("-", ""), 16) for item in page.items]


def test_json_of_a_session(store: Store) -> None:
    found = query.session(store, samples.number(501))
    assert found == {
        "session_id": "00000000-0000-0000-0000-0000000001f5",
        "node": "gateway",
        "source": "query",
        "started": times.rfc3339(samples.started(501)),
        "ended": times.rfc3339(samples.started(501) + 1),
        "ending": "fin",
        "client": {"address": "10.5.0.1", "port": 40_000},
        "server": {"address": "fd00::5", "port": 5432},
        "transport": "tcp",
        "protocol": "postgres",
        "identity": {
            "issuer": "https://idp.example",
            "subject": "alice@example.com",
            "client": "cli",
            "act": ["agent-7", "planner"],
            "groups": ["dev", "ops"],
            "run_id": "run-1",
            "lease_id": "00ff00ff00ff00ff",
            "method": "lease",
            "token_sha256": "ab" * 32,
        },
        "coverage": "complete",
        "bytes": {"client": 2**40, "server": 2},
        "packets": {"client": 3, "server": 4},
        "messages": 1,
        "findings": ["gap"],
        "lane": "tap",
        "attrs": {"database": "shop", "user": "app", "nested": {"deep": [1, None]}},
    }
    assert query.session(store, "00000000-0000-0000-0000-0000000fffff") is None
    with pytest.raises(MalformedInput, match="session id is not a UUID"):
        query.session(store, "1; DROP TABLE sessions")


def test_pages_of_sessions_are_newest_first_and_complete(store: Store) -> None:
    chosen = SessionFilter(source="query")
    seen: list[int] = []
    cursor = None
    while True:
        page = query.sessions(store, chosen, 2, cursor)
        seen += ids(page)
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == [507, 506, 505, 504, 503, 502, 501]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"protocol": "http1"}, [507]),
        ({"subject": "bob"}, [507]),
        ({"issuer": "https://other"}, [507]),
        ({"client": "web"}, [507]),
        ({"run_id": "run-2"}, [507]),
        ({"lease_id": "1" * 16}, [507]),
        ({"coverage": "partial"}, [507]),
        ({"ending": "rst"}, [507]),
        ({"ending": "open"}, []),
        ({"finding": "overlap"}, [507]),
        ({"lane": "relay"}, [507]),
        ({"node": "second"}, [507]),
        ({"act": "planner"}, [506, 505, 504, 503, 502, 501]),
        ({"group": "ops"}, [506, 505, 504, 503, 502, 501]),
        ({"client_address": "10.5.0.2"}, [502]),
        ({"client_address": "10.5.0.2/31"}, [503, 502]),
        ({"server_address": "192.0.2.0/24"}, [507]),
        ({"server_address": "fd00::/8"}, [506, 505, 504, 503, 502, 501]),
        ({"address": "192.0.2.9"}, [507]),
        ({"address": "10.5.0.6"}, [506]),
        ({"port": 80}, [507]),
        ({"port": 40_000}, [507, 506, 505, 504, 503, 502, 501]),
        ({"since": samples.started(506)}, [507, 506]),
        ({"until": samples.started(502)}, [501]),
        ({"since": samples.started(599), "until": samples.started(508)}, [507]),
        ({"subject": "bob", "protocol": "postgres"}, []),
        ({"subject": "' OR 1=1 --"}, []),
    ],
)
def test_filters_of_sessions(store: Store, chosen: dict[str, Any], expected: list[int]) -> None:
    assert ids(query.sessions(store, SessionFilter(**{"source": "query", **chosen}))) == expected


@pytest.mark.parametrize("chosen", [{"address": "10.0.0"}, {"port": 70_000}, {"since": "soon"}])
def test_malformed_filters(store: Store, chosen: dict[str, Any]) -> None:
    with pytest.raises(MalformedInput):
        query.sessions(store, SessionFilter(**chosen))


def test_json_of_messages_and_their_pages(store: Store) -> None:
    page = query.messages(store, samples.number(501), limit=1)
    first = samples.started(501)
    assert page.items == [
        {
            "session_id": str(samples.number(501)),
            "seq": 0,
            "direction": "client",
            "kind": "query",
            "protocol": "postgres",
            "time": times.rfc3339(first),
            "end_time": times.rfc3339(first + 5),
            "start": 0,
            "end": 10,
            "text": "SELECT Customer_ID FROM users\nWHERE mail='a@b.c' -- ÄRGER",
            "attrs": {"sql": "SELECT Customer_ID"},
            "reply_to": None,
            "flags": ["noted"],
        }
    ]
    assert page.cursor == "0"
    rest = query.messages(store, samples.number(501), after_seq=int(page.cursor))
    assert [item["seq"] for item in rest.items] == [1]
    assert rest.cursor is None


def test_findings_and_events(store: Store) -> None:
    assert [
        (found["kind"], found["direction"], found["attrs"]) for found in query.findings(store, samples.number(501))
    ] == [
        ("gap", "server", {"n": 0}),
        ("overlap", "server", {"n": 1}),
    ]
    since, until = samples.START + EVENTS, samples.START + EVENTS + 100
    page = query.events(store, "refusal", "10.1.0.7", since, until, 3)
    assert [item["position"] - EVENTS for item in page.items] == [4, 3, 2]
    page = query.events(store, "refusal", "", since, until, 3, page.cursor)
    assert [(item["position"], item["attrs"]) for item in page.items] == [
        (EVENTS + at, {"count": EVENTS + at}) for at in (1, 0)
    ]
    assert page.cursor is None
    assert [item["kind"] for item in query.events(store, since=since, until=until).items][:1] == ["restart"]


def test_events_by_their_first_words(store: Store) -> None:
    at = samples.START + 2 * EVENTS
    kinds = ("lease", "lease-granted", "lease-revoked", "leases-lost", "lease_x", "released")
    store.insert([EventRow("ee" * 16, n, at + n, kind, "", "", {}) for n, kind in enumerate(kinds)])

    def found(kind: str) -> list[str]:
        return [item["kind"] for item in query.events(store, kind, since=at, until=at + 100).items]

    assert found("lease") == ["lease-revoked", "lease-granted", "lease"]
    assert found("lease-granted") == ["lease-granted"]
    assert found("leas") == []


@pytest.fixture(scope="module")
def conversation(store: Store) -> dict[Direction, bytes]:
    """Session 510: chunks of odd sizes in both directions, with conflicting copies and a second start time."""
    rng = random.Random(7)
    whole = {side: rng.randbytes(3_000_000) for side in Direction}
    at = dict.fromkeys(Direction, 0)
    batch: list[Any] = [samples.session(510, 0)]
    seq = 0
    while any(at[side] < len(whole[side]) for side in Direction):
        side = rng.choice([one for one in Direction if at[one] < len(whole[one])])
        size = rng.choice([1, 7, 1400, 65_000])
        data = whole[side][at[side] : at[side] + size]
        batch.append(samples.chunk(510, seq, side, at[side], data, redacted=((0, 1),)))
        seq += 1
        if rng.random() < 0.1:
            batch.append(samples.chunk(510, seq, side, at[side], b"conflict", copy=1))
            seq += 1
        at[side] += len(data)
    store.insert(batch)
    return whole


@pytest.mark.parametrize("side", list(Direction))
def test_streams_are_exact(
    store: Store, conversation: dict[Direction, bytes], side: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FETCH_ROWS", 50)
    monkeypatch.setattr(streams, "FETCH_BYTES", 300_000)
    whole = conversation[side]
    assert b"".join(query.plain_stream(store, samples.number(510), side)) == whole
    size = len(whole)
    for start, end in (
        (0, 0),
        (0, 1),
        (1, 2),
        (size - 1, size),
        (size - 1, size + 9),
        (size, None),
        (size + 5, size + 9),
    ):
        got = list(query.stream(store, samples.number(510), str(side), start, end))
        assert b"".join(data for _, data in got) == whole[start:end]
        assert all(whole[at : at + len(data)] == data for at, data in got)
    rng = random.Random(str(side))
    for _ in range(5):
        start, end = sorted(rng.sample(range(size), 2))
        assert b"".join(query.plain_stream(store, samples.number(510), side, start, end)) == whole[start:end]


def test_bytes_that_came_late_are_in_their_place(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FETCH_ROWS", 3)
    monkeypatch.setattr(streams, "FETCH_BYTES", 20)
    whole = bytes(range(200))
    order = list(range(0, 200, 10))
    random.Random(3).shuffle(order)
    rows = [samples.chunk(517, seq, Direction.CLIENT, at, whole[at : at + 10]) for seq, at in enumerate(order)]
    store.insert([samples.session(517, 0), *rows])
    assert b"".join(query.plain_stream(store, samples.number(517), "client")) == whole
    assert b"".join(query.plain_stream(store, samples.number(517), "client", 15, 133)) == whole[15:133]


def test_chunks_come_by_time_with_their_copies(
    store: Store, conversation: dict[Direction, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FETCH_ROWS", 50)
    monkeypatch.setattr(streams, "FETCH_BYTES", 300_000)
    found = list(query.chunks(store, samples.number(510)))
    assert [row.seq for row in found] == list(range(len(found)))
    assert {row.copy for row in found} == {0, 1}
    for side in Direction:
        assert b"".join(row.data for row in found if row.direction is side and not row.copy) == conversation[side]
    assert found[0] == samples.chunk(
        510, 0, found[0].direction, 0, conversation[found[0].direction][: len(found[0].data)], redacted=((0, 1),)
    )


def test_holes_and_overlaps_of_a_stream_show_in_its_offsets(store: Store) -> None:
    store.insert(
        [
            samples.chunk(511, 0, Direction.CLIENT, 0, b"0123"),
            samples.chunk(511, 1, Direction.CLIENT, 10, b"abcdef"),
            samples.chunk(511, 2, Direction.CLIENT, 13, b"DEFGH"),
            samples.chunk(511, 3, Direction.CLIENT, 12, b"xx"),
        ]
    )
    wanted = samples.number(511)  # there is no session row yet
    assert list(query.stream(store, wanted, "client")) == [(0, b"0123"), (10, b"abcdef"), (16, b"GH")]
    assert list(query.stream(store, wanted, "client", 2, 12)) == [(2, b"23"), (10, b"ab")]
    assert list(query.stream(store, wanted, "client", 5, 9)) == []
    assert b"".join(query.plain_stream(store, wanted, "client")) == b"0123abcdefGH"
    assert list(query.stream(store, wanted, "server")) == []


@pytest.mark.parametrize(("side", "start", "end"), [("both", 0, None), ("client", -1, None), ("client", 5, 4)])
def test_malformed_ranges(store: Store, side: str, start: int, end: int | None) -> None:
    with pytest.raises(MalformedInput):
        query.stream(store, samples.number(510), side, start, end)


def test_rows_with_another_start_than_their_session_are_found(store: Store) -> None:
    late = samples.started(512) + 5 * samples.SECOND
    store.insert(
        [
            samples.session(512),
            samples.chunk(512, 0, Direction.CLIENT, 0, b"x", started_ns=late),
            samples.finding(512, 0),
        ]
    )
    assert b"".join(query.plain_stream(store, samples.number(512), "client")) == b"x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("customer_id", [(501, 0)]),
        ("CUSTOMER", [(501, 0)]),
        ("custom", []),
        ("a@b.c", [(501, 0)]),
        ("a@b.d", []),
        ("b@a.c", []),
        ('"drop table"', [(501, 1)]),
        ('"table drop"', []),
        ("drop-table", []),
        ("10.0.0.1", [(501, 1)]),
        ("10.0.0.2", []),
        ("ärger", [(501, 0)]),
        ("100%", [(501, 1)]),
        ("%", [(501, 1)]),
        ("cust*", [(501, 0)]),
        ("c?st*_id", [(501, 0)]),
        ("ustomer*", []),
        ("*ustomer*", [(501, 0)]),
        ("students?", []),
        ("student?", [(501, 1)]),
        ("customer_id OR students", [(501, 1), (501, 0)]),
        ("customer_id students", []),
        ("(needle OR students) -cost", [(502, 0)]),
        ("sql:customer", [(501, 0)]),
        ("sql:students", []),
        ("method:get", [(507, 0)]),
        ("method:(GET OR POST)", [(507, 2), (507, 0)]),
        ("method:*", [(507, 2), (507, 0)]),
        ("host:a.b", [(507, 0)]),
        ("path:/v1/users", [(507, 0)]),
        ("path:/v1/*", [(507, 2), (507, 0)]),
        ("path:/v1/x", []),
        ("path:/v1/x*", [(507, 2)]),
        ("target:/v1/users?id=7", [(507, 0)]),
        ("status:404", [(507, 1)]),
        ("status:4*", [(507, 1)]),
        ("status:[400 TO 499]", [(507, 1)]),
        ("status:{404 TO 499]", []),
        ("status:>=404", [(507, 1)]),
        ("status:<404", []),
        ("kind:rows", [(501, 1)]),
        ("direction:server", [(507, 1), (501, 1)]),
        ("session:00000000-0000-0000-0000-0000000001f6", [(502, 0)]),
        ("subject:BOB", [(507, 2), (507, 1), (507, 0)]),
        ("subject:alice@* -needle", [(501, 1), (501, 0)]),
        ("act:planner students", [(501, 1)]),
        ("group:* students", [(501, 1)]),
        ("run:run-2 404", [(507, 1)]),
        ("lease:1111* 404", [(507, 1)]),
        ("client:web 404", [(507, 1)]),
        ("issuer:https://other 404", [(507, 1)]),
        ("coverage:partial 404", [(507, 1)]),
        ("ending:rst 404", [(507, 1)]),
        ("ending:open", []),
        ("finding:over* 404", [(507, 1)]),
        ("finding:gap 404", []),
        ("sni:shop.example 404", [(507, 1)]),
        ("database:shop students", [(501, 1)]),
        ("user:app students", [(501, 1)]),
        ("address:192.0.2.0/24 404", [(507, 1)]),
        ("client_address:10.5.0.1", [(501, 1), (501, 0)]),
        ("server_address:fd00::5 students", [(501, 1)]),
        ("client_address:[10.5.0.1 TO 10.5.0.2] -needle", [(501, 1), (501, 0)]),
        ("port:80 404", [(507, 1)]),
        ("port:[79 TO 81] 404", [(507, 1)]),
        ("server_port:40000", []),
        ("client_port:40000 404", [(507, 1)]),
        ("lane:relay node:second source:query 404", [(507, 1)]),
        ("flag:noted 404", [(507, 1)]),
        ("protocol:postgres students", [(501, 1)]),
        (f"time:[{times.rfc3339(samples.started(507) + 1)} TO *]", [(507, 2), (507, 1)]),
        (f"time:<{times.rfc3339(samples.started(501) + 1)}", [(501, 0)]),
        (f"time:{times.rfc3339(samples.started(501) + 1)}", [(501, 1)]),
        ("time:2025-11-23 404", [(507, 1)]),
        ("time:2025-11-22", []),
    ],
)
def test_search(store: Store, text: str, expected: list[tuple[int, int]]) -> None:
    page = query.search(store, text, samples.started(500), samples.started(508))
    assert list(zip(ids(page), [hit["seq"] for hit in page.items], strict=True)) == expected


def test_a_hit_tells_of_its_session_and_shows_the_match(store: Store) -> None:
    (hit,) = query.search(store, "needle", samples.started(500), samples.started(508)).items
    assert "needle" in hit["snippet"]
    assert len(hit["snippet"]) <= 240
    assert hit["text_cut"]
    assert len(hit["text"]) == 16_384
    assert hit["attrs"] == {"big": "z"}
    assert hit["session"]["identity"]["subject"] == "alice@example.com"
    assert hit["session"]["client"] == {"address": "10.5.0.2", "port": 40_000}
    assert hit["session"]["ending"] == "fin"  # of the last revision
    assert {"coverage", "findings", "protocol", "server", "started"} <= set(hit["session"])


def test_pages_of_hits(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    cursor = None
    while True:
        page = query.search(store, "*", samples.started(500), samples.started(508), 2, cursor)
        seen += zip(ids(page), [hit["seq"] for hit in page.items], strict=True)
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == [(507, 2), (507, 1), (507, 0), (502, 0), (501, 1), (501, 0)]


def test_relative_times_count_from_now(store: Store) -> None:
    now = samples.started(507) + 10
    assert len(query.search(store, "404", "10s", "now", now_ns=now).items) == 1
    assert query.search(store, "404", "10s", "now", now_ns=now + 60 * samples.SECOND).items == []
    assert len(query.search(store, "404 time:10s", now_ns=now).items) == 1


@pytest.mark.parametrize(
    "text", ["404' OR 1=1 --", "{q0:String}", "\\", "'", '"', "a\tb", "a\\\\b", "/*x*/", ";", "%s", "\N{SNOWMAN}"]
)
def test_odd_words_find_nothing_and_break_nothing(store: Store, text: str) -> None:
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    for asked in (quoted, f"subject:{quoted}", f"finding:{quoted}", f"path:{quoted}"):
        page = query.search(store, asked, samples.started(500), samples.started(508))
        assert not {(507, 1)} & set(zip(ids(page), [hit["seq"] for hit in page.items], strict=True))


@given(queries)
@settings(max_examples=60, deadline=None)
def test_what_compiles_runs(store: Store, text: str) -> None:
    try:
        query.search(store, text, limit=1)
    except MalformedInput:
        return


def test_sessions_stored_as_open_can_be_closed(store: Store) -> None:
    store.insert([samples.session(520, 0, source="left"), samples.session(521, 0, source="left")])
    store.insert([samples.session(521, 1, source="left")])
    assert unfinished.open_sessions(store, "left") == [samples.session(520, 0, source="left")]


def test_a_node_that_was_renamed_closes_what_it_had_open(store: Store) -> None:
    """Its journal says which names it had; those of other nodes in the same store are none of its business."""
    for number, node in ((530, "old"), (531, "new"), (532, "other")):
        store.insert([replace(samples.session(number, 0, source="renamed"), node=node)])
    for stream, position, node in (("mine", 1, "old"), ("theirs", 1, "other")):
        store.insert([EventRow(stream, position, 0, "open", "", "", {"node": node})])
    found = unfinished.open_sessions(store, "renamed", ("mine", "new"))
    assert [row.node for row in found] == ["old", "new"]
    assert [row.node for row in unfinished.open_sessions(store, "renamed")] == ["old", "new", "other"]
