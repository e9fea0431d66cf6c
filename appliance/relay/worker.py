"""One relay process: its listeners, its flows, what the clock asks for.

A worker has one port for steered flows (IPv4 and IPv6), which the program picks by the flow's addresses, and shares
the ports of the explicit proxy with the other workers (SO_REUSEPORT). When it is replaced it takes itself out of the
program's table first, accepts what was under way, and goes on with the flows that it has until they end (`drain`); the
new one writes another journal stream.
"""

import asyncio
import signal
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import structlog
import uvloop

from appliance import config, status
from appliance.errors import MalformedInput, Unavailable, VerbatimError
from appliance.identity import ca
from appliance.identity.mint import Mint
from appliance.identity.oidc import Verifier
from appliance.identity.secrets import Secrets
from appliance.identity.undumpable import forbid_dumps
from appliance.log import configure
from appliance.model import Identity
from appliance.relay import streams
from appliance.relay.dial import transparent
from appliance.relay.flow import Flow
from appliance.relay.kernel import ProgramView
from appliance.relay.leg import Leg
from appliance.relay.opening import Opening
from appliance.relay.recording import Recording
from appliance.relay.route import Routes
from appliance.relay.surroundings import Surroundings
from appliance.relay.tls import AgentTls, ServerTls
from appliance.wire import clock
from appliance.wire.control import SOCKET, Client

BACKLOG: Final = 4096
ACCEPTED: Final = 64  # connections taken in one turn
TICK: Final = 1.0
HANDOVER: Final = 3.0  # seconds for which a worker that is replaced still accepts what was under way
LAST_WORDS: Final = 3.0  # seconds for flows to end when the process is told to
MAX_IDENTITIES: Final = 16384
TEND: Final = 2.0

log = structlog.get_logger()
Address = tuple[str, int]


