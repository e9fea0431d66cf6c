"""SSH, terminated on both sides: who speaks is known, the server gets the gateway's credential, messages are recorded.

    agent ── key exchange, log-in with the gateway ──► server is dialled, its key checked, log-in with it
          ◄───────── log-in succeeded ─────────────── then `Channels` passes messages, each behind its record

The agent's log-in, by the rule:

    identify = "token"            an access token as password, or as answer to a prompt (keyboard-interactive)
    identify = "lease", a secret  anything is accepted, also nothing at all: the lease says who acts
    identify = "lease", none      the agent's password is asked for, or prompted, and is used with the server

OpenSSH's client takes up to 1023 bytes from a prompt: an answer that long is asked to be continued. The stream is that
of dissect/ssh_relayed.py: messages of the agent's leg from its log-in on. What the server said at its log-in is not in
it, but for banners, which the agent gets. While a peer does not read, or exchanges keys, the other one is not read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncssh

from appliance.dissect import ssh_messages as ssh
from appliance.dissect.ssh_relayed import START, frame
from appliance.errors import VerbatimError
from appliance.identity.credential import Kind, Secret
from appliance.model import Direction, Ending
from appliance.relay.failure import Failure
from appliance.relay.flow import LINGER, NUMBER, Flow
from appliance.relay.leg import Leg
from appliance.relay.ssh_channels import Channels
from appliance.relay.ssh_connection import FULL, KEXINIT, AgentConnection, Carrier, ServerConnection, read
from appliance.relay.ssh_hosts import host_keys
from appliance.relay.ssh_login import VERSION, AgentLogin, ServerLogin, agent_options

HEARING: Final = 1.0  # seconds in which an agent that is refused can take that in
UNDER_WAY: Final = 16 * 2**20  # bytes between two kernels, about, which a peer sent before it heard of new keys
CODES: Final = {
    "host-key": asyncssh.DISC_HOST_KEY_NOT_VERIFIABLE,
    "too-many-connections": asyncssh.DISC_TOO_MANY_CONNECTIONS,
    "token-refused": asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE,
    "login-refused": asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE,
    "server-gone": asyncssh.DISC_CONNECTION_LOST,
    "unreachable": asyncssh.DISC_CONNECTION_LOST,
    "protocol": asyncssh.DISC_PROTOCOL_ERROR,
}  # reasons, to RFC 4253 section 11.1; the others are DISC_BY_APPLICATION
_options: dict[Path, asyncssh.SSHServerConnectionOptions] = {}  # the host keys of a process do not change


class SshRelay:
    """Serves `flow`, whose agent is connected. `connect` dials the server by the rules, `secret` gives the rule's
    credential; both raise `Failure`."""

    def __init__(self, flow: Flow, connect: Callable[[], Awaitable[Leg]], secret: Callable[[], Secret | None]) -> None:
        self._flow = flow
        self._around = flow.around
        self._connect = connect
        self._secret = secret
        self._most = flow.around.settings.relay.buffer_bytes
        self._agent: AgentConnection | None = None
        self._server: ServerConnection | None = None
        self._channels: Channels | None = None
        self._ending = False
        self.login = AgentLogin(self)

    @property
    def flow(self) -> Flow:
        return self._flow

    async def start(self) -> None:
        """Begin with the agent. Raises `Failure`."""
        flow, around = self._flow, self._around
        flow.stop = self._stop
        flow.let_go = self._let_go
        flow.note("protocol", "SSH, terminated by the gateway", {"protocol": "ssh"})
        for direction in Direction:
            around.recording.data(flow.trace, NUMBER[direction], START)
        try:
            options = await self._agent_options()
        except VerbatimError as error:
            raise Failure("internal-error", str(error)) from error
        if flow.over:
            return
        agent = AgentConnection(around.loop, options)
        agent.talks, self._agent = self, agent
        agent._protocol_factory = lambda: self.login
        self._adopt(agent, flow.agent)
        flow.agent.watch(True)

    async def _agent_options(self) -> asyncssh.SSHServerConnectionOptions:
        data = self._around.settings.data
        if data not in _options:
            keys = await self._around.loop.run_in_executor(None, host_keys, data)
            _options[data] = agent_options(keys)
        return _options[data]

    # -- reading ---------------------------------------------------------------------------------------------------

    def _adopt(self, connection: AgentConnection | ServerConnection, leg: Leg) -> None:
        leg.readable = lambda: self._read(connection, leg)
        leg.drained = self.balance
        connection.connection_made(Carrier(leg, self._around.recording))

    def _read(self, connection: AgentConnection | ServerConnection, leg: Leg) -> None:
        recording = self._around.recording
        if recording.stalled:
            leg.watch(False)
            recording.when_flowing(self.balance)
            return
        try:
            data = read(leg)
        except Failure as failure:
            self._failed(connection.peer, failure)
            return
        if data:
            self._flow.touched = self._around.second
            connection.data_received(data)
        if leg.ended and not self._flow.over:
            leg.watch(False)
            self._flow.spawn(self._settle(connection))
        else:
            self.balance()
            if leg.held:
                self._around.loop.call_soon(leg.wake)

    async def _settle(self, connection: AgentConnection | ServerConnection) -> None:
        """The peer says no more; what it said before may still be looked at, in an exchange of keys."""
        if connection.peer is Direction.SERVER or self._channels is not None:
            await connection.settled()
        if not self._flow.over and not self._ending:
            self._ended(connection.peer)

    def _failed(self, direction: Direction, failure: Failure) -> None:
        """A leg broke."""
        if direction is Direction.SERVER:
            self._server_gone(failure.text)
            return
        if failure.reason != "reset":
            self._flow.note(failure.reason, f"agent: {failure.text}", {"side": "agent"}, direction)
        self._flow.finish(Ending.RST, "agent-reset" if failure.reason == "reset" else failure.reason)

    def balance(self) -> None:
        """Read from each peer as long as the other one takes what it is sent; and what a peer has under way when keys
        are exchanged with it in any case, as that waits for what it says behind."""
        flow = self._flow
        if flow.over or self._ending:
            return
        agent, server = (self._agent, flow.agent), (self._server, flow.upstream)
        for (connection, leg), (other, other_leg) in ((agent, server), (server, agent)):
            if connection is None or leg is None or leg.ended:
                continue
            waiting = 0 if other is None or other_leg is None else other_leg.waiting + other.deferred
            most = self._most if connection.keyed else self._most + UNDER_WAY
            leg.watch(max(waiting, leg.waiting) <= most and connection.unread <= FULL)

    # -- messages --------------------------------------------------------------------------------------------------

    def heard(self, direction: Direction, payload: bytes) -> bool:
        number = payload[0]
        if self._flow.over or self._ending:
            return True
        if number == ssh.DISCONNECT:
            self._disconnected(direction, payload)
            return True
        if number == KEXINIT and direction is Direction.SERVER and self._server is not None and self._channels is None:
            self._server.check_offer(payload)
            return False
        if number == ssh.USERAUTH_REQUEST and direction is Direction.CLIENT:
            self.login.heard(payload)
            return False
        if number < ssh.GLOBAL_REQUEST:
            return False
        if self._channels is not None:
            self._channels.heard(direction, payload)
            return True
        return False  # the server may tell of its keys before anything is asked: asyncssh does nothing with that

    def heard_on(self, direction: Direction, channel: int, payload: bytes) -> None:
        if self._channels is not None and not self._flow.over and not self._ending:
            self._channels.heard_on(direction, channel, payload)

    def said(self, direction: Direction, payload: bytes) -> None:
        """To the agent: on record. What is said to the server alone is not part of the stream."""
        if direction is Direction.CLIENT:
            self.record(Direction.SERVER, payload)

    def record(self, direction: Direction, payload: bytes) -> None:
        """Put a message on record, as said in `direction`."""
        if not self._flow.over:
            self._around.recording.data(self._flow.trace, NUMBER[direction], frame(payload))

    def _tell(self, kind: str, text: str, attrs: Mapping[str, Any]) -> None:
        self._around.count(kind)
        self._flow.note(kind, text, attrs)

    # -- the server ------------------------------------------------------------------------------------------------

    async def log_in(self, user: str, password: str | None) -> bool:
        """Log in with the server, as the rule has it; `password` is the agent's. False: the server does not accept
        that. What else fails ends the flow, and this is cancelled."""
        outcome: asyncio.Future[bool] = self._around.loop.create_future()

        async def work() -> None:
            accepted = await self._log_in(user, password)
            if not outcome.done():
                outcome.set_result(accepted)

        self._flow.spawn(work())
        return await outcome

    async def _log_in(self, user: str, password: str | None) -> bool:
        flow, around = self._flow, self._around
        lost = partial(self.lost, Direction.SERVER)
        login = ServerLogin(flow, self._rule_secret(), user, password, self._banner, lost)
        leg = await self._connect()
        options = login.options(*flow.dialled)
        options.waiter = around.loop.create_future()
        server = ServerConnection(around.loop, options, wait="auth")
        server.talks, self._server = self, server
        server._protocol_factory = lambda: login
        self._adopt(server, leg)
        leg.broken = partial(self._server_gone, "the connection broke")
        leg.watch(True)
        seconds = around.settings.relay.handshake_timeout
        try:
            async with asyncio.timeout(seconds):
                await options.waiter
        except TimeoutError as error:
            raise Failure("time-out", f"the log-in with the server took longer than {seconds:g} s") from error
        except asyncssh.PermissionDenied:
            self._hang_up()
            if password is not None:
                around.count("login-refused")
                flow.note("login-refused", "the server does not accept the agent's password", {"user": user})
                return False
            raise login.refused() from None
        except Failure:
            raise
        except Exception as error:  # asyncssh hands on whatever a server's bytes led to
            raise login.failed(error) from None
        flow.tell_upstream(**login.told(server))
        agent = self._agent
        assert agent is not None
        self._channels = Channels(agent, server, self.record, self._tell)
        flow.deadline = 0.0
        return True

    def _rule_secret(self) -> Secret | None:
        secret = self._secret()
        if secret is not None and secret.kind not in (Kind.SSH_KEY, Kind.PASSWORD):
            raise Failure("secret", f"the rule's credential is of kind {secret.kind}; SSH needs ssh-key or password")
        return secret

    def _banner(self, text: str) -> None:
        if self._agent is not None:
            self._agent.send_auth_banner(text)

    def _hang_up(self) -> None:
        self._server = None
        self._flow.hang_up()

    # -- the end ---------------------------------------------------------------------------------------------------

    def lost(self, direction: Direction, error: Exception | None) -> None:
        """asyncssh gave a connection up; it has said so to the peer."""
        if self._flow.over or self._ending or error is None:
            return
        if direction is Direction.SERVER and self._channels is None:
            return  # whoever waits for the log-in hears of it
        side = "agent" if direction is Direction.CLIENT else "server"
        text = f"the {side} does not keep to SSH: {type(error).__name__}"
        if direction is Direction.SERVER:
            self._stop("protocol", text)
        else:
            self._flow.fail("protocol", text)

    def _disconnected(self, direction: Direction, payload: bytes) -> None:
        """A peer says that it ends the connection: the other one is told in the same words."""
        if direction is Direction.SERVER and self._channels is None:
            self._server_gone("it ended the log-in")
            return
        if direction is Direction.CLIENT:
            self.record(direction, payload)
        other = self._agent if direction is Direction.SERVER else self._server
        if other is not None:
            with suppress(asyncssh.Error):
                other.send_packet(payload[0], payload[1:])
        self._finish()

    def _ended(self, direction: Direction) -> None:
        if direction is Direction.CLIENT:
            self._flow.end_of(direction)
            if self._server is not None and self._channels is not None:
                text = ssh.encode(ssh.DISCONNECT, reason=asyncssh.DISC_BY_APPLICATION, description="the agent is gone")
                self._server.send_packet(text[0], text[1:])
            self._finish()
        else:
            self._server_gone("it closed the connection")

    def _server_gone(self, text: str) -> None:
        if self._channels is not None:
            self._stop("server-gone", f"the server is gone: {text}")
        elif self._server is not None:  # who waits for the log-in hears of it
            self._server.connection_lost(asyncssh.ConnectionLost(text))

    def _finish(self) -> None:
        """End when the server has taken what it was sent, for which it has some time; the agent likewise."""
        flow, loop = self._flow, self._around.loop
        self._ending = True

        def over() -> None:
            upstream = flow.upstream
            if not flow.over and (upstream is None or not upstream.waiting) and not flow.agent.waiting:
                close()

        def close() -> None:
            for direction in Direction:
                flow.end_of(direction)
            flow.finish(Ending.FIN, "")

        for leg in (flow.agent, flow.upstream):
            if leg is not None:
                leg.watch(False)
                leg.drained = over
        self._around.recording.then(over)
        loop.call_later(LINGER, close)

    def _stop(self, reason: str, text: str) -> None:
        """End for a reason outside of the protocol, which the agent is told."""
        flow = self._flow
        if flow.over:
            return
        if self._agent is not None and not self._ending:
            words = ssh.encode(ssh.DISCONNECT, reason=CODES.get(reason, asyncssh.DISC_BY_APPLICATION), description=text)
            with suppress(asyncssh.Error):
                self._agent.send_packet(words[0], words[1:])
        flow.fail(reason, text)

    def _let_go(self) -> None:
        """The flow is over."""
        for connection in (self._agent, self._server):
            if connection is not None:
                connection.give_up()


async def serve(
    flow: Flow, connect: Callable[[], Awaitable[Leg]], secret: Callable[[], Secret | None], seconds: float
) -> None:
    """Serve the flow from here on; its log-in may take `seconds`. Raises `Failure`."""
    flow.deadline = flow.around.second + seconds
    await SshRelay(flow, connect, secret).start()


async def refuse(flow: Flow, reason: str, text: str) -> None:
    """End the flow and tell the agent why nothing is done for it, before any keys are exchanged.

    RFC 4253 section 11.1. What it says for its part is taken for a while, else the words would be lost on the way.
    """
    recording = flow.around.recording
    words = ssh.encode(ssh.DISCONNECT, reason=CODES.get(reason, asyncssh.DISC_BY_APPLICATION), description=text)
    flow.note("protocol", "SSH, refused by the gateway", {"protocol": "ssh"})
    for direction, data in ((Direction.CLIENT, START), (Direction.SERVER, START + frame(words))):
        recording.data(flow.trace, NUMBER[direction], data)
    padding = -(len(words) + 5) % 8 + 8
    packet = (1 + len(words) + padding).to_bytes(4) + bytes([padding]) + words + bytes(padding)
    recording.then((flow.agent, f"SSH-2.0-{VERSION}\r\n".encode() + packet))
    with suppress(TimeoutError, Failure):
        async with asyncio.timeout(HEARING):
            while await flow.agent.receive():
                pass
    flow.fail(reason, text)
