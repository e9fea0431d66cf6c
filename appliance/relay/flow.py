"""One relayed flow: its legs, its place on record, its end.

    opening ──► splice | mediation ──► ended
       └───────────── failed ────────────┘

What the agent's leg says is recorded before anything is done with it. The flow is over when both directions have ended
and everything was sent, when a leg fails, or when it is told to `fail`; then the last record tells what the sockets and
the kernel counted on both legs.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Final

import structlog

from appliance.config import RelayRule
from appliance.dissect.tls_hello import ClientHello
from appliance.errors import VerbatimError
from appliance.identity.credential import Kind
from appliance.identity.leases import identity_to_json
from appliance.journal.relayed import RelayedKind
from appliance.model import UNBOUND, Direction, Ending, Identity
from appliance.relay import dial
from appliance.relay.failure import Failure, within
from appliance.relay.leg import Leg
from appliance.relay.route import Match
from appliance.relay.surroundings import Counts, Kernel, LegCounts, Surroundings
from appliance.relay.tls import agreed, offered, read_hello

LINGER: Final = 5.0  # seconds for the last words of a flow to be taken
LOOK: Final = 0.05  # seconds between looks whether they were
PLAIN: Final = RelayRule()
NUMBER: Final = {Direction.CLIENT: 0, Direction.SERVER: 1}

log = structlog.get_logger()


class Flow:
    """`client` and `server`: address and port of the agent and of what it wanted to reach. `proxied`: that is the
    explicit proxy. `gone` is called when everything is over."""

    def __init__(
        self,
        around: Surroundings,
        agent: Leg,
        client: tuple[str, int],
        server: tuple[str, int],
        gone: Callable[["Flow"], None],
        *,
        proxied: bool = False,
    ) -> None:
        self.around = around
        self.agent = agent
        self.upstream: Leg | None = None
        self.client = client
        self.server = server
        self.proxied = proxied
        self.trace = around.recording.trace()
        self.holder: Identity | None = None  # of the lease
        self.identity: Identity | None = None  # who acts: the holder, or whom a token names
        self.lease = ""
        self.refusal: Failure | None = None  # for which it gets no server
        self.match: Match | None = None
        self.touched = around.second  # when bytes last moved
        self.deadline = 0.0  # by when log-in must be done; 0: there is none
        self.owner = client[0]  # whose connection it counts as
        self.ended = [False, False]  # directions whose end is on record
        self._begun = False  # it is on record
        self.over = False
        self.alive = True  # False: sockets are closed
        self.stop: Callable[[str, str], None] = self.fail  # how to end it for a reason from outside
        self.let_go: Callable[[], None] = _nothing  # called when it is over
        self._gone = gone
        self._upstream_counts: LegCounts | None = None  # of the connections to servers that are closed, together
        self._dialled: tuple[str, int] = ("", 0)
        self._local: tuple[str, int] = ("", 0)
        self._session: tuple[ssl.SSLContext, str, int, str] | None = None
        self._agreed: dict[Direction, dict[str, Any]] = {side: {} for side in Direction}  # with each peer about TLS
        self.tasks: set[asyncio.Task[None]] = set()
        agent.broken = lambda: self._broke("agent")
        agent.crashed = self.crashed

    @property
    def rule(self) -> RelayRule:
        """How the flow's rule has it treated."""
        return PLAIN if self.match is None else self.match.rule.relay

    # -- on record -------------------------------------------------------------------------------------------------

    def begin(self, rule: int, lease: str, start: int) -> None:
        """The first record."""
        said = {
            "node": self.around.settings.node,
            "client_address": self.client[0],
            "client_port": self.client[1],
            "server_address": self.server[0],
            "server_port": self.server[1],
            "rule": rule,
            "identity": None if self.identity is None else identity_to_json(self.identity) | {"method": "lease"},
            "lease_id": lease,
            "kernel_flow": start,
        }
        self.lease, self._begun = lease, True
        self.around.recording.say(self.trace, RelayedKind.OPEN, said)

    def note(
        self,
        kind: str,
        text: str,
        attrs: Mapping[str, Any] | None = None,
        direction: Direction | None = None,
        start: int = 0,
        end: int = 0,
    ) -> None:
        """Put something on record; `start` and `end` count from here in `direction`'s stream."""
        said: dict[str, Any] = {"kind": kind, "text": text, "attrs": dict(attrs or {})}
        number = 0 if direction is None else NUMBER[direction]
        if direction is not None:
            here = self.trace.offsets[number]
            said |= {"start": here + start, "end": here + end}
        self.around.recording.say(self.trace, RelayedKind.NOTE, said, number)

    def end_of(self, direction: Direction) -> None:
        """This direction ended by itself."""
        number = NUMBER[direction]
        if not self.ended[number]:
            self.ended[number] = True
            self.around.recording.say(self.trace, RelayedKind.EOF, {}, number, self.trace.offsets[number])

    def held_by(self, holder: Identity) -> None:
        """Whose the lease is."""
        self.holder = self.identity = holder

    def identified(self, identity: Identity, method: str) -> Identity:
        """An access token that came by `method` says who acts. The run is told with the lease only: it goes on where
        that is of the same person."""
        holder = self.holder or UNBOUND
        same = (holder.issuer, holder.subject) == (identity.issuer, identity.subject)
        identity = replace(identity, method=method, run_id=holder.run_id if same else "")
        if identity != self.identity:
            self.identity = identity
            self.note("identified", f"an access token of {identity.subject}", {"identity": identity_to_json(identity)})
        return identity

    # -- the server's leg ------------------------------------------------------------------------------------------

    @property
    def dialled(self) -> tuple[str, int]:
        """Address and port of the last server that was connected to."""
        return self._dialled

    async def dial(self, address: str, port: int, rule: RelayRule) -> Leg:
        """Connect to the server. Raises `Failure`."""
        around = self.around
        self.hang_up()  # there is one at a time
        source = self.client[0] if rule.source == "agent" else ""
        seconds, unbound = around.settings.relay.handshake_timeout, self.match is not None and self.match.rule.unbound
        leg = await dial.connect(around.loop, address, port, source, around.kernel, seconds, unbound=unbound)
        leg.broken = lambda: self._broke("server")
        leg.crashed = self.crashed
        self.upstream, self._dialled = leg, (address, port)
        name = leg.sock.getsockname()
        self._local = (str(name[0]), int(name[1]))
        return leg

    async def secure_upstream(self, rule: RelayRule, name: str, alpn: tuple[str, ...]) -> ssl.SSLObject:
        """TLS to the server; its certificate is verified for `name`, or its address. Raises `Failure`."""
        leg, around = self.upstream, self.around
        assert leg is not None
        client = None
        if rule.client_certificate:
            try:
                client = around.secret(rule.client_certificate, Kind.TLS_CLIENT)
            except VerbatimError as error:
                raise Failure("certificate", str(error)) from error
        context = around.server_tls.context(rule, alpn, client)
        address, port = self._dialled
        name = name or address
        session = around.server_tls.session(context, address, port, name)
        try:
            async with self._shaking(f"the server's TLS handshake took too long: {address} port {port}"):
                await leg.start_tls(context, server=False, server_name=name, session=session)
        except Failure as failure:
            if failure.reason not in ("tls", "certificate"):
                raise
            raise Failure(failure.reason, f"TLS between gateway and server failed: {failure.text}") from failure
        tls = leg.tls
        assert tls is not None
        self._session = (context, address, port, name)
        return tls

    def tell_upstream(self, **attrs: Any) -> None:
        """Put on record whom the gateway talks to."""
        leg = self.upstream
        assert leg is not None
        address, port = self._dialled
        said: dict[str, Any] = {
            "address": address,
            "port": port,
            "source": self._local[0],
            "source_port": self._local[1],
        }
        if leg.tls is not None:
            said["tls"] = self._agreed[Direction.SERVER] = agreed(leg.tls, server=True)
        self.note("upstream", f"connected to {address} port {port}", said | attrs)

    def hang_up(self, *, reset: bool = False) -> None:
        """Close the server's leg; what was counted on it is told at the end."""
        leg = self.upstream
        if leg is None:
            return
        if self._session is not None and leg.tls is not None:
            self.around.server_tls.keep(*self._session, leg.tls)
        self._session = None
        self.upstream = None
        try:
            counts = self._counted(leg, lambda kernel: kernel.take_leg(*self._local, *self._dialled))
            before = self._upstream_counts
            self._upstream_counts = counts if before is None else _together(before, counts)
        finally:
            leg.close(reset=reset)

    def _agent_counted(self, kernel: Kernel) -> Counts | None:
        known = kernel.agent_leg(*self.client, *self.server)
        return None if known is None else known.counts

    def _counted(self, leg: Leg, ask: Callable[[Kernel], Counts | None]) -> LegCounts:
        """What was counted on a leg: by the kernel, which is asked first, and by its socket. A packet that comes
        meanwhile reaches the socket: what only the kernel counted did not."""
        counted = None
        try:
            if self.around.kernel is not None:
                counted = ask(self.around.kernel)
        except (VerbatimError, OSError, LookupError) as error:  # the maps went away: there is no count
            log.warning("not-counted", reason=str(error))
        return {"kernel": counted, "socket": leg.counts()}

    # -- TLS with the agent ----------------------------------------------------------------------------------------

    async def accept_tls(self, alpn: tuple[str, ...] = (), upstream: bytes | None = None) -> str:
        """TLS with an agent whose ClientHello comes next: its first protocol of `alpn`, and a certificate like that of
        the server, if one is `upstream` (DER). The name that it asked for. Raises `Failure`."""
        hello = await self.hello()
        offer = {name.decode("latin-1") for name in hello.alpn}
        chosen = next((name for name in alpn if name in offer), "")
        await self.secure_agent(hello.sni or self.server[0], upstream, chosen)
        self.tell_tls(**offered(hello))
        return hello.sni

    async def hello(self) -> ClientHello:
        """The agent's ClientHello, which stays to be read. Raises `Failure`."""
        self.agent.watch(False)
        async with self._shaking("the agent's ClientHello took too long"):
            return await read_hello(self.agent)

    async def secure_agent(self, name: str, upstream: bytes | None, alpn: str) -> None:
        """TLS with the agent, as `name`. Raises `Failure`: of reason `pinned` if it does not accept the certificate."""
        context = self.around.agent_tls.context(name, upstream, alpn)
        try:
            async with self._shaking("the agent's TLS handshake took too long"):
                await self.agent.start_tls(context, server=True)
        except Failure as failure:
            if failure.reason != "tls":
                raise
            text = f"TLS between agent and gateway failed: {failure.text}"
            if "unknown ca" in failure.text or "certificate" in failure.text:
                raise Failure("pinned", f"{text}; the agent must trust the gateway's CA") from failure
            raise Failure("tls", text) from failure

    def _shaking(self, late: str) -> AbstractAsyncContextManager[None]:
        return within(self.around.settings.relay.handshake_timeout, late)

    def tell_tls(self, **attrs: Any) -> None:
        """Put on record how TLS with the agent was agreed."""
        tls = self.agent.tls
        assert tls is not None
        said = self._agreed[Direction.CLIENT] = agreed(tls, server=False) | attrs
        self.note("tls", f"{said['version']} with the agent", said)

    def tell_unconfirmed(self, direction: Direction, leg: Leg) -> None:
        """Put on record that a peer's TLS ended without its closing alert. Many peers say none: that alone is no
        finding, bytes that are lost are one."""
        if not leg.unconfirmed:
            return
        if leg.truncated:
            side = "agent" if direction is Direction.CLIENT else "server"
            self.note(
                "tls-truncated", f"{side}: the connection ended within a record of TLS", {"side": side}, direction
            )
        tls = self._agreed[direction] | {"ended": "without close_notify"}
        if direction is Direction.CLIENT:
            self.note("tls", "the agent ended TLS without a closing alert", tls)
        else:
            self.note("upstream", "the server ended TLS without a closing alert", {"tls": tls})

    # -- the end ---------------------------------------------------------------------------------------------------

    def spawn(self, work: Any) -> None:
        """Run a coroutine of this flow, which ends with it; its `Failure` ends the flow."""
        if self.over:
            work.close()
            return
        task: asyncio.Task[None] = self.around.loop.create_task(self._guard(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda ended: work.close())  # for one that is cancelled before it began

    async def _guard(self, work: Any) -> None:
        try:
            await work
        except Failure as failure:
            self.end_for(failure)
        except Exception:
            self.crashed()

    def end_for(self, failure: Failure) -> None:
        """End it, in the protocol's words where that has any."""
        try:
            self.stop(failure.reason, failure.text)
        except Exception:
            self.crashed()

    def crashed(self) -> None:
        """A fault of ours ends this flow and no other one. Called while the exception is handled."""
        log.exception("flow-failed")
        self.fail("internal-error", "the relay failed; its log says why")

    def _broke(self, side: str) -> None:
        if not self.over:
            self.finish(Ending.RST, f"{side}-reset")

    def fail(self, reason: str, text: str) -> None:
        """End the flow before its time; what was said to the agent so far still goes out."""
        if self.over:
            return
        self.around.count(reason)
        if not self._begun:
            self.begin(0, self.lease, 0)
        self.note("refused", text, {"reason": reason})
        self.finish(Ending.CUT if reason == "lease-ended" else Ending.RST, reason, linger=True)

    def finish(self, ending: Ending, reason: str, *, linger: bool = False) -> None:
        """Nothing more is recorded. What was said still goes out, for some time; then the agent gets a FIN with
        `linger` or where all is well, else both get an RST."""
        if self.over:
            return
        self.over = True
        self.let_go()
        for task in self.tasks:
            if task is not asyncio.current_task(self.around.loop):
                task.cancel()
        for leg in (self.agent, self.upstream):
            if leg is not None:
                leg.watch(False)
        self.around.recording.then(lambda: self._end(ending, reason, linger))

    def _end(self, ending: Ending, reason: str, linger: bool) -> None:
        """Everything that was recorded is sent, or waits for a peer."""
        if linger:
            self.agent.shut()
        until = self.around.loop.time() + LINGER

        def look() -> None:
            """No socket tells when its peer has everything: it is asked. An RST would take back what is under way."""
            if self._owing(linger or ending is not Ending.RST) and self.around.loop.time() < until:
                self.around.loop.call_later(LOOK, look)
            else:
                self._close(ending, reason, reset=ending is Ending.RST and not linger)

        look()

    def _owing(self, gently: bool) -> bool:
        """Is something to be sent yet? `gently`: by us, the kernel sends what it has also when the socket is closed."""
        if gently:
            return self.agent.waiting > 0
        return any(leg is not None and leg.owing > 0 for leg in (self.agent, self.upstream))

    def _close(self, ending: Ending, reason: str, *, reset: bool = False) -> None:
        if not self.alive:
            return
        self.alive = False
        try:
            counts = self._counted(self.agent, self._agent_counted)
            self.hang_up(reset=reset)
            legs = {"agent": counts, "upstream": self._upstream_counts}
            said = {"ending": ending.value, "reason": reason, "legs": legs}
            self.around.recording.say(self.trace, RelayedKind.CLOSE, said)
        finally:
            self.agent.close(reset=reset)
            self._gone(self)


def _together(first: LegCounts, second: LegCounts) -> LegCounts:
    """The counts of two connections as of one; None where one of them was not counted."""
    return {counter: _sum(first[counter], second[counter]) for counter in first}


def _sum(first: Counts | None, second: Counts | None) -> Counts | None:
    return None if first is None or second is None else {name: first[name] + second[name] for name in first}


def _nothing() -> None:
    return None
