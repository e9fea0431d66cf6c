"""ClickHouse's HTTP interface in front of chDB: as much of it as clickhouse-connect uses, unchanged.

In: requests with a writer's or a reader's token. Out: what the engine answers, streamed, with ClickHouse's headers and
error codes. Never: a statement that `guard` did not accept, or a setting that is not listed here.
"""

import hmac
import json
import queue
import re
import select
import socket
import threading
import uuid
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import structlog

from appliance.errors import Refused, Unavailable, VerbatimError
from appliance.store import bodies, guard, schema
from appliance.store.engine import Handle, Settings
from appliance.store.rows import Block
from appliance.store.stock import NO_ROOM

MAX_BODY = 256 * 2**20  # bytes of one insert, unpacked
MAX_CONNECTIONS = 128
IDLE_SECONDS = 120.0  # a connection without a request
HANDLE_SECONDS = 30.0  # waiting for a free handle
STREAMED = {"Native", "TabSeparated", "TSV", "CSV", "RowBinary", "JSONEachRow", "JSONCompactEachRow"}
WHOLE = {"JSON", "JSONCompact", "TabSeparatedWithNames", "CSVWithNames", "Arrow", "ArrowStream", "Parquet"}
READER_LIMITS: Settings = {
    "max_execution_time": 60,
    "max_memory_usage": 512 * 2**20,
    "max_result_bytes": 2**30,
    "max_ast_depth": 300,
    "max_ast_elements": 20000,
    "readonly": 1,  # the last one: nothing can be set afterwards
}
# Parameters of a request that this interface has no use for, or that describe what it does anyway.
IGNORED = frozenset(
    {
        *("session_id", "session_timeout", "session_check", "client_protocol_version", "compress", "decompress"),
        *("enable_http_compression", "send_progress_in_http_headers", "http_headers_progress_interval_ms"),
        *("wait_end_of_query", "buffer_size", "cancel_http_readonly_queries_on_client_close", "date_time_input_format"),
        *("cast_string_to_dynamic_use_inference", "async_insert", "insert_deduplicate"),
        *("max_partitions_per_insert_block", "max_insert_block_size"),
        *("min_insert_block_size_rows", "min_insert_block_size_bytes"),
    }
)
MEANT = frozenset({"query", "database", "query_id", "default_format", "insert_deduplication_token", "user", "password"})

# ClickHouse's error codes
UNKNOWN_SETTING, READONLY, ACCESS_DENIED, AUTHENTICATION_FAILED = 115, 164, 497, 516
TOO_MANY_QUERIES, INCORRECT_DATA, UNKNOWN = 202, 117, 1002
STATUS = {60: 404, 62: 400, AUTHENTICATION_FAILED: 403, ACCESS_DENIED: 403, READONLY: 403, TOO_MANY_QUERIES: 503}

Role = Literal["writer", "reader"]
_FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*$")
_CODE = re.compile(r"Code: (\d+)")
_NAMED = re.compile(r"Code: \d+|\([A-Z_]{3,60}\)")  # of an error of the engine
_TOKEN = re.compile(r"[A-Za-z0-9_.-]{1,128}")


log = structlog.get_logger()


