import multiprocessing
import os
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import config
from appliance.errors import DamagedEvidence
from appliance.journal import Cursor, Damage, Frame, FrameKind, JournalFull, JournalKey, Reader, Writer, release
from appliance.journal.format import HEADER_BYTES, MAX_FRAME, frame_bytes

KEY = JournalKey(b"k" * 32)
SETTINGS = config.Journal(segment_bytes=8192, max_bytes=64 * 8192, min_free_bytes=1)


def write(folder: Path, *sizes: int, first: int = 1) -> None:
    """EVENT frames of these sizes; each payload repeats the low byte of the frame's number."""
    with Writer(folder, KEY, settings=SETTINGS) as writer:
        for number, size in enumerate(sizes, first):
            assert writer.append(FrameKind.EVENT, bytes([number & 255]) * size, time_ns=number) == number


def rest(reader: Reader) -> list[int | Damage]:
    """What is left to read: frame numbers and damages."""
    found: list[int | Damage] = []
    while (item := reader.read()) is not None:
        if isinstance(item, Frame):
            assert item.payload == bytes([item.number & 255]) * len(item.payload), "not what was written"
            found.append(item.number)
        else:
            found.append(item)
    return found


def segment(folder: Path, sequence: int) -> Path:
    return folder / f"{sequence:016x}.seg"


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int) -> None:
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1]))


def test_nothing_there_yet(tmp_path: Path) -> None:
    with Reader(tmp_path / "later", KEY) as reader:
        assert reader.read() is None
        assert reader.backlog_bytes() == 0
        write(tmp_path / "later", 10)
        assert rest(reader) == [1]
        assert reader.stream is not None


def test_the_newest_segment_is_that_of_the_writer(tmp_path: Path) -> None:
    with Reader(tmp_path, KEY) as reader:
        assert reader.newest == 0
        write(tmp_path, *[3000] * 9)
        assert reader.newest == max(int(path.stem, 16) for path in tmp_path.glob("*.seg")) > 2
        assert rest(reader) == list(range(1, 10))
        assert reader.cursor.segment == reader.newest


def test_follows_a_writer_over_segments_and_restarts(tmp_path: Path) -> None:
    with Reader(tmp_path, KEY) as reader:
        for start in range(1, 41, 4):
            write(tmp_path, 3000, 3000, 3000, 3000, first=start)
            assert rest(reader) == [start, start + 1, start + 2, start + 3]
            assert reader.read() is None
    assert reader.torn_tails == 0


def test_goes_on_at_any_cursor(tmp_path: Path) -> None:
    write(tmp_path, *[1500] * 20)
    with Reader(tmp_path, KEY) as reader:
        cursors = [reader.cursor]
        while reader.read() is not None:
            cursors.append(reader.cursor)
    assert len(cursors) == 21
    for done, cursor in enumerate(cursors):
        with Reader(tmp_path, KEY, cursor) as reader:
            assert rest(reader) == list(range(done + 1, 21))


def test_frame_half_written_is_not_damage(tmp_path: Path) -> None:
    write(tmp_path, 100, 100)
    path = segment(tmp_path, 1)
    whole = path.read_bytes()
    start, end = HEADER_BYTES + frame_bytes(100), HEADER_BYTES + 2 * frame_bytes(100)
    overwrite(path, start, bytes(end - start))
    with Reader(tmp_path, KEY) as reader:
        assert rest(reader) == [1]
        for there in range(start, end):
            overwrite(path, there, whole[there : there + 1])
            if there < start + 48 + 100 + 16 - 1:
                assert reader.read() is None
        assert rest(reader) == [2]


