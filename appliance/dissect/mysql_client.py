"""What a MySQL client says.

One `query` per COM_QUERY, COM_STMT_EXECUTE and COM_STMT_BULK_EXECUTE. A statement is named by the number that the
server gave it: `prepare` has the whole SQL, a `query` repeats at most `MAX_REPEATED`. Flag `unresolved`: the statement
is not known. Commands without a kind of their own are a `command`, named as in the vendor's documentation.
"""

import struct
from collections.abc import Callable
from typing import Any, ClassVar, Final

from appliance.dissect import mysql_fields as fields
from appliance.dissect import mysql_frames as frames
from appliance.dissect import mysql_session as session
from appliance.dissect.mysql_charsets import chosen
from appliance.dissect.mysql_frames import HEADER, NAMES, UNANSWERED
from appliance.dissect.mysql_session import LAST, MAX_LONG, Request, Shared, Statement
from appliance.dissect.mysql_types import lenenc, readable
from appliance.dissect.mysql_values import attributes, bulk, values
from appliance.dissect.sql_copy import Copy
from appliance.dissect.sql_frames import Frame, of_client
from appliance.dissect.sql_text import MAX_BRIEF, MAX_REPEATED, Repeats, text
from appliance.dissect.table import NULL, with_values
from appliance.model import Direction, Message

_ASKS_KEY: Final = {"caching_sha2_password": b"\x02", "sha256_password": b"\x01"}
_NAMED: Final = frozenset({frames.INIT_DB, 0x05, 0x06})  # a database's name behind the command
_FIRST_BULK: Final = 0x80  # flag of COM_STMT_BULK_EXECUTE: types follow
_COUNTED: Final = 0x08  # flag of COM_STMT_EXECUTE: the number of values follows
_LONGEST: Final = frozenset(
    {frames.QUERY, frames.STMT_PREPARE, frames.STMT_SEND_LONG_DATA, frames.STMT_EXECUTE, frames.STMT_BULK_EXECUTE}
)


