"""What cannot be read is kept aside and named, and the rest is read on; what was read is kept for as long as asked."""

from pathlib import Path

import pytest

from appliance import config
from appliance.errors import MalformedInput, Refused
from appliance.journal import (
    Damage,
    Frame,
    FrameKind,
    JournalKey,
    Reader,
    Writer,
    beginning,
    release,
    set_damage_aside,
    set_foreign_aside,
)
from appliance.journal.format import HEADER_BYTES, frame_bytes

LIMITS = config.Journal(segment_bytes=4096, max_bytes=65536, min_free_bytes=1)
PAYLOAD = bytes(900)  # four of them fill a segment
FRAME = frame_bytes(len(PAYLOAD))


@pytest.fixture
def key(tmp_path: Path) -> JournalKey:
    return JournalKey.load_or_create(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, key: JournalKey) -> Path:
    """16 frames in 4 segments."""
    with Writer(tmp_path / "wire", key, settings=LIMITS) as writer:
        for _ in range(16):
            writer.append(FrameKind.SPAN, PAYLOAD, time_ns=1)
    return tmp_path / "wire"


def read(folder: Path, key: JournalKey) -> list[Frame | Damage]:
    found = []
    with Reader(folder, key, beginning(folder)) as reader:
        while (item := reader.read()) is not None:
            found.append(item)
    return found


def spoil(path: Path, offset: int, length: int = 1) -> bytes:
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = bytes(byte ^ 0xFF for byte in data[offset : offset + length])
    path.write_bytes(data)
    return bytes(data)


@pytest.mark.parametrize("length", [1, FRAME + 200])
def test_a_corrupt_frame_in_the_middle_is_named_kept_aside_and_the_rest_read_on(
    folder: Path, key: JournalKey, length: int
) -> None:
    path = folder / f"{2:016x}.seg"
    data = spoil(path, HEADER_BYTES + FRAME + 100, length)
    lost = 1 if length == 1 else 2
    found = read(folder, key)
    (damage,) = [item for item in found if isinstance(item, Damage)]
    assert (damage.first_frame, damage.frames) == (6, lost)
    assert (damage.segment, damage.start, damage.end) == (2, HEADER_BYTES + FRAME, HEADER_BYTES + (1 + lost) * FRAME)
    numbers = [item.number for item in found if isinstance(item, Frame)]
    assert numbers == [n for n in range(1, 17) if not 6 <= n < 6 + lost]
    copy = set_damage_aside(folder, damage.segment, damage.start, damage.end)
    assert copy is not None
    assert copy.stat().st_mode & 0o777 == 0o600
    assert copy.read_bytes() == data[:HEADER_BYTES] + data[damage.start : damage.end]
    assert set_damage_aside(folder, damage.segment, damage.start, damage.end) == copy


@pytest.mark.parametrize("at", [0, 8, 40, 70])
def test_a_segment_with_a_damaged_header_is_skipped_and_named(folder: Path, key: JournalKey, at: int) -> None:
    """Also where the damage looks like another version of the format."""
    spoil(folder / f"{2:016x}.seg", at)
    found = read(folder, key)
    (damage,) = [item for item in found if isinstance(item, Damage)]
    assert (damage.first_frame, damage.frames, damage.segment) == (5, 4, 2)
    assert [item.number for item in found if isinstance(item, Frame)] == [*range(1, 5), *range(9, 17)]


def test_a_segment_of_which_only_half_reached_the_disk(folder: Path, key: JournalKey) -> None:
    path = folder / f"{3:016x}.seg"
    path.write_bytes(path.read_bytes()[: HEADER_BYTES + FRAME + FRAME // 2])
    found = read(folder, key)
    (damage,) = [item for item in found if isinstance(item, Damage)]
    assert (damage.first_frame, damage.frames, damage.segment) == (10, 3, 3)
    assert [item.number for item in found if isinstance(item, Frame)] == [*range(1, 10), *range(13, 17)]


def test_what_is_kept_aside_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.journal.aside._MAX_DAMAGED", 3000)
    assert set_damage_aside(folder, 1, 96, 2096)
    assert set_damage_aside(folder, 2, 96, 2096) is None
    assert set_damage_aside(folder, 99, 96, 200) is None  # no such segment


@pytest.mark.parametrize(("keep", "left"), [(0, 2), (4095, 2), (4096, 3), (8192, 4), (1 << 30, 4)])
def test_what_was_read_is_kept_up_to_a_size_and_can_be_read_again(
    folder: Path, key: JournalKey, keep: int, left: int
) -> None:
    with Reader(folder, key) as reader:
        for _ in range(10):
            reader.read()
        cursor = reader.cursor
    release(folder, cursor, keep)
    assert len(list(folder.glob("*.seg"))) == left
    with Reader(folder, key) as reader:
        first = reader.read()
        assert isinstance(first, Frame)
        assert first.number == 17 - 4 * left
    start = beginning(folder)
    assert start == (None if left == 4 else cursor)
    with Writer(folder, key, settings=LIMITS) as writer:
        assert writer.append(FrameKind.SPAN, PAYLOAD, time_ns=1) == 17


def test_a_stream_of_another_version_is_moved_aside_whole(folder: Path, key: JournalKey) -> None:
    assert set_foreign_aside(folder) is None
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    name = folder / "stream"
    name.write_text(name.read_text().replace("verbatim-journal 1", "verbatim-journal 0"))
    with pytest.raises(MalformedInput, match="version '0', and this program reads version 1"):
        Reader(folder, key)
    for number in (1, 2):
        assert set_foreign_aside(folder) == (folder.with_name(f"wire.old{number}"), "0")
        assert not folder.exists()
        with Writer(folder, key, settings=LIMITS) as writer:
            assert writer.append(FrameKind.SPAN, PAYLOAD, time_ns=1) == 1
        name.write_text(name.read_text().replace("verbatim-journal 1", "verbatim-journal 0"))
    kept = {path.name: path.read_bytes() for path in folder.with_name("wire.old1").iterdir()}
    assert kept.keys() == before.keys()
    assert all(kept[name] == before[name] for name in before if name != "stream")


def test_a_stream_that_an_older_release_still_writes_stays(folder: Path, key: JournalKey) -> None:
    with Writer(folder, key, settings=LIMITS):
        name = folder / "stream"
        name.write_text(name.read_text().replace("verbatim-journal 1", "verbatim-journal 0"))
        with pytest.raises(Refused, match="stop that one first"):
            set_foreign_aside(folder)
    assert set_foreign_aside(folder) is not None


def test_nothing_there_is_nothing_to_move(tmp_path: Path) -> None:
    assert set_foreign_aside(tmp_path / "wire") is None
    assert beginning(tmp_path / "wire") is None
