"""`verbatim store`: the process that owns the data folder's chDB and serves it on loopback.

Its address and two tokens are in DATA/run/store.json (mode 0600), made anew at every start: whoever can read that file
may read or write the store. Nothing is forked after the engine has started.
"""

import ipaddress
import os
import secrets
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import structlog

from appliance import status
from appliance.config import Settings
from appliance.errors import MalformedInput, Refused, Unavailable
from appliance.log import configure
from appliance.store import engine, schema
from appliance.store.face import Face
from appliance.store.link import SERVICE_FILE, Service, live_service

START_SECONDS = 30.0  # for another process to let go of the data folder
STOP_SECONDS = 20.0  # for running requests to end
STATUS_SECONDS = 1.0
COUNT_SECONDS = 10.0  # between two counts of the tables

log = structlog.get_logger()


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `Refused` or `Unavailable` when it cannot start."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    configure(settings.log_level, "store")
    if settings.store.url:
        raise Refused("store.url names a ClickHouse server; `verbatim store` is for the embedded store only")
    address = loopback(settings.store.listen)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = engine.Lock(settings.data)
    deadline = time.monotonic() + START_SECONDS
    while not lock.acquire():
        other = live_service(settings.data)
        if other is not None or time.monotonic() >= deadline or ended.wait(0.1):
            raise Refused(
                f"store of {settings.data} is in use by process {lock.owner() or 'unknown'}; stop that process first"
            )
    try:
        _serve(settings, address, ended)
    finally:
        lock.release()


def loopback(listen: str) -> tuple[str, int]:
    """Host and port of `store.listen`. The tokens cross in cleartext, so it must be a loopback address."""
    host, _, port = listen.rpartition(":")
    try:
        found = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError as error:
        raise MalformedInput(f"store.listen {listen!r} is not address:port; write 127.0.0.1:0 or [::1]:0") from error
    if not found.is_loopback or not 0 <= number <= 65535:
        raise Refused(f"store.listen {listen!r} is not a loopback address; use 127.0.0.1 or [::1]")
    return str(found), number


def _serve(settings: Settings, address: tuple[str, int], ended: threading.Event) -> None:
    data = settings.data
    own = engine.create(data, settings.store.max_memory, engine.reserve(settings))
    path = engine.store_path(data)
    schema.check(int(own.run("SELECT max(version) FROM schema_version")), str(path))
    writer, reader = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    try:
        face = Face(address, {"writer": writer, "reader": reader}, own.another)
    except OSError as error:
        own.close()
        raise Unavailable(
            f"store cannot listen on {address[0]}:{address[1]}: {error.strerror}; set store.listen"
        ) from error
    host, port = face.server_address[:2]
    named = f"[{host!s}]" if ":" in str(host) else str(host)
    service = Service(f"http://{named}:{port}", writer, reader, os.getpid())
    serving = threading.Thread(target=face.serve_forever, kwargs={"poll_interval": 0.2}, name="store")
    serving.start()
    announce(data, service)
    log.info("store-started", url=service.url)
    started, counted, values = time.monotonic(), -COUNT_SECONDS, {}
    while True:
        now = time.monotonic()
        if now - counted >= COUNT_SECONDS:
            values, counted = counts(own), now
        status.publish(data, "store", {**values, "uptime": now - started})
        if ended.wait(STATUS_SECONDS):
            break
    (data / "run" / SERVICE_FILE).unlink(missing_ok=True)
    face.stop(STOP_SECONDS)
    serving.join()
    own.close()
    status.withdraw(data, "store")
    log.info("store-stopped")


def announce(data: Path, service: Service) -> None:
    """Write run/store.json as a whole, readable by this user only."""
    path = status.run_folder(data) / SERVICE_FILE
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.encode(service))
    fresh.replace(path)


def counts(handle: engine.Handle) -> dict[str, Any]:
    """Rows of each table, and parts and bytes on disk of all."""
    lines = handle.run(
        "SELECT table, sum(rows), count(), sum(bytes_on_disk) FROM system.parts "
        "WHERE active AND database = currentDatabase() GROUP BY table ORDER BY table"
    ).decode()
    rows = [line.split("\t") for line in lines.splitlines()]
    return {
        "rows": {table: int(count) for table, count, _, _ in rows},
        "parts": sum(int(parts) for _, _, parts, _ in rows),
        "bytes": sum(int(size) for _, _, _, size in rows),
    }
