"""One connection to the store: to a server, to the live service of the data folder, or to chDB in this process."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec

from appliance.config import Settings
from appliance.errors import MalformedInput, Refused, Unavailable
from appliance.store import engine, schema
from appliance.store.rows import Block

Role = Literal["writer", "reader"]
SERVICE_FILE = "store.json"  # in DATA/run
WAIT_SECONDS = 30.0  # for another process to let go of the data folder
POLL_SECONDS = 0.1
CONNECT_SECONDS = 10
ANSWER_SECONDS = 300
logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)  # what it has to say, our errors say


class Service(msgspec.Struct, frozen=True):
    """Where a live `verbatim store` answers, and its tokens: the content of DATA/run/store.json (mode 0600)."""

    url: str
    writer: str
    reader: str
    pid: int


class Link:
    """`client` is a clickhouse-connect client; `insert` puts one block into its table and returns the rows taken.

    `local`: it is the service of the data folder, whose address and tokens change when it starts anew.
    It is closed when nobody uses it any more: an engine that is closed under a running query takes the process down.
    """

    def __init__(self, client: Any, insert: Callable[[Block], int], where: str, close: Callable[[], None]) -> None:
        self.local = False
        self.client = client
        self.insert = insert
        self.where = where
        self._close = close
        self._turn = threading.Lock()
        self._users = 0
        self._unwanted = False

    def enter(self) -> None:
        """Begin to use it; each `enter` needs a `leave`."""
        with self._turn:
            self._users += 1

    def leave(self) -> None:
        with self._turn:
            self._users -= 1
            last = self._unwanted and not self._users
        if last:
            self._close()

    def close(self) -> None:
        """Close now, or when the last user has left."""
        with self._turn:
            idle = not self._unwanted and not self._users
            self._unwanted = True
        if idle:
            self._close()


def connect(settings: Settings, role: Role, embed: bool) -> Link:
    """Connect as `open_store` documents."""
    if settings.store.url:
        return _server(settings.store.url, role)
    deadline = time.monotonic() + WAIT_SECONDS
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = engine.Lock(settings.data)
    while True:
        service = live_service(settings.data)
        if service is not None:
            return _service(service, role)
        if not embed:
            raise Unavailable(f"store of {settings.data} is not served now; start `verbatim store`, or try again")
        if lock.acquire():
            try:
                return _embedded(settings, role, lock)
            except BaseException:
                lock.release()
                raise
        if time.monotonic() >= deadline:
            raise Unavailable(
                f"store of {settings.data} is in use by process {lock.owner() or 'unknown'}; "
                "wait for it to end, or run `verbatim store` to share the folder"
            )
        time.sleep(POLL_SECONDS)


def live_service(data: Path) -> Service | None:
    """The running service of a data folder, if there is one."""
    try:
        said = msgspec.json.decode((data / "run" / SERVICE_FILE).read_bytes(), type=Service)
    except (OSError, msgspec.MsgspecError):
        return None
    return said if Path(f"/proc/{said.pid}").exists() else None


def _client(**options: Any) -> Any:
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        return clickhouse_connect.get_client(
            connect_timeout=CONNECT_SECONDS,
            send_receive_timeout=ANSWER_SECONDS,
            autogenerate_session_id=False,
            **options,
        )
    except ClickHouseError as error:
        where = f"{options['host']}:{options['port']}"
        if getattr(error, "code", None) in (192, 193, 194, 516):
            raise Refused(f"store at {where} refuses the account or token; check store.url") from error
        raise Unavailable(
            f"store at {where} does not answer; check that it runs and that store.url is right"
        ) from error


def _remote(client: Any, where: str, role: Role, compression: str | None, settings: Mapping[str, str]) -> Link:
    def insert(block: Block) -> int:
        if role != "writer":
            raise Refused(f"store at {where} is open for reading only; open it with role 'writer'")
        body: bytes = block.body
        if compression:
            import lz4.frame

            body = lz4.frame.compress(body)
        summary = client.raw_insert(
            block.table,
            block.columns,
            body,
            settings={**settings, "insert_deduplication_token": block.token},
            fmt="Native",
            compression=compression,
        )
        return int(summary.written_rows)

    return Link(client, insert, where, client.close)


def _service(service: Service, role: Role) -> Link:
    address = urlsplit(service.url)
    client = _client(
        host=address.hostname,
        port=address.port,
        access_token=service.writer if role == "writer" else service.reader,
        database=schema.DATABASE,
        compress=False,
    )
    found = _remote(client, service.url, role, None, {})  # it has its own settings for inserts
    found.local = True
    return found


def _server(url: str, role: Role) -> Link:
    malformed = MalformedInput("store.url is not http(s)://user:password@host:port/database; correct it")
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError:
        raise malformed from None  # what it says may hold the password
    database = address.path.strip("/")
    if address.scheme not in ("http", "https") or not address.hostname or not database:
        raise malformed
    where = f"{address.scheme}://{address.hostname}:{port or ''}/{database}"
    secure = address.scheme == "https"
    client = _client(
        host=address.hostname,
        port=port or (8443 if secure else 8123),
        secure=secure,
        username=unquote(address.username or "default"),
        password=unquote(address.password or ""),
        database=database,
    )
    _ready(client, where, role)
    return _remote(client, where, role, "lz4", engine.INSERT_SETTINGS)


def _ready(client: Any, where: str, role: Role) -> None:
    """Create the tables on a server if this account may, else insist on the right schema version."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        if role == "writer":
            schema.create(client.command)
    except ClickHouseError as error:
        if getattr(error, "code", None) != 497:  # ACCESS_DENIED: another account made the tables
            raise Unavailable(
                f"store at {where} cannot hold the tables; it must be ClickHouse 26.2 or newer"
            ) from error
    try:
        version = int(client.command("SELECT max(version) FROM schema_version"))
    except ClickHouseError:
        version = 0
    schema.check(version, where)


def _embedded(settings: Settings, role: Role, lock: engine.Lock) -> Link:
    import clickhouse_connect

    handle = engine.create(settings.data, settings.store.max_memory, engine.reserve(settings))
    path = engine.store_path(settings.data)
    client = clickhouse_connect.get_client(interface="chdb", path=str(path), database=schema.DATABASE)
    schema.check(int(client.command("SELECT max(version) FROM schema_version")), str(path))
    turn = threading.Lock()

    def insert(block: Block) -> int:
        if role != "writer":
            raise Refused(f"store at {path} is open for reading only; open it with role 'writer'")
        with turn:
            return handle.insert(block)

    def close() -> None:
        client.close()
        handle.close()
        lock.release()

    return Link(client, insert, str(path), close)
