"""The recorder at work: on the wire's stream until it is told to end, or once through the stream of an ingest."""

import gc
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import structlog

from appliance import status
from appliance.config import Settings
from appliance.errors import DamagedEvidence, MalformedInput, Unavailable
from appliance.log import configure
from appliance.record.recorder import Recorder, Unfinished
from appliance.record.recovery import Sink

LAST_SECONDS = 5.0  # of reading on, when asked to end: the rest is for the next start
POLL = 0.02  # seconds between two looks at a journal without anything new
PATIENCE = 30.0  # seconds for which `drain` waits for the store

log = structlog.get_logger()
Progress = Callable[[int, int], None]


def run(settings: Settings) -> None:
    """Serve the wire's stream until SIGTERM or SIGINT; then store what is read and write a snapshot."""
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
        recorder = _opened(
            settings,
            store,
            lambda stream, node, source: open_sessions(store, source, (stream, node) if shared else None),
            ended,
        )
        if recorder is None:
            status.withdraw(settings.data, "record")
            return
        spare_collector()
        try:
            _serve(recorder, settings.data, ended)
            if not recorder.finish():
                log.warning("stopped-early", reason=recorder.fault)
        finally:
            recorder.close()
        status.withdraw(settings.data, "record")  # only now: of one that failed, what it said last must stay, and age


def _opened(settings: Settings, store: Sink, unfinished: Unfinished, ended: threading.Event) -> Recorder | None:
    """Of the wire's stream; waits while that is of another version, until the wire process has set it aside."""
    told = ""
    while not ended.is_set():
        try:
            return Recorder(settings, settings.data / "journal" / "wire", store, unfinished)
        except MalformedInput as error:
            if str(error) != told:
                told = str(error)
                log.error("journal-version", reason=told)
            status.publish(settings.data, "record", {"store": "ok", "faults": {"journal-version": str(error)}})
            ended.wait(1.0)
    return None


def spare_collector() -> None:
    """Rows live for seconds and die without cycles: Python's cycle collector would walk over them again and again."""
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 100)


def _serve(recorder: Recorder, data: Path, ended: threading.Event) -> None:
    published = 0.0
    while not ended.is_set():
        busy = recorder.step()
        if time.monotonic() - published >= 1.0:
            status.publish(data, "record", recorder.values())
            published = time.monotonic()
        if not busy:
            ended.wait(POLL)
    deadline = time.monotonic() + LAST_SECONDS
    while recorder.step() and time.monotonic() < deadline:
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