class ClientSide:
    """Takes the frames of the client."""

    def __init__(self, shared: Shared) -> None:
        self.secrets: list[tuple[int, int]] = []  # ranges to redact, for the caller to take
        self._shared = shared
        self._repeats = Repeats()
        self._copy: Copy | None = None

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        return self._copy.held if self._copy is not None else 0

    def end(self) -> list[Message]:
        """What is still to be told."""
        copy, self._copy = self._copy, None
        return copy.flush(self._shared.codec, last=True) if copy is not None else []

    # -- log-in ----------------------------------------------------------------------------------------------------

    def start(self, frame: Frame, out: list[Any]) -> bool:
        """SSLRequest or a handshake response; returns whether encryption was asked for."""
        shared, body = self._shared, frame.body
        if len(body) == 32 and not frame.cut:
            flags = fields.capabilities(body)
            if flags & session.SSL:
                out.append(of_client("negotiate", frame, "tls", {"encryption": "tls"}))
                return True
        said = fields.response(body, "utf-8")
        shared.capabilities = said.capabilities & shared.offered
        shared.collation = said.collation or shared.collation
        shared.started = frame.start
        self._log_in("startup", frame, said, out)
        return False

    def answer(self, frame: Frame, out: list[Any]) -> None:
        """What the server asked for: a password in one form or another, or its public key."""
        shared = self._shared
        method = shared.plugin or "unknown"
        attrs = {"method": method}
        if frame.body == _ASKS_KEY.get(method):
            attrs["step"] = "key"
            out.append(of_client("authentication", frame, f"{method} key", attrs, (), shared.asked))
            return
        flags: tuple[str, ...] = ()
        if frame.end - frame.start > HEADER:
            flags = ("redacted",)
            if not frame.cut:
                self.secrets.append((frame.start + HEADER, frame.end))
        out.append(of_client("authentication", frame, method, attrs, flags, shared.asked))

    def _log_in(self, kind: str, frame: Frame, said: fields.Response, out: list[Any]) -> None:
        shared = self._shared
        shared.plugin = said.plugin
        attrs: dict[str, Any] = {"user": said.user, "database": said.database, "method": said.plugin}
        shared.attrs.update(attrs)
        if said.attributes:
            attrs["attributes"] = said.attributes
        program = said.attributes.get("program_name") or said.attributes.get("_client_name")
        if program:
            shared.attrs["application_name"] = program
        begin, end = said.secret
        flags: tuple[str, ...] = ()
        if end > begin:
            self.secrets.append((frame.start + HEADER + begin, frame.start + HEADER + end))
            flags = ("redacted",)
        shown = {"user": said.user, "database": said.database, **said.attributes}
        text = " ".join(f"{name}={value}" for name, value in shown.items() if value)
        out.append(of_client(kind, frame, text, attrs, flags))

    # -- a file ----------------------------------------------------------------------------------------------------

    def content(self, frame: Frame, out: list[Any]) -> bool:
        """A part of a file; returns whether it goes on."""
        shared = self._shared
        if self._copy is None or self._copy.reply_to != shared.file:
            out += self.end()
            self._copy = Copy(Direction.CLIENT, "text", shared.file)
        copy = self._copy
        if frame.end - frame.start > HEADER:
            body, cut = frame.body, frame.cut
            out += copy.add(body, frame.start, frame.end, frame.ts_ns, frame.end_ns, cut, shared.codec)
            return True
        out += copy.flush(shared.codec, last=True)
        attrs = {"format": copy.form, "bytes": copy.bytes}
        out.append(of_client("copy-done", frame, "", attrs, (), copy.reply_to))
        self._copy = shared.file = None
        return False

    # -- commands --------------------------------------------------------------------------------------------------

    def take(self, frame: Frame, out: list[Any]) -> bool:
        """Read one command; False: it does not fit its layout, or is not known."""
        if self._copy is not None:
            out += self.end()
        body = frame.body
        command = body[0] if body else -1
        if command not in NAMES or (frame.cut and command not in _LONGEST):
            return False
        try:
            self._READERS.get(command, ClientSide._command)(self, frame, out)
        except (ValueError, IndexError, struct.error):
            self._push(command, frame)
            return False
        return True

    def _push(self, command: int, frame: Frame, statement: Statement | None = None) -> None:
        if command not in UNANSWERED:
            weight = len(frame.body) if command == frames.STMT_PREPARE else 0
            self._shared.push(Request(command, frame.start, weight, statement))

    def _query(self, frame: Frame, out: list[Any]) -> None:
        shared, body = self._shared, frame.body
        at, whole = 1, True
        named: dict[str, str | None] = {}
        guessed = shared.capabilities == session.UNKNOWN and body[1:3] == b"\0\1"
        if guessed or shared.known(session.QUERY_ATTRIBUTES):
            named, at, whole = attributes(body, 1, shared.collation)
        sql = text(body[at:], shared.codec)
        shared.collation = chosen(sql) or shared.collation
        self._push(frames.QUERY, frame)
        attrs: dict[str, Any] = {"sql": sql, "parameters": [], "prepared": None}
        if named:
            attrs["attributes"] = named
        out.append(of_client("query", frame, sql, attrs, () if whole else ("undecoded",)))

    def _prepare(self, frame: Frame, out: list[Any]) -> None:
        sql = text(frame.body[1:], self._shared.codec)
        statement = self._shared.prepared = Statement(sql, len(frame.body))
        self._push(frames.STMT_PREPARE, frame, statement)
        out.append(of_client("prepare", frame, sql, {"sql": sql}))

    def _execute(self, frame: Frame, out: list[Any]) -> None:
        shared, body = self._shared, frame.body
        number, flags, _ = struct.unpack_from("<IBI", body, 1)
        statement = shared.statement(number)
        parameters: list[str | None] = []
        flawed: tuple[str, ...] = () if statement is not None else ("unresolved",)
        count = statement.parameters if statement is not None else None
        at, named = 10, bool(flags & _COUNTED) and shared.known(session.QUERY_ATTRIBUTES)
        if named:
            count, at = lenenc(body, at)
        attrs: dict[str, Any] = {}
        if count:
            known, long = (statement.types, statement.long) if statement is not None else ((), None)
            found = values(body, at, count, shared.collation, known, long, named=named)
            parameters = found.items
            if statement is not None:
                statement.types = found.types
                if statement.parameters is not None and len(found.names) > statement.parameters:
                    split = statement.parameters  # query attributes follow the statement's own values
                    attrs["attributes"] = dict(zip(found.names[split:], parameters[split:], strict=False))
                    parameters = parameters[:split]
            if not found.complete:
                flawed += ("undecoded",)
        elif count is None and at < len(body):
            flawed += ("undecoded",)
        if statement is not None:
            statement.long, statement.long_size = {}, 0
            statement.fetched, statement.executed = 0, frame.start
        self._push(frames.STMT_EXECUTE, frame, statement)
        self._told(frame, number, statement, parameters, attrs, flawed, out)

    def _bulk(self, frame: Frame, out: list[Any]) -> None:
        number, flags = struct.unpack_from("<IH", frame.body, 1)
        shared = self._shared
        statement = shared.statement(number)
        flawed: tuple[str, ...] = () if statement is not None else ("unresolved",)
        attrs: dict[str, Any] = {}
        if statement is None or statement.parameters is None:
            flawed += ("undecoded",)
        else:
            typed = bool(flags & _FIRST_BULK)
            found = bulk(frame.body, 7, statement.parameters, typed, shared.collation, statement.types)
            statement.types = found.types
            attrs["batch"] = found.rows
            if not found.complete:
                flawed += ("undecoded",)
            if found.more:
                flawed += ("truncated",)
        self._push(frames.STMT_BULK_EXECUTE, frame, statement)
        self._told(frame, number, statement, [], attrs, flawed, out)

    def _told(
        self,
        frame: Frame,
        number: int,
        statement: Statement | None,
        parameters: list[str | None],
        attrs: dict[str, Any],
        flags: tuple[str, ...],
        out: list[Any],
    ) -> None:
        whole = statement.sql if statement is not None else ""
        sql = whole[:MAX_REPEATED]
        if len(sql) > MAX_BRIEF and not self._repeats.allow(len(sql), frame.end):
            sql = sql[:MAX_BRIEF]
        if len(sql) < len(whole) and "truncated" not in flags:
            flags += ("truncated",)
        name = "last" if number == LAST else str(number)
        shown = with_values(sql, parameters)
        if "batch" in attrs:
            rows = ("\t".join([NULL if cell is None else cell for cell in row]) for row in attrs["batch"])
            shown = "\n".join([shown, *rows])
        attrs = {"sql": sql, "parameters": parameters, "prepared": name, **attrs}
        out.append(of_client("query", frame, shown, attrs, flags))

    def _long_data(self, frame: Frame, out: list[Any]) -> None:
        number, parameter = struct.unpack_from("<IH", frame.body, 1)
        data = frame.body[7:]
        statement = self._shared.statement(number)
        flags: tuple[str, ...] = () if statement is not None else ("unresolved",)
        if statement is not None:
            room = MAX_LONG - statement.long_size
            statement.long.setdefault(parameter, bytearray()).extend(data[:room])
            statement.long_size += min(len(data), room)
        attrs = {"prepared": str(number), "parameter": parameter, "bytes": frame.end - frame.start - HEADER - 7}
        out.append(of_client("bind", frame, readable(data), attrs, flags))

    def _close(self, frame: Frame, out: list[Any]) -> None:
        self._command(frame, out)
        self._shared.forget(struct.unpack_from("<I", frame.body, 1)[0])

    def _reset(self, frame: Frame, out: list[Any]) -> None:
        (number,) = struct.unpack_from("<I", frame.body, 1)
        statement = self._shared.statement(number)
        if statement is not None:
            statement.long, statement.long_size = {}, 0
        self._command(frame, out)

    def _fetch(self, frame: Frame, out: list[Any]) -> None:
        number, limit = struct.unpack_from("<II", frame.body, 1)
        self._push(frames.STMT_FETCH, frame, self._shared.statement(number))
        attrs = {"command": "STMT_FETCH", "prepared": str(number), "limit": limit}
        out.append(of_client("command", frame, f"STMT_FETCH {number} {limit}", attrs))

    def _change_user(self, frame: Frame, out: list[Any]) -> None:
        shared = self._shared
        self._push(frames.CHANGE_USER, frame)
        shared.changes = True
        try:
            said = fields.change_user(frame.body, shared.capabilities, shared.codec)
        except (ValueError, IndexError, struct.error):
            self.secrets.append((frame.start + HEADER + 1, frame.end))
            attrs: dict[str, Any] = {"user": "", "database": "", "method": ""}
            out.append(of_client("change-user", frame, "", attrs, ("malformed", "redacted")))
            return
        shared.collation = said.collation or shared.collation
        shared.forget()
        self._log_in("change-user", frame, said, out)

    def _quit(self, frame: Frame, out: list[Any]) -> None:
        out.append(of_client("terminate", frame, "", {}))

    def _binlog(self, frame: Frame, out: list[Any]) -> None:
        body = frame.body
        attrs: dict[str, Any] = {}
        if body[0] == frames.BINLOG_DUMP:
            position, _, server = struct.unpack_from("<IHI", body, 1)
            name = body[11:]
        else:
            _, server, size = struct.unpack_from("<HII", body, 1)
            name = body[11 : 11 + size]
            (position,) = struct.unpack_from("<Q", body, 11 + size)
        attrs = {"file": text(name, self._shared.codec), "position": position, "server_id": server}
        self._push(body[0], frame)
        out.append(of_client("replication", frame, f"{attrs['file']} {position}", attrs))

    def _command(self, frame: Frame, out: list[Any]) -> None:
        body = frame.body
        command = body[0]
        name = NAMES[command]
        attrs: dict[str, Any] = {"command": name}
        said = name
        if command in _NAMED:
            attrs["database"] = text(body[1:], self._shared.codec)
            said = f"{name} {attrs['database']}"
        elif command == frames.FIELD_LIST:
            table, at = fields.nul(body, 1)
            attrs["table"] = text(table, self._shared.codec)
            attrs["wildcard"] = text(body[at:], self._shared.codec)
            said = f"{name} {attrs['table']} {attrs['wildcard']}".rstrip()
        elif command in (frames.STMT_CLOSE, frames.STMT_RESET):
            attrs["prepared"] = str(struct.unpack_from("<I", body, 1)[0])
            said = f"{name} {attrs['prepared']}"
        elif command == frames.PROCESS_KILL:
            attrs["connection"] = struct.unpack_from("<I", body, 1)[0]
            said = f"{name} {attrs['connection']}"
        elif command == frames.SET_OPTION:
            attrs["option"] = struct.unpack_from("<H", body, 1)[0]
        elif command == frames.RESET_CONNECTION:
            self._shared.forget()
        self._push(command, frame)
        out.append(of_client("command", frame, said, attrs))

    _READERS: ClassVar[dict[int, Callable[["ClientSide", Frame, list[Any]], None]]] = {
        frames.QUERY: _query,
        frames.STMT_PREPARE: _prepare,
        frames.STMT_EXECUTE: _execute,
        frames.STMT_BULK_EXECUTE: _bulk,
        frames.STMT_SEND_LONG_DATA: _long_data,
        frames.STMT_CLOSE: _close,
        frames.STMT_RESET: _reset,
        frames.STMT_FETCH: _fetch,
        frames.CHANGE_USER: _change_user,
        frames.QUIT: _quit,
        frames.BINLOG_DUMP: _binlog,
        frames.BINLOG_DUMP_GTID: _binlog,
    }
