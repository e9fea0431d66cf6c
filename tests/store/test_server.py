"""The same store on a real ClickHouse server. Opt-in: CLICKHOUSE_URL=http://user:password@host:port/database."""

import os
import uuid
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.config import Store as StoreSettings
from appliance.model import Direction, Row
from appliance.store import query
from appliance.store.client import open_store
from tests.store import samples

URL = os.environ.get("CLICKHOUSE_URL", "")

pytestmark = pytest.mark.skipif(not URL, reason="CLICKHOUSE_URL names no ClickHouse server to test against")


def test_rows_go_in_once_and_come_back(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, store=StoreSettings(url=URL))
    of = uuid.uuid4().int % 10**9
    batch: list[Row] = [
        samples.session(of, 1),
        samples.message(of, 0, "SELECT Customer_ID", sql="SELECT Customer_ID"),
        samples.chunk(of, 0, Direction.CLIENT, 0, bytes(range(256))),
    ]
    with open_store(settings, "writer") as store:
        store.insert(batch)
        store.insert(batch)
        assert store.last_seqs("messages", [samples.number(of)]) == {samples.number(of): 0}
    with open_store(settings, "reader") as store:
        assert b"".join(query.plain_stream(store, samples.number(of), "client")) == bytes(range(256))
        found = query.search(store, f"customer_id session:{samples.number(of)}")
        assert [hit["seq"] for hit in found.items] == [0]
