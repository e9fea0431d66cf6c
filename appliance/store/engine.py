"""chDB in this process: one engine per process, any number of handles, each used by one thread at a time.

Nothing here may run before a fork: a forked child's queries hang.
"""

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import structlog

from appliance import config
from appliance.errors import Unavailable
from appliance.store import schema
from appliance.store.rows import Block
from appliance.store.stock import Stock, no_room

Settings = Mapping[str, int]  # of the engine, by name
NO_SETTINGS: Settings = MappingProxyType({})
# One insert is one block, and so one part per partition; batches are made by the recorder, not by the engine.
INSERT_SETTINGS = {
    "async_insert": "0",
    "insert_deduplicate": "1",
    "max_partitions_per_insert_block": "0",
    "max_insert_block_size": "16777216",
    "min_insert_block_size_rows": "0",
    "min_insert_block_size_bytes": "0",
}
# What the engine may keep in memory to be faster next time, bytes each; its own defaults add up to more than most
# machines have. Everything together is bounded by `store.max_memory`.
CACHES = {
    "mark_cache_size": 64 * 2**20,
    "primary_index_cache_size": 64 * 2**20,
    "index_mark_cache_size": 32 * 2**20,
    "text_index_tokens_cache_size": 64 * 2**20,
    "text_index_header_cache_size": 64 * 2**20,
    "text_index_postings_cache_size": 64 * 2**20,
    "query_condition_cache_size": 16 * 2**20,
    "compiled_expression_cache_size": 16 * 2**20,
}
# ClickHouse: ATTEMPT_TO_READ_AFTER_EOF, CANNOT_READ_ALL_DATA, CORRUPTED_DATA. A merge on a full disk may leave a skip
# index without content, and the engine then fails what it could answer from the rows alone.
UNREADABLE = frozenset({32, 33, 246})
UNINDEXED: Settings = {"use_skip_indexes": 0}
log = structlog.get_logger()
_SAID = re.compile(r"(Code: (\d+))")


def store_path(data: Path) -> Path:
    return data / "store"


def reserve(settings: config.Settings) -> int:
    """Bytes of the disk that the store leaves free: less than the journal does, so that what it holds can be stored."""
    return settings.journal.min_free_bytes // 2


class Lock:
    """The lock of a data folder: one process at a time owns its chDB. Shared by all users within this process."""

    _held: dict[Path, tuple[int, int]] = {}  # noqa: RUF012 - path -> (users, file descriptor), of the whole process
    _guard = threading.Lock()

    def __init__(self, data: Path) -> None:
        self._path = data.resolve() / "store.lock"
        self._mine = False

    def acquire(self) -> bool:
        """Take the lock if no other process has it."""
        with self._guard:
            users, fd = self._held.get(self._path, (0, -1))
            if not users:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(fd)
                    return False
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            self._held[self._path] = (users + 1, fd)
            self._mine = True
            return True

    def owner(self) -> str:
        """Process id of the owner, for an error message; empty if unknown."""
        try:
            return self._path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def release(self) -> None:
        with self._guard:
            if not self._mine:
                return
            self._mine = False
            users, fd = self._held[self._path]
            if users > 1:
                self._held[self._path] = (users - 1, fd)
                return
            del self._held[self._path]
            os.close(fd)


