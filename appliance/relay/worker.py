"""One relay process: its listeners, its flows, what the clock asks for.

A worker has one port for steered flows (IPv4 and IPv6), which the program picks by the flow's addresses, and shares
the ports of the explicit proxy with the other workers (SO_REUSEPORT). When it is replaced it takes itself out of the
program's table first, accepts what was under way, and goes on with the flows that it has until they end (`drain`); the
new one writes another journal stream.
"""

import asyncio
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import structlog
import uvloop

from appliance import config, status
from appliance.errors import VerbatimError
from appliance.identity import ca
from appliance.identity.mint import Mint
from appliance.identity.secrets import Secrets
from appliance.identity.undumpable import forbid_dumps
from appliance.log import configure
from appliance.relay import streams
from appliance.relay.accepting import Accepting, flows_of, listener
from appliance.relay.failure import Failure
from appliance.relay.flow import Flow
from appliance.relay.kernel import ProgramView
from appliance.relay.leg import Leg
from appliance.relay.opening import Opening, refuse
from appliance.relay.recording import Recording
from appliance.relay.resolve import Resolver
from appliance.relay.route import Routes
from appliance.relay.surroundings import Kernel, Surroundings
from appliance.relay.tally import Tally
from appliance.relay.tls import AgentTls, ServerTls
from appliance.relay.who import Who
from appliance.wire import clock

