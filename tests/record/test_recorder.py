"""The recorder: every row once, whatever dies when."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from uuid import UUID

import pytest

from appliance import config, record, status
from appliance.errors import DamagedEvidence, Unavailable
from appliance.journal import Frame, JournalKey, Writer
from appliance.model import ChunkRow, Coverage, Direction, Ending, EventRow, Row, SessionRow
from appliance.record import Recorder
from appliance.record.recorder import MAX_SNAPSHOT_PAUSE
from appliance.session import assembler
from appliance.store.rows import TABLES
from tests.lab.wait import until
from tests.session.test_assembler import busy, clock, hello, numbered, opened
from tests.session.traffic import MS, PSH, SECOND, STREAM, T0, Peer, Recorded, feed, ingest, span


class Killed(BaseException):
    """The process died here."""


class MemoryStore:
    """As the real one: rows of one table at a time, a batch that comes again counts once."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.batches: set[str] = set()
        self.die_at = 0  # operation in which the recorder dies: even: before it took effect, odd: behind it
        self.failures = 0  # operations to fail
        self.operations = 0

    def _operation(self) -> Iterator[None]:
        self.operations += 1
        if self.failures:
            self.failures -= 1
            raise Unavailable("store is away; start it")
        if self.die_at == 2 * self.operations:
            raise Killed
        yield
        if self.die_at == 2 * self.operations + 1:
            raise Killed

    def insert(self, batch: Sequence[Row], /) -> None:
        for kind in TABLES:
            members = tuple(row for row in batch if type(row) is kind)
            if members:
                for _ in self._operation():
                    token = repr(members)
                    if token not in self.batches:
                        self.batches.add(token)
                        self.rows += members

    def last_seqs(self, table: str, ids: Collection[UUID], /) -> dict[UUID, int]:
        found: dict[UUID, int] = {}
        for _ in self._operation():
            for row in self.rows:
                if not isinstance(row, EventRow) and TABLES[type(row)].name == table and row.session_id in ids:
                    found[row.session_id] = max(found.get(row.session_id, -1), row.seq)
        return found

    def last_position(self, stream: str, /) -> int | None:
        mine = (row.position for row in self.rows if isinstance(row, EventRow) and row.stream == stream)
        return max(mine, default=None)

    def unfinished(self, stream: str, node: str, source: str) -> list[SessionRow]:
        last: dict[UUID, SessionRow] = {}
        for row in self.rows:
            if isinstance(row, SessionRow) and row.source == source:
                last[row.session_id] = row
        return [row for row in last.values() if row.ending is Ending.OPEN]


class Ticking:
    """A clock on which every look costs some time."""

    def __init__(self, step: float = 0.2) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def settled(data: Path, **more: object) -> config.Settings:
    return config.Settings(data=data, node="gw", record=config.Record(snapshot=1.0), **more)  # type: ignore[arg-type]


LIMITS = config.Journal(segment_bytes=65536, max_bytes=1 << 24, min_free_bytes=1)


def write(settings: config.Settings, frames: Sequence[Frame], name: str = "wire") -> Path:
    folder = settings.data / "journal" / name
    with Writer(folder, JournalKey.load_or_create(settings.data), STREAM, settings=LIMITS) as writer:
        for one in frames:
            writer.append(
                one.kind,
                one.payload,
                ring_start=one.ring_start,
                ring_end=one.ring_end,
                layout=one.layout,
                time_ns=one.time_ns,
            )
    return folder


def made(settings: config.Settings, folder: Path, store: MemoryStore, *, step: float = 0.2) -> Recorder:
    return Recorder(settings, folder, store, store.unfinished, clock=Ticking(step))


def work(recorder: Recorder, turns: int = 10_000) -> None:
    """Until nothing is left to read or to store."""
    quiet = 0
    for _ in range(turns):
        quiet = 0 if recorder.step() or recorder.fault else quiet + 1
        if quiet > 20:
            return
    raise AssertionError("the recorder never came to rest")


