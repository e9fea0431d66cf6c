"""The recorder at work: on the wire's and the relays' streams until it is told to end, or once through an ingest's."""

import gc
import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import structlog

from appliance import status
from appliance.config import Settings
from appliance.errors import DamagedEvidence, Unavailable
from appliance.log import configure
from appliance.record.recorder import Recorder
from appliance.record.recovery import Sink
from appliance.record.streams import Streams

LAST_SECONDS = 5.0  # of reading on, when asked to end: the rest is for the next start
LOOK = 1.0  # seconds between two looks for new streams, and two words for the status file
POLL = 0.02  # seconds between two looks at a journal without anything new
PATIENCE = 30.0  # seconds for which `drain` waits for the store

log = structlog.get_logger()
Progress = Callable[[int, int], None]


def run(settings: Settings) -> None:
    """Serve all streams but those of ingests until SIGTERM or SIGINT; then store what is read and write a snapshot."""
    from appliance.store.client import open_store
    from appliance.store.unfinished import open_sessions

    configure(settings.log_level, "record")
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with open_store(settings, "writer", embed=False) as store:
        shared = bool(settings.store.url)
        streams = Streams(
            settings,
            store,
            lambda stream, node, source: open_sessions(store, source, (stream, node) if shared else None),
        )
        streams.look()
        spare_collector()
        try:
            _serve(streams, settings.data, ended)
            for reason in streams.finish():
                log.warning("stopped-early", reason=reason)
        finally:
            streams.close()
        status.withdraw(settings.data, "record")  # only now: of one that failed, what it said last must stay, and age


def spare_collector() -> None:
    """Rows live for seconds and die without cycles: Python's cycle collector would walk over them again and again."""
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 100)


def _serve(streams: Streams, data: Path, ended: threading.Event) -> None:
    looked = -math.inf
    while not ended.is_set():
        if time.monotonic() - looked >= LOOK:
            streams.look()
            status.publish(data, "record", streams.values())
            looked = time.monotonic()
        if not streams.step():
            ended.wait(POLL)
    deadline = time.monotonic() + LAST_SECONDS
    while streams.step() and time.monotonic() < deadline:
        pass


def drain(settings: Settings, folder: Path, store: Sink, progress: Progress) -> None:
    """Store all of an ingest's finished stream. `progress(done, total)`: bytes of the journal.

    The journal is kept, so that the same call may be repeated after any failure. Raises `Unavailable` when the store
    does not take rows for `PATIENCE`, and `DamagedEvidence` when the stream has no end.
    """
    spare_collector()
    recorder = Recorder(settings, folder, store, lambda stream, node, source: [], keep=True)
    try:
        total = recorder.backlog()
        failing_since: float | None = None
        while not recorder.closed:
            busy = recorder.step()
            if recorder.fault:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > PATIENCE:
                    raise Unavailable(recorder.fault)
                time.sleep(POLL)
                continue
            failing_since = None
            left = recorder.backlog()
            progress(total - left, total)
            if not busy and not recorder.closed:
                raise DamagedEvidence(f"{folder}: the journal has no end; ingest the file again")
        deadline = time.monotonic() + PATIENCE
        while not recorder.finish(snapshot=False):  # it would be removed a moment later
            if time.monotonic() > deadline:
                raise Unavailable(recorder.fault)
            time.sleep(POLL)
        progress(total, total)
        recorder.forget()
    finally:
        recorder.close()
