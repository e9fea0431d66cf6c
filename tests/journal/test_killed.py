"""A writer and a reader that are killed at any operation: what was acknowledged is there once, and things go on."""

from pathlib import Path

from appliance import config
from appliance.journal import Cursor, Damage, FrameKind, JournalKey, Reader, Writer, release
from tests.killing import Say, killed_at

LIMITS = config.Journal(segment_bytes=4096, max_bytes=65536, min_free_bytes=1)
PAYLOAD = bytes(900)


def frames(folder: Path, key: JournalKey, cursor: Cursor | None = None) -> list[int]:
    found = []
    with Reader(folder, key, cursor) as reader:
        while (item := reader.read()) is not None:
            assert not isinstance(item, Damage), item
            found.append(item.number)
    return found


def test_a_writer_killed_at_any_operation(tmp_path: Path) -> None:
    key = JournalKey.load_or_create(tmp_path)
    for number in range(10_000):
        folder = tmp_path / str(number)

        def work(say: Say, folder: Path = folder) -> None:
            with Writer(folder, key, settings=LIMITS) as writer:
                while writer.prepare():
                    pass
                for _ in range(12):
                    say(str(writer.append(FrameKind.SPAN, PAYLOAD, time_ns=1)))

        died, acknowledged = killed_at(number, work)
        with Writer(folder, key, settings=LIMITS) as writer:
            following = writer.append(FrameKind.SPAN, PAYLOAD, time_ns=1)
        found = frames(folder, key)
        assert found == list(range(1, following + 1)), number
        assert following in (len(acknowledged) + 1, len(acknowledged) + 2), number  # one may be there untold
        if not died:
            assert number > 60
            return
    raise AssertionError("it never ended")


def test_a_release_killed_at_any_operation(tmp_path: Path) -> None:
    """Recycling: nothing that was not read is lost, and the next writer goes on with the next number."""
    key = JournalKey.load_or_create(tmp_path)
    for number in range(1000):
        folder = tmp_path / str(number)
        with Writer(folder, key, settings=LIMITS) as writer:
            for _ in range(14):
                writer.append(FrameKind.SPAN, PAYLOAD, time_ns=1)
        with Reader(folder, key) as reader:
            for _ in range(11):
                reader.read()
            cursor = reader.cursor

        def work(say: Say, folder: Path = folder, cursor: Cursor = cursor) -> None:
            release(folder, cursor, keep=4096)

        died, _ = killed_at(number, work)
        assert frames(folder, key, cursor) == [12, 13, 14], number
        release(folder, cursor)
        with Writer(folder, key, settings=LIMITS) as writer:
            assert [writer.append(FrameKind.SPAN, PAYLOAD, time_ns=1) for _ in range(8)] == list(range(15, 23))
        assert frames(folder, key, cursor) == list(range(12, 23)), number
        if not died:
            assert number > 8
            return
    raise AssertionError("it never ended")
