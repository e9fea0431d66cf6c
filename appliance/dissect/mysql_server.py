"""What a MySQL server says.

    FIRST        the first packet of an answer: OK, error, a file's name, a number of columns, ...
    COLUMNS      definitions of a result's columns; an EOF behind them unless CLIENT_DEPRECATE_EOF
    ROWS         rows up to an EOF, or an OK that begins like one; FIRST again where more results follow
    PREPARED     definitions of a statement's parameters and columns
    FIELDS       COM_FIELD_LIST: definitions up to an EOF
    STREAM       a replication stream: counted only
    LOST         behind a gap: nothing is known before the client's next command

Rows come in batches (`rows`), each result ends with a `result`: both answer the `query`, by `reply_to`. What a packet
means depends on the command it answers; the server answers in order.
"""

import struct
from enum import Enum
from typing import Any, Final

from appliance.dissect import mysql_fields as fields
from appliance.dissect import mysql_frames as frames
from appliance.dissect import mysql_login as login
from appliance.dissect import mysql_session as session
from appliance.dissect.mysql_charsets import collation
from appliance.dissect.mysql_columns import MAX_COLUMNS, NOTHING, Column, column, columns
from appliance.dissect.mysql_fields import EOF, ERR, LOCAL_FILE, MORE_RESULTS, OK, Ok
from appliance.dissect.mysql_frames import FULL, HEADER
from appliance.dissect.mysql_rows import Result
from appliance.dissect.mysql_session import Request, Shared
from appliance.dissect.mysql_types import lenenc
from appliance.dissect.sql_copy import Copy
from appliance.dissect.sql_frames import Frame, of_server
from appliance.dissect.sql_text import Repeats, text
from appliance.dissect.table import WEIGHT, within
from appliance.model import Direction, Message

_BINARY: Final = frozenset({frames.STMT_EXECUTE, frames.STMT_FETCH, frames.STMT_BULK_EXECUTE})
_STREAMS: Final = frozenset({frames.BINLOG_DUMP, frames.BINLOG_DUMP_GTID, 0x13})
_PLAIN: Final = frozenset(  # commands that OK, EOF or an error answers
    {frames.INIT_DB, 0x05, 0x06, 0x07, frames.SHUTDOWN, frames.PROCESS_KILL, 0x0D, frames.PING, 0x15}
    | {frames.STMT_RESET, frames.SET_OPTION, frames.RESET_CONNECTION}
)


class State(Enum):
    GREETING = 0
    LOGIN = 1
    FIRST = 2
    COLUMNS = 3
    ROWS = 4
    PREPARED = 5
    FIELDS = 6
    STREAM = 7
    LOST = 8
    __hash__ = object.__hash__


