"""Frames other than spans: in order, also when some had to wait."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import config
from appliance.errors import Unavailable
from appliance.identity.leases import Change, Lease, Now, What
from appliance.journal import Damage, Frame, FrameKind, JournalKey, Reader, Writer
from appliance.model import Identity
from appliance.wire import notes as module
from appliance.wire.notes import Notes

NOW = Now(1_790_000_000_000_000_000, 500_000_000_000, "boot")
LEASE = Lease("00000000000000ff", "192.0.2.7", Identity(subject="ann", act=("b",)), 1, 2, 3, "boot", "agents0")


class Gate:
    """A journal that can be shut."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.shut = False

    def append(self, kind: FrameKind, payload: bytes, *, time_ns: int) -> int:
        if self.shut:
            raise Unavailable("shut")
        return self._writer.append(kind, payload, time_ns=time_ns)

    def sync(self) -> None:
        self._writer.sync()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def gate(folder: Path) -> Iterator[Gate]:
    journal = config.Journal(segment_bytes=2**20, max_bytes=2**23, min_free_bytes=1)
    with Writer(folder / "wire", JournalKey.load_or_create(folder), settings=journal) as writer:
        yield Gate(writer)


@pytest.fixture
def notes(gate: Gate) -> Notes:
    return Notes(gate, "boot")  # type: ignore[arg-type]


def frames(folder: Path) -> list[Frame]:
    found = []
    with Reader(folder / "wire", JournalKey.load(folder)) as reader:
        while (item := reader.read()) is not None:
            assert not isinstance(item, Damage)
            found.append(item)
    return found


def test_what_the_frames_say(folder: Path, notes: Notes) -> None:
    notes.open("gw", "ab" * 16, 4096, NOW)
    notes.lease(Change(What.GRANTED, LEASE), NOW)
    notes.event("filter-restored", "it was gone", NOW, interface="agents0")
    opened, lease, event = frames(folder)
    assert json.loads(opened.payload) == {
        "node": "gw", "source": "wire", "ring": "ab" * 16, "boot": "boot", "position": 4096,
    }  # fmt: skip
    said = json.loads(lease.payload)
    assert (said["event"], said["id"], said["address"], said["expires_ns"]) == ("granted", LEASE.id, LEASE.address, 2)
    assert (said["identity"]["subject"], said["identity"]["act"]) == ("ann", ["b"])
    assert json.loads(event.payload) == {"kind": "filter-restored", "text": "it was gone", "interface": "agents0"}
    assert {frame.time_ns for frame in frames(folder)} == {NOW.unix}


def test_what_must_be_said_waits_in_order_and_nothing_overtakes_it(folder: Path, gate: Gate, notes: Notes) -> None:
    gate.shut = True
    notes.event("one", "", NOW)
    notes.lease(Change(What.REVOKED, LEASE), NOW, must=True)
    with pytest.raises(Unavailable):
        notes.lease(Change(What.GRANTED, LEASE), NOW)
    with pytest.raises(Unavailable):
        notes.clock(NOW)
    assert not notes.flush()
    gate.shut = False
    notes.clock(NOW)
    assert [frame.kind for frame in frames(folder)] == [FrameKind.EVENT, FrameKind.LEASE, FrameKind.CLOCK]


def test_what_is_too_much_to_wait_is_counted(
    folder: Path, gate: Gate, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    gate.shut = True
    for number in range(5):
        notes.event(f"{number}", "", NOW)
    gate.shut = False
    assert notes.flush()
    said = [json.loads(frame.payload) for frame in frames(folder)]
    assert [event["kind"] for event in said] == ["0", "1", "notes-lost"]
    assert said[-1]["count"] == 3