def test_frame_finished_while_looking_behind_it_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer may finish the expected frame and the one after it between two looks of the reader."""
    from appliance.journal import reader as module

    write(tmp_path, 100, 100, 100)
    path = segment(tmp_path, 1)
    whole = path.read_bytes()
    start = HEADER_BYTES + frame_bytes(100)
    overwrite(path, start, bytes(100))
    search = module._Segment.search

    def late(self: "module._Segment", *arguments: int) -> int | None:
        overwrite(path, 0, whole)
        return search(self, *arguments)

    with Reader(tmp_path, KEY) as reader:
        assert isinstance(reader.read(), Frame)
        monkeypatch.setattr(module._Segment, "search", late)
        assert rest(reader) == [2, 3]


@pytest.mark.parametrize("live", [True, False])
def test_damage_in_the_newest_segment_is_seen_as_soon_as_a_frame_follows(tmp_path: Path, live: bool) -> None:
    with Writer(tmp_path, KEY, settings=SETTINGS) as writer, Reader(tmp_path, KEY) as reader:
        writer.append(FrameKind.EVENT, b"\1", time_ns=0)
        if live:
            assert rest(reader) == [1]
        writer.append(FrameKind.EVENT, b"\2", time_ns=0)
        flip(segment(tmp_path, 1), HEADER_BYTES + frame_bytes(1))
        if live:
            assert reader.read() is None, "could still be in the making"
        writer.append(FrameKind.EVENT, b"\3", time_ns=0)
        found = rest(reader)
        assert found[-1] == 3
        (damage,) = [item for item in found if isinstance(item, Damage)]
        assert (damage.first_frame, damage.frames) == (2, 1)


def test_long_damage_beside_a_live_writer_is_found_in_the_end(tmp_path: Path) -> None:
    """Longer than one frame can be: the reader looks so far only now and then."""
    big = config.Journal(segment_bytes=8 * 2**20, max_bytes=32 * 2**20, min_free_bytes=1)
    with Writer(tmp_path, KEY, settings=big) as writer, Reader(tmp_path, KEY) as reader:
        writer.append(FrameKind.EVENT, b"\1", time_ns=0)
        assert rest(reader) == [1]
        offset = reader.cursor.offset
        for number in range(2, 5):
            writer.append(FrameKind.EVENT, bytes([number]) * 2**20, time_ns=0)
        overwrite(segment(tmp_path, 1), offset, bytes(MAX_FRAME + 2**19))
        tries = 0
        while (item := reader.read()) is None:
            tries += 1
            assert tries < 200
        assert isinstance(item, Damage)
        assert (item.first_frame, item.frames) == (2, 2)
        assert rest(reader) == [4]


def test_several_damages_in_a_closed_stream(tmp_path: Path) -> None:
    write(tmp_path, *[100] * 30)
    for number in (3, 4, 10, 29):
        flip(segment(tmp_path, 1), HEADER_BYTES + (number - 1) * frame_bytes(100) + 60)
    with Reader(tmp_path, KEY) as reader:
        found = rest(reader)
    damages = [(item.first_frame, item.frames) for item in found if isinstance(item, Damage)]
    assert damages == [(3, 2), (10, 1), (29, 1)]
    assert [item for item in found if isinstance(item, int)] == [n for n in range(1, 31) if n not in (3, 4, 10, 29)]


def test_damage_at_the_end_of_a_segment(tmp_path: Path) -> None:
    write(tmp_path, 3000, 3000, 3000)  # two in the first segment
    flip(segment(tmp_path, 1), HEADER_BYTES + frame_bytes(3000) + 60)
    with Reader(tmp_path, KEY) as reader:
        found = rest(reader)
    assert found[0] == 1
    assert isinstance(found[1], Damage)
    assert (found[1].first_frame, found[1].frames) == (2, 1)
    assert found[2] == 3


def test_damaged_header_of_the_newest_segment(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 10, first=2)
    flip(segment(tmp_path, 2), 70)
    with Reader(tmp_path, KEY) as reader:
        first, damage = rest(reader)
        assert first == 1
        assert isinstance(damage, Damage)
        assert (damage.first_frame, damage.frames) == (2, None)
        assert reader.read() is None
        write(tmp_path, 10, first=2)
        assert rest(reader) == [2]


def test_foreign_segment_is_damage(tmp_path: Path) -> None:
    """An authentic segment of another stream under the same key must not pass for this one's."""
    write(tmp_path / "a", 10)
    write(tmp_path / "b", 10)
    segment(tmp_path / "b", 1).replace(segment(tmp_path / "a", 1))
    with Reader(tmp_path / "a", KEY) as reader:
        (damage,) = rest(reader)
    assert isinstance(damage, Damage)


