"""Files that are replaced as a whole: whoever is killed at any operation leaves the former one or the new one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import config, status
from appliance.identity.leases import LeaseTable, Now
from appliance.journal import JournalKey
from appliance.model import Identity
from appliance.record import Recorder
from appliance.wire import leasing
from tests.killing import Say, killed_at
from tests.record.test_recorder import FRAMES, MemoryStore, by_table, made, settled, work, write
from tests.session.traffic import feed

NOW = Now(1_790_000_000_000_000_000, 500_000_000_000, "boot")


def at_every_operation(job: Callable[[Say], None], check: Callable[[bool], None], least: int) -> None:
    for number in range(10_000):
        died, _ = killed_at(number, job)
        check(died)
        if not died:
            assert number // 2 >= least
            return
    raise AssertionError("it never ended")


def test_status(tmp_path: Path) -> None:
    status.publish(tmp_path, "wire", {"turn": 0})

    def check(died: bool) -> None:
        assert status.read(tmp_path)["wire"].values["turn"] in ((0, 1) if died else (1,))
        status.publish(tmp_path, "wire", {"turn": 0})

    at_every_operation(lambda say: status.publish(tmp_path, "wire", {"turn": 1}), check, 2)


def test_leases(tmp_path: Path) -> None:
    path = tmp_path / "leases.json"
    ann = Identity(issuer="https://idp.example", subject="ann")
    empty = LeaseTable(3600, 10)
    held, _ = empty.grant("192.0.2.7", ann, NOW.unix + 10**12, NOW, 7, "agents0")
    leasing.save(path, empty)

    def check(died: bool) -> None:
        found = len(leasing.load(path, 3600, 10, NOW).leases)
        assert found in ((0, 1) if died else (1,))
        leasing.save(path, empty)

    at_every_operation(lambda say: leasing.save(path, held), check, 3)


def test_the_journal_key(tmp_path: Path) -> None:
    folders = iter(range(10_000))
    current = tmp_path / str(next(folders))

    def check(died: bool) -> None:
        nonlocal current
        key = JournalKey.load_or_create(current)
        assert JournalKey.load_or_create(current) == key
        current = tmp_path / str(next(folders))

    def make(say: Say) -> None:
        JournalKey.load_or_create(current)

    at_every_operation(make, check, 4)


def test_a_snapshot_and_the_release_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder dies while it keeps its state: the next one goes on from the former one or from the new one."""
    monkeypatch.setattr("appliance.record.recorder.MAX_ROWS", 8)
    monkeypatch.setattr("appliance.record.recorder.FRAMES_A_STEP", 3)
    expected = by_table(feed(FRAMES))
    folders = iter(range(10_000))

    def begin() -> tuple[config.Settings, Path, MemoryStore]:
        settings = settled(tmp_path / str(next(folders)))
        folder = write(settings, FRAMES[: len(FRAMES) // 2])
        store = MemoryStore()
        first = made(settings, folder, store)
        work(first)
        first.write_snapshot()
        first.close()
        write(settings, FRAMES[len(FRAMES) // 2 :])
        return settings, folder, store

    for number in range(10_000):
        settings, folder, store = begin()
        reader = made(settings, folder, store)
        work(reader)

        def keep(say: Say, reader: Recorder = reader) -> None:
            reader.write_snapshot()

        died, _ = killed_at(number, keep)
        reader.close()
        following = made(settings, folder, store)
        work(following)
        assert following.finish()
        following.close()
        assert by_table(store.rows) == expected, number
        if not died:
            assert number // 2 >= 6
            return
    raise AssertionError("it never ended")