class Worker:
    """`number` of the worker in its generation; `destination` tells where an accepted connection wanted to go."""

    def __init__(
        self,
        settings: config.Settings,
        number: int,
        loop: asyncio.AbstractEventLoop,
        *,
        destination: Callable[[socket.socket], Address] | None = None,
        steered: bool = True,
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._destination = destination or _own_name
        self._boot = clock.boot_id()
        self._ended: asyncio.Future[int] = loop.create_future()
        self._listeners: list[socket.socket] = []
        self._flows: set[Flow] = set()
        self._by_owner: Counter[str] = Counter()
        self._identities: OrderedDict[str, Identity] = OrderedDict()
        self._leaving = False  # taken out of the program's table
        self._draining = False  # and accepting nothing more
        self._accepted = 0
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="relay")
        self._writer, self.name = streams.take(settings)
        self._verifier = Verifier(settings.issuers)
        self._wire = Client(status.run_folder(settings.data) / SOCKET)
        secrets = Secrets.open(settings, time.time_ns)
        current = ca.Current(settings.data, settings.node)
        recording = Recording(self._writer, self.name, settings.node, self._boot, loop, time.time_ns)
        recording.failed = self._fail
        self.around = Surroundings(
            settings=settings,
            loop=loop,
            recording=recording,
            routes=Routes(settings.rules),
            kernel=None,
            agent_tls=AgentTls(Mint(current)),
            server_tls=ServerTls(),
            identity=self._identity,
            verify=self._verify,
            secret=secrets.get,
            second=loop.time(),
        )
        self._kernel: ProgramView | None = None
        self._steered = steered
        self._number = number
        self._fault = ""

    # -- listening -------------------------------------------------------------------------------------------------

    def listen(self) -> int:
        """Open the listeners; the port for steered flows. Raises `Unavailable`."""
        port = 0
        for family in (socket.AF_INET, socket.AF_INET6):
            sock = _listener(family, "", port, steered=self._steered)
            port = sock.getsockname()[1]
            self._serve(sock, proxied=False)
        for text in self._settings.relay.proxy:
            host, proxy_port = split(text)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._serve(_listener(family, host, proxy_port, shared=True), proxied=True)
        return port

    def _serve(self, sock: socket.socket, *, proxied: bool) -> None:
        self._listeners.append(sock)
        self._loop.add_reader(sock.fileno(), self._accept, sock, proxied)

    def _accept(self, listener: socket.socket, proxied: bool) -> None:
        for _ in range(ACCEPTED):
            try:
                sock, peer = listener.accept()
            except OSError:  # nobody left, or gone again
                return
            self._take(sock, (str(peer[0]), int(peer[1])), proxied)

    def _take(self, sock: socket.socket, client: Address, proxied: bool) -> None:
        self._accepted += 1
        try:
            server = _own_name(sock) if proxied else self._destination(sock)
            flow = Flow(self.around, Leg(self._loop, sock), client, server, self._gone, proxied=proxied)
        except OSError:
            sock.close()
            return
        self._flows.add(flow)
        known = None if self._kernel is None else self._kernel.agent_leg(*client, *server)
        lease, start = ("", 0) if known is None else (known.lease, known.start)
        owner = lease or client[0]
        flow.owner = owner
        self._by_owner[owner] += 1
        flow.spawn(self._open(flow, lease, start))

    async def _open(self, flow: Flow, lease: str, start: int) -> None:
        limits, unknown = self._settings.relay, ""
        if lease:
            try:
                flow.identity = await self._identity(lease)
            except VerbatimError as error:
                unknown = str(error)
        match = self.around.routes.choose(*flow.server)
        flow.begin(match.number if match else 0, lease, start)
        if unknown:
            flow.fail("lease-unknown", f"whose lease this is cannot be told: {unknown}")
        elif self._by_owner[flow.owner] > limits.max_connections_per_lease:
            flow.fail("too-many-connections", f"more than {limits.max_connections_per_lease} at one time")
        elif len(self._flows) > limits.max_connections:
            flow.fail("too-many-connections", f"this relay serves {limits.max_connections} at one time")
        else:
            await Opening(flow).run()

    def _gone(self, flow: Flow) -> None:
        self._flows.discard(flow)
        self._by_owner[flow.owner] -= 1
        if not self._by_owner[flow.owner]:
            del self._by_owner[flow.owner]
        if self._draining and not self._flows:
            self._end(0)

    # -- who -------------------------------------------------------------------------------------------------------

    async def _identity(self, lease: str) -> Identity | None:
        known = self._identities.get(lease)
        if known is None:
            known = await self._loop.run_in_executor(self._pool, self._wire.identity, lease)
            self._identities[lease] = known
            if len(self._identities) > MAX_IDENTITIES:
                self._identities.popitem(last=False)
        return known

    async def _verify(self, token: str) -> Identity:
        verified = await self._loop.run_in_executor(self._pool, self._verifier.verify, token)
        return verified.identity

    # -- the clock -------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until told to end; the exit code."""
        ticking = self._loop.create_task(self._tick_on())
        try:
            return await self._ended
        finally:
            ticking.cancel()

    async def _tick_on(self) -> None:
        tended = 0.0
        while True:
            self.around.second = self._loop.time()
            try:
                self._tick()
            except (VerbatimError, OSError) as error:
                log.error("check-failed", reason=str(error))
            if self.around.second - tended > TEND:
                tended = self.around.second
                self._pool.submit(self._verifier.tend, _unheard)
            await asyncio.sleep(TICK)

    def _tick(self) -> None:
        around, limits = self.around, self._settings.relay
        around.recording.tick(clock.now(self._boot))
        if self._steered and self._kernel is None and not self._leaving:
            self._steer()
        elif self._kernel is not None:
            self._kernel.tend()
        leases: dict[str, str | None] = {}
        for flow in list(self._flows):
            if flow.over:
                continue
            if around.second - flow.touched > limits.idle_timeout:
                flow.stop("idle", f"no byte for {limits.idle_timeout:g} s")
            elif flow.deadline and around.second > flow.deadline:
                flow.stop("time-out", f"log-in took longer than {limits.handshake_timeout:g} s")
            elif flow.lease and self._kernel is not None:
                address = flow.client[0]
                if address not in leases:
                    leases[address] = self._kernel.lease(address)
                if leases[address] != flow.lease:
                    flow.stop("lease-ended", "the lease that carried this flow ended")
        status.publish(self._settings.data, self.name, self.values())

    def _steer(self) -> None:
        """Tell the program of this worker, as soon as there is a program."""
        try:
            kernel = ProgramView(self._settings)
            kernel.register(self._listeners[0].getsockname()[1])
        except VerbatimError as error:
            self._fault = str(error)
            return
        self._fault = ""
        self._kernel = self.around.kernel = kernel
        log.info("relay-steered", port=self._listeners[0].getsockname()[1])

    def values(self) -> dict[str, Any]:
        """For the status file."""
        faults = {}
        if self.around.recording.stalled:
            faults["relay-stalled"] = f"relayed flows stand still: {self.around.recording.stalled}"
        if self._fault:
            faults["not-steered"] = f"no flow is steered to this relay: {self._fault}"
        return {
            "flows": len(self._flows),
            "accepted": self._accepted,
            "frames": self.around.recording.frames,
            "bytes": self.around.recording.bytes,
            "refused": dict(self.around.counters),
            "taking": not self._leaving and (self._kernel is not None or not self._steered),
            "faults": faults | self._verifier.faults(),
        }

    # -- the end ---------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Another generation takes over: no new flows, and an end when those that are open have ended."""
        if self._draining or self._leaving:
            return
        self._leaving = True
        if self._kernel is not None:
            self._kernel.unregister()
        self._loop.call_later(HANDOVER, self._leave)
        self._loop.call_later(self._settings.relay.drain, self.stop)

    def stop(self) -> None:
        """End all flows, each in its own protocol's words, and then the process."""
        if self._kernel is not None and not self._leaving:
            self._kernel.unregister()
        self._leaving = self._draining = True
        self._close_listeners()
        for flow in list(self._flows):
            if not flow.over:
                flow.stop("shutdown", "the relay ends")
        self._loop.call_later(LAST_WORDS if self._flows else 0, self._end, 0)

    def _fail(self, reason: str) -> None:
        log.error("journal-failed", reason=reason)
        for flow in list(self._flows):
            flow.agent.close(reset=True)
        self._end(3)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    def _leave(self) -> None:
        """What was under way has been accepted."""
        self._draining = True
        self._close_listeners()
        if not self._flows:
            self._end(0)

    def _close_listeners(self) -> None:
        for sock in self._listeners:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._listeners = []

    def close(self) -> None:
        self._close_listeners()
        for flow in list(self._flows):
            flow.agent.close(reset=True)
            if flow.upstream is not None:
                flow.upstream.close(reset=True)
        if self._kernel is not None:
            self._kernel.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        with suppress(Unavailable):
            streams.close(self._writer, self.name, time.time_ns())
        self._writer.close()
        status.withdraw(self._settings.data, self.name)


