"""What a recorder does until it is past all that the one before it may have stored."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from appliance import config, status
from appliance.errors import Refused, Unavailable
from appliance.journal import Frame
from appliance.model import Ending, SessionRow
from appliance.record import Recorder
from appliance.record.recorder import BACK_OFF
from appliance.record.snapshot import Snapshot
from appliance.session import assembler
from tests.record.test_recorder import MemoryStore, Ticking, by_table, live, made, settled, work, write
from tests.session.test_assembler import clock, hello, numbered, opened
from tests.session.traffic import MS, PSH, SECOND, T0, Peer, Recorded, feed, span

MANY = numbered(opened(), clock(T0, T0), *[span(0, *hello(Peer(client_port=port), port * MS)) for port in range(1, 60)])


@pytest.fixture
def settings(tmp_path: Path) -> config.Settings:
    return settled(tmp_path)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembler, "PART_BYTES", 1)
    monkeypatch.setattr("appliance.record.recorder.MAX_ROWS", 8)
    monkeypatch.setattr("appliance.record.recorder.FRAMES_A_STEP", 3)


def within(data: Path, **limits: float) -> config.Settings:
    """Such limits, and no snapshot for as long as a test takes but those that must be."""
    return config.Settings(data=data, node="gw", record=config.Record.model_validate({"snapshot": 3600.0, **limits}))


def lose(settings: config.Settings) -> None:
    (settings.data / "state" / "record-wire.snapshot").unlink()


def later(start: int, count: int, size: int = 1) -> list[Frame]:
    """Data on the first session of `live`, one packet a frame."""
    return [
        span(0, Peer().packet(0, PSH, 5 + size * n, bytes(size), acked=6, time=start + n * MS)) for n in range(count)
    ]


# -- other limits ----------------------------------------------------------------------------------------------------


def test_other_limits_give_no_other_rows_after_a_crash(tmp_path: Path) -> None:
    """What may be stored is read again within the limits of then, whatever they are now."""
    store = MemoryStore()
    folder = write(within(tmp_path), MANY)
    changes: list[dict[str, float]] = [{}, {"max_sessions": 4}, {"idle": 0.001}, {}]
    for turn, limits in enumerate(changes):
        recorder = made(within(tmp_path, **limits), folder, store)
        before = len(store.rows)
        work(recorder)  # reads again what was stored before the crash
        assert turn == 0 or len(store.rows) == before
        time = (turn + 1) * SECOND
        write(within(tmp_path), [span(0, *hello(Peer(client_port=100 * turn + n), time)) for n in range(200, 220)])
        work(recorder)
        assert recorder.finish(snapshot=False)
        recorder.close()  # and it dies
        endings = Counter(row.ending for row in Recorded(store.rows).sessions)  # no row twice, none missing
        assert endings.total() == 59 + 20 * (turn + 1)
        assert turn != 1 or endings[Ending.OPEN] <= 4
        assert turn != 2 or endings[Ending.IDLE] > 0


def test_other_limits_give_no_other_rows_after_a_crash_soon_after_the_first_start(tmp_path: Path) -> None:
    store = MemoryStore()
    folder = write(within(tmp_path), MANY)
    recorder = made(within(tmp_path), folder, store)
    while len(store.rows) < 50:
        assert recorder.step()
    recorder.close()
    recorder = made(within(tmp_path, max_sessions=4), folder, store)
    work(recorder)
    recorder.close()
    assert by_table(store.rows) == by_table(feed(MANY))


def test_limits_stay_as_they_are_while_no_snapshot_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    folder = write(within(tmp_path), MANY[:10])
    recorder = made(within(tmp_path), folder, store)
    work(recorder)
    assert recorder.finish()
    recorder.close()

    def full(self: Snapshot, content: object) -> None:
        raise OSError(28, "No space left on device")

    recorder = made(within(tmp_path, max_sessions=1), folder, store)
    with monkeypatch.context() as patched:
        patched.setattr(Snapshot, "write", full)
        write(within(tmp_path), MANY[10:])
        work(recorder)
        assert recorder.finish()
        assert "make room" in str(recorder.values()["faults"])
    recorder.close()
    recorder = made(within(tmp_path), folder, store)
    work(recorder)
    recorder.close()
    assert by_table(store.rows) == by_table(feed(MANY))


# -- the end of it ---------------------------------------------------------------------------------------------------


def test_it_does_not_end_before_anything_was_read(settings: config.Settings) -> None:
    """The recorder has lost its state, starts before the wire process, and has nothing to read for a while."""
    folder, store = live(settings)
    lose(settings)
    recorder = made(settings, folder, store)
    work(recorder, 100)
    assert [row.ending for row in Recorded(store.rows).sessions] == [Ending.OPEN] * 101
    write(settings, [clock(T0 + SECOND, T0 + SECOND), span(0, *hello(Peer(client_port=7), 5 * SECOND))])
    work(recorder)
    assert recorder.finish()
    recorder.close()
    assert [row.ending for row in Recorded(store.rows).sessions] == [Ending.INTERRUPTED] * 101 + [Ending.OPEN]


def test_it_ends_under_a_load_that_never_pauses(settings: config.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store = live(settings)
    lose(settings)
    write(settings, later(5 * SECOND, 100))
    recorder = made(settings, folder, store)
    write(settings, later(6 * SECOND, 400, 1000))  # several segments more, before it has read any of it
    asked = 0
    ask = store.last_seqs

    def counted(table: str, ids: Collection[UUID]) -> dict[UUID, int]:
        nonlocal asked
        asked += 1
        return ask(table, ids)

    monkeypatch.setattr(store, "last_seqs", counted)
    while sum(row.ending is Ending.INTERRUPTED for row in Recorded(store.rows).sessions) < 101:
        assert recorder.step()
        assert recorder.backlog() > 100_000, "only a pause ended it"
    assert asked > 0
    before = asked
    while recorder.backlog() > 50_000:
        recorder.step()
    assert asked == before
    work(recorder)
    assert recorder.finish()
    recorder.close()
    assert [row.ending for row in Recorded(store.rows).sessions] == [Ending.INTERRUPTED] * 101 + [Ending.OPEN]


class Failing(MemoryStore):
    """Fails at one operation."""

    fail_at = 0

    def _operation(self) -> Iterator[None]:
        if self.operations + 1 == self.fail_at:
            self.failures = 1
        return super()._operation()


def stopped(settings: config.Settings, fail_at: int) -> tuple[list[str], bool]:
    """The rows of a recorder without a state that is stopped at its first failure, and of the next one."""
    folder, past = live(settings)
    lose(settings)
    store = Failing()
    store.rows = list(past.rows)
    recorder = made(settings, folder, store)
    write(settings, later(6 * SECOND, 100, 1000))
    store.fail_at = fail_at
    while not recorder.fault and (recorder.step() or recorder.backlog()):
        pass
    failed = bool(recorder.fault)
    while not recorder.finish():
        pass
    recorder.close()
    recorder = made(settings, folder, store)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    return by_table(store.rows), failed


def test_a_stop_while_the_store_is_away_leaves_out_no_frame(tmp_path: Path) -> None:
    """Also where a frame was read and could not be taken yet."""
    expected, _ = stopped(settled(tmp_path / "never"), 0)
    number, failed = 0, True
    while failed:
        number += 1
        rows, failed = stopped(settled(tmp_path / str(number)), number)
        assert rows == expected, f"failed at operation {number}"
    assert number > 6


# -- what was open ---------------------------------------------------------------------------------------------------


def test_a_store_that_cannot_say_what_was_open_stops_nothing(settings: config.Settings) -> None:
    """Too many revisions for one query: that is told, and recording goes on."""
    folder, store = live(settings)
    lose(settings)

    def refused(stream: str, node: str, source: str) -> list[SessionRow]:
        raise Refused("query exceeds the store's limits; narrow its time range or its terms")

    recorder = Recorder(settings, folder, store, refused, clock=Ticking())
    write(settings, [clock(T0 + SECOND, T0 + SECOND), span(0, *hello(Peer(client_port=7), 5 * SECOND))])
    work(recorder)
    assert recorder.finish()
    assert recorder.values()["faults"] == {}
    recorder.close()
    found = Recorded(store.rows)
    (event,) = [row for row in found.events if row.kind == "state-lost"]
    assert event.attrs["open_sessions"] is None
    assert "not known: query exceeds the store's limits" in event.text
    assert found.sessions[-1].client_port == 7


def test_a_store_that_is_away_at_the_start_is_asked_ever_less_often(settings: config.Settings) -> None:
    asked = 0

    def away(stream: str, node: str, source: str) -> list[SessionRow]:
        nonlocal asked
        asked += 1
        raise Unavailable("store is away; start it")

    ticking = Ticking(0.001)
    recorder = Recorder(settings, write(settings, MANY), MemoryStore(), away, clock=ticking)
    while ticking.now < 60:
        assert not recorder.step()
    recorder.close()
    assert asked < 60 / BACK_OFF[1] + 10


# -- the service -----------------------------------------------------------------------------------------------------

FAILING = """
import sys
from pathlib import Path
from appliance import config, record
from appliance.record import Recorder

def fails(self):
    raise KeyError("a mistake of ours")

values = Recorder.values
Recorder.values = lambda self: (values(self), setattr(Recorder, "step", fails))[0]
record.run(config.Settings(data=Path(sys.argv[1]), node="gw"))
"""


def test_a_recorder_that_fails_is_not_told_as_one_that_was_stopped(tmp_path: Path) -> None:
    """Only who ends on purpose takes back what it said of itself."""
    write(settled(tmp_path), MANY[:2])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    ended = subprocess.run(
        [sys.executable, "-c", FAILING, str(tmp_path)], env=environment, capture_output=True, check=False, timeout=60
    )
    assert ended.returncode == 1
    assert b"a mistake of ours" in ended.stderr
    assert "record" in status.read(tmp_path)
