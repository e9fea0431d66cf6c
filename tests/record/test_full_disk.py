"""Recorder and store on one small disk that fills and grows: traffic waits in the journal, and no row is lost."""

import random
from contextlib import nullcontext
from pathlib import Path

import pytest

from appliance import config
from appliance.journal import FrameKind
from appliance.model import ChunkRow
from appliance.record import Recorder
from appliance.store import query, rows, whole
from appliance.store.client import open_store
from appliance.store.unfinished import open_sessions
from tests.lab.disk import root, small_disk
from tests.record.test_recorder import LIMITS, Ticking, work, write
from tests.session.test_assembler import clock, numbered, opened
from tests.session.traffic import MS, PSH, SECOND, T0, Peer, feed, frame, span
from tests.store.conftest import serving

PAYLOAD = random.Random(7).randbytes(10 * 2**20)
PIECE = 16 * 1024
LIMITS_OF_DISK = config.Journal(segment_bytes=LIMITS.segment_bytes, max_bytes=LIMITS.max_bytes, min_free_bytes=2**20)


@root
@pytest.mark.parametrize("place", ["service", "in-process"])
def test_a_disk_that_fills_under_the_store_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("VERBATIM_JOURNAL__MIN_FREE_BYTES", str(LIMITS_OF_DISK.min_free_bytes))
    monkeypatch.setattr("appliance.record.recorder.MAX_BYTES", 2**20)
    monkeypatch.setattr("appliance.record.recorder.FRAMES_A_STEP", 3)
    peer = Peer()
    sent = [
        peer.packet(1, PSH, at, PAYLOAD[at : at + PIECE], time=(3 + at // PIECE) * MS)
        for at in range(0, len(PAYLOAD), PIECE)
    ]
    packets = [*peer.handshake(), *sent, *peer.goodbye(0, len(PAYLOAD), 2 * SECOND)]
    spans = [span(0, *packets[at : at + 3]) for at in range(0, len(packets), 3)]
    frames = numbered(opened(), clock(T0, T0), *spans, frame(0, FrameKind.CLOSE))
    expected = feed(frames)
    with small_disk(tmp_path / "disk", 20) as disk:
        settings = config.Settings(
            data=disk.path, node="gw", journal=LIMITS_OF_DISK, record=config.Record(snapshot=0.01)
        )
        folder = write(settings, frames)
        with (
            serving(disk.path) if place == "service" else nullcontext(),
            open_store(settings, "writer", embed=place == "in-process") as store,
        ):
            recorder = Recorder(settings, folder, store, lambda *_: open_sessions(store, "wire"), clock=Ticking(0.2))
            while not recorder.fault:
                recorder.step()
                assert recorder.fault or recorder.backlog(), "the disk never filled"
            assert "takes no rows: its disk" in recorder.fault
            left = recorder.backlog()
            assert left > 2**20
            assert not recorder.finish()
            disk.resize(64)
            work(recorder)
            assert recorder.finish()
            assert recorder.backlog() == 0
            assert recorder.values()["faults"] == {}
            recorder.close()
            for table, members in rows.by_table(expected).items():
                (found,) = store.select(f"SELECT count() AS n FROM {table.name}")
                assert (table.name, found["n"]) == (table.name, len(members))
            (session,) = query.sessions(store, query.SessionFilter(), 10, None).items
            assert whole.missing(store, session) == {}
            assert b"".join(piece for _, piece in query.stream(store, session["session_id"], "server")) == PAYLOAD
            assert sum(len(row.data) for row in expected if isinstance(row, ChunkRow)) == len(PAYLOAD)
