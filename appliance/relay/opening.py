"""What a new flow is, and who carries it: by its rule, by who speaks first, and by what the first bytes are.

    a mediated protocol whose server or log-in comes first ────────────────► mediation, or SSH on both sides
    TLS ── the server first, by SNI and ALPN; then the agent ──────────────► splice, or mediation within TLS
        └─ cannot or shall not be terminated ── refused, or ───────────────► splice of ciphertext
    an upgrade to TLS within PostgreSQL or MySQL ──────────────────────────► splice, once that is done
    anything else ─────────────────────────────────────────────────────────► splice

A rule with a host needs a name before the server is connected; without such rules both go on at once, since a server
may speak first.
"""

import asyncio
from ipaddress import ip_address
from typing import Final

from appliance.config import SPEAKS_FIRST
from appliance.dissect.tls_hello import ClientHello
from appliance.errors import VerbatimError
from appliance.identity.credential import Secret
from appliance.model import Direction
from appliance.relay import dial, ssh
from appliance.relay.failure import Failure, within
from appliance.relay.flow import NUMBER, Flow
from appliance.relay.http_answer import answer
from appliance.relay.leg import Leg
from appliance.relay.mediation import Mediation
from appliance.relay.mediator import Context, Dial, Mediator, Tunnel
from appliance.relay.names import authorities, authority, names_host
from appliance.relay.protocols import MEDIATORS, UPGRADES
from appliance.relay.route import Match
from appliance.relay.splice import Splice
from appliance.relay.tls import MAX_NAME, alert, begins_tls, offered, usable

KNOWN_HTTP: Final = ("h2", "http/1.1")
TELLING: Final = 5.0  # seconds in which an agent that is refused can ask, and hear why


