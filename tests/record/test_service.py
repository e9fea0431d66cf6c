"""The recorder as a process: what it says while it waits."""

import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from appliance import status
from appliance.record import service
from appliance.record.streams import Streams
from tests.record.test_recorder import MemoryStore, settled, write
from tests.session.test_assembler import numbered, opened


class Turns(threading.Event):
    """Set after a number of waits, which take no time."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def wait(self, timeout: float | None = None) -> bool:
        self.left -= 1
        if not self.left:
            self.set()
        return self.is_set()


def test_a_journal_of_another_version_is_logged_once_however_long_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, store = settled(tmp_path), MemoryStore()
    name = write(settings, numbered(opened())) / "stream"
    name.write_text(name.read_text().replace("verbatim-journal 1", "verbatim-journal 0"))
    ended = Turns(5)
    streams = Streams(settings, store, store.unfinished)
    monkeypatch.setattr(service, "LOOK", 0.0)
    with capture_logs() as said:
        service._serve(streams, tmp_path, ended)
    assert ended.left == 0
    assert [line["event"] for line in said] == ["journal-version"]
    assert "journal-version" in status.read(tmp_path)["record"].faults
