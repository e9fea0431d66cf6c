"""One journal stream's way into the store; see the package."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import msgspec
import structlog

from appliance import config
from appliance.config import Settings
from appliance.errors import DamagedEvidence, Refused, Unavailable, VerbatimError
from appliance.journal import (
    Cursor,
    Damage,
    Frame,
    FrameKind,
    JournalKey,
    Reader,
    beginning,
    release,
    set_damage_aside,
)
from appliance.model import ChunkRow, Coverage, Ending, EventRow, MessageRow, Row, SessionRow
from appliance.record.recovery import Recovery, Sink
from appliance.record.snapshot import Snapshot
from appliance.session.assembler import Assembler
from appliance.session.identifiers import STATE_LOST, frame_position
from appliance.session.relayed import RelayAssembler
from appliance.session.relayed_session import LANE
from appliance.session.stream_assembler import StreamAssembler

MAX_ROWS = 60_000  # of one batch: what is stored in smaller ones, the store merges more often
MAX_BYTES = 32 << 20  # as `_weight` counts; of all streams' batches together
MAX_AGE = 1.0  # seconds from a batch's first row to its insertion
FRAMES_A_STEP = 64
MAX_SNAPSHOT_PAUSE = 30.0  # seconds between two however much they cost: the journal keeps all until then
BACK_OFF = 0.1, 5.0  # seconds before the first and the last kind of retry
RELAY = re.compile(r"relay-\d{1,6}")  # names of the relays' streams

log = structlog.get_logger()


Unfinished = Callable[[str, str, str], list[SessionRow]]  # stream, node, source -> sessions that are stored as open


class Recorder:
    """One journal stream's way into the store. `step` does a bounded piece of work and never waits."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        store: Sink,
        unfinished: Unfinished,
        *,
        keep: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._store = store
        self._unfinished = unfinished
        self._keep = keep  # the journal is not released
        self._clock = clock
        self._relayed = RELAY.fullmatch(folder.name) is not None
        form = RelayAssembler.FORM if self._relayed else Assembler.FORM
        self._snapshot = Snapshot(settings.data / "state" / f"record-{folder.name}.snapshot", form)
        self._limits = settings.record
        self._streams = 1
        self._batch: list[Row] = []
        self._weight = 0
        self._since = 0.0
        self._read_ns = 0  # when the last frame that was read was written
        self._unstored_ns = 0  # the same of the frame that gave the oldest row that is not stored; 0: there is none
        self._sealed: list[Row] | None = None  # being inserted, repeated as it is
        self._retry_at = 0.0
        self._pause = BACK_OFF[0]
        self._next_snapshot = clock() + settings.record.snapshot
        self._recovery: Recovery | None = None  # while rows may be in the store already
        self._orphans: dict[UUID, SessionRow] = {}  # open sessions that a lost state leaves behind
        self._assembler: StreamAssembler | None = None
        self._begun = False
        self._waiting: Frame | Damage | None = None  # read, but the store had to be asked first
        self._parts: Iterator[list[Row]] | None = None  # of a frame that is not worked off
        self._kept: Cursor | None = None  # that of the last snapshot
        self.closed = False  # the stream's writer ended on purpose
        self.fault = ""  # why the store does not take rows now
        self.stored = 0
        self._strange = False  # the snapshot was of another journal stream
        self._open()

    def _open(self) -> None:
        """Go on from the last snapshot, if it is of this journal."""
        key = JournalKey.load_or_create(self._settings.data)
        self._reader = Reader(self._folder, key, self._load() or beginning(self._folder))
        if self._assembler is not None and self._reader.stream not in (None, self._assembler.stream):
            log.error("snapshot-unused", reason="the journal is a new one")
            self._reader.close()
            self._reader = Reader(self._folder, key, beginning(self._folder))
            self._assembler, self._orphans, self._begun, self.closed = None, {}, False, False
            self._strange = True
        self._recovery = Recovery(self._store, self._reader.newest)

    # -- work ------------------------------------------------------------------------------------------------------

    def share(self, limits: config.Record, streams: int) -> None:
        """Work as one of so many streams: within these limits from the next snapshot on, and in smaller batches."""
        self._limits = limits
        self._streams = streams

    def step(self) -> bool:
        """Read, assemble and store a piece. Whether there may be more to do at once."""
        if self.fault and (self._clock() < self._retry_at or not self._flush()):
            return False
        if self._reader.stream is None and (self._folder / "stream").exists():  # the journal came later than we did
            self._reader.close()
            self._open()
        for _ in range(FRAMES_A_STEP):
            if self._parts is None:
                if not self._snapshot_if_due():
                    return False
                frame, self._waiting = self._waiting or self._reader.read(), None
                if frame is None:
                    return self._rest()
                if not self._take(frame):
                    self._waiting = frame
                    return False
            if self._work_off():
                return self._flush()
        if self._batch and self._clock() - self._since >= MAX_AGE:
            self._flush()
        return not self.fault

    def finish(self, *, snapshot: bool = True) -> bool:
        """Store what is read, and write a snapshot. False: the store does not take it; nothing is lost by that."""
        if self._waiting is not None and self._begun:  # for the store alone
            if not self._take(self._waiting):
                return False
            self._waiting = None
        while self._work_off():
            if not self._flush():
                return False
        if not self._flush():
            return False
        if snapshot and self._begun:
            self._try_snapshot()
        return True

    def values(self) -> dict[str, object]:
        """For the status file."""
        machine, backlog = self._assembler, self._reader.backlog_bytes()
        held = self._waiting.time_ns if isinstance(self._waiting, Frame) else 0
        read_ns = self._read_ns or (machine.wall_ns if machine else 0) or held
        oldest_ns = self._unstored_ns or (read_ns if backlog else 0)
        lag = time.time() - oldest_ns / 1e9 if oldest_ns else 0.0
        return {
            "backlog_bytes": backlog,
            "read_ns": read_ns,
            "unstored_ns": self._unstored_ns,
            "lag_seconds": round(max(0.0, lag), 3),
            "sessions_open": machine.sessions_open if machine else 0,
            "sessions_bytes": machine.weight if machine else 0,
            "memory_short": machine.relieved if machine else 0,
            "rows": self.stored,
            "damaged": machine.damaged if machine else 0,
            "torn_tails": self._reader.torn_tails,
            "faults": {
                name: text
                for name, text in (("snapshot-failed", self._snapshot.fault), ("store-refuses", self.fault))
                if text
            },
            "store": self.fault or "ok",
        }

    def backlog(self) -> int:
        return self._reader.backlog_bytes()

    def forget(self) -> None:
        """Remove the snapshot: everything is in the store and the stream will not be read again."""
        self._snapshot.forget()

    def close(self) -> None:
        self._reader.close()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _take(self, frame: Frame | Damage) -> bool:
        if self._assembler is None:
            stream = self._reader.stream
            assert stream is not None  # a frame was read
            node = self._settings.node
            self._assembler = (
                RelayAssembler(stream, self._limits, node, self._folder.name)
                if self._relayed
                else Assembler(stream, self._limits, node)
            )
            self._next_snapshot = self._clock()  # the limits that what follows is read within
        if not self._begun and not self._begin(frame):
            return False
        if self._recovery is not None and self._recovery.behind(self._reader.cursor) and not self._recovered():
            return False
        if isinstance(frame, Frame) and frame.kind is FrameKind.CLOSE:
            self.closed = True
        elif isinstance(frame, Frame) and frame.kind is FrameKind.OPEN:
            self.closed = False
        if isinstance(frame, Frame):
            self._read_ns = frame.time_ns
        elif frame.segment:
            set_damage_aside(self._folder, frame.segment, frame.start, frame.end)
        self._parts = self._assembler.parts(frame)
        return True

    def _work_off(self) -> bool:
        """Gather the rows of the frame that was taken. True: the batch is full first, and the frame waits."""
        for rows in self._parts or ():
            self._add(rows)
            if len(self._batch) >= MAX_ROWS or self._weight >= MAX_BYTES // self._streams:
                return True
        self._parts = None
        return False

    def _add(self, rows: list[Row]) -> None:
        if not rows:
            return
        if not self._batch:
            self._since = self._clock()
            self._unstored_ns = self._unstored_ns or self._read_ns
        self._batch += rows
        self._weight += _weight(rows)
        if self._orphans:
            for row in rows:
                if isinstance(row, SessionRow):
                    self._orphans.pop(row.session_id, None)

    def _begin(self, frame: Frame | Damage) -> bool:
        """The first frame without a snapshot: was there anything before it? False: the store can't be asked now."""
        number = frame.number if isinstance(frame, Frame) else frame.first_frame
        machine = self._assembler
        assert machine is not None
        stream = machine.stream.hex()
        untold = ""
        try:
            try:
                left = self._unfinished(stream, self._settings.node, machine.source)
            except Refused as error:  # too much for it: what can be read goes on
                left, untold = [], str(error)
            lost = number > 1 or self._strange
            known = self._store.last_position(stream) if left or untold or lost else None
        except (Unavailable, Refused) as error:
            self._fail(error)
            return False
        self._orphans = {row.session_id: row for row in left}  # but for those that the journal tells of once more
        if lost or ((left or untold) and known is None):
            text = f"the recorder lost its state: {len(left)} sessions that were open can't be continued"
            if untold:
                text = f"the recorder lost its state, and how many sessions were open is not known: {untold}"
            attrs = {"first_frame": number, "open_sessions": None if untold else len(left)}
            position = max(frame_position(number), known or 0) + STATE_LOST
            ts_ns = frame.time_ns if isinstance(frame, Frame) else 0
            log.error("state-lost", **attrs)
            self._add([EventRow(stream, position, ts_ns, "state-lost", "", text, attrs)])
        self._begun = True
        self.fault = ""
        return True

    def _rest(self) -> bool:
        """Nothing more to read for now."""
        if self._recovery is not None and self._begun:
            self._recovered()
        elif self._batch and self._clock() - self._since >= MAX_AGE:
            self._flush()
        return False

    def _recovered(self) -> bool:
        """What may be stored already is read: sessions that nothing told of any more end. False: the store waits."""
        self._add([_interrupted(row) for row in self._orphans.values()])
        self._orphans = {}
        if not self._flush():
            return False
        self._recovery = None
        self._next_snapshot = self._clock()
        return True

    # -- storing ---------------------------------------------------------------------------------------------------

    def _flush(self) -> bool:
        """Store the batch. False: it waits."""
        if not self._batch and self._sealed is None:
            return True
        if self._clock() < self._retry_at:
            return False
        try:
            if self._sealed is None:
                self._sealed = self._recovery.fresh(self._batch) if self._recovery else self._batch
                self._batch, self._weight = [], 0
            if self._sealed:
                self._store.insert(self._sealed)
        except (Unavailable, Refused, DamagedEvidence) as error:
            self._fail(error)
            return False
        self.stored += len(self._sealed)
        self._sealed = None
        self._unstored_ns = self._read_ns if self._batch else 0
        self._pause = BACK_OFF[0]
        self.fault = ""
        return not self._batch or self._flush()

    def _fail(self, error: VerbatimError) -> None:
        if not self.fault:
            log.error("store-refuses", reason=str(error))
        self.fault = str(error)
        self._retry_at = self._clock() + self._pause
        self._pause = min(2 * self._pause, BACK_OFF[1])

    # -- snapshots -------------------------------------------------------------------------------------------------

    def _snapshot_if_due(self) -> bool:
        """Between two frames. False: the store takes no rows. How long it takes for that is not the snapshot's cost."""
        if self._clock() < self._next_snapshot or self._reader.cursor == self._kept:
            return True
        if self._waiting is not None or self._assembler is None:  # the cursor is ahead of the state
            return True
        if not self._flush():
            return False
        begun = self._clock()
        self._try_snapshot()
        ended = self._clock()
        pause = min(10 * (ended - begun), MAX_SNAPSHOT_PAUSE)
        self._next_snapshot = ended + max(self._settings.record.snapshot, pause)
        return True

    def _try_snapshot(self) -> None:
        """On a disk without room the last snapshot stays, and the journal behind it."""
        if self._reader.stream is None or self._waiting is not None:  # no journal yet, or a frame that is not in it
            return
        try:
            self.write_snapshot()
        except OSError as error:
            self._snapshot.give_up(error)

    def write_snapshot(self) -> None:
        """Every row is stored: keep the state, then let the writer have the journal's segments.

        Limits change with a snapshot alone: what is read behind it gives the same rows when it is read once more.
        """
        machine, cursor = self._assembler, self._reader.cursor
        assert machine is not None
        limits = machine.settings
        if self._recovery is None:
            machine.use(self._limits)
        try:
            self._snapshot.write((cursor, machine, self._orphans, self.closed))
        except OSError:
            machine.use(limits)
            raise
        self._kept = cursor
        if not self._keep:
            release(self._folder, cursor, self._settings.journal.keep_bytes)

    def _load(self) -> Cursor | None:
        content = self._snapshot.load()
        if content is None:
            return None
        cursor, machine, orphans, closed = content
        assert isinstance(cursor, Cursor)
        assert isinstance(machine, StreamAssembler)
        self._assembler, self._orphans, self.closed, self._begun = machine, orphans, closed, True
        return cursor


def _weight(rows: list[Row]) -> int:
    """Bytes that rows cost, roughly."""
    size = 0
    for row in rows:
        if isinstance(row, MessageRow):
            size += 400 + len(row.message.text)
        elif isinstance(row, ChunkRow):
            size += 100 + len(row.data)
        else:
            size += 500
    return size


def _interrupted(row: SessionRow) -> SessionRow:
    """The last revision of a session that can't be continued."""
    seen = row.lane == LANE or (row.client_packets and row.server_packets)  # a relay tells of packets at the end
    worst = Coverage.PARTIAL if seen else Coverage.ONE_SIDED
    findings = tuple(sorted({*row.findings, "state-lost"}))
    return msgspec.structs.replace(row, seq=row.seq + 1, ending=Ending.INTERRUPTED, coverage=worst, findings=findings)
