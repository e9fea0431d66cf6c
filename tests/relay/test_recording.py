"""The worker's stream: one frame a turn, durable where that is asked for, nothing done before it is written."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import config
from appliance.errors import Unavailable
from appliance.journal import Frame, FrameKind, JournalKey, Reader, Writer
from appliance.journal.relayed import RelayedKind, scan
from appliance.relay.recording import Recording


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def make(folder: Path, loop: asyncio.AbstractEventLoop, durability: str = "page-cache") -> tuple[Writer, Recording]:
    journal = config.Journal(segment_bytes=4 * 2**20, durability=durability)
    writer = Writer(folder / "relay-0", JournalKey.load_or_create(folder), settings=journal)
    return writer, Recording(writer, "relay-0", "gateway", "boot", loop, time.time_ns)


def frames(folder: Path) -> list[Frame]:
    found = []
    with Reader(folder / "relay-0", JournalKey.load_or_create(folder), None) as reader:
        while (frame := reader.read()) is not None:
            assert isinstance(frame, Frame)
            found.append(frame)
    return found


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_is_said_in_a_turn_is_one_frame(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    writer, recording = make(tmp_path, loop)
    done: list[int] = []
    for number in range(3):
        trace = recording.trace()
        recording.say(trace, RelayedKind.OPEN, {"number": number})
        recording.data(trace, 0, b"x" * (number + 1))
        recording.then(lambda number=number: done.append(number))  # type: ignore[misc]
    assert not done
    assert [frame.kind for frame in frames(tmp_path)] == [FrameKind.OPEN]
    loop.run_until_complete(turns())
    assert done == [0, 1, 2]
    opened, span = frames(tmp_path)
    assert opened.kind is FrameKind.OPEN
    assert [(record.flow, record.kind.name) for record in scan(span.payload)] == [
        (number, kind) for number in (1, 2, 3) for kind in ("OPEN", "DATA")
    ]
    writer.close()


def test_more_than_a_frame_holds_is_several_in_order(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    writer, recording = make(tmp_path, loop)
    trace, sent = recording.trace(), os.urandom(3_000_000)
    recording.data(trace, 1, sent)
    loop.run_until_complete(turns())
    spans = [frame for frame in frames(tmp_path) if frame.kind is FrameKind.SPAN]
    records = [record for span in spans for record in scan(span.payload)]
    assert len(spans) > 2
    assert b"".join(record.body for record in records) == sent
    assert [record.offset for record in records] == [
        sum(len(before.body) for before in records[:index]) for index in range(len(records))
    ]
    writer.close()


def test_bytes_are_durable_before_anything_is_done_with_them(
    tmp_path: Path, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fsync for all that was said in the turn."""
    writer, recording = make(tmp_path, loop, "fsync")
    happened: list[str] = []
    sync = os.fdatasync

    def syncing(file: int) -> None:
        sync(file)
        happened.append("durable")

    monkeypatch.setattr(os, "fdatasync", syncing)
    for _ in range(10):
        trace = recording.trace()
        recording.data(trace, 0, b"x")
        recording.then(lambda: happened.append("forwarded"))
    loop.run_until_complete(turns())
    assert happened == ["durable", *["forwarded"] * 10]
    writer.close()


def test_what_may_not_be_durable_is_never_forwarded(
    tmp_path: Path, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, recording = make(tmp_path, loop, "fsync")
    failed: list[str] = []
    forwarded: list[bool] = []
    recording.failed = failed.append

    def broken() -> None:
        raise Unavailable("journal: input/output error; see to the disk")

    monkeypatch.setattr(writer, "sync", broken)
    recording.data(recording.trace(), 0, b"x")
    recording.then(lambda: forwarded.append(True))
    loop.run_until_complete(turns())
    assert len(failed) == 1
    assert not forwarded
    monkeypatch.undo()
    writer.close()


def test_times_of_a_flow_never_run_back(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    now = [5_000]
    writer = Writer(tmp_path / "relay-0", JournalKey.load_or_create(tmp_path), settings=config.Journal())
    recording = Recording(writer, "relay-0", "gateway", "boot", loop, lambda: now[0])
    trace = recording.trace()
    for stamp in (5_000, 4_000, 6_000):
        now[0] = stamp
        recording.data(trace, 0, b"x")
    loop.run_until_complete(turns())
    (span,) = [frame for frame in frames(tmp_path) if frame.kind is FrameKind.SPAN]
    assert [record.time_ns for record in scan(span.payload)] == [5_000, 5_000, 6_000]
    writer.close()