def by_table(rows: Sequence[Row]) -> list[str]:
    """Rows of one session and table in order; nothing is promised on the order of others."""
    keyed = sorted(
        ((type(row).__name__, "", row.position) if isinstance(row, EventRow) else
         (type(row).__name__, str(row.session_id), row.seq), repr(row))
        for row in rows
    )  # fmt: skip
    return [text for _, text in keyed]


@pytest.fixture
def settings(tmp_path: Path) -> config.Settings:
    return settled(tmp_path)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches and snapshots out of little traffic; frames are worked off record by record."""
    monkeypatch.setattr(assembler, "PART_BYTES", 1)
    monkeypatch.setattr("appliance.record.recorder.MAX_ROWS", 8)
    monkeypatch.setattr("appliance.record.recorder.FRAMES_A_STEP", 3)


FRAMES = ingest(busy(), size=3)


def test_all_rows_arrive_and_segments_are_released(settings: config.Settings, small: None) -> None:
    folder = write(settings, FRAMES)
    store = MemoryStore()
    recorder = made(settings, folder, store)
    work(recorder)
    assert recorder.finish()
    assert by_table(store.rows) == by_table(feed(FRAMES))
    assert recorder.values()["backlog_bytes"] == 0
    assert recorder.values()["rows"] == len(store.rows)
    assert list(folder.glob("*.free"))
    recorder.close()


def test_segments_are_released_while_there_is_more_to_read(settings: config.Settings, small: None) -> None:
    folder = write(settings, FRAMES)
    recorder = made(settings, folder, MemoryStore())
    left = recorder.backlog()
    while not list(folder.glob("*.free")):
        assert recorder.step()
        left = recorder.backlog()
    assert left > 0
    recorder.close()


def test_a_store_that_kept_the_recorder_waiting_does_not_put_off_what_follows(
    settings: config.Settings, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(settings, FRAMES)
    store, clock = MemoryStore(), Ticking(0.01)
    recorder = Recorder(settings, folder, store, store.unfinished, clock=clock)
    insert = store.insert

    def slowly(batch: Sequence[Row]) -> None:
        clock.now += 3600.0
        insert(batch)

    monkeypatch.setattr(store, "insert", slowly)
    while not list(folder.glob("*.free")):
        assert recorder.step()
    monkeypatch.setattr(store, "insert", insert)
    done, begun = recorder._kept, clock.now
    while recorder._kept == done:
        recorder.step()
        assert clock.now - begun < MAX_SNAPSHOT_PAUSE
    recorder.close()


@pytest.mark.parametrize("block", range(4))
def test_killed_at_every_operation_of_the_store(tmp_path: Path, small: None, block: int) -> None:
    """The recorder dies before or behind any insertion or query; the next one makes up for it exactly."""
    expected = by_table(feed(FRAMES))
    die_at = 2 + block
    while True:
        data = tmp_path / str(die_at)
        settings = settled(data)
        folder = write(settings, FRAMES)
        store = MemoryStore()
        store.die_at = die_at
        recorder = made(settings, folder, store)
        died = False
        try:
            work(recorder)
        except Killed:
            died = True
            recorder.close()
            recorder = made(settings, folder, store)
            work(recorder)
        assert recorder.finish()
        recorder.close()
        assert by_table(store.rows) == expected, f"killed at {die_at}"
        if not died:
            assert die_at > 40
            return
        die_at += 4


@pytest.mark.parametrize("name", ["write_snapshot", "release", "replace"])
def test_killed_around_snapshots(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = by_table(feed(FRAMES))
    settings = settled(tmp_path)
    folder = write(settings, FRAMES)
    store = MemoryStore()
    deaths = 0
    while True:
        recorder = made(settings, folder, store)
        calls = 0

        def die(*values: object, **named: object) -> None:
            nonlocal calls
            calls += 1
            raise Killed

        with monkeypatch.context() as patched:
            if deaths < 4:
                if name == "write_snapshot":
                    patched.setattr(Recorder, name, die)
                elif name == "release":
                    patched.setattr(f"appliance.record.recorder.{name}", die)
                else:
                    patched.setattr(Path, name, die)
            try:
                work(recorder)
                assert recorder.finish()
                break
            except Killed:
                deaths += 1
            finally:
                recorder.close()
    assert deaths == 4
    assert by_table(store.rows) == expected


def test_a_store_that_is_away_stops_reading_and_loses_nothing(settings: config.Settings, small: None) -> None:
    folder = write(settings, FRAMES)
    store = MemoryStore()
    store.failures = 50
    recorder = made(settings, folder, store)
    before = recorder.backlog()
    for _ in range(10):
        assert not recorder.step() or not recorder.fault
    assert recorder.fault.startswith("store is away")
    assert recorder.values()["store"] == recorder.fault
    stopped = recorder.backlog()
    for _ in range(10):
        recorder.step()
    assert recorder.backlog() == stopped > 0
    assert stopped < before
    work(recorder)
    assert recorder.finish()
    assert recorder.fault == ""
    recorder.close()
    assert by_table(store.rows) == by_table(feed(FRAMES))


def test_a_stop_in_the_middle_goes_on_where_it_was(settings: config.Settings, small: None) -> None:
    """Sessions that are open at the stop are continued, not picked up anew."""
    folder = settings.data / "journal" / "wire"
    store = MemoryStore()
    third = len(FRAMES) // 3
    for part in (FRAMES[:third], FRAMES[third : 2 * third], FRAMES[2 * third :]):
        write(settings, part)
        recorder = made(settings, folder, store)
        work(recorder)
        assert recorder.finish()
        recorder.close()
    assert by_table(store.rows) == by_table(feed(FRAMES))


def live(settings: config.Settings) -> tuple[Path, MemoryStore]:
    """A session in the middle of the wire's stream, its first part stored and its segments released."""
    frames = numbered(opened(), clock(T0, T0), span(0, *hello(Peer())))
    filler = [span(0, *hello(Peer(client_port=port), port * MS)) for port in range(1000, 1100)]
    frames = numbered(*frames, *filler)
    folder = write(settings, frames)
    store = MemoryStore()
    recorder = made(settings, folder, store)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    return folder, store