class Opening:
    """Opens `flow`: `run` ends when somebody else has its legs. Raises `Failure`.

    With `refusal` no server is connected: where the protocol is mediated the agent is told that in its words.
    """

    def __init__(self, flow: Flow, refusal: Failure | None = None) -> None:
        self._flow = flow
        flow.refusal = refusal
        self._around = flow.around
        self._address, self._port = flow.server
        self._tunnelled = False  # within an explicit proxy's tunnel
        self._target = ""  # the name that CONNECT gave for its server
        self._seconds = self._around.settings.relay.handshake_timeout

    async def run(self) -> None:
        flow = self._flow
        if flow.proxied:
            self._mediate(MEDIATORS["http"], connected=False)
            return
        await self._enter()

    # -- by the first bytes ----------------------------------------------------------------------------------------

    async def _enter(self) -> None:
        """A conversation with the server at `_address`, by which the flow is judged anew."""
        flow = self._flow
        named = self._needs_name
        flow.match = self._choose("", refuse=not named)  # its name may open what is closed without one
        rule = flow.rule
        if flow.upstream is not None and rule.mode == "mediate" and rule.application != "http":
            flow.hang_up()  # these mediators connect themselves
        if not named and rule.mode == "mediate" and rule.application in SPEAKS_FIRST:
            await self._give(rule.application)
            return
        mediated = rule.mode == "mediate"
        if not named and not mediated:
            await self._reach()
        prefix = await self._first(server_too=not mediated and not named)
        if prefix is None:
            self._spoken_first()
        elif begins_tls(prefix):
            await self._tls()
        else:
            await self._plain(prefix)

    async def _first(self, *, server_too: bool) -> bytes | None:
        """The agent's first bytes, which stay to be read; None: the server spoke first."""
        flow, loop = self._flow, self._around.loop
        if flow.agent.tls is not None:
            return b"\x00"
        heard: asyncio.Future[bool] = loop.create_future()

        def hear(agent: bool) -> None:
            if not heard.done():
                heard.set_result(agent)

        flow.agent.readable = lambda: hear(True)
        flow.agent.watch(True)
        if server_too and flow.upstream is not None:
            flow.upstream.readable = lambda: hear(False)
            flow.upstream.watch(True)
        try:
            async with within(None if server_too else self._seconds, f"the agent said nothing for {self._seconds:g} s"):
                agent_first = await heard
        finally:
            flow.agent.watch(False)
            if flow.upstream is not None:
                flow.upstream.watch(False)
        if not agent_first:
            return None
        data = await flow.agent.receive()
        async with within(self._seconds, f"the agent's first words took longer than {self._seconds:g} s"):
            while data and begins_tls(data) and len(data) < 3:  # too little to tell
                more = await flow.agent.receive()
                if not more:
                    break
                data += more
        flow.agent.unread(data)
        return data

    def _spoken_first(self) -> None:
        """The server did: MySQL may go over to TLS later."""
        rule = self._flow.rule
        if rule.application in ("auto", "mysql") and "mysql" in UPGRADES:
            self._mediate(UPGRADES["mysql"], connected=True)
        else:
            self._splice()

    async def _plain(self, prefix: bytes) -> None:
        flow = self._flow
        if self._needs_name:
            prefix = await self._whole_head(prefix)
        name = authority(prefix)
        if any(self._rule_of(other) != self._rule_of(name) for other in authorities(prefix)):
            raise Failure("host", "the request names several hosts, which are of different rules")
        try:
            flow.match = self._choose(name)
        except Failure as failure:
            if name:
                self._tell(answer(403, failure.text, close=True))
            raise
        rule = flow.rule
        if rule.mode == "mediate":
            await self._give(rule.application, connected=flow.upstream is not None)
            return
        await self._reach()
        if rule.upstream_tls == "require" and rule.application not in UPGRADES:
            await flow.secure_upstream(rule, name, ())
        if rule.application == "postgres" or (rule.application == "auto" and _upgrades(prefix)):
            self._mediate(UPGRADES["postgres"], connected=True)
            return
        flow.tell_upstream()
        self._splice()

    async def _whole_head(self, prefix: bytes) -> bytes:
        """The first bytes of HTTP up to where its Host must have come; they stay to be read. Raises `Failure`."""
        agent = self._flow.agent
        async with within(self._seconds, f"the agent's first request took longer than {self._seconds:g} s"):
            while not names_host(prefix):
                await agent.receive()  # what was put back
                more = await agent.receive()
                prefix += more
                agent.unread(prefix)
                if not more:
                    break
        return prefix

    def _tell(self, data: bytes) -> None:
        """The gateway's own words to the agent."""
        flow = self._flow
        flow.note("generated", "said by the gateway", {}, Direction.SERVER, 0, len(data))
        self._around.recording.data(flow.trace, NUMBER[Direction.SERVER], data)
        self._around.recording.then((flow.agent, data))

    # -- TLS -------------------------------------------------------------------------------------------------------

    async def _tls(self) -> None:
        flow = self._flow
        hello = await flow.hello()
        try:
            flow.match = self._choose(hello.sni)
        except Failure:
            flow.agent.send(alert("access-denied"))
            raise
        rule = flow.rule
        key = (flow.client[0], hello.sni or self._address)
        if flow.match is not None and flow.match.rule.lane == "tap":
            await self._pass_opaque(hello, "rule", "the rule for this name does not terminate TLS")
        elif rule.opaque == "pass" and hello.ech:
            await self._pass_opaque(hello, "ech", "the agent's ClientHello may hold an encrypted one")
        elif rule.opaque == "pass" and self._around.pins.get(key):
            await self._pass_opaque(hello, "pinned", "the agent did not accept the gateway's certificate before")
        elif rule.mode == "mediate" and rule.application != "http":
            name = await flow.accept_tls(("postgresql",) if rule.application == "postgres" else ())
            await self._give(rule.application, server_name=name)
        else:
            await self._terminate(hello, key)

    async def _terminate(self, hello: ClientHello, key: tuple[str, str]) -> None:
        flow = self._flow
        rule = flow.rule
        offer = usable(hello.alpn)
        if rule.mode == "mediate":
            offer = tuple(name for name in offer if name in KNOWN_HTTP)
            if hello.alpn and not offer:
                text = "the agent offers no protocol that this rule mediates: h2 or http/1.1"
                await self._not_opened(hello, Failure("alpn", text))
                return
        if self._flow.refusal is not None and rule.mode == "mediate":
            chosen = next(iter(offer), "")
            await flow.secure_agent(hello.sni or self._address, None, chosen)
            flow.tell_tls(**offered(hello))
            self._mediate(MEDIATORS["http"], connected=False, server_name=hello.sni, alpn=chosen)
            return
        await self._reach()
        try:
            server = await flow.secure_upstream(rule, hello.sni, offer)
        except Failure as failure:
            flow.note("upstream-tls", failure.text, {"reason": failure.reason, "sni": hello.sni[:MAX_NAME]})
            await self._not_opened(hello, failure)
            return
        flow.tell_upstream()
        chosen = server.selected_alpn_protocol() or ""
        try:
            await flow.secure_agent(hello.sni or self._address, server.getpeercert(True), chosen)
        except Failure as failure:
            if failure.reason == "certificate":  # none was shown
                await self._not_opened(hello, failure)
                return
            if failure.reason not in ("pinned", "tls"):
                raise
            self._around.pins.put(key, True)
            raise Failure("ech" if hello.ech else failure.reason, failure.text) from failure
        flow.tell_tls(**offered(hello))
        if rule.mode == "mediate":
            self._mediate(MEDIATORS["http"], connected=True, server_name=hello.sni, alpn=chosen)
        else:
            self._splice()

    async def _not_opened(self, hello: ClientHello, failure: Failure) -> None:
        """What cannot be terminated, before the agent has heard anything: passed or refused, as the rule says."""
        flow = self._flow
        if flow.rule.opaque == "pass":
            flow.hang_up()
            await self._pass_opaque(hello, failure.reason, failure.text)
        else:
            denied = failure.reason in ("certificate", "alpn")
            flow.agent.send(alert("access-denied" if denied else "internal-error"))
            raise failure

    async def _pass_opaque(self, hello: ClientHello, reason: str, text: str) -> None:
        """Ciphertext passes as it is."""
        flow = self._flow
        await self._reach()
        flow.tell_upstream()
        flow.note("opaque", f"TLS is passed as it is: {text}", {"reason": reason, **offered(hello)})
        self._splice()

    # -- who goes on -----------------------------------------------------------------------------------------------

    def _splice(self) -> None:
        flow = self._flow
        if flow.upstream is None:
            flow.fail("server-gone", "there is no connection to the server any more")
        if not flow.over:
            Splice(flow)

    async def _give(self, application: str, *, connected: bool = False, server_name: str = "") -> None:
        """To who speaks this application's protocol."""
        if application == "ssh" and self._flow.refusal is not None:
            await ssh.refuse(self._flow, self._flow.refusal.reason, self._flow.refusal.text)
        elif application == "ssh":
            await ssh.serve(self._flow, self._connect, self._secret, self._seconds)
        else:
            self._mediate(MEDIATORS[application], connected=connected, server_name=server_name)

    def _mediate(self, kind: type[Mediator], *, connected: bool, server_name: str = "", alpn: str = "") -> None:
        flow, secret = self._flow, None
        try:
            secret = self._secret()
        except Failure as failure:  # which the agent can be told as soon as it has asked
            flow.refusal, connected = failure, False
            flow.hang_up()
        context = Context(
            rule=flow.rule,
            client_address=flow.client[0],
            client_port=flow.client[1],
            server_address=self._address,
            server_port=self._port,
            identity=flow.identity,
            secret=secret,
            server_name=server_name,
            alpn=alpn,
            tls=flow.agent.tls is not None,
            proxied=flow.proxied and not self._tunnelled,
            permits=self._permits,
        )
        flow.deadline = self._around.second + self._seconds
        mediation = Mediation(flow, kind(context), self._dial, self._secret, self._splice, self._tunnel)
        mediation.start()
        if connected:
            mediation.dialled()

    def _secret(self) -> Secret | None:
        name = self._flow.rule.secret
        if not name:
            return None
        try:
            return self._around.secret(name)
        except VerbatimError as error:
            raise Failure("secret", f"the rule's credential: {error}") from error

    def _tunnel(self, command: Tunnel) -> None:
        """Within an explicit proxy's tunnel; the server is connected."""
        self._port, self._tunnelled = command.port, True
        try:
            ip_address(command.host)
        except ValueError:
            self._target = command.host

        async def enter() -> None:
            flow = self._flow
            self._address = flow.dialled[0] if flow.upstream is not None else self._address
            await self._enter()

        self._flow.spawn(enter())

    # -- rules -----------------------------------------------------------------------------------------------------

    @property
    def _needs_name(self) -> bool:
        """The name may decide which rule it is."""
        return any(match.rule.host for match in self._around.routes.candidates(self._address, self._port))

    def _choose(self, name: str, *, refuse: bool = True) -> Match | None:
        """The rule for this name. Raises `Failure` if it refuses (with `refuse`), or a tunnel is of another one."""
        match = self._rule_of(name)
        if self._target and match != self._rule_of(self._target):
            raise Failure("refused-by-rule", "the name within the tunnel is of another rule than that of CONNECT")
        if refuse and match is not None and match.rule.lane == "refuse":
            called = f" ({name})" if name.isprintable() and name else ""
            raise Failure("refused-by-rule", f"rule {match.number} refuses {self._address} port {self._port}{called}")
        return match

    def _rule_of(self, name: str) -> Match | None:
        return self._around.routes.choose(self._address, self._port, name or self._target)

    def _permits(self, name: str) -> bool:
        """Is a server of this name under the same rule as the flow?"""
        return self._rule_of(name) == self._flow.match

    def _allowed(self) -> None:
        """A rule must open what is dialled, and to this agent: the program asks one of all rules for the same address,
        which differ by name. Raises `Failure`."""
        flow = self._flow
        if flow.match is None:
            raise Failure("refused-by-rule", f"no rule opens {self._address} port {self._port}")
        rule = flow.match.rule
        asked = rule.unbound or rule.relay.identify == "token" or flow.proxied
        if not asked and not flow.lease and self._around.kernel is not None:
            raise Failure("no-lease", f"rule {flow.match.number} is for agents with a lease")

    async def _reach(self) -> None:
        """See that the original destination is connected. Raises `Failure`."""
        if self._flow.upstream is None:
            await self._connect()

    async def _connect(self) -> Leg:
        """To the original destination."""
        self._check_refusal()
        self._allowed()
        return await self._flow.dial(self._address, self._port, self._flow.rule)

    def _check_refusal(self) -> None:
        if self._flow.refusal is not None:
            raise self._flow.refusal

    async def _dial(self, command: Dial) -> Leg:
        self._check_refusal()
        flow = self._flow
        host, port = command.host, command.port or self._port
        if host:
            addresses = await self._around.names.addresses(flow.owner, host, port, self._seconds)
        else:
            addresses = [self._address]
        failure = Failure("unreachable", f"{host}: it has no address")
        for address in addresses[:4]:
            try:
                if host:
                    dial.check(address)
                    self._address, self._port = address, port
                    flow.match = self._choose(host)
                self._allowed()
                leg = await flow.dial(address, port, flow.rule)
            except Failure as found:
                failure = found
                continue
            if command.tls or (command.by_rule and flow.rule.upstream_tls == "require"):
                await flow.secure_upstream(flow.rule, command.server_name or host, command.alpn)
            flow.tell_upstream()
            return leg
        raise failure


def refuse(flow: Flow, refusal: Failure, *, told: bool) -> None:
    """End a flow for which nothing was done yet; with `told` in its protocol's words, where the rule mediates that."""
    if told:
        flow.spawn(Opening(flow, refusal).run())
        flow.around.loop.call_later(TELLING, flow.end_for, refusal)
    else:
        flow.end_for(refusal)


def _upgrades(prefix: bytes) -> bool:
    """SSLRequest or GSSENCRequest of PostgreSQL (documentation, 55.7 Message Formats)."""
    return prefix[:8] in (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"\x00\x00\x00\x08\x04\xd2\x16\x30")