def run(settings: config.Settings, number: int) -> int:
    """One worker until it is told to end: SIGTERM ends its flows, SIGHUP waits for them. The exit code."""
    configure(settings.log_level, f"relay-{number}")
    forbid_dumps()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = Worker(settings, number, loop)
    try:
        worker.listen()
        loop.add_signal_handler(signal.SIGTERM, worker.stop)
        loop.add_signal_handler(signal.SIGINT, worker.stop)
        loop.add_signal_handler(signal.SIGHUP, worker.drain)
        code: int = loop.run_until_complete(worker.run())
        return code
    finally:
        worker.close()
        loop.close()


def split(text: str) -> Address:
    """host:port or [v6]:port. Raises `MalformedInput`."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise MalformedInput(f"relay.proxy {text}: not an address with a port; write host:port or [v6]:port")
    return host.strip("[]"), int(port)


def _listener(
    family: socket.AddressFamily, host: str, port: int, *, steered: bool = False, shared: bool = False
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if steered:
            transparent(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Unavailable(
            f"{host} port {port}: {error.strerror}; choose another address, and run it as root"
        ) from error
    return sock


def _own_name(sock: socket.socket) -> Address:
    name = sock.getsockname()
    return str(name[0]), int(name[1])


def _unheard(issuer: str, came: frozenset[str], went: frozenset[str]) -> None:
    """The API puts it on record when an issuer's keys change."""