class ServerSide:
    """Takes the frames of the server."""

    def __init__(self, shared: Shared) -> None:
        self.state = State.GREETING
        self._shared = shared
        self._repeats = Repeats()
        self._result: Result | None = None
        self._copy: Copy | None = None
        self._left = 0  # definitions to come
        self._columns: list[Column] = []
        self._parameters = 0  # of these, those that describe parameters
        self._fresh = False  # no row came yet
        self._status: list[str] = []

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        rows = self._result.held if self._result is not None else 0
        return rows + WEIGHT * len(self._columns) + (self._copy.held if self._copy is not None else 0)

    def take(self, frame: Frame, out: list[Any]) -> bool:
        """Read one frame; False: it does not fit its layout."""
        state = self.state
        if state is State.ROWS and self._row(frame, out):
            return True
        if self._result is not None:
            out += self._result.flush()
        try:
            self._take(frame, out)
        except (ValueError, IndexError, struct.error):
            if state is not State.GREETING and state is not State.LOGIN:
                self._finished()
            return False
        return True

    def end(self) -> list[Message]:
        """What is still to be told."""
        out = self._result.flush() if self._result is not None else []
        copy, self._copy = self._copy, None
        return out + (copy.flush("utf-8", last=True) if copy is not None else [])

    def lose(self) -> list[Message]:
        """Bytes are missing: only rows can be gone on with."""
        out = self.end()
        if self.state is not State.ROWS and self.state is not State.STREAM:
            self._result = None
            self.state = State.LOST
        return out

    def asked(self) -> list[Message]:
        """A command came after bytes were lost: what comes now answers it."""
        out = self.end()
        self._result = None
        self.state = State.FIRST
        return out

    def _take(self, frame: Frame, out: list[Any]) -> None:
        body = frame.body
        if not body:
            raise ValueError("a packet of nothing")
        first = body[0]
        if first == ERR and self.state is not State.STREAM:
            self._error(frame, out)
        elif self.state is State.GREETING and (first == 10 or self._shared.started is None):
            out.append(login.greeting(frame, self._shared))
            self.state = State.LOGIN
        elif self.state is State.LOGIN or self.state is State.GREETING:
            self._log_in(frame, self._shared.started, out)
        elif self.state is State.FIRST:
            self._first(frame, out)
        elif self.state is State.COLUMNS:
            self._columns.append(column(body, self._shared.codec))
            self._left -= 1
            if not self._left:
                self._described()
        elif self.state is State.PREPARED:
            self._defined(frame)
        elif self.state is State.FIELDS:
            self._field(frame, out)
        elif self.state is State.STREAM:
            self._event(frame, out)

    # -- log-in ----------------------------------------------------------------------------------------------------

    def _log_in(self, frame: Frame, started: int | None, out: list[Any]) -> None:
        accepted = login.step(frame, self._shared, started)
        if isinstance(accepted, Message):
            out.append(accepted)
            return
        shared = self._shared
        self._changed(accepted)
        attrs = {"method": shared.plugin, **self._told(accepted)}
        out.append(of_server("authenticated", frame, shared.plugin, attrs, started))
        if self.state is State.FIRST:
            shared.done()
        self.state = State.FIRST

    # -- answers ---------------------------------------------------------------------------------------------------

    def _first(self, frame: Frame, out: list[Any]) -> None:
        request = self._shared.head()
        body = frame.body
        first = body[0]
        command = request.command if request is not None else frames.QUERY
        start = request.start if request is not None else None
        if request is None and first == EOF and len(body) == 5:
            return  # behind the definitions of a statement
        if command == frames.CHANGE_USER:
            self._log_in(frame, start, out)
        elif command == frames.STMT_PREPARE:
            self._prepared(frame, request, out)
        elif command == frames.STATISTICS:
            shown = text(body, self._shared.codec)
            out.append(
                of_server("result", frame, shown, {"tag": shown, "affected": None, "rows": 0, "columns": []}, start)
            )
            self._finished()
        elif command in _STREAMS:
            self._copy = Copy(Direction.SERVER, "replication", start)
            self.state = State.STREAM
            self._event(frame, out)
        elif command == frames.FIELD_LIST:
            self.state = State.FIELDS
            self._result = None
            self._columns = []
            self._field(frame, out)
        elif command == frames.STMT_FETCH:
            self._fetched(request)
            if not self._row(frame, out):
                raise ValueError("a row that is none")
        elif first == OK or (first == EOF and (command in _PLAIN or len(body) < 9)):
            said = fields.eof(body) if first == EOF and len(body) == 5 else self._ok(body)
            self._complete(frame, said, out)
        elif first == LOCAL_FILE and command == frames.QUERY and len(body) > 1:
            name = text(body[1:], self._shared.codec)
            attrs = {"copy": "in", "format": "text", "columns": 0, "file": name}
            out.append(of_server("copy-start", frame, name, attrs, start))
            if request is not None:
                self._shared.file = frame.start
        elif command in _PLAIN:
            raise ValueError("an answer that does not fit")
        else:
            self._counted(frame, request)

    def _counted(self, frame: Frame, request: Request | None) -> None:
        """A result begins: how many columns it has, and with MariaDB whether they are described."""
        count, at = lenenc(frame.body, 0)
        if not 0 < count <= MAX_COLUMNS or frame.cut or len(frame.body) - at > 1:
            raise ValueError("not a number of columns")
        self._left, self._columns = count, []
        statement = request.statement if request is not None else None
        self.state = State.COLUMNS
        if frame.body[at:] == b"\0" and statement is not None:
            self._begin(request, statement.columns)

    def _described(self) -> None:
        found, self._columns = columns(self._columns), []
        request = self._shared.head()
        if request is not None and request.statement is not None:
            request.statement.columns = found
        self._begin(request, found)

    def _begin(self, request: Request | None, described: Any) -> None:
        binary = request is not None and request.command in _BINARY
        start = request.start if request is not None else None
        self._result = Result(described, binary, start, 0, self._repeats)
        self._fresh = True
        self.state = State.ROWS

    def _fetched(self, request: Request | None) -> None:
        """Rows of a cursor come."""
        statement = request.statement if request is not None else None
        described = statement.columns if statement is not None else NOTHING
        answered = statement.executed if statement is not None and statement.executed is not None else None
        if answered is None and request is not None:
            answered = request.start
        offset = statement.fetched if statement is not None else 0
        self._result = Result(described, True, answered, offset, self._repeats)
        self._fresh = False
        self.state = State.ROWS

    def _row(self, frame: Frame, out: list[Any]) -> bool:
        """A row, or the end of them; False: an error."""
        result, body = self._result, frame.body
        assert result is not None  # there is one in this state
        if not body or body[0] < EOF or (body[0] == EOF and frame.end - frame.start >= FULL + HEADER):
            result.add(frame)
            self._fresh = False
            if result.full:
                out += result.flush()
            return True
        if body[0] == ERR:
            return False
        if len(body) == 5:
            said = fields.eof(body)
            fresh, self._fresh = self._fresh, False
            if fresh and not self._shared.known(session.DEPRECATE_EOF) and not said.status & fields.CURSOR:
                return True
        else:
            try:
                said = self._ok(body)
            except (ValueError, IndexError, struct.error):
                return False
        out += result.flush()
        self._complete(frame, said, out)
        return True

    def _ok(self, body: bytes) -> Ok:
        shared = self._shared
        return fields.ok(body, shared.codec, tracked=shared.known(session.SESSION_TRACK))

    def _complete(self, frame: Frame, said: Ok, out: list[Any]) -> None:
        """The end of a result."""
        request, result = self._shared.head(), self._result
        self._changed(said)
        start = request.start if request is not None else result.reply_to if result is not None else None
        described = result.columns if result is not None else NOTHING
        shown, whole = within(described, self._repeats, frame.end)
        rows = result.count if result is not None else 0
        attrs: dict[str, Any] = {
            "tag": said.info,
            "affected": None if result is not None else said.affected,
            "rows": rows,
            "columns": shown,
        }
        if said.inserted:
            attrs["last_insert_id"] = str(said.inserted)
        if said.warnings:
            attrs["warnings"] = said.warnings
        attrs |= self._told(said)
        counted = f"{rows} rows" if result is not None else f"{said.affected} affected"
        statement = request.statement if request is not None else None
        if result is not None and statement is not None and request is not None:
            statement.fetched += rows
            if request.command == frames.STMT_FETCH:
                start = result.reply_to
        flags = () if whole else ("truncated",)
        out.append(of_server("result", frame, f"{counted} {said.info}".rstrip(), attrs, start, flags))
        self._result = None
        if said.status & MORE_RESULTS:
            self.state = State.FIRST
        else:
            self._finished()

    def _finished(self) -> None:
        """The answer to a command is whole."""
        self._shared.done()
        self._result = None
        self._columns, self._left = [], 0
        self.state = State.FIRST

    def _told(self, said: Ok) -> dict[str, Any]:
        """What an answer tells of the session that the one before did not."""
        found: dict[str, Any] = {}
        names = fields.status_names(said.status)
        if names != self._status:
            found["status"] = self._status = names
        if said.changes:
            found["session"] = said.changes
        return found

    def _changed(self, said: Ok) -> None:
        """What the server says of the session."""
        shared = self._shared
        if "schema" in said.changes:
            shared.attrs["database"] = said.changes["schema"]
        name = said.changes.get("variables", {}).get("character_set_client")
        if name:
            shared.collation = collation(name)

    def _error(self, frame: Frame, out: list[Any]) -> None:
        shared = self._shared
        said = fields.error(frame.body, shared.codec)
        request = shared.head()
        start = request.start if request is not None else shared.started if not shared.logged_in else None
        if said.code == fields.PROGRESS:
            attrs = fields.progress(frame.body, shared.codec)
            shown = f"{attrs['stage']}/{attrs['stages']} {attrs['percent']}% {attrs['info']}"
            out.append(of_server("notice", frame, shown, attrs, start))
            return
        state = f" ({said.sqlstate})" if said.sqlstate else ""
        shown = f"ERROR {said.code}{state}: {said.message}"
        attrs = {"severity": "ERROR", "code": said.code, "sqlstate": said.sqlstate, "message": said.message}
        out.append(of_server("error", frame, shown, attrs, start))
        if self.state is State.GREETING or self.state is State.LOGIN:
            return
        shared.file = None
        self._finished()

    # -- statements, lists of fields, replication ------------------------------------------------------------------

    def _prepared(self, frame: Frame, request: Request | None, out: list[Any]) -> None:
        _, number, count, parameters = struct.unpack_from("<BIHH", frame.body)
        if frame.body[0] != OK or request is None:
            raise ValueError("not an answer to COM_STMT_PREPARE")
        statement = request.statement
        if statement is not None:
            statement.name, statement.parameters = str(number), parameters
            self._shared.define(number, statement)
        attrs = {"prepared": str(number), "parameters": parameters, "columns": count}
        out.append(of_server("prepared", frame, str(number), attrs, request.start))
        self._parameters, self._left, self._columns = parameters, parameters + count, []
        self.state = State.PREPARED
        if not self._left:
            self._finished()

    def _defined(self, frame: Frame) -> None:
        """A definition of a parameter or a column, or the EOF behind either."""
        if frame.body[0] == EOF and len(frame.body) == 5:
            if not self._left:
                self._finished()
            return
        one = column(frame.body, self._shared.codec)
        self._left -= 1
        if self._parameters:
            self._parameters -= 1
        else:
            self._columns.append(one)
        if self._left > 0:
            return
        request = self._shared.head()
        if request is not None and request.statement is not None:
            request.statement.columns = columns(self._columns)
        if self._shared.capabilities == session.UNKNOWN or self._shared.known(session.DEPRECATE_EOF):
            self._finished()

    def _field(self, frame: Frame, out: list[Any]) -> None:
        body = frame.body
        if body[0] != EOF or len(body) > 9:
            one = column(body, self._shared.codec)
            if len(self._columns) < MAX_COLUMNS:
                self._columns.append(one)
            return
        found = columns(self._columns)
        said = fields.eof(body) if len(body) == 5 else self._ok(body)
        self._result = Result(found, False, None, 0, self._repeats)
        self._complete(frame, said, out)

    def _event(self, frame: Frame, out: list[Any]) -> None:
        copy = self._copy
        if copy is None:
            copy = self._copy = Copy(Direction.SERVER, "replication", None)
        if frame.body[0] == OK:
            body, codec = frame.body[1:], "utf-8"
            out += copy.add(body, frame.start, frame.end, frame.ts_ns, frame.end_ns, frame.cut, codec)
            return
        out += self.end()
        self.state = State.FIRST
        if frame.body[0] == ERR:
            self._error(frame, out)
        else:
            self._complete(frame, fields.eof(frame.body), out)
