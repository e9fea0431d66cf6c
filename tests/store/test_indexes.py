"""A skip index that cannot be read, as a merge on a full disk may leave it, keeps nobody from the rows."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.store import engine, rows
from appliance.store.client import open_store
from appliance.store.face import READER_LIMITS
from appliance.store.search import search
from tests.store import samples
from tests.store.conftest import serving

MEMORY = 2 * 2**30
MESSAGES = [samples.message(1, seq, f"word{seq} hello") for seq in range(3000)]
SETTINGS = "getSetting('use_skip_indexes'), getSetting('readonly')"
BY_TEXT = f"SELECT seq, {SETTINGS} FROM messages WHERE hasAllTokens(lowerUTF8(search_text), ['word5', 'hello'])"
BY_TIME = f"SELECT count(), {SETTINGS} FROM messages WHERE ts < toDateTime64('2000-01-01', 9)"


def empty(data: Path, ending: str) -> None:
    found = [path for path in data.rglob("skp_idx*") if path.name.endswith(ending)]
    assert found
    for path in found:
        os.truncate(path, 0)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("ending", "asked", "answer", "code"),
    [
        (".idx", BY_TEXT, "5", 32),
        (".packed", BY_TIME, "0", 33),
        (".cmrk4", BY_TEXT, "5", 246),
    ],
)
def test_a_handle_asks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, asked: str, answer: str, code: int, streamed: bool
) -> None:
    with engine.create(tmp_path, MEMORY) as handle:
        handle.insert(rows.encode(rows.MESSAGES, MESSAGES))
        empty(tmp_path, ending)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "UNREADABLE", frozenset())
            with pytest.raises(RuntimeError, match=f"Code: {code}"):
                handle.run(asked)
        with handle.another(READER_LIMITS) as reader:
            said = b"".join(reader.stream(asked, "TabSeparated", {})) if streamed else reader.run(asked)
            assert said.decode().split() == [answer, "false", "1"]


@pytest.mark.parametrize("served", [True, False])
def test_a_search_finds_what_is_there(tmp_path: Path, served: bool) -> None:
    settings = Settings(data=tmp_path)
    with ExitStack() as stack:
        if served:
            stack.enter_context(serving(tmp_path))
        store = stack.enter_context(open_store(settings, "writer"))
        store.insert(MESSAGES)
        empty(tmp_path, ".idx")
        found = search(store, "word5", since=samples.START, until=samples.START + 10**15)
        assert [hit["seq"] for hit in found.items] == [5]