def test_renamed_segment_is_damage(tmp_path: Path) -> None:
    write(tmp_path, 10)
    segment(tmp_path, 1).rename(segment(tmp_path, 2))
    with Reader(tmp_path, KEY) as reader:
        (damage,) = rest(reader)
    assert isinstance(damage, Damage)


def test_wrong_key_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, 10)
    with pytest.raises(DamagedEvidence, match=r"sealed with journal key .* restore the key file"):
        Reader(tmp_path, JournalKey(b"x" * 32))
    (tmp_path / "stream").unlink()
    with Reader(tmp_path, JournalKey(b"x" * 32)) as reader, pytest.raises(DamagedEvidence, match="restore the key"):
        reader.read()
    with Reader(tmp_path, KEY) as reader:
        assert rest(reader) == [1], "segments name their stream themselves"


@pytest.mark.parametrize(
    "text", ["", "verbatim-journal 1\n00\n00\n", "something else\n", "verbatim-journal 1\nzz\nzz\n"]
)
def test_broken_stream_file(tmp_path: Path, text: str) -> None:
    write(tmp_path, 10)
    (tmp_path / "stream").write_text(text)
    with pytest.raises(DamagedEvidence, match="not the name of a journal stream"):
        Reader(tmp_path, KEY)


def test_release_keeps_what_is_not_read_and_the_newest(tmp_path: Path) -> None:
    write(tmp_path, *[3000] * 9)  # two in each of the first four segments
    with Reader(tmp_path, KEY) as reader:
        for _ in range(4):
            reader.read()
        assert reader.cursor.segment == 2
        release(tmp_path, reader.cursor)
        release(tmp_path, reader.cursor)
        assert sorted(path.name for path in tmp_path.glob("*.seg")) == [f"{n:016x}.seg" for n in (2, 3, 4, 5)]
        assert rest(reader) == [5, 6, 7, 8, 9]
        release(tmp_path, reader.cursor)
        release(tmp_path, Cursor(99, 0, 10))
    assert [path.name for path in tmp_path.glob("*.seg")] == [f"{5:016x}.seg"]
    with Reader(tmp_path, KEY) as reader:
        assert rest(reader) == [9], "what was released is not missing"
    write(tmp_path, 10, first=10)
    assert int((max(tmp_path.glob("*.seg"))).stem, 16) == 100, "sequences never come back"


def test_older_cursor_than_what_was_released_is_damage(tmp_path: Path) -> None:
    write(tmp_path, *[3000] * 9)
    with Reader(tmp_path, KEY) as reader:
        old = reader.cursor
        rest(reader)
        release(tmp_path, reader.cursor)
    with Reader(tmp_path, KEY, Cursor(1, old.offset, 1)) as reader:
        damage, last = rest(reader)
    assert isinstance(damage, Damage)
    assert (damage.first_frame, damage.frames, last) == (1, 8, 9)


def test_segment_recycled_under_a_second_reader(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY, settings=SETTINGS) as writer, Reader(tmp_path, KEY) as slow:
        for number in range(1, 10):
            writer.append(FrameKind.EVENT, bytes([number]) * 3000, time_ns=0)
        assert isinstance(slow.read(), Frame)
        release(tmp_path, Cursor(5, HEADER_BYTES, 9))
        for number in range(10, 20):
            writer.append(FrameKind.EVENT, bytes([number]) * 3000, time_ns=0)
        damage, *numbers = rest(slow)
    assert isinstance(damage, Damage)
    assert (damage.first_frame, damage.frames) == (2, 7)
    assert numbers == list(range(9, 20))


