import errno
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance import config
from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable
from appliance.journal import (
    MAX_PAYLOAD,
    RING,
    Damage,
    Frame,
    FrameKind,
    JournalFull,
    JournalKey,
    Reader,
    Writer,
    release,
)
from appliance.journal.format import HEADER_BYTES, frame_bytes
from appliance.journal.writer import LOOK_NS

KEY = JournalKey(b"k" * 32)


def settings(segment_bytes: int = 8192, segments: int = 8, **more: object) -> config.Journal:
    values: dict[str, object] = {
        "segment_bytes": segment_bytes,
        "max_bytes": segment_bytes * segments,
        "min_free_bytes": 1,
        **more,
    }
    return config.Journal.model_validate(values)


def numbers(folder: Path) -> list[int]:
    with Reader(folder, KEY) as reader:
        found = []
        while (item := reader.read()) is not None:
            assert isinstance(item, Frame), item
            found.append(item.number)
        return found


def fill(writer: Writer, size: int = 1000) -> int:
    """Append spans until the journal is full; returns how many."""
    count = 0
    while True:
        try:
            writer.append(FrameKind.SPAN, bytes(size), time_ns=count)
        except JournalFull:
            return count
        count += 1


def test_frame_comes_back_as_it_was(tmp_path: Path) -> None:
    with mmap.mmap(-1, 8192) as ring:
        ring[100:105] = b"bytes"
        view = memoryview(ring)
        with Writer(tmp_path, KEY, settings=settings()) as writer:
            number = writer.append(
                FrameKind.SPAN, view[100:105], ring_start=2**63, ring_end=2**64 - 1, layout=RING, time_ns=2**62
            )
        view.release()
    with Reader(tmp_path, KEY) as reader:
        assert reader.read() == Frame(number, FrameKind.SPAN, 2**62, b"bytes", 2**63, 2**64 - 1, RING)
        assert reader.read() is None


def test_plaintext_is_not_on_the_disk(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings()) as writer:
        writer.append(FrameKind.SPAN, b"hunter2 hunter2 hunter2", time_ns=1)
    for path in tmp_path.iterdir():
        assert b"hunter2" not in path.read_bytes()


def test_stream_keeps_its_id(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings()) as writer:
        stream = writer.stream
    with Writer(tmp_path, KEY, stream, settings=settings()) as writer:
        assert writer.stream == stream
    with pytest.raises(Refused, match="holds stream"):
        Writer(tmp_path, KEY, b"s" * 16, settings=settings())
    with pytest.raises(MalformedInput, match="16 bytes"):
        Writer(tmp_path / "new", KEY, b"short", settings=settings())


def test_second_writer_is_refused(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings()), pytest.raises(Refused, match="another process writes"):
        Writer(tmp_path, KEY, settings=settings())
    Writer(tmp_path, KEY, settings=settings()).close()


def test_other_key_is_refused(tmp_path: Path) -> None:
    Writer(tmp_path, KEY, settings=settings()).close()
    with pytest.raises(DamagedEvidence, match="restore the key file"):
        Writer(tmp_path, JournalKey(b"x" * 32), settings=settings())
    Writer(tmp_path, KEY, settings=settings()).close()  # the lock was given back


def test_lost_stream_file_is_not_replaced(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings()) as writer:
        writer.append(FrameKind.EVENT, b"", time_ns=1)
    (tmp_path / "stream").unlink()
    with pytest.raises(DamagedEvidence, match="'stream' is missing"):
        Writer(tmp_path, KEY, settings=settings())


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match="Not a directory"):
        Writer(tmp_path / "file" / "stream", KEY, settings=settings())