@pytest.mark.parametrize("fault", ["missing", "damaged", "foreign"])
def test_a_lost_snapshot_is_told_and_sessions_end_interrupted(
    settings: config.Settings, small: None, fault: str
) -> None:
    folder, store = live(settings)
    snapshot = settings.data / "state" / "record-wire.snapshot"
    if fault == "missing":
        snapshot.unlink()
    elif fault == "damaged":
        snapshot.write_bytes(snapshot.read_bytes()[:-1])
    else:
        snapshot.write_bytes(b"verbatim-recorder 99 00\n")
    more = Peer().packet(0, PSH, 5, b"later", acked=6, time=5 * SECOND)
    clocks = [clock(T0 + n * SECOND, T0 + n * SECOND) for n in (5, 6)]
    write(settings, [clocks[0], span(0, more), clocks[1]])
    recorder = made(settings, folder, store)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    found = Recorded(store.rows)
    (event,) = [row for row in found.events if row.kind == "state-lost"]
    assert event.attrs["open_sessions"] == 101
    first, *_, last = found.sessions
    assert (first.ending, first.coverage, first.findings) == (
        Ending.INTERRUPTED, Coverage.PARTIAL, ("state-lost",),
    )  # fmt: skip
    assert first.client_bytes == 5
    assert (last.client_port, last.findings) == (40000, ("midstream",))
    positions = [row.position for row in found.events]
    assert len(set(positions)) == len(positions)


def test_a_lost_snapshot_with_a_whole_journal_loses_nothing(settings: config.Settings, small: None) -> None:
    """Nothing was released yet: everything is read again, and what is stored is skipped."""
    folder = write(settings, FRAMES[:5])
    store = MemoryStore()
    recorder = made(settings, folder, store)
    work(recorder)
    recorder.close()
    (settings.data / "state" / "record-wire.snapshot").unlink(missing_ok=True)
    write(settings, FRAMES[5:])
    recorder = made(settings, folder, store)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    assert by_table(store.rows) == by_table(feed(FRAMES))