def test_lost_tail_is_damage_not_silence(tmp_path: Path) -> None:
    """After a power failure the journal may be shorter than what the reader saw already."""
    write(tmp_path, *[3000] * 6)
    with Reader(tmp_path, KEY) as reader:
        rest(reader)
        cursor = reader.cursor
    segment(tmp_path, 3).unlink()
    write(tmp_path, 10, first=5)
    segment(tmp_path, 3).rename(segment(tmp_path, 4))  # a sequence that the reader has not entered yet
    with Reader(tmp_path, KEY, cursor) as reader:
        assert all(isinstance(item, Damage) for item in rest(reader))
    release(tmp_path, cursor)
    write(tmp_path, 10, first=7)
    with Reader(tmp_path, KEY, cursor) as reader:
        assert rest(reader)[-1] == 7, "numbers that were released are not used again"


def test_backlog(tmp_path: Path) -> None:
    write(tmp_path, *[3000] * 6)
    with Reader(tmp_path, KEY) as reader:
        assert reader.backlog_bytes() == pytest.approx(6 * frame_bytes(3000), abs=2 * 3000)
        before = reader.backlog_bytes()
        while reader.read() is not None:
            assert reader.backlog_bytes() < before
            before = reader.backlog_bytes()
        assert reader.backlog_bytes() == 0


def test_bad_block_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *[1000] * 6)
    read = os.pread

    def failing(file: int, length: int, offset: int) -> bytes:
        if offset < 200 and offset + length > 196:
            raise OSError(5, "Input/output error")
        return read(file, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    with Reader(tmp_path, KEY) as reader:
        damage, *numbers = rest(reader)
    assert isinstance(damage, Damage)
    assert damage.first_frame == 1
    assert damage.frames is not None
    assert numbers == list(range(damage.frames + 1, 7))


def append_forever(folder: str, acknowledged: int) -> None:
    """In a process of its own: frames as quickly as possible; says each number on a pipe after it was written."""
    generator = random.Random(7)
    with Writer(Path(folder), KEY, settings=config.Journal(segment_bytes=2**20, max_bytes=2**26)) as writer:
        while True:
            size = generator.choice((0, 10, 500, 5000, 100_000))
            payload = generator.randbytes(1) * size
            try:
                number = writer.append(FrameKind.EVENT, payload, time_ns=len(payload))
            except JournalFull:
                os.sched_yield()
                continue
            os.write(acknowledged, number.to_bytes(8, "little"))


def test_tails_a_writer_in_another_process_through_kills(tmp_path: Path) -> None:
    """SIGKILL at any moment: every acknowledged frame is read, none twice, nothing is reported as damaged."""
    context = multiprocessing.get_context("fork")
    expected = 1
    with Reader(tmp_path, KEY) as reader:
        for _ in range(5):
            seen, acknowledge = os.pipe()
            process = context.Process(target=append_forever, args=(str(tmp_path), acknowledge))
            process.start()
            os.close(acknowledge)
            goal = expected + 300
            while expected < goal:
                item = reader.read()
                if item is None:
                    assert process.is_alive()
                    release(tmp_path, reader.cursor)  # or a full journal and an empty reader wait for each other
                    continue
                assert isinstance(item, Frame), item
                assert item.number == expected
                assert len(set(item.payload)) <= 1
                assert len(item.payload) == item.time_ns
                expected += 1
                if expected % 50 == 0:
                    release(tmp_path, reader.cursor)
            process.kill()
            process.join()
            acknowledged = b""
            while data := os.read(seen, 65536):
                acknowledged += data
            os.close(seen)
            while (item := reader.read()) is not None:
                assert isinstance(item, Frame)
                assert item.number == expected
                expected += 1
            whole = acknowledged[: len(acknowledged) // 8 * 8]
            assert int.from_bytes(whole[-8:], "little") < expected


actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 5000)),
        st.tuples(st.just("crash"), st.integers(0, 2**16)),
        st.tuples(st.just("reopen"), st.just(0)),
        st.tuples(st.just("read"), st.integers(1, 5)),
        st.tuples(st.just("release"), st.just(0)),
        st.tuples(st.just("restart reader"), st.just(0)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=120)
