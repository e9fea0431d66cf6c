"""From the ring to the journal: order, duplicates after a crash, and a journal without room."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import config
from appliance.errors import MalformedInput
from appliance.identity.leases import Change, Lease, Now, What
from appliance.journal import Cursor, Damage, Frame, FrameKind, JournalKey, Reader, Writer, release
from appliance.model import UNBOUND
from appliance.wire.clock import CLOCK
from appliance.wire.drain import Drain
from appliance.wire.notes import Notes
from appliance.wire.records import records
from tests.wire.rings import FileRing

S = 1_000_000_000
SMALL = config.Journal(segment_bytes=2**21, max_bytes=6 * 2**21, min_free_bytes=1)


class Bench:
    """A ring, a journal, and what drains the one into the other."""

    def __init__(self, folder: Path, **journal: Any) -> None:
        self.folder = folder
        self.key = JournalKey.load_or_create(folder)
        self.settings = SMALL.model_copy(update=journal)
        self.made = FileRing()
        self.stalls: list[bool] = []
        self.now = Now(1_790_000_000 * S, 500 * S, "boot")
        self.open()

    def open(self) -> None:
        self.writer = Writer(self.folder / "wire", self.key, settings=self.settings)
        self.notes = Notes(self.writer, "boot")
        self.drain = Drain(self.made.ring, self.writer, self.notes, self.settings, self.stalls.append)

    def close(self) -> None:
        self.writer.close()
        self.made.close()

    def wait(self, seconds: float, wall: float | None = None) -> None:
        unix = self.now.unix + int((seconds if wall is None else wall) * S)
        self.now = Now(unix, self.now.boottime + int(seconds * S), "boot")

    def frames(self, cursor: Cursor | None = None) -> list[Frame]:
        found = []
        with Reader(self.folder / "wire", self.key, cursor) as reader:
            while (item := reader.read()) is not None:
                assert not isinstance(item, Damage)
                found.append(item)
        return found

    def kinds(self) -> list[str]:
        return [frame.kind.name for frame in self.frames()]

    def events(self, cursor: Cursor | None = None) -> list[str]:
        return [json.loads(f.payload)["kind"] for f in self.frames(cursor) if f.kind is FrameKind.EVENT]

    def fill_journal(self) -> None:
        """Drain packets until the journal takes no more."""
        for _ in range(1000):
            if self.drain.stalled:
                return
            self.made.packet(bytes(30_000))
            self.drain.step(self.now)
        raise AssertionError("the journal is never full")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def test_what_is_committed_is_journaled_and_given_back(bench: Bench) -> None:
    bench.made.packet(b"one")
    bench.made.packet(b"two")
    held = bench.made.ring.fill
    assert bench.drain.step(bench.now) == held
    assert bench.made.ring.fill == 0
    clock, span = bench.frames()
    assert (clock.kind, CLOCK.unpack(clock.payload)) == (FrameKind.CLOCK, (bench.now.boottime, bench.now.unix))
    assert (span.ring_start, span.ring_end) == (0, held)
    assert [bytes(data) for _, _, data in records(span)] == [b"one", b"two"]
    assert bench.drain.step(bench.now) == 0


def test_a_busy_record_waits(bench: Bench) -> None:
    bench.made.packet(b"one")
    bench.made.busy(bytes(112))
    bench.drain.step(bench.now)
    assert bench.made.ring.fill == 120
    assert bench.kinds() == ["CLOCK", "SPAN"]


def test_after_a_crash_the_same_span_is_written_again_at_the_same_position(bench: Bench) -> None:
    bench.made.packet(b"one")
    end = bench.made.ring.committed(0)
    bench.drain.step(bench.now)
    bench.made.ring.advance(0)  # as if the process had died before it gave the space back
    bench.made.packet(b"two")
    bench.drain.step(bench.now)
    first, second = (frame for frame in bench.frames() if frame.kind is FrameKind.SPAN)
    assert (first.ring_start, first.ring_end, second.ring_start) == (0, end, 0)
    assert [bytes(data) for _, _, data in records(second, first.ring_end - second.ring_start)] == [b"two"]


@pytest.mark.parametrize(
    ("seconds", "wall", "clocks"),
    [(0.5, 0.5, 1), (1.0, 1.0, 2), (0.5, 0.5011, 2), (0.5, 0.5009, 1), (0.5, -3600, 2), (0.5, 3600, 2)],
)
def test_a_clock_frame_comes_before_the_span_when_it_is_due(
    bench: Bench, seconds: float, wall: float, clocks: int
) -> None:
    bench.made.packet(b"one")
    bench.drain.step(bench.now)
    bench.wait(seconds, wall)
    bench.made.packet(b"two")
    bench.drain.step(bench.now)
    assert bench.kinds() == ["CLOCK", "SPAN", *["CLOCK"] * (clocks - 1), "SPAN"]


def test_without_traffic_the_clock_is_told_each_second(bench: Bench) -> None:
    for _ in range(5):
        bench.notes.clock(bench.now)
        bench.wait(0.5)
    assert bench.kinds() == ["CLOCK"] * 3


@pytest.mark.parametrize("durability", ["page-cache", "fsync"])
def test_a_full_journal_stalls_and_goes_on_when_there_is_room(tmp_path: Path, durability: str) -> None:
    bench = Bench(tmp_path, durability=durability)
    try:
        bench.fill_journal()
        assert bench.stalls == [True]
        assert bench.events() == ["journal-stalled"]
        bench.made.packet(b"in the ring when admission stopped")
        assert bench.drain.step(bench.now) > 0  # it still fits
        bench.wait(2)
        bench.drain.step(bench.now)
        assert bench.stalls == [True]
        last = bench.frames()[-1].number
        segment = int(max((tmp_path / "wire").glob("*.seg")).stem, 16)
        release(tmp_path / "wire", Cursor(segment, 0, last))
        bench.drain.step(bench.now)
        assert bench.stalls == [True, False]
        assert bench.events(Cursor(segment, 0, 0))[-1] == "journal-resumed"
        bench.made.packet(b"after")
        assert bench.drain.step(bench.now) > 0
    finally:
        bench.close()


def test_the_reason_of_a_stall_is_the_disk_or_the_limit_with_the_remedy(bench: Bench, tmp_path: Path) -> None:
    bench.fill_journal()
    assert bench.drain.reason.startswith(f"the journal is as large as journal.max_bytes ({SMALL.max_bytes}) lets it be")
    assert "see why verbatim record lags" in bench.drain.reason
    other = Bench(tmp_path / "other", min_free_bytes=2**60)
    try:
        other.drain.step(other.now)
        assert other.drain.stalled
        assert other.drain.reason.startswith("the disk has ")
        assert other.drain.reason.endswith("free disk space")
    finally:
        other.close()


def test_a_restart_with_a_full_journal_stalls_again_and_tells_in_order(bench: Bench) -> None:
    bench.fill_journal()
    for number in range(4):  # more restarts than the journal has segments in reserve
        bench.writer.close()
        bench.open()
        bench.notes.open("gw", f"{number}", 0, bench.now)
        bench.made.packet(b"x")
        bench.drain.step(bench.now)
        assert bench.drain.stalled
    revoked = Change(What.REVOKED, Lease("00000000000000ff", "192.0.2.7", UNBOUND, 1, 2, 3, "boot"))
    bench.notes.lease(revoked, bench.now, must=True)
    bench.wait(2)
    before = bench.frames()
    segment = int(max((bench.folder / "wire").glob("*.seg")).stem, 16)
    release(bench.folder / "wire", Cursor(segment, 0, before[-1].number))
    for _ in range(2):
        bench.drain.step(bench.now)
    assert not bench.drain.stalled
    assert bench.made.ring.fill == 0
    after = [frame for frame in bench.frames(Cursor(segment, 0, 0)) if frame.number > before[-1].number]
    told = [frame for frame in before + after if frame.kind in (FrameKind.OPEN, FrameKind.LEASE)]
    rings = [json.loads(frame.payload).get("ring") for frame in told]
    assert rings[-2:] == ["3", None]
    assert rings[:-1] == sorted(rings[:-1])  # one that could write nothing at all may be missing
    spans = [frame for frame in before + after if frame.kind is FrameKind.SPAN]
    assert [bytes(data) for span in spans for _, _, data in records(span)][-4:] == [b"x"] * 4


def test_a_journal_that_is_too_small_for_the_ring_is_malformed(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match="max_bytes"):
        Bench(tmp_path, max_bytes=2**22)
