"""How far the recorder says that it is behind: the age of the oldest record that is not in the store."""

import time
from pathlib import Path

import pytest

from appliance.errors import Unavailable
from appliance.model import SessionRow
from appliance.record import Recorder
from appliance.status import Status
from tests.record.test_recorder import MemoryStore, made, settled, work, write
from tests.session.test_assembler import busy
from tests.session.traffic import ingest

FRAMES = ingest(busy(), size=3)


def test_the_lag_is_that_of_the_oldest_record_that_is_not_stored(tmp_path: Path) -> None:
    settings = settled(tmp_path)
    folder = write(settings, FRAMES)
    store = MemoryStore()
    store.failures = 10_000
    recorder = made(settings, folder, store)
    for _ in range(500):
        recorder.step()
    values = recorder.values()
    assert recorder.fault
    assert values["rows"] == 0
    times = [frame.time_ns for frame in FRAMES]
    assert values["unstored_ns"] in times
    assert values["read_ns"] in times
    assert values["lag_seconds"] == pytest.approx(time.time() - int(str(values["unstored_ns"])) / 1e9, abs=5)
    assert Status("record", 1, 0.0, values).faults.keys() == {"store-refuses"}

    store.failures = 0
    work(recorder)
    assert recorder.finish()
    values = recorder.values()
    assert (values["lag_seconds"], values["unstored_ns"], values["read_ns"]) == (0.0, 0, times[-1])
    assert Status("record", 1, 0.0, values).faults == {}
    recorder.close()


def test_a_store_that_is_away_from_the_start_shows_as_lag_too(tmp_path: Path) -> None:
    def away(stream: str, node: str, source: str) -> list[SessionRow]:
        raise Unavailable("store is away; start it")

    settings = settled(tmp_path)
    recorder = Recorder(settings, write(settings, FRAMES), MemoryStore(), away)
    assert not recorder.step()
    values = recorder.values()
    assert values["read_ns"] == FRAMES[0].time_ns
    assert float(str(values["lag_seconds"])) > 0
    recorder.close()
