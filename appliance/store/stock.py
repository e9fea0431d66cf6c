"""Whether an insert really took place: chDB's own word for it is not enough.

`send_insert` reports the rows that it has read, also when a full disk, or the limit of memory, kept them from being
written. And the engine logs a batch's token before it puts the batch's part in its place: after a crash in between, the
same batch counts as a repeated one, though nothing of it is there.

So the rows of the table are counted behind each insert, which costs the engine a millisecond: nobody else writes to it,
merges keep the number, and inserts into one table take turns. Where the count is not what it must be, the batch was
repeated or something is missing, and the engine compares the keys of the batch with those of the table. What is missing
is inserted by INSERT ... SELECT, which does raise. In the end all rows are there, each once, under the batch's token,
so that the same batch again adds nothing; or there is an error.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import DamagedEvidence, Unavailable
from appliance.store.rows import AUDIT, EVENTS, KEYED, Block

NO_ROOM = 243  # ClickHouse: NOT_ENOUGH_SPACE
# What the engine says when the system has no room for it: its own reservation, or ENOSPC and EDQUOT of a system call.
_NO_ROOM = (f"Code: {NO_ROOM}.", "errno: 28,", "errno: 122,", "No space left on device", "Disk quota exceeded")
_REGARDLESS = "deduplicate_insert_select = 'disable'"  # whether the token is known or not
# The columns that tell a table's rows apart, those of the primary key first.
KEYS = dict.fromkeys(KEYED, ("started", "session_id", "seq")) | {
    EVENTS.name: ("stream", "position"),
    AUDIT.name: AUDIT.names,
}
Run = Callable[[str], bytes]  # one statement


def no_room(error: RuntimeError) -> bool:
    """Whether the engine failed for want of disk space."""
    return any(sign in str(error) for sign in _NO_ROOM)


class Stock:
    """The rows of each table, as far as this process counted them. One for all handles of an engine.

    `reserve`: bytes of the disk that an insert leaves free. Merges need them, and an engine that meets the end of the
    disk itself may leave files that it cannot read again.
    """

    def __init__(self, path: Path, reserve: int = 0) -> None:
        self._path = path
        self._reserve = reserve
        self._counts: dict[str, int] = {}
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()

    def room(self, size: int) -> None:
        """Raise `Unavailable` unless the disk has room for `size` bytes more and the reserve."""
        disk = os.statvfs(self._path)
        free = disk.f_bavail * disk.f_frsize
        if free < self._reserve + size:
            raise Unavailable(
                f"store {self._path} takes no rows: its disk has {free} bytes left, of which it keeps {self._reserve} "
                f"(half of journal.min_free_bytes) free, and needs {size}; free disk space"
            )

    @contextmanager
    def turn(self, run: Run, table: str) -> Iterator[None]:
        """For one insert into the table at a time. What was counted is forgotten when it fails."""
        with self._guard:
            turn = self._turns[table]
        with turn:
            if table not in self._counts:
                self._counts[table] = _count(run, table)
            try:
                yield
            except BaseException:
                self._counts.pop(table, None)
                raise

    def settle(self, run: Run, block: Block, taken: int, settings: str) -> None:
        """Make sure that the block, whose `taken` rows the engine says to have taken, is in its table.

        `settings` are those of its insert, the token among them. Within its `turn`. Raises the engine's RuntimeError
        where it cannot write, and `DamagedEvidence` where it fails to without saying so.
        """
        there = _count(run, block.table)
        if there != self._counts[block.table] + taken:
            _complete(run, block, settings)
            there = _count(run, block.table)
        self._counts[block.table] = there


def _count(run: Run, table: str) -> int:
    return int(run(f"SELECT count() FROM {table}"))  # noqa: S608 - a name of ours


def _complete(run: Run, block: Block, settings: str) -> None:
    """Insert the rows of the block that its table lacks. The token may be known (see above): then without it."""
    key = ", ".join(f"`{name}`" for name in KEYS[block.table])
    columns = ", ".join(f"`{name}`" for name in block.columns)
    with _as_file(block.body) as path:
        source = f"file('{path}', 'Native')"
        lacking = (
            f"FROM {source} WHERE ({key}) NOT IN "  # noqa: S608 - names of ours
            f"(SELECT {key} FROM {block.table} WHERE ({key}) IN (SELECT {key} FROM {source}))"
        )
        # Another block may have had the same path; and a merge on a full disk may have left an index without content.
        fresh = "schema_inference_use_cache_for_file = 0, use_skip_indexes = 0"
        for written in (settings, f"{settings}, {_REGARDLESS}"):
            missing = int(run(f"SELECT count() {lacking} SETTINGS {fresh}"))
            if not missing:
                return
            run(f"INSERT INTO {block.table} ({columns}) SETTINGS {written}, {fresh} SELECT {columns} {lacking}")
        missing = int(run(f"SELECT count() {lacking} SETTINGS {fresh}"))
    if missing:
        raise DamagedEvidence(
            f"store did not keep {missing} rows for {block.table} and does not say why; see its disk and its memory "
            "(store.max_memory), the batch may be repeated safely"
        )


@contextmanager
def _as_file(body: bytes) -> Iterator[str]:
    """A path that the engine can read `body` from; it lies in memory alone."""
    file = os.memfd_create("block", os.MFD_CLOEXEC)
    try:
        with memoryview(body) as rest:
            written = 0
            while written < len(rest):
                written += os.write(file, rest[written:])
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)
