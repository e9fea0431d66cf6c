"""The FastAPI application and its HTTPS server."""

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI
from pyroute2 import IPRoute

from api import errors
from api.deps import Parts
from api.routes import ca, health, leases, records
from api.server import CIPHERS, MAX_HEADERS, BodyLimit, Protocol, raise_file_limit
from appliance import __version__, log
from appliance.config import HOST, Settings
from appliance.errors import MalformedInput, Unavailable, VerbatimError
from appliance.identity import ca as authority
from appliance.identity.jwks import trust
from appliance.identity.oidc import Verifier
from appliance.status import publish, run_folder, withdraw
from appliance.store.client import open_store
from appliance.wire.control import Client

SHUTDOWN_SECONDS = 5
STATUS_SECONDS = 1.0
TEND_SECONDS = 2.0  # between two looks whether an issuer is to be asked, and whether the CA was rotated
LEAF_SECONDS = 3600.0  # between two looks whether the certificate ends soon
SILENCE_SECONDS = 5  # connections that say nothing are not accepted before
OTHER_ADDRESS = "choose an address of this machine"


def create(parts: Parts) -> FastAPI:
    """The application over `parts`."""
    started = time.time()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        chores = (_publish_each_second(parts, started), _tend(parts), _renew(parts, app.state.tls))
        tasks = [asyncio.create_task(chore) for chore in chores]
        yield
        for task in tasks:
            task.cancel()
        with suppress(OSError):  # on a disk that takes nothing, the last word stays, and ages
            withdraw(parts.settings.data, "api")

    app = FastAPI(
        title="Verbatim",
        version=__version__,
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": {"model": errors.ErrorBody}},
    )
    app.state.parts, app.state.tls = parts, None
    app.add_middleware(BodyLimit)
    errors.install(app)
    for router in (health.router, ca.router, leases.router, records.router):
        app.include_router(router)
    return app


def run(settings: Settings) -> None:
    """Serve until SIGTERM. Raises `MalformedInput` when an address or an issuer's certificate file cannot be used."""
    log.configure(settings.log_level, "api")
    check_issuers(settings)
    raise_file_limit()
    ours = authority.Current(settings.data, settings.node)
    certificate, key = authority.api_certificate(ours(), settings.data, names(settings))
    wire = Client(run_folder(settings.data) / "wire.sock")
    with open_store(settings, "reader", embed=False) as store, open_store(settings, "writer", embed=False) as audit:
        app = create(Parts(settings, Verifier(settings.issuers), ours, store, audit, wire))
        sockets = [listen(address) for address in settings.api.listen]
        structlog.get_logger().info("api-started", addresses=list(settings.api.listen), ca=ours().fingerprint)
        server(app, certificate, key).run(sockets=sockets)


def check_issuers(settings: Settings) -> None:
    """Raises `MalformedInput` where a certificate file is missing or is none: agents would wait for their leases."""
    for issuer in settings.issuers:
        try:
            trust(issuer)
        except Unavailable as error:
            raise MalformedInput(str(error)) from error


def server(app: FastAPI, certificate: Path, key: Path) -> uvicorn.Server:
    """HTTPS only, bounded (`api/server.py`)."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
        ssl_ciphers=CIPHERS,
        loop="uvloop",
    )
    config.load()
    app.state.tls = config.ssl
    return uvicorn.Server(config)


def split_address(address: str) -> tuple[str, int]:
    """`10.0.0.1:8443` or `[fd00::1]:8443` → host and port. Raises `MalformedInput`."""
    host, _, port = address.rpartition(":")
    try:
        parsed = ip_address(host.removeprefix("[").removesuffix("]"))
        if (parsed.version == 6) != host.startswith("[") or not 0 < int(port) < 65536:
            raise ValueError
    except ValueError as error:
        raise MalformedInput(
            f"api.listen: {address!r} is not an address; write 10.0.0.1:8443 or [fd00::1]:8443"
        ) from error
    return str(parsed), int(port)


def listen(address: str) -> socket.socket:
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SILENCE_SECONDS)
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        remedy = "stop what uses it, or choose another port" if error.errno == errno.EADDRINUSE else OTHER_ADDRESS
        raise MalformedInput(f"api.listen: {address}: {error.strerror}; {remedy}") from error
    return listener


def names(settings: Settings) -> list[str]:
    """What the API's certificate must be valid for: its addresses, configured names, localhost."""
    node = (settings.node,) if HOST.fullmatch(settings.node.lower()) else ()
    found = [*settings.api.names, *node, "localhost", "127.0.0.1", "::1"]
    for address in settings.api.listen:
        host = ip_address(split_address(address)[0])
        found += local_addresses(host.version) if host.is_unspecified else [str(host)]
    return found


def local_addresses(version: int) -> list[str]:
    """This machine's global addresses of one IP version."""
    with IPRoute() as netlink:
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        found = [ip_address(message.get_attr("IFA_ADDRESS")) for message in netlink.get_addr(family=family)]
    return [str(address) for address in found if not address.is_link_local]


async def _publish_each_second(parts: Parts, started: float) -> None:
    settings = parts.settings
    while True:
        values = {"listen": list(settings.api.listen), "uptime": time.time() - started}
        try:
            publish(settings.data, "api", values | {"faults": parts.verifier.faults(), "repairs": {}})
        except OSError as error:  # it shows as silent, serves, and speaks again when the disk takes it
            structlog.get_logger().error("check-failed", reason=f"status: {error}")
        await asyncio.sleep(STATUS_SECONDS)


async def _tend(parts: Parts) -> None:
    """Ask the issuers for their keys when that is due, so that what is wrong with them shows before an agent comes."""

    def changed(issuer: str, came: frozenset[str], went: frozenset[str]) -> None:
        text = f"issuer {issuer} has other keys: {len(came)} came, {len(went)} went; expected when it rotates them"
        try:
            parts.wire.note("issuer-keys-changed", text, issuer=issuer, came=sorted(came), went=sorted(went))
        except VerbatimError as error:
            structlog.get_logger().error("not-recorded", what="issuer-keys-changed", reason=str(error))

    while True:
        try:
            await asyncio.to_thread(parts.verifier.tend, changed)
        except Exception as error:  # whatever it was, the issuers are asked again: without keys nobody gets a lease
            structlog.get_logger().error("check-failed", reason=f"issuers: {error}", exc_info=error)
        await asyncio.sleep(TEND_SECONDS)


async def _renew(parts: Parts, tls: ssl.SSLContext | None) -> None:
    """Have new connections be shown a certificate of the CA as it is now, that does not end soon."""
    shown, looked = parts.authority(), time.monotonic()
    while tls is not None:
        await asyncio.sleep(TEND_SECONDS)
        try:
            ours = parts.authority()
            if ours is shown and time.monotonic() - looked < LEAF_SECONDS:
                continue
            wanted = names(parts.settings)
            tls.load_cert_chain(*await asyncio.to_thread(authority.api_certificate, ours, parts.settings.data, wanted))
            shown, looked = ours, time.monotonic()
        except (VerbatimError, OSError) as error:
            structlog.get_logger().error("check-failed", reason=f"API certificate: {error}")
