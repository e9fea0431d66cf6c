"""A store whose disk fills: what it says to have stored is stored, each row once, whatever the engine believes."""

import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.errors import Unavailable
from appliance.model import Direction, Row
from appliance.store import engine, rows
from appliance.store.client import open_store
from appliance.store.rows import TABLES, AuditRow, Block
from appliance.store.stock import Stock
from tests.lab.disk import Disk, root, small_disk
from tests.store import samples
from tests.store.conftest import serving

MEMORY = 4 * 2**30
SMALL, LARGE = 24, 96  # MiB
CHUNKS = 20  # of 64 KiB in a block


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", SMALL) as found:
        yield found


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills between the look at its room and the insert: the engine itself meets its end."""
    monkeypatch.setattr(Stock, "room", lambda self, size: None)


def chunks(number: int) -> Block:
    noise = random.Random(number)
    return rows.encode(
        rows.CHUNKS,
        [
            samples.chunk(
                1, number * CHUNKS + n, Direction.SERVER, (number * CHUNKS + n) * 65536, noise.randbytes(65536)
            )
            for n in range(CHUNKS)
        ],
    )


def count(handle: engine.Handle, table: str) -> int:
    return int(handle.run(f"SELECT count() FROM {table}"))


def a_row_of_each() -> list[Row | AuditRow]:
    return [
        samples.session(2),
        samples.message(2, 0, "word"),
        samples.chunk(2, 0, Direction.CLIENT, 0, b"word"),
        samples.finding(2, 0, "gap"),
        samples.event("full", 1),
        AuditRow(samples.START, "alice", "search", "/v1/search"),
    ]


@root
def test_what_a_full_disk_refused_is_an_error_and_can_be_repeated(disk: Disk, blind: None) -> None:
    with engine.create(disk.path, MEMORY) as handle:
        handle.run("SYSTEM STOP MERGES chunks")  # they need the reserve, which a store that is blind has not kept
        refused = []
        for number in range(SMALL):
            there = count(handle, "chunks")
            try:
                assert handle.insert(chunks(number)) == CHUNKS
            except Unavailable as error:
                refused.append(str(error))
                assert count(handle, "chunks") == there
            else:
                assert count(handle, "chunks") == there + CHUNKS
        assert 0 < len(refused) < SMALL
        assert all("its disk is full; free disk space" in text for text in refused)
        disk.resize(LARGE)
        handle.run("SYSTEM START MERGES chunks")
        for _ in range(2):
            for number in range(SMALL):
                assert handle.insert(chunks(number)) == CHUNKS
        assert count(handle, "chunks") == SMALL * CHUNKS
        assert handle.run("SELECT uniqExact(seq) FROM chunks").strip() == b"%d" % (SMALL * CHUNKS)


@root
def test_rows_of_every_table_wait_for_room(disk: Disk, blind: None) -> None:
    with engine.create(disk.path, MEMORY) as handle:
        disk.fill(leave=0)
        blocks = [rows.encode(TABLES[type(row)], [row]) for row in a_row_of_each()]
        for block in blocks:
            with pytest.raises(Unavailable, match="its disk is full"):
                handle.insert(block)
        assert [count(handle, block.table) for block in blocks] == [0] * 6
        disk.free()
        for _ in range(2):
            assert [handle.insert(block) for block in blocks] == [1] * 6
        assert [count(handle, block.table) for block in blocks] == [1] * 6


@root
def test_nothing_is_inserted_into_the_reserve(disk: Disk) -> None:
    with engine.create(disk.path, MEMORY, reserve=4 * 2**20) as handle:
        disk.fill(leave=5 * 2**20)
        with pytest.raises(Unavailable, match=r"takes no rows: its disk has \d+ bytes left, of which it keeps 4194304"):
            handle.insert(chunks(0))
        assert count(handle, "chunks") == 0
        disk.free()
        assert handle.insert(chunks(0)) == CHUNKS


@root
def test_the_service_says_why_it_takes_no_rows(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERBATIM_JOURNAL__MIN_FREE_BYTES", str(4 * 2**20))
    members = [samples.chunk(3, seq, Direction.CLIENT, 65536 * seq, bytes(65536)) for seq in range(16)]
    with serving(disk.path), open_store(Settings(data=disk.path), "writer", embed=False) as store:
        disk.fill(leave=5 * 2**19)
        with pytest.raises(
            Unavailable, match="takes no rows: its disk is full, or has less than its reserve; free disk"
        ):
            store.insert(members)
        assert store.last_seqs("chunks", [samples.number(3)]) == {}
        disk.free()
        for _ in range(2):
            store.insert(members)
        assert store.select("SELECT count() AS n FROM chunks") == [{"n": 16}]


@root
def test_a_full_disk_can_be_read(disk: Disk) -> None:
    with engine.create(disk.path, MEMORY) as handle:
        handle.insert(chunks(0))
    disk.fill(leave=0)
    with engine.create(disk.path, MEMORY, reserve=2**20) as handle:
        assert count(handle, "chunks") == CHUNKS


@pytest.mark.parametrize("days", [1, 2])
def test_a_batch_whose_token_outlived_its_part_is_stored(tmp_path: Path, days: int) -> None:
    """The engine died behind the line in its log of tokens, before the part of one day had its name."""
    members = [samples.message(2 + 86_400 * day, seq, "word") for day in range(days) for seq in range(5)]
    block = rows.encode(rows.MESSAGES, members)
    with engine.create(tmp_path, MEMORY) as handle:
        assert handle.insert(block) == 5 * days
        part = handle.run("SELECT path FROM system.parts WHERE active AND table = 'messages' ORDER BY name LIMIT 1")
    shutil.rmtree(part.decode().strip())
    with engine.create(tmp_path, MEMORY) as handle:
        assert count(handle, "messages") == 5 * (days - 1)
        for _ in range(2):
            assert handle.insert(block) == 5 * days
            assert count(handle, "messages") == 5 * days
        assert handle.run("SELECT uniqExact(session_id, seq) FROM messages").strip() == b"%d" % (5 * days)


def test_handles_that_insert_and_repeat_at_once_store_each_row_once(tmp_path: Path) -> None:
    """While parts are merged, too."""
    blocks = [rows.encode(rows.EVENTS, [samples.event("at-once", 3 * n + k) for k in range(3)]) for n in range(20)]
    faults: list[BaseException] = []
    with engine.create(tmp_path, MEMORY) as first:
        handles = [first, first.another(), first.another()]

        def work(handle: engine.Handle) -> None:
            try:
                for block in blocks:
                    assert handle.insert(block) == 3
                handle.run("OPTIMIZE TABLE events FINAL")
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work, args=(handle,)) for handle in handles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert count(first, "events") == 60
        for handle in handles[1:]:
            handle.close()


@root
def test_a_store_that_found_no_room_to_be_made_is_made_later(disk: Disk) -> None:
    disk.fill(leave=8192)
    with pytest.raises(Unavailable, match=r"store .* disk .*free disk space"):
        engine.create(disk.path, MEMORY)
    disk.free()
    with engine.create(disk.path, MEMORY) as handle:
        assert handle.insert(chunks(0)) == CHUNKS


def test_a_half_made_store_is_made_anew(tmp_path: Path) -> None:
    """What a full disk left of the first start."""
    engine.create(tmp_path, MEMORY).close()
    (engine.store_path(tmp_path) / "metadata" / "verbatim.sql").write_bytes(b"")
    with engine.create(tmp_path, MEMORY) as handle:
        assert handle.insert(chunks(0)) == CHUNKS


def test_a_damaged_store_with_rows_is_left_alone(tmp_path: Path) -> None:
    with engine.create(tmp_path, MEMORY) as handle:
        handle.insert(chunks(0))
    catalogue = engine.store_path(tmp_path) / "metadata" / "verbatim.sql"
    known = catalogue.read_bytes()
    catalogue.write_bytes(b"")
    with pytest.raises(Unavailable, match=r"cannot be opened by chDB \(Code: \d+\); its files may be damaged"):
        engine.create(tmp_path, MEMORY)
    catalogue.write_bytes(known)
    with engine.create(tmp_path, MEMORY) as handle:
        assert count(handle, "chunks") == CHUNKS