def test_a_new_journal_in_place_of_the_old_one(settings: config.Settings, small: None) -> None:
    folder, store = live(settings)
    shutil.rmtree(folder)
    with Writer(folder, JournalKey.load_or_create(settings.data), bytes(16), settings=LIMITS) as writer:
        for one in numbered(opened(), clock(T0, T0), span(0, *hello(Peer(client_port=2)))):
            writer.append(one.kind, one.payload, time_ns=one.time_ns)
    recorder = made(settings, folder, store)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    found = Recorded(store.rows)
    assert {row.kind for row in found.events if row.stream == bytes(16).hex()} == {"state-lost", "open"}
    assert [row.ending for row in found.sessions] == [Ending.INTERRUPTED] * 101 + [Ending.OPEN]


def test_a_lost_snapshot_doubles_nothing_of_what_was_released(settings: config.Settings, small: None) -> None:
    """Also where the last segments that were read are still there: it goes on behind them."""
    settings = settled(settings.data, journal=config.Journal(keep_bytes=1 << 16))
    folder, store = live(settings)
    write(settings, [span(0, Peer().packet(0, PSH, 5 + n, b"x", acked=6, time=n * MS)) for n in range(1000)])
    recorder = made(settings, folder, store)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    assert list(folder.glob("*.free"))  # the first segment is gone, and others that were read are not
    assert len(list(folder.glob("*.seg"))) > 1
    before = len(Recorded(store.rows).sessions)
    (settings.data / "state" / "record-wire.snapshot").unlink()
    recorder = made(settings, folder, store)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    assert len(Recorded(store.rows).sessions) == before


def test_a_new_journal_and_no_snapshot_leave_no_session_open(settings: config.Settings, small: None) -> None:
    """Both are gone: what the store says to be open is over."""
    folder, store = live(settings)
    shutil.rmtree(folder)
    shutil.rmtree(settings.data / "state")
    renamed = settings.model_copy(update={"node": "renamed"})
    with Writer(folder, JournalKey.load_or_create(settings.data), bytes(16), settings=LIMITS) as writer:
        for one in numbered(opened(node="renamed"), clock(T0, T0), span(0, *hello(Peer(client_port=2)))):
            writer.append(one.kind, one.payload, time_ns=one.time_ns)
    recorder = made(renamed, folder, store)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    found = Recorded(store.rows)
    assert [row.ending for row in found.sessions] == [Ending.INTERRUPTED] * 101 + [Ending.OPEN]
    assert [row.kind for row in found.events if row.stream == bytes(16).hex()] == ["state-lost", "open"]


def test_the_journal_may_come_later_than_the_recorder(settings: config.Settings, small: None) -> None:
    """It was set aside and made anew meanwhile: the snapshot is of another one."""
    folder, store = live(settings)
    shutil.rmtree(folder)
    recorder = made(settings, folder, store)
    work(recorder, 50)
    with Writer(folder, JournalKey.load_or_create(settings.data), bytes(16), settings=LIMITS) as writer:
        for one in numbered(opened(), clock(T0, T0), span(0, *hello(Peer(client_port=2)))):
            writer.append(one.kind, one.payload, time_ns=one.time_ns)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    assert [row.ending for row in Recorded(store.rows).sessions] == [Ending.INTERRUPTED] * 101 + [Ending.OPEN]


def test_damage_in_the_journal_is_kept_aside_and_told_with_its_bounds(settings: config.Settings, small: None) -> None:
    folder = write(settings, FRAMES)
    segment = folder / "0000000000000001.seg"
    data = bytearray(segment.read_bytes())
    at = len(data) // 200
    data[at] ^= 1
    segment.write_bytes(data)
    store = MemoryStore()
    recorder = made(settings, folder, store)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    (gap,) = [row for row in Recorded(store.rows).events if row.kind == "journal-gap"]
    assert gap.attrs["segment"] == 1
    assert gap.attrs["start"] <= at < gap.attrs["end"]
    (copy,) = (folder / "damaged").iterdir()
    assert bytes(data[gap.attrs["start"] : gap.attrs["end"]]) in copy.read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")
