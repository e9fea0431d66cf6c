"""What both sides of a MySQL connection have to know of it: capabilities, statements, requests without an answer."""

from collections import deque
from typing import Any, Final

import msgspec

from appliance.dissect.mysql_charsets import UTF8, codec
from appliance.dissect.mysql_columns import NOTHING, Columns
from appliance.dissect.mysql_frames import CHANGE_USER
from appliance.dissect.mysql_types import Kind

MAX_PENDING = 16384  # requests of one session without an answer
MAX_PENDING_BYTES = 8 << 20  # of the messages that made them
MAX_STATEMENTS = 1024  # of one session
MAX_STATEMENTS_BYTES = 4 << 20  # of the messages that prepared them
MAX_LONG = 65536  # bytes of the values of one statement that come in pieces
LAST = 0xFFFFFFFF  # MariaDB: the statement that was prepared last

# Capabilities; those of MariaDB, which come in another field, are shifted by 32.
CONNECT_WITH_DB, COMPRESS, LOCAL_FILES, PROTOCOL_41 = 1 << 3, 1 << 5, 1 << 7, 1 << 9
SSL, SECURE_CONNECTION, PLUGIN_AUTH, CONNECT_ATTRS = 1 << 11, 1 << 15, 1 << 19, 1 << 20
PLUGIN_AUTH_LENENC, SESSION_TRACK, DEPRECATE_EOF = 1 << 21, 1 << 23, 1 << 24
ZSTD, QUERY_ATTRIBUTES, MYSQL = 1 << 26, 1 << 27, 1
UNKNOWN: Final = -1  # all bits: no handshake was seen


class Statement(msgspec.Struct):
    """A prepared statement. `parameters` None: the server has not said how many."""

    sql: str
    weight: int
    name: str = ""
    parameters: int | None = None
    columns: Columns = NOTHING
    types: tuple[Kind, ...] = ()  # of the bind values of the last execution that named them
    fetched: int = 0
    executed: int | None = None  # start of the last execution's message
    long: dict[int, bytearray] = {}  # a Struct copies it
    long_size: int = 0

    @property
    def held(self) -> int:
        return self.weight + self.columns.held + 40 * len(self.types) + self.long_size + 128 * len(self.long) + 400


class Request(msgspec.Struct):
    command: int
    start: int
    weight: int
    statement: Statement | None = None


class Shared:
    """State of one connection."""

    def __init__(self) -> None:
        self.attrs: dict[str, Any] = {}
        self.collation = UTF8
        self.offered = UNKNOWN  # the server's capabilities
        self.capabilities = UNKNOWN  # of both
        self.plugin = ""  # the method of authentication that is under way
        self.asked: int | None = None  # start of the server's message that asked for it
        self.started: int | None = None  # start of the client's message that asks to log in
        self.logged_in = False
        self.changes = False  # the client has changed its user, and may do so again
        self.file: int | None = None  # start of the server's message that asked for a file
        self.prepared: Statement | None = None  # the last one
        self.lost = False  # bytes were lost: no answer is known before the next command
        self._statements: dict[int, Statement] = {}
        self._weight = 0
        self._queue: deque[Request] = deque()
        self._pending = 0

    @property
    def codec(self) -> str:
        """Python's codec of the connection's character set."""
        return codec(self.collation)

    @property
    def changing(self) -> bool:
        """Whether a change of user is under way."""
        return self.changes and any(request.command == CHANGE_USER for request in self._queue)

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        held = sum(statement.held for statement in self._statements.values())
        return held + self._pending + 200 * len(self._queue)

    def known(self, capability: int) -> bool:
        """Whether both sides have it, as far as their handshake was seen."""
        return self.capabilities != UNKNOWN and bool(self.capabilities & capability)

    # -- requests --------------------------------------------------------------------------------------------------

    def push(self, request: Request) -> None:
        if len(self._queue) >= MAX_PENDING or self._pending > MAX_PENDING_BYTES:
            self.lose()
        self._queue.append(request)
        self._pending += request.weight

    def head(self) -> Request | None:
        return self._queue[0] if self._queue else None

    def done(self) -> None:
        if self._queue:
            self._pending -= self._queue.popleft().weight

    def lose(self) -> None:
        """Requests or answers are missing."""
        self._queue.clear()
        self._pending = 0
        self.file = None
        self.lost = True

    # -- statements ------------------------------------------------------------------------------------------------

    def statement(self, number: int) -> Statement | None:
        return self.prepared if number == LAST else self._statements.get(number)

    def define(self, number: int, statement: Statement) -> None:
        self.forget(number)
        self._statements[number] = statement
        self._weight += statement.weight
        while len(self._statements) > MAX_STATEMENTS or self._weight > MAX_STATEMENTS_BYTES:
            self.forget(next(iter(self._statements)))

    def forget(self, number: int | None = None) -> None:
        """One statement, or all of them."""
        if number is None:
            self._statements.clear()
            self._weight, self.prepared = 0, None
            return
        before = self._statements.pop(number, None)
        if before is not None:
            self._weight -= before.weight