@given(actions)
def test_any_history_gives_all_acknowledged_frames_in_order(steps: list[tuple[str, int]]) -> None:
    """`crash`: the newest frame is torn at any of its bytes, as if it had never been acknowledged."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        writer = Writer(folder, KEY, settings=SETTINGS)
        reader = Reader(folder, KEY)
        payloads: dict[int, bytes] = {}
        read: list[int] = []

        def take() -> bool:
            item = reader.read()
            if item is None:
                return False
            assert isinstance(item, Frame), item
            assert item.payload == payloads[item.number]
            read.append(item.number)
            return True

        for count, (what, value) in enumerate(steps):
            if what == "append":
                payload = bytes([count]) * value
                payloads[writer.append(FrameKind.SPAN, payload, time_ns=0)] = payload
            elif what == "crash":
                number = writer.append(FrameKind.SPAN, bytes(value % 3000), time_ns=0)
                newest = max(folder.glob("*.seg"))
                size = frame_bytes(value % 3000)
                end = writer._offset
                keep = value % (48 + value % 3000 + 15)
                overwrite(newest, end - size + keep, os.urandom(size - keep))
                assert number not in payloads
                writer.close()
                writer = Writer(folder, KEY, settings=SETTINGS)
            elif what == "reopen":
                writer.close()
                writer = Writer(folder, KEY, settings=SETTINGS)
            elif what == "read":
                for _ in range(value):
                    take()
            elif what == "release":
                release(folder, reader.cursor)
            else:
                reader.close()
                reader = Reader(folder, KEY, reader.cursor)
        while take():
            pass
        writer.close()
        reader.close()
        assert read == sorted(payloads)


@settings(deadline=None, max_examples=120)
@given(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=8), cut=st.integers(0, 2**20), again=st.booleans())
def test_file_cut_anywhere_gives_a_prefix(sizes: list[int], cut: int, again: bool) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, *sizes)
        newest = max(folder.glob("*.seg"))
        with Reader(folder, KEY) as reader:
            everything = rest(reader)
        os.truncate(newest, cut % (newest.stat().st_size + 1))
        with Reader(folder, KEY) as reader:
            found = rest(reader)
            numbers = [item for item in found if isinstance(item, int)]
            assert numbers == everything[: len(numbers)]
            assert all(isinstance(item, int) or item.frames is None for item in found), "a cut header is damage"
            if again:
                write(folder, 5, first=len(numbers) + 1)
                assert rest(reader) == [len(numbers) + 1]


@settings(deadline=None, max_examples=150)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=8),
    where=st.floats(0, 1, exclude_max=True),
    garbage=st.binary(min_size=1, max_size=4000),
)
def test_garbage_anywhere_never_gives_wrong_frames(sizes: list[int], where: float, garbage: bytes) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, *sizes)
        target = sorted(folder.glob("*.seg"))[int(where * len(list(folder.glob("*.seg"))))]
        offset = max(10, int(where * 8192))  # not the version, which is an error of its own
        overwrite(target, offset, garbage[: 8192 - offset])
        with Reader(folder, KEY) as reader:
            found = rest(reader)  # compares payloads
        numbers = [item for item in found if isinstance(item, int)]
        assert numbers == sorted(set(numbers))
        missing = set(range(1, len(sizes) + 1)) - set(numbers)
        told: set[int] = set()
        for item in found:
            if isinstance(item, Damage):
                count = item.frames if item.frames is not None else len(sizes)
                told |= set(range(item.first_frame, item.first_frame + count))
        tail = {number for number in missing if number > max(numbers, default=0)}
        assert missing - told <= tail, "only at the very end damage may look like a torn tail"