def test_a_full_disk_costs_no_row_and_is_told(tmp_path: Path, small: None) -> None:
    """Snapshots find no room: the last one stays, the journal is not released, and rows go on."""
    settings = settled(tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "vb-full", str(state)], check=True)
    try:
        (state / "filler").write_bytes(bytes(4096))
        folder = write(settings, FRAMES)
        store = MemoryStore()
        recorder = made(settings, folder, store)
        work(recorder)
        assert "No space left on device; make room" in str(recorder.values()["faults"])
        assert not list(folder.glob("*.free"))
        assert [path.name for path in state.iterdir()] == ["filler"]
        assert by_table(store.rows) == by_table(feed(FRAMES))
        recorder.close()
        (state / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=16m", str(state)], check=True)
        recorder = made(settings, folder, store)
        work(recorder)
        assert recorder.finish()
        assert recorder.values()["faults"] == {}
        recorder.close()
    finally:
        subprocess.run(["umount", str(state)], check=True)
    assert by_table(store.rows) == by_table(feed(FRAMES))


def test_a_journal_that_is_not_there_yet(settings: config.Settings) -> None:
    store = MemoryStore()
    recorder = made(settings, settings.data / "journal" / "wire", store)
    work(recorder, 50)
    assert recorder.values()["backlog_bytes"] == 0
    write(settings, FRAMES)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    assert by_table(store.rows) == by_table(feed(FRAMES))


def test_the_snapshot_is_private(settings: config.Settings, small: None) -> None:
    live(settings)
    snapshot = settings.data / "state" / "record-wire.snapshot"
    assert snapshot.stat().st_mode & 0o777 == 0o600


# -- ingest ----------------------------------------------------------------------------------------------------------


def test_drain_stores_a_finished_stream_and_tells_how_far_it_is(settings: config.Settings, small: None) -> None:
    folder = write(settings, FRAMES, "ingest-1")
    store = MemoryStore()
    said: list[tuple[int, int]] = []
    record.drain(settings, folder, store, lambda done, total: said.append((done, total)))
    assert by_table(store.rows) == by_table(feed(FRAMES))
    assert said[-1][0] == said[-1][1] > 0
    assert said == sorted(said)
    assert not list((settings.data / "state").glob("*ingest*"))
    assert not list(folder.glob("*.free"))
    record.drain(settings, folder, store, lambda done, total: None)
    assert by_table(store.rows) == by_table(feed(FRAMES))


def test_drain_goes_on_after_it_was_killed(settings: config.Settings, small: None) -> None:
    folder = write(settings, FRAMES, "ingest-1")
    store = MemoryStore()
    for die_at in range(2, 60, 5):
        store.die_at = 2 * store.operations + die_at
        try:
            record.drain(settings, folder, store, lambda done, total: None)
        except Killed:
            continue
    store.die_at = 0
    record.drain(settings, folder, store, lambda done, total: None)
    assert by_table(store.rows) == by_table(feed(FRAMES))


def test_drain_of_a_stream_without_an_end(settings: config.Settings) -> None:
    folder = write(settings, FRAMES[:-1], "ingest-1")
    with pytest.raises(DamagedEvidence, match="has no end"):
        record.drain(settings, folder, MemoryStore(), lambda done, total: None)


def test_drain_gives_up_on_a_store_that_stays_away(settings: config.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.record.service.PATIENCE", 0.05)
    folder = write(settings, FRAMES, "ingest-1")
    store = MemoryStore()
    store.failures = 1 << 30
    with pytest.raises(Unavailable, match="store is away"):
        record.drain(settings, folder, store, lambda done, total: None)


# -- the service -----------------------------------------------------------------------------------------------------

SERVICE = """
import sys
from pathlib import Path
from appliance import config, record
record.run(config.Settings(data=Path(sys.argv[1]), node="gw", record={"snapshot": 0.2}))
"""


def test_the_service_stores_publishes_and_ends_cleanly(tmp_path: Path) -> None:
    """The real thing beside a real store, which starts after it; stopped by SIGTERM, killed by SIGKILL, read back."""
    from appliance.store.client import open_store
    from appliance.store.unfinished import open_sessions

    settings = settled(tmp_path)
    write(settings, numbered(opened(), clock(T0, T0), span(0, *hello(Peer()))))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SERVICE, str(tmp_path)], env=environment)

    def said_of_the_store() -> str:
        said = status.read(tmp_path).get("record")
        return str(said.values["store"]) if said else ""

    def caught_up(sessions: int) -> bool:
        said = status.read(tmp_path).get("record")
        return bool(
            said
            and said_of_the_store() == "ok"
            and said.values.get("backlog_bytes") == 0
            and said.values.get("sessions_open") == sessions
        )

    service = start()
    served = None
    try:
        until(lambda: "not served" in said_of_the_store(), "the recorder misses its store", 40)
        served = subprocess.Popen(
            [sys.executable, "-m", "appliance", "store", "--data", str(tmp_path)], env=environment
        )
        until(lambda: caught_up(1), "all is stored", 40)
        service.kill()
        service.wait(20)
        write(settings, [clock(T0 + SECOND, T0 + SECOND), span(0, *hello(Peer(client_port=7), SECOND))])
        service = start()
        until(lambda: caught_up(2), "what came since is stored", 40)
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0
        assert "record" not in status.read(tmp_path)
        with open_store(settings, "reader", embed=False) as store:
            counted = store.select(
                "SELECT client_port, uniqExact(session_id, seq) AS a, count() AS b FROM sessions GROUP BY client_port"
            )
            assert sorted((row["client_port"], row["a"] == row["b"]) for row in counted) == [(7, True), (40000, True)]
            rows = open_sessions(store, "wire", (STREAM.hex(), "gw"))
    finally:
        service.kill()
        service.wait(20)
        if served is not None:
            served.terminate()
            served.wait(30)
    assert [row.client_port for row in rows] == [40000, 7]
    assert rows[0].started_ns == T0
    assert rows[0].ending is Ending.OPEN


