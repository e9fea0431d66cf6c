"""Each worker has a stream of its own; one whose writer died gets an end."""

from pathlib import Path

import pytest

from appliance import config
from appliance.journal import Frame, FrameKind, JournalKey, Reader
from appliance.relay import streams


def last(settings: config.Settings, name: str) -> FrameKind | None:
    kind = None
    with Reader(settings.data / "journal" / name, JournalKey.load_or_create(settings.data), None) as reader:
        while (frame := reader.read()) is not None:
            assert isinstance(frame, Frame)
            kind = frame.kind
    return kind


def test_the_first_stream_that_is_free(tmp_path: Path) -> None:
    settings = config.Settings(data=tmp_path)
    first, name = streams.take(settings)
    second, other = streams.take(settings)
    assert (name, other) == ("relay-0", "relay-1")
    first.close()
    again, name = streams.take(settings)
    assert name == "relay-0"
    again.close()
    second.close()


def test_what_a_dead_writer_left_is_closed_once(tmp_path: Path) -> None:
    settings = config.Settings(data=tmp_path)
    dead, _ = streams.take(settings)
    dead.append(FrameKind.OPEN, b"{}", time_ns=1)
    live, _ = streams.take(settings)
    live.append(FrameKind.OPEN, b"{}", time_ns=1)
    dead.close()
    assert streams.end_abandoned(settings, 2) == ["relay-0"]
    assert streams.end_abandoned(settings, 3) == []
    assert last(settings, "relay-0") is FrameKind.CLOSE
    assert last(settings, "relay-1") is FrameKind.OPEN
    live.close()


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    settings = config.Settings(data=tmp_path)
    strange = tmp_path / "journal" / "relay-archive"
    strange.mkdir(parents=True)
    assert streams.end_abandoned(settings, 1) == []
    assert not list(strange.iterdir())


@pytest.mark.parametrize("first", ["take", "end"])
def test_a_stream_of_another_version_is_moved_aside_whole(tmp_path: Path, first: str) -> None:
    """Nobody would ever read what is written to it, or what it holds."""
    settings = config.Settings(data=tmp_path)
    former, name = streams.take(settings)
    former.append(FrameKind.OPEN, b"{}", time_ns=1)
    said = tmp_path / "journal" / name / "stream"
    said.write_text(said.read_text().replace("verbatim-journal 1", "verbatim-journal 0"))
    assert streams.end_abandoned(settings, 2) == []  # it is written
    former.close()
    if first == "end":
        assert streams.end_abandoned(settings, 3) == []
        assert not said.parent.exists()
    again, name = streams.take(settings)
    with again:
        again.append(FrameKind.OPEN, b"{}", time_ns=4)
        assert (name, last(settings, name)) == ("relay-0", FrameKind.OPEN)
    kept = tmp_path / "journal" / "relay-0.old1"
    assert "verbatim-journal 0" in (kept / "stream").read_text()
    assert list(kept.glob("*.seg"))
