"""Sessions that a lost state left open, found among revisions of years within the memory of one query."""

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from appliance.config import Settings
from appliance.errors import Refused
from appliance.model import Ending, SessionRow
from appliance.store import unfinished
from appliance.store.client import Store, open_store
from tests.store import samples

DAYS = 4
SESSIONS = 1000  # a day
REVISIONS = 10
MEMORY = 48 * 2**20  # of one query; all revisions of all sessions take about 150


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Days of sessions with many revisions, large in `attrs`; each hundredth was never closed."""
    data = tmp_path_factory.mktemp("open")
    with open_store(Settings(data=data), "writer") as found:
        for day in range(DAYS):
            found.insert([row for at in range(SESSIONS) for row in revisions(day, at)])
        yield found


def revisions(day: int, at: int) -> Iterator[SessionRow]:
    row = samples.session(day * SESSIONS + at, started_ns=samples.START + day * unfinished.DAY_NS + at)
    row = replace(row, attrs={"note": "abcdefgh" * 500})
    for seq in range(REVISIONS):
        yield replace(row, seq=seq)
    if at % 100:
        yield replace(row, seq=REVISIONS, ending=Ending.FIN)


def test_what_is_open_is_found_within_little_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    link = store._enter()
    link.leave()
    link.client.set_client_setting("max_memory_usage", str(MEMORY))
    with pytest.raises(Refused, match="exceeds the store's limits"):
        store.select("SELECT * FROM sessions ORDER BY seq DESC LIMIT 1 BY session_id")
    found = unfinished.open_sessions(store, "wire")
    assert [row.session_id for row in found] == [
        samples.number(day * SESSIONS + at) for day in range(DAYS) for at in range(0, SESSIONS, 100)
    ]
    assert {(row.seq, row.ending) for row in found} == {(REVISIONS - 1, Ending.OPEN)}


def test_a_day_that_is_too_much_is_looked_through_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine refuses whatever spans more than an hour."""
    whole = unfinished.open_sessions(store, "wire")
    select = store.select
    refused = 0

    def picky(sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        nonlocal refused
        if "HAVING" in sql and parameters["last"] - parameters["first"] > 3600 * samples.SECOND:
            refused += 1
            raise Refused("query exceeds the store's limits; narrow its time range or its terms")
        return select(sql, parameters)

    monkeypatch.setattr(store, "select", picky)
    assert unfinished.open_sessions(store, "wire") == whole
    assert refused > DAYS


def test_what_is_too_much_even_in_the_smallest_parts_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    select = store.select

    def picky(sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        if "HAVING" in sql:
            raise Refused("query exceeds the store's limits; narrow its time range or its terms")
        return select(sql, parameters)

    monkeypatch.setattr(store, "select", picky)
    with pytest.raises(Refused):
        unfinished.open_sessions(store, "wire")