def test_rows_are_what_the_store_will_sort() -> None:
    """All rows of a session carry its start: the partition that keeps their order."""
    rows = feed(FRAMES)
    starts = {row.session_id: row.started_ns for row in rows if isinstance(row, SessionRow)}
    for row in rows:
        if not isinstance(row, EventRow):
            assert row.started_ns == starts[row.session_id]
    assert any(isinstance(row, ChunkRow) and row.direction is Direction.CLIENT for row in rows)


def test_a_batch_is_not_as_large_as_what_a_frame_makes(
    settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One frame can hold bodies that decode to far more than its size; its rows leave in between."""
    monkeypatch.setattr("appliance.record.recorder.MAX_ROWS", 5)
    monkeypatch.setattr(assembler, "PART_BYTES", 1)
    frames = ingest(busy(), size=30)
    folder = write(settings, frames)
    store = MemoryStore()
    sizes: list[int] = []
    insert = store.insert

    def counted(batch: Sequence[Row], /) -> None:
        sizes.append(len(batch))
        insert(batch)

    monkeypatch.setattr(store, "insert", counted)
    recorder = made(settings, folder, store)
    work(recorder)
    assert recorder.finish()
    recorder.close()
    assert by_table(store.rows) == by_table(feed(frames))
    assert len(sizes) > len(frames)


def test_what_is_left_of_a_frame_at_the_end_is_stored(settings: config.Settings, small: None) -> None:
    folder = write(settings, ingest(busy(), size=30))
    store = MemoryStore()
    recorder = made(settings, folder, store)
    while not store.rows:
        recorder.step()
    assert len(store.rows) < len(feed(ingest(busy(), size=30)))
    assert recorder.finish()
    recorder.close()
    again = made(settings, folder, store)
    work(again)
    assert again.finish()
    again.close()
    assert by_table(store.rows) == by_table(feed(ingest(busy(), size=30)))