def test_numbers_go_on_in_a_new_segment(tmp_path: Path) -> None:
    for start in (1, 3, 5):
        with Writer(tmp_path, KEY, settings=settings()) as writer:
            assert [writer.append(FrameKind.EVENT, b"", time_ns=0) for _ in range(2)] == [start, start + 1]
    assert len(list(tmp_path.glob("*.seg"))) == 3
    assert numbers(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_writer_that_writes_nothing_uses_no_segment(tmp_path: Path) -> None:
    for _ in range(3):
        Writer(tmp_path, KEY, settings=settings()).close()
    assert not list(tmp_path.glob("*.seg"))


def test_segments_are_allocated_whole(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings(65536)) as writer:
        writer.append(FrameKind.EVENT, b"", time_ns=0)
    (segment,) = tmp_path.glob("*.seg")
    assert segment.stat().st_size == 65536
    assert segment.stat().st_blocks * 512 >= 65536


def test_payload_limits(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings(4 * MAX_PAYLOAD)) as writer:
        assert writer.max_payload == MAX_PAYLOAD
        with pytest.raises(Refused, match="split it"):
            writer.append(FrameKind.SPAN, bytes(MAX_PAYLOAD + 1), time_ns=0)
        assert writer.append(FrameKind.SPAN, bytes(MAX_PAYLOAD), time_ns=0) == 1
    with Writer(tmp_path / "small", KEY, settings=settings()) as writer:
        writer.append(FrameKind.SPAN, bytes(writer.max_payload), time_ns=0)
        writer.append(FrameKind.SPAN, bytes(writer.max_payload), time_ns=0)
    assert numbers(tmp_path / "small") == [1, 2]


def test_too_small_settings() -> None:
    with pytest.raises(MalformedInput, match="set segment_bytes"):
        Writer(Path("/nonexistent"), KEY, settings=config.Journal(max_bytes=4096))


def test_spans_stop_at_the_limit_and_other_kinds_still_fit(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings()) as writer:
        assert writer.room() == 7 * (8192 - HEADER_BYTES)
        count = fill(writer)
        assert count == 7 * ((8192 - HEADER_BYTES) // frame_bytes(1000))
        assert writer.room() < frame_bytes(1000)
        before = writer.size()
        with pytest.raises(JournalFull, match=r"journal\.max_bytes \(65536\) lets it be; see why verbatim record lags"):
            writer.append(FrameKind.SPAN, bytes(1000), time_ns=0)
        assert writer.size() == before
        facts = [writer.append(FrameKind.EVENT, bytes(1000), time_ns=0) for _ in range(3)]
        assert writer.size() <= 8 * 8192
    assert numbers(tmp_path) == [*range(1, count + 1), *facts]


def test_a_disk_without_room_is_told_as_that(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings().model_copy(update={"min_free_bytes": 2**60})) as writer:
        assert writer.room() == 0
        with pytest.raises(JournalFull, match=r"the disk has \d+ bytes left, too few .*; free disk space$"):
            writer.append(FrameKind.SPAN, bytes(1000), time_ns=0)
        writer.append(FrameKind.EVENT, bytes(1000), time_ns=0)


def test_room_falls_by_what_is_written(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings()) as writer:
        before = writer.room()
        writer.append(FrameKind.SPAN, bytes(100), time_ns=0)
        assert before - writer.room() == frame_bytes(100)


def test_release_gives_room_and_files_are_used_again(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings()) as writer, Reader(tmp_path, KEY) as reader:
        count = fill(writer)
        inodes = {path.stat().st_ino for path in tmp_path.glob("*.seg")}
        for _ in range(count):
            assert isinstance(reader.read(), Frame)
        release(tmp_path, reader.cursor)
        assert len(list(tmp_path.glob("*.seg"))) == 1
        assert writer.room() >= 6 * (8192 - HEADER_BYTES)
        again = fill(writer)
        assert again == 6 * ((8192 - HEADER_BYTES) // frame_bytes(1000))
        assert {path.stat().st_ino for path in tmp_path.glob("*.seg")} <= inodes
        read = []
        while (item := reader.read()) is not None:
            assert isinstance(item, Frame)
            read.append(item.number)
        assert read == list(range(count + 1, count + again + 1))


def test_full_disk_stops_spans_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 2**20
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096))
    with Writer(tmp_path, KEY, settings=settings(min_free_bytes=512 * 1024)) as writer:
        writer.append(FrameKind.SPAN, b"", time_ns=0)
        free = 511 * 1024
        assert writer.room() == 0
        with pytest.raises(JournalFull, match="min_free_bytes"):
            writer.append(FrameKind.SPAN, b"", time_ns=LOOK_NS)
        free = 513 * 1024
        assert writer.append(FrameKind.SPAN, b"", time_ns=LOOK_NS) == 2, "as soon as there is space again"
        free = 511 * 1024
        with pytest.raises(JournalFull, match="min_free_bytes"):
            writer.append(FrameKind.SPAN, b"", time_ns=0)  # of a clock that was set back
        assert writer.append(FrameKind.EVENT, bytes(8000), time_ns=0) == 3  # needs a segment of its own
        free = 513 * 1024
        assert 0 < writer.room() < 8192, "a further segment would go below the limit"


def test_disk_that_fills_up_while_allocating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Writer(tmp_path, KEY, settings=settings()) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", refuse)
            with pytest.raises(JournalFull, match="disk is full"):
                writer.append(FrameKind.SPAN, b"", time_ns=0)
        assert writer.append(FrameKind.SPAN, b"", time_ns=0) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", "", ".seg"]


def test_failed_write_leaves_no_frame_and_no_reused_nonce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    with Writer(tmp_path, KEY, settings=settings()) as writer:
        writer.append(FrameKind.EVENT, b"first", time_ns=0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", lambda file, data, offset: write(file, data[:60], offset))
            with pytest.raises(Unavailable, match="see to the disk"):
                writer.append(FrameKind.EVENT, b"lost", time_ns=0)
        assert writer.append(FrameKind.EVENT, b"second", time_ns=0) == 2
    assert len(list(tmp_path.glob("*.seg"))) == 2
    assert numbers(tmp_path) == [1, 2]


def test_fsync_reaches_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def note(file: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{file}").readlink()))

    with Writer(tmp_path, KEY, settings=settings(durability="fsync")) as writer:
        monkeypatch.setattr(os, "fsync", note)
        monkeypatch.setattr(os, "fdatasync", note)
        writer.append(FrameKind.EVENT, b"", time_ns=0)
        (segment,) = tmp_path.glob("*.seg")
        assert synced[-1] == str(tmp_path), "the folder, after the rename"
        assert synced[0].endswith(".new"), "the file, before the rename"
        writer.sync()
        assert synced[-1] == str(segment)
    synced.clear()
    with Writer(tmp_path / "cached", KEY, settings=settings()) as writer:
        synced.clear()  # naming a stream is always durable
        writer.append(FrameKind.EVENT, b"", time_ns=0)
        writer.sync()
    assert synced == []


def test_prepare_makes_spare_files_in_steps(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings(2 * 2**20)) as writer:
        steps = 0
        while writer.prepare():
            steps += 1
        assert steps == 4, "two files of two mebibytes"
        spares = {path.stat().st_ino for path in tmp_path.glob("*.free")}
        assert len(spares) == 2
        writer.append(FrameKind.EVENT, b"", time_ns=0)
        (segment,) = tmp_path.glob("*.seg")
        assert segment.stat().st_ino in spares
        assert writer.prepare()
    Writer(tmp_path, KEY, settings=settings(2 * 2**20)).close()
    assert not list(tmp_path.glob("*.new")), "half made files are removed at the next start"


def test_other_segment_size_takes_no_old_files(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=settings()) as writer, Reader(tmp_path, KEY) as reader:
        fill(writer)
        while reader.read() is not None:
            pass
        release(tmp_path, reader.cursor)
    with Writer(tmp_path, KEY, settings=settings(16384)) as writer:
        fill(writer)
        assert writer.size() <= 8 * 16384
    assert {path.stat().st_size for path in tmp_path.glob("*.seg")} == {8192, 16384}
    assert not isinstance(Reader(tmp_path, KEY).read(), Damage)


def test_a_folder_in_motion_is_not_listed_for_each_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system tells changes of one tick not apart: a listing made in it serves for a moment all the same."""
    listings = 0

    def scandir(path: Path, real: Callable[[Path], object] = os.scandir) -> object:
        nonlocal listings
        listings += 1
        return real(path)

    with Writer(tmp_path, KEY, settings=settings(segment_bytes=2**20)) as writer:
        monkeypatch.setattr("appliance.journal.folder.os.scandir", scandir)
        begun = time.monotonic()
        for number in range(500):
            writer.append(FrameKind.SPAN, bytes(100), time_ns=number)
            assert writer.room() > 0
        elapsed = time.monotonic() - begun
    assert listings <= 3 + elapsed / 0.02


def test_room_that_another_process_made_is_found_at_once(tmp_path: Path) -> None:
    """The recorder releases segments in the very tick in which the journal was full."""
    with Writer(tmp_path, KEY, settings=settings()) as writer:
        fill(writer)
        tick = tmp_path.stat()
        with Reader(tmp_path, KEY) as reader:
            while reader.read() is not None:
                pass
            release(tmp_path, reader.cursor)
        os.utime(tmp_path, ns=(tick.st_atime_ns, tick.st_mtime_ns))
        assert fill(writer) > 0