TICK: Final = 1.0
HANDOVER: Final = 3.0  # seconds for which a worker that is replaced still accepts what was under way
LAST_WORDS: Final = 3.0  # seconds for flows to end when the process is told to
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
        self._flows: set[Flow] = set()
        self._leaving = False  # taken out of the program's table
        self._draining = False  # and accepting nothing more
        self._accepted = 0
        self._writer, self.name = streams.take(settings)
        self._tally = Tally(settings.data, self.name)
        self._who = Who(settings, loop)
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
            identity=self._who.holds,
            verify=self._who.verify,
            secret=secrets.get,
            names=Resolver(loop),
            second=loop.time(),
        )
        self._accepting = Accepting(loop, self._take, lambda: not recording.stalled)
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = min(settings.relay.max_connections, flows_of(files))
        self._kernel: Kernel | None = None
        self._steered = steered
        self._number = number
        self._fault = ""

    # -- listening -------------------------------------------------------------------------------------------------

    def listen(self) -> int:
        """Open the listeners; the port for steered flows. Raises `Unavailable`."""
        port = 0
        for family in (socket.AF_INET, socket.AF_INET6):
            sock = listener(family, "", port, steered=self._steered)
            port = sock.getsockname()[1]
            self._accepting.add(sock, proxied=False)
        for text in self._settings.relay.proxy:
            address, proxy_port = config.endpoint(text)
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            self._accepting.add(listener(family, str(address), proxy_port, shared=True), proxied=True)
        return port

    def _take(self, sock: socket.socket, client: Address, proxied: bool) -> None:
        self._accepted += 1
        try:
            server = _own_name(sock) if proxied else self._destination(sock)
            agent = Leg(self._loop, sock)
        except OSError:  # it has gone again
            sock.close()
            return
        known = self._known(client, server, proxied)
        lease, start = ("", 0) if known is None else known
        flow = Flow(self.around, agent, client, server, self._gone, proxied=proxied)
        flow.owner = lease or client[0]
        most, here = self._settings.relay.max_connections_per_lease, self._tally.count(flow.owner)
        self._flows.add(flow)
        self._tally.add(flow.owner, 1)
        refusal: Failure | None = None
        if known is None:
            refusal = Failure("not-steered", "the program did not bring it here, or does not know it any more")
        elif len(self._flows) > self._most:
            refusal = Failure("too-many-connections", f"this relay serves {self._most} at one time")
        elif here >= most:
            refusal = Failure("too-many-connections", f"more than {most} connections of one lease at one time")
        if refusal is not None:  # before anything is done for it
            if holder := self._who.known(lease):
                flow.held_by(holder)
            flow.begin(0, lease, start)
            spare = known is not None and here < 2 * most and len(self._flows) <= self._most
            refuse(flow, refusal, told=spare)
        else:
            flow.spawn(self._open(flow, lease, start))

    def _known(self, client: Address, server: Address, proxied: bool) -> tuple[str, int] | None:
        """Lease ("": none) and start of a connection; None: who connects to a port of ours past the program."""
        kernel = self._kernel
        if proxied or not self._steered:
            return (kernel.lease(client[0]) or "" if kernel is not None else ""), 0
        found = None if kernel is None else kernel.agent_leg(*client, *server)
        return None if found is None else (found.lease, found.start)

    async def _open(self, flow: Flow, lease: str, start: int) -> None:
        unknown = ""
        if lease:
            try:
                async with asyncio.timeout(self._settings.relay.handshake_timeout):
                    flow.held_by(await self._who.holds(lease))
            except VerbatimError as error:
                unknown = str(error)
            except TimeoutError:
                unknown = "the wire process does not answer"
        match = self.around.routes.choose(*flow.server)
        flow.begin(match.number if match else 0, lease, start)
        if unknown:
            flow.fail("lease-unknown", f"whose lease this is cannot be told: {unknown}")
        else:
            await Opening(flow).run()

    def _gone(self, flow: Flow) -> None:
        self._flows.discard(flow)
        self._tally.add(flow.owner, -1)
        if self._draining and not self._flows:
            self._end(0)

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
            for work in (self._tell_time, self._tally.refresh, self._tend_kernel, self._end_late, self._publish):
                try:
                    work()
                except (VerbatimError, OSError) as error:
                    log.error("check-failed", reason=str(error))
                except Exception:  # the others are not less due for it
                    log.exception("check-failed")
            if self.around.second - tended > TEND:
                tended = self.around.second
                self._who.tend()
            await asyncio.sleep(TICK)

    def _tell_time(self) -> None:
        self.around.recording.tick(clock.now(self._boot))

    def _tend_kernel(self) -> None:
        if self._steered and self._kernel is None and not self._leaving:
            self._steer()
        elif self._kernel is not None:
            self._kernel.tend()

    def _end_late(self) -> None:
        """Flows whose time, or whose lease's, is up."""
        now, limits = self.around.second, self._settings.relay
        leases: dict[str, str | None] = {}
        for flow in list(self._flows):
            if flow.over:
                continue
            if now - flow.touched > limits.idle_timeout:
                flow.end_for(Failure("idle", f"no byte for {limits.idle_timeout:g} s"))
            elif flow.deadline and now > flow.deadline:
                flow.end_for(Failure("time-out", f"log-in took longer than {limits.handshake_timeout:g} s"))
            elif flow.lease and self._kernel is not None:
                address = flow.client[0]
                if address not in leases:
                    leases[address] = self._kernel.lease(address)
                if leases[address] != flow.lease:
                    flow.end_for(Failure("lease-ended", "the lease that carried this flow ended"))

    def _publish(self) -> None:
        status.publish(self._settings.data, self.name, self.values())

    def _steer(self) -> None:
        """Tell the program of this worker, as soon as there is a program."""
        try:
            kernel = ProgramView(self._settings)
            kernel.register(self._accepting.port)
        except VerbatimError as error:
            self._fault = str(error)
            return
        self._fault = ""
        self._kernel = self.around.kernel = kernel
        log.info("relay-steered", port=self._accepting.port)

    def values(self) -> dict[str, Any]:
        """For the status file."""
        faults = {}
        if self.around.recording.stalled:
            faults["relay-stalled"] = f"relayed flows stand still: {self.around.recording.stalled}"
        if self._accepting.exhausted:
            faults["relay-exhausted"] = f"no connection can be accepted: {self._accepting.exhausted}"
        if self._fault:
            faults["not-steered"] = f"no flow is steered to this relay: {self._fault}"
        return {
            "flows": len(self._flows),
            "accepted": self._accepted,
            "frames": self.around.recording.frames,
            "bytes": self.around.recording.bytes,
            "refused": dict(self.around.counters),
            "taking": not self._leaving and (self._kernel is not None or not self._steered),
            "faults": faults | self._who.faults(),
        }

    # -- the end ---------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Another generation takes over: no new flows, and an end when those that are open have ended."""
        if self._draining or self._leaving:
            return
        self._leaving = True
        self._unregister()
        self._loop.call_later(HANDOVER, self._leave)
        self._loop.call_later(self._settings.relay.drain, self.stop)

    def stop(self) -> None:
        """End all flows, each in its own protocol's words, and then the process."""
        if not self._leaving:
            self._unregister()
        self._leaving = self._draining = True
        self._accepting.close()
        for flow in list(self._flows):
            if not flow.over:
                flow.end_for(Failure("shutdown", "the relay ends"))
        self._loop.call_later(LAST_WORDS if self._flows else 0, self._end, 0)

    def _unregister(self) -> None:
        """Whatever becomes of that, flows end and so does this process; the wire process sees to the rest."""
        try:
            if self._kernel is not None:
                self._kernel.unregister()
        except (VerbatimError, OSError, LookupError) as error:
            log.error("check-failed", reason=str(error))

    def _fail(self, reason: str) -> None:
        log.error("journal-failed", reason=reason)
        self._reset_all()
        self._end(3)

    def _reset_all(self) -> None:
        for flow in list(self._flows):
            for leg in (flow.agent, flow.upstream):
                if leg is not None:
                    leg.close(reset=True)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    def _leave(self) -> None:
        """What was under way has been accepted."""
        self._draining = True
        self._accepting.close()
        if not self._flows:
            self._end(0)

    def close(self) -> None:
        self._accepting.close()
        self._reset_all()
        if self._kernel is not None:
            with suppress(VerbatimError, OSError):
                self._kernel.close()
        self._who.close()
        self.around.names.close()
        self.around.recording.commit()  # the last words of flows that ended in this turn
        with suppress(VerbatimError):
            streams.close(self._writer, self.name, time.time_ns())
        self._tally.close()
        self._writer.close()
        status.withdraw(self._settings.data, self.name)


def run(settings: config.Settings, number: int) -> int:
    """One worker until it is told to end: SIGTERM ends its flows, SIGHUP waits for them. The exit code."""
    configure(settings.log_level, f"relay-{number}")
    forbid_dumps()
    _raise_files()
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


def _raise_files() -> None:
    """As many descriptors as this process can be given."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _own_name(sock: socket.socket) -> Address:
    name = sock.getsockname()
    return str(name[0]).partition("%")[0], int(name[1])