class Fault(Exception):
    """An answer that is an error: ClickHouse's code and text."""

    def __init__(self, code: int, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.status = status or STATUS.get(code, 500)


class Pool:
    """Handles of one kind, opened when needed, at most `size`, each lent to one thread at a time."""

    def __init__(self, make: Callable[[], Handle], size: int) -> None:
        self._make = make
        self._free: queue.LifoQueue[Handle | None] = queue.LifoQueue()
        for _ in range(size):
            self._free.put(None)
        self._size = size

    @contextmanager
    def lend(self) -> Iterator[Handle]:
        try:
            handle = self._free.get(timeout=HANDLE_SECONDS)
        except queue.Empty:
            raise Fault(TOO_MANY_QUERIES, "too many queries at once; try again") from None
        try:
            handle = handle or self._make()
            yield handle
        finally:
            self._free.put(handle)

    def close(self) -> None:
        """Wait until all are back, then close them."""
        for _ in range(self._size):
            handle = self._free.get()
            if handle is not None:
                handle.close()


class Face(ThreadingHTTPServer):
    """The server. One thread per connection; `stop` lets running requests end."""

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(
        self, address: tuple[str, int], tokens: Mapping[Role, str], make: Callable[[Settings], Handle]
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.tokens = tokens
        self.writers = Pool(lambda: make({}), 4)
        self.readers = Pool(lambda: make(READER_LIMITS), 8)
        with self.writers.lend() as handle:
            databases = handle.run("SHOW DATABASES").decode().split()
        self.guard = guard.Guard(frozenset(databases))
        self._connections: set[socket.socket] = set()
        self._busy = 0
        self._inserting = 0
        self._changed = threading.Condition()
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            full = len(self._connections) >= MAX_CONNECTIONS
            if not full:
                self._connections.add(request)
        if full:
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        with self._changed:
            self._connections.discard(request)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is its client's matter; nothing of the request may reach a log."""

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._changed:
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    @contextmanager
    def inserting(self, client: socket.socket) -> Iterator[None]:
        """Refuses the insert of a client that is gone: the one that follows it may send the same rows in other batches,
        and has to know which are there. See `settled`."""
        with self._changed:
            self._inserting += 1
        try:
            look = select.poll()
            look.register(client, select.POLLRDHUP)
            if look.poll(0):
                raise Fault(INCORRECT_DATA, "the client is gone; nothing was inserted", 400)
            yield
        finally:
            with self._changed:
                self._inserting -= 1
                self._changed.notify_all()

    def settled(self) -> None:
        """Wait for inserts that have begun: what a writer is told then stays true, whoever died before it asked."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._inserting, HANDLE_SECONDS):
                raise Fault(TOO_MANY_QUERIES, "inserts take long; try again")

    def stop(self, seconds: float) -> None:
        """Accept no more, give running requests `seconds` to end, close connections and handles."""
        self.shutdown()
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0, timeout=seconds)
            remaining = list(self._connections)
        for connection in remaining:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0, timeout=seconds)
        self.server_close()
        self.writers.close()
        self.readers.close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Face
    protocol_version = "HTTP/1.1"
    server_version = "Verbatim"
    sys_version = ""
    disable_nagle_algorithm = True  # else each answer waits for the client's delayed acknowledgement
    timeout = IDLE_SECONDS
    wbufsize = 1 << 16

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests hold search words and captured bytes."""

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/ping":
            self._answer(200, b"Ok.\n", {})
            return
        self.do_POST()

    def do_POST(self) -> None:
        with self.server.busy():
            self._started = False
            try:
                self._serve()
            except Fault as fault:
                self._fail(fault)
            except Refused as error:
                self._fail(Fault(ACCESS_DENIED, str(error)))
            except Unavailable as error:
                self._fail(Fault(NO_ROOM, str(error)))
            except VerbatimError as error:
                self._fail(Fault(INCORRECT_DATA, str(error), 400))
            except RuntimeError as error:  # the engine's
                text = str(error)
                code = _CODE.search(text)
                self._fail(Fault(int(code[1]) if code else UNKNOWN, text))

    def _serve(self) -> None:
        encoded = bodies.read(
            self.rfile,  # type: ignore[arg-type]
            self.headers["Content-Length"],
            self.headers["Transfer-Encoding"] or "",
            MAX_BODY,
        )
        parameters = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True, errors="surrogateescape"))
        role = self._role(parameters)
        content_type = self.headers["Content-Type"] or ""
        body = bodies.decode(encoded, self.headers["Content-Encoding"] or "", MAX_BODY)
        if content_type.startswith("multipart/form-data"):
            parameters |= bodies.form(body, content_type)
            body = b""
        self._check(parameters)
        statement = parameters.get("query", "")
        if not statement and body[:6].upper() == b"INSERT":
            line, _, body = body.partition(b"\n")
            statement = line.decode("utf-8", "replace")
        elif not statement:
            statement, body = body.decode("utf-8", "surrogateescape"), b""
        form = guard.insert(statement)
        if form is None:
            if body:
                raise Fault(ACCESS_DENIED, "only an INSERT has data")
            # The list of settings says to a writer that they can be set, as an INSERT's can; a reader can set none.
            greets = role == "writer" and guard.greets(statement)
            if role == "writer":
                self.server.settled()
            self._select(statement, parameters, self.server.writers if greets else self.server.readers)
        elif role == "writer":
            self._insert(form, body, parameters)
        else:
            raise Fault(ACCESS_DENIED, "the reader's token cannot insert; use the writer's")

    def _role(self, parameters: Mapping[str, str]) -> Role:
        """Whose token came with the request: as bearer, basic password, header or parameter."""
        kind, _, credential = (self.headers["Authorization"] or "").partition(" ")
        if kind.lower() == "basic":
            try:
                credential = b64decode(credential, validate=True).decode().partition(":")[2]
            except ValueError:
                credential = ""
        given = credential or self.headers["X-ClickHouse-Key"] or parameters.get("password", "")
        for role, token in self.server.tokens.items():
            if hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode()):
                return role
        raise Fault(AUTHENTICATION_FAILED, "token is missing or wrong; it is in run/store.json", 403 if given else 401)

    @staticmethod
    def _check(parameters: Mapping[str, str]) -> None:
        if parameters.get("database", schema.DATABASE) not in ("", schema.DATABASE):
            raise Fault(ACCESS_DENIED, f"the only database is {schema.DATABASE}")
        for name in parameters:
            if name == "readonly":
                raise Fault(READONLY, "readonly cannot be set")
            if name not in MEANT and name not in IGNORED and not name.startswith("param_"):
                raise Fault(UNKNOWN_SETTING, "a setting or parameter is not accepted here; leave it out")

    def _insert(self, form: tuple[str, tuple[str, ...]], body: bytes, parameters: Mapping[str, str]) -> None:
        table, columns = form
        token = parameters.get("insert_deduplication_token", "")
        if token and not _TOKEN.fullmatch(token):
            raise Fault(INCORRECT_DATA, "insert_deduplication_token is not 1 to 128 letters, digits, . _ or -", 400)
        with self.server.inserting(self.connection), self.server.writers.lend() as handle:
            try:
                taken = handle.insert(Block(table, columns, 0, body, token))
            except VerbatimError as error:  # what it says is ours; the engine's errors may quote the rows
                log.error("insert-failed", table=table, reason=str(error))
                raise
            except RuntimeError as error:
                log.error("insert-failed", table=table, reason=" ".join(_NAMED.findall(str(error))))
                raise
        summary = {"read_rows": str(taken), "written_rows": str(taken), "written_bytes": str(len(body))}
        self._answer(200, b"", self._headers(parameters) | {"X-ClickHouse-Summary": json.dumps(summary)})

    def _select(self, statement: str, parameters: Mapping[str, str], pool: Pool) -> None:
        values = {name[6:]: value for name, value in parameters.items() if name.startswith("param_")}
        named = _FORMAT.search(statement)
        form = named[1] if named else parameters.get("default_format", "TabSeparated")
        if form not in STREAMED | WHOLE:
            raise Fault(ACCESS_DENIED, "format is not accepted; use Native, JSON, JSONEachRow, TabSeparated or CSV")
        headers = self._headers(parameters) | {"X-ClickHouse-Format": form, "Content-Type": "application/octet-stream"}
        with pool.lend() as handle:
            self.server.guard.select(handle, statement, values)
            if form in STREAMED and statement.lstrip()[:6].upper() == "SELECT":
                self._stream(handle, statement, form, values, headers)
            else:
                self._answer(200, handle.run(statement, form, values), headers)

    def _stream(
        self, handle: Handle, statement: str, form: str, values: dict[str, str], headers: dict[str, str]
    ) -> None:
        """Send block by block; what fails before the first block is still an ordinary error."""
        with closing(handle.stream(statement, form, values)) as blocks:
            block = next(blocks, None)
            tag = uuid.uuid4().hex[:16]
            self._start(200, headers | {"Transfer-Encoding": "chunked", "X-ClickHouse-Exception-Tag": tag})
            try:
                while block is not None:
                    self._chunk(block)
                    block = next(blocks, None)
            except RuntimeError as error:  # the engine's; the headers are gone, so it follows the data
                text = str(error)
                message = f"__exception__\r\n{tag}\r\n{text}\n{len(text) + 1} {tag}\r\n__exception__\r\n"
                self._chunk(message.encode("utf-8", "replace"))
                self.close_connection = True
            self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()

    def _chunk(self, data: bytes) -> None:
        if data:
            self.wfile.write(b"%x\r\n" % len(data))
            self.wfile.write(data)
            self.wfile.write(b"\r\n")

    def _headers(self, parameters: Mapping[str, str]) -> dict[str, str]:
        wanted = parameters.get("query_id", "")
        return {"X-ClickHouse-Query-Id": wanted if _TOKEN.fullmatch(wanted) else str(uuid.uuid4())}

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._started = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._start(status, {**headers, "Content-Length": str(len(body))})
        self.wfile.write(body)
        self.wfile.flush()

    def _fail(self, fault: Fault) -> None:
        self.close_connection = True  # part of the request may be unread
        if self._started:
            return
        text = f"Code: {fault.code}. DB::Exception: {fault}\n".encode("utf-8", "replace")
        self._answer(
            fault.status,
            text,
            {"X-ClickHouse-Exception-Code": str(fault.code), "Content-Type": "text/plain", "Connection": "close"},
        )
