"""The store as its users see it: `open_store` finds it, `Store` writes and reads rows.

Three places, one client library: a ClickHouse server (`store.url`), the live `verbatim store` service of the data
folder, or chDB in this process. Inserts are exactly once in all of them: a batch's token is its SHA-256.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from appliance.config import Settings
from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable
from appliance.model import Row
from appliance.store import engine, rows, stock
from appliance.store.link import Link, Role, connect
from appliance.store.rows import AuditRow, Block, Table

BATCH_ROWS = 65536
BATCH_BYTES = 64 * 2**20  # of one insert; twice what a recorder gathers in a batch
IDS_PER_QUERY = 1000
NO_ROOM, NO_MEMORY = stock.NO_ROOM, 241
TOO_MUCH = {158, 159, 241, 307, 396}  # ClickHouse: rows, time, memory, bytes or result over the limit
AUTHENTICATION_FAILED = 516
REFUSED = {164, 497, AUTHENTICATION_FAILED}  # the first two: read only, access denied
Answer = TypeVar("Answer")


class Store:
    """An open store: a context manager, for any number of threads. After `Unavailable` the next call connects anew.

    `open_link` connects; it is told whether the last link was to the service. Who had one waits for the service to come
    back: to open chDB itself would lock the service out.
    """

    def __init__(self, open_link: Callable[[bool], Link], link: Link | None = None) -> None:
        self._open = open_link
        self._served = False
        self._link = link
        self._closed = False
        self._turn = threading.Lock()

    def insert(self, batch: Sequence[Row | AuditRow]) -> None:
        """Append rows, exactly once even when the same call is repeated; returns when they are stored.

        Rows of one table keep their order. Raises `Unavailable` when the store does not answer (repeat the call) and
        `DamagedEvidence` when it took fewer rows than it was given.
        """
        for table, members in rows.by_table(batch).items():
            for block in _blocks(table, members):
                self._put(block)

    def _put(self, block: Block) -> None:
        taken = self._guarded(lambda link: link.insert(block), writing=True)
        if taken != block.rows:
            raise DamagedEvidence(
                f"store took {taken} of {block.rows} rows for {block.table}; the batch may be repeated safely"
            )

    def last_seqs(self, table: str, ids: Collection[UUID]) -> dict[UUID, int]:
        """Highest `seq` stored in `table` (sessions, messages, chunks, findings) of each session that has any row."""
        if table not in rows.KEYED:
            raise MalformedInput(f"{table}: no such table of session rows; use one of {', '.join(rows.KEYED)}")
        found: dict[UUID, int] = {}
        wanted = sorted(ids)
        for first in range(0, len(wanted), IDS_PER_QUERY):
            answer = self.select(
                f"SELECT session_id, max(seq) AS last FROM {table} WHERE session_id IN {{ids:Array(UUID)}} "  # noqa: S608
                "GROUP BY session_id",
                {"ids": [str(session) for session in wanted[first : first + IDS_PER_QUERY]]},
            )
            found |= {row["session_id"]: int(row["last"]) for row in answer}
        return found

    def last_position(self, stream: str) -> int | None:
        """Highest position of the events of a journal stream; None when there is none."""
        answer = self.select(
            "SELECT max(position) AS last, count() AS n FROM events WHERE stream = {stream:String}", {"stream": stream}
        )
        return int(answer[0]["last"]) if answer and answer[0]["n"] else None

    def select(
        self, sql: str, parameters: Mapping[str, Any] | None = None, binary: Collection[str] = ()
    ) -> list[dict[str, Any]]:
        """All rows of a SELECT with `{name:Type}` parameters. Columns named in `binary` are bytes."""
        from clickhouse_connect.driver.exceptions import Error

        formats = dict.fromkeys(binary, "bytes")
        _unicode(list((parameters or {}).values()))

        def ask(link: Link, settings: engine.Settings) -> list[dict[str, Any]]:
            result = link.client.query(sql, dict(parameters or {}), dict(settings), column_formats=formats)
            return list(result.named_results())

        def run(link: Link) -> list[dict[str, Any]]:
            try:
                return ask(link, engine.NO_SETTINGS)
            except Error as error:
                if link.local or error.code not in engine.UNREADABLE:  # the service asks its engine again by itself
                    raise
                return ask(link, engine.UNINDEXED)

        return self._guarded(run)

    def _guarded(self, run: Callable[[Link], Answer], writing: bool = False) -> Answer:
        """Run against the open link. The driver's errors become ours, without its text: it may quote captured bytes."""
        from clickhouse_connect.driver.exceptions import ClickHouseError, Error

        link = self._enter()
        try:
            return run(link)
        except (ClickHouseError, RuntimeError, OSError) as error:
            code = error.code if isinstance(error, Error) else None
            if code == NO_ROOM:
                raise Unavailable(
                    f"store at {link.where} takes no rows: its disk is full, or has less than its reserve; "
                    "free disk space there"
                ) from error
            if code == NO_MEMORY and writing:
                raise Unavailable(
                    f"store at {link.where} has too little memory for the batch; raise store.max_memory"
                ) from error
            if code in TOO_MUCH:
                raise Refused("query exceeds the store's limits; narrow its time range or its terms") from error
            if code is None or (
                code == AUTHENTICATION_FAILED and link.local
            ):  # gone, or started anew with other tokens
                self._drop(link)
                raise Unavailable(f"store at {link.where} fails ({type(error).__name__}); try again") from error
            if code in REFUSED:
                raise Refused(f"store at {link.where} refuses the account; check its rights and store.url") from error
            raise Unavailable(
                f"store at {link.where} fails with ClickHouse error {code} {_name(error)}; see its log"
            ) from error
        finally:
            link.leave()

    def _enter(self) -> Link:
        with self._turn:
            if self._closed:
                raise Unavailable("store is closed; open it again")
            if self._link is None:
                self._link = self._open(self._served)
            self._served = self._link.local
            self._link.enter()
            return self._link

    def _drop(self, link: Link) -> None:
        with self._turn:
            if self._link is link:
                self._link = None
        link.close()

    def close(self) -> None:
        with self._turn:
            link, self._link, self._closed = self._link, None, True
        if link is not None:
            link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_store(settings: Settings, role: Role, embed: bool = True) -> Store:
    """Open the store of `settings` as 'writer' or 'reader'.

    `store.url`, if set, names a ClickHouse server. Else a live `verbatim store` of the data folder is used; else chDB
    runs in this process, after waiting up to 30 s for another process to let go of the folder. Raises `Unavailable`.

    Without `embed` it never does, and connects at the first call: that is for processes that run beside the service,
    which may start later than they do.
    """

    def open_link(served: bool) -> Link:
        return connect(settings, role, embed and not served)

    return Store(open_link, open_link(False) if embed else None)


def _unicode(values: Collection[object]) -> None:
    for value in values:
        match value:
            case str() if any("\ud800" <= char <= "\udfff" for char in value):
                raise MalformedInput("text holds what is no Unicode character; leave it out")
            case list() | tuple():
                _unicode(value)


def _name(error: BaseException) -> str:
    return str(getattr(error, "name", None) or "")


def _blocks(table: Table, members: Sequence[Row | AuditRow]) -> Iterator[Block]:
    """Rows of one table as blocks of a bounded size, cut in halves as often as that takes.

    A function of the rows alone, so that a repeated batch is cut the same way.
    """
    if len(members) <= BATCH_ROWS:
        block = rows.encode(table, members)
        if len(members) == 1 or len(block.body) <= BATCH_BYTES:
            yield block
            return
    middle = len(members) // 2
    yield from _blocks(table, members[:middle])
    yield from _blocks(table, members[middle:])