class Handle:
    """One connection to the engine, in the store's database.

    A SELECT that finds something unreadable before its first block is asked once more without skip indexes.
    """

    def __init__(self, path: Path, stock: Stock, memory: int = 0, settings: Settings = NO_SETTINGS) -> None:
        """`memory`: bytes that the engine may take; what the process's first handle says holds for all. `settings`:
        the engine's, for this handle, set in this order.
        """
        import chdb

        limits = {**CACHES, "max_server_memory_usage": memory} if memory else {}
        asked = "&".join(f"{name}={value}" for name, value in limits.items())
        self._path = path
        self._stock = stock
        self._settings = settings
        self._unindexed: Handle | None = None
        with told(path):
            self._connection = chdb.connect(f"{path}?{asked}" if asked else str(path))
            try:
                self.run(f"CREATE DATABASE IF NOT EXISTS {schema.DATABASE}")
                self.run(f"USE {schema.DATABASE}")
                for name, value in settings.items():
                    self.run(f"SET {name} = {value}")
            except BaseException:
                self._connection.close()
                raise

    def another(self, settings: Settings = NO_SETTINGS) -> "Handle":
        """One more connection to the same engine."""
        return Handle(self._path, self._stock, settings=settings)

    def run(self, sql: str, form: str = "TabSeparated", params: dict[str, str] | None = None) -> bytes:
        """Run one statement, return its whole result. Raises chDB's RuntimeError."""
        try:
            result = self._connection.query(sql, form, params=params or {})
        except RuntimeError as error:
            return self._without_indexes(sql, error).run(sql, form, params)
        return bytes(result.bytes() or b"")

    def stream(self, sql: str, form: str, params: dict[str, str]) -> Generator[bytes, None, None]:
        """Run one SELECT block by block. Exhaust or close it before the handle is used again. Raises RuntimeError."""
        begun = False
        try:
            for block in self._blocks(sql, form, params):
                yield block
                begun = True
        except RuntimeError as error:
            if begun:
                raise
            yield from self._without_indexes(sql, error).stream(sql, form, params)

    def _blocks(self, sql: str, form: str, params: dict[str, str]) -> Generator[bytes, None, None]:
        with self._connection.send_query(sql, form, params=params) as blocks:
            while True:
                try:
                    block = blocks.fetch()
                except Exception as error:  # chDB's own class
                    raise RuntimeError(str(error)) from error
                if block is None:
                    return
                yield bytes(block.bytes())

    def _without_indexes(self, sql: str, error: RuntimeError) -> "Handle":
        """Another handle, to ask once more. Raises the error where that cannot help."""
        said = _SAID.search(str(error))
        reads = sql.lstrip()[:6].upper() == "SELECT"
        if said is None or int(said[2]) not in UNREADABLE or not reads or self._settings.keys() >= UNINDEXED.keys():
            raise error
        if self._unindexed is None:
            log.warning("index-unreadable", reason=said[0])
            self._unindexed = self.another({**UNINDEXED, **self._settings})
        return self._unindexed

    def insert(self, block: Block) -> int:
        """Insert the block exactly once; return its number of rows when all of them are there.

        Raises `Unavailable` when the disk has no room for it, and chDB's RuntimeError when the engine refuses it.
        """
        self._stock.room(len(block.body))
        settings = ", ".join(f"{name} = {value}" for name, value in INSERT_SETTINGS.items())
        if block.token:
            settings += f", insert_deduplication_token = '{block.token}'"
        try:
            with self._stock.turn(self.run, block.table):
                taken = self._send(block, settings)
                self._stock.settle(self.run, block, taken, settings)
        except RuntimeError as error:
            if no_room(error):
                raise Unavailable(f"store {self._path} takes no rows: its disk is full; free disk space") from error
            raise
        return taken

    def _send(self, block: Block, settings: str) -> int:
        """How many rows the engine has read. It may not have stored them: see `Stock`."""
        columns = ", ".join(f"`{name}`" for name in block.columns)
        inserter = self._connection.send_insert(f"INSERT INTO {block.table} ({columns}) SETTINGS {settings}", "Native")
        try:
            inserter.append(block.body)
            return int(inserter.finish().rows_written)
        finally:
            inserter.close()

    def classify(self, statement: str) -> dict[str, Any]:
        """The engine's report on a statement: `query_class` (an enum), `statement_count`, ..."""
        report: dict[str, Any] = self._connection._conn.classify_query(statement)
        return report

    def close(self) -> None:
        if self._unindexed is not None:
            self._unindexed.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def create(data: Path, memory: int, reserve: int = 0) -> Handle:
    """Make the folder and the tables, return a handle (`memory`, `reserve`: as there and in `Stock`).

    The caller holds the folder's `Lock`. Raises `Unavailable`. A folder without any row that cannot be opened is what a
    full disk or a crash left of an earlier call: it is made anew.
    """
    path = store_path(data)
    stock = Stock(path, reserve)
    try:
        if not path.exists():
            path.mkdir(mode=0o700, parents=True)
            stock.room(0)
        try:
            return _create(path, stock, memory)
        except Unavailable:
            if not _empty(path):
                raise
            shutil.rmtree(path)
            path.mkdir(mode=0o700)
            stock.room(0)
            return _create(path, stock, memory)
    except OSError as error:
        raise Unavailable(
            f"store {path} cannot be made: {error.strerror}; free disk space, or see its owner"
        ) from error


def _create(path: Path, stock: Stock, memory: int) -> Handle:
    handle = Handle(path, stock, memory)
    try:
        with told(path):
            schema.create(handle.run)
    except BaseException:
        handle.close()
        raise
    return handle


def _empty(path: Path) -> bool:
    """Whether no table but that of the version can have rows: each part has its own list of columns."""
    return len(list(islice(path.rglob("columns.txt"), 2))) < 2


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Makes `Unavailable` of what the engine says when it opens a store."""
    try:
        yield
    except RuntimeError as error:
        if no_room(error):
            raise Unavailable(f"store {path} cannot be opened: its disk is full; free disk space") from error
        said = _SAID.search(str(error))
        raise Unavailable(
            f"store {path} cannot be opened by chDB{f' ({said[1]})' if said else ''}; its files may be damaged or "
            "belong to another user, or another folder may be open in this process"
        ) from error
