"""Carries out what a mediator says, in its order, behind the records of what it was told."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from appliance.errors import VerbatimError
from appliance.identity.credential import Secret
from appliance.model import Direction, Ending, Identity
from appliance.relay.failure import Failure
from appliance.relay.flow import NUMBER, Flow
from appliance.relay.leg import AGAIN, Leg
from appliance.relay.mediator import (
    ANY,
    Command,
    Commands,
    Dial,
    Fail,
    HangUp,
    Identify,
    Mediator,
    Note,
    Pass,
    Refuse,
    Routed,
    Say,
    Shut,
    Splice,
    StartTls,
    Take,
    Tunnel,
)

_SCRATCH: Final = memoryview(bytearray(ANY))
REDACTED: Final = b"*"


class Mediation:
    """Drives `mediator` over the legs of `flow`. `dial` connects, by the rules, `secret` gives the rule's
    credential; `splice` and `tunnel` take over."""

    def __init__(
        self,
        flow: Flow,
        mediator: Mediator,
        dial: Callable[[Dial], Awaitable[Leg]],
        secret: Callable[[], Secret | None],
        splice: Callable[[], None],
        tunnel: Callable[[Tunnel], None],
    ) -> None:
        self._flow = flow
        self._mediator = mediator
        self._dial = dial
        self._secret = secret
        self._splice = splice
        self._tunnel = tunnel
        self._recording = flow.around.recording
        self._most = flow.around.settings.relay.buffer_bytes
        self._done = False  # somebody else has the legs
        self._busy = 0  # handshakes and the like that are under way: nothing is read
        self._withheld = 0
        self._heard = flow.trace.offsets[0]  # bytes of the agent; the record has all of them before its end
        self._reason = ""  # for which the flow was refused
        self._name = ""  # of the server, as the agent's ClientHello asked for it
        flow.stop = self._stop
        self._adopt(Direction.CLIENT, flow.agent)
        if flow.upstream is not None:
            self._adopt(Direction.SERVER, flow.upstream)

    def start(self) -> None:
        self._carry_out(self._mediator.start())

    def dialled(self) -> None:
        """The server was connected before the mediator began."""
        self._carry_out(self._mediator.dialled())

    # -- reading ---------------------------------------------------------------------------------------------------

    def _adopt(self, direction: Direction, leg: Leg) -> None:
        leg.readable = lambda: self._read(direction, leg)
        leg.drained = self._drained
        if direction is Direction.SERVER:
            leg.broken = lambda: self._broke(leg)

    def _leg(self, direction: Direction) -> Leg | None:
        return self._flow.agent if direction is Direction.CLIENT else self._flow.upstream

    def _watch(self) -> None:
        """Read where the mediator wants bytes, and the other side takes them."""
        if self._done or self._flow.over:
            return
        for direction in Direction:
            leg, other = self._leg(direction), self._leg(direction.other)
            if leg is not None and not leg.ended:
                free = other is None or other.waiting <= self._most
                leg.watch(not self._busy and free and leg.waiting <= self._most and self._limit(direction) > 0)

    def _limit(self, direction: Direction) -> int:
        return min(self._mediator.limit(direction), ANY)

    def _read(self, direction: Direction, leg: Leg) -> None:
        if self._recording.stalled:
            leg.watch(False)
            self._recording.when_flowing(self._watch)
            return
        if self._recording.full:
            self._flow.around.loop.call_soon(leg.wake)
            return
        limit = self._limit(direction)
        if limit <= 0:
            leg.watch(False)
            return
        try:
            size = leg.read_into(_SCRATCH[:limit])
        except Failure as failure:
            self._failed(failure, direction)
            return
        if size > 0:
            self._heard += size * (direction is Direction.CLIENT)
            self._flow.touched = self._flow.around.second
            self._carry_out(self._mediator.receive(direction, bytes(_SCRATCH[:size])))
        if leg.ended and not self._done and not self._flow.over:
            leg.watch(False)
            self._flow.tell_unconfirmed(direction, leg)
            self._carry_out(self._mediator.ended(direction))
            self._finish_if_over()
        elif leg.held and size != AGAIN:
            self._flow.around.loop.call_soon(leg.wake)

    def _drained(self) -> None:
        self._watch()
        self._finish_if_over()

    def _finish_if_over(self) -> None:
        flow = self._flow
        if flow.over or self._done:
            return
        agent, upstream = flow.agent, flow.upstream
        if agent.ended and agent.shut_down and (upstream is None or (upstream.ended and not upstream.waiting)):
            flow.end_of(Direction.CLIENT)
            flow.finish(Ending.FIN, self._reason)

    def _broke(self, leg: Leg) -> None:
        """The server takes nothing more: what it said before is still read, and then that it is gone."""
        if self._flow.over or leg is not self._flow.upstream:
            return
        if self._done or self._busy or leg.ended or self._limit(Direction.SERVER) <= 0:
            self._flow.end_for(Failure("server-gone", "the server reset the connection"))
        else:
            leg.watch(True)

    def _failed(self, failure: Failure, direction: Direction) -> None:
        side = "agent" if direction is Direction.CLIENT else "server"
        if direction is Direction.SERVER and not (failure.reason == "reset" and self._flow.agent.ended):
            self._stop("server-gone", f"server: {failure.text}")
            return
        if failure.reason != "reset":
            self._flow.note(failure.reason, f"{side}: {failure.text}", {"side": side}, direction)
        reason = f"{side}-reset" if failure.reason == "reset" else failure.reason
        self._flow.finish(Ending.RST, self._reason or reason)

    # -- commands --------------------------------------------------------------------------------------------------

    def _carry_out(self, commands: Commands) -> None:
        flow, recording = self._flow, self._recording
        for command in commands:
            if flow.over or self._done:
                return
            match command:
                case Pass():
                    self._record(NUMBER[command.direction], command.data, command.secrets)
                    other = self._leg(command.direction.other)
                    if other is not None:
                        recording.then((other, command.data))
                case Take(direction=Direction.CLIENT):
                    self._record(0, command.data, command.secrets)
                case Take():
                    self._withheld += len(command.data)
                case Say(to=Direction.CLIENT):
                    flow.note("generated", "said by the gateway", {}, Direction.SERVER, 0, len(command.data))
                    self._record(1, command.data, command.secrets)
                    recording.then((flow.agent, command.data))
                case Say():
                    if flow.upstream is not None:
                        recording.then((flow.upstream, command.data))
                case Note():
                    flow.note(command.kind, command.text, command.attrs, command.direction, command.start, command.end)
                case Identify():
                    self._wait(self._identify, command)
                case Dial():
                    self._wait(self._connect, command)
                case StartTls():
                    self._wait(self._secure, command)
                case Shut():
                    self._shut(command.peer)
                case HangUp():
                    recording.then(self._flow.hang_up)
                case Splice():
                    self._hand_over(self._splice)
                case Tunnel():
                    self._hand_over(lambda command=command: self._tunnel(command))  # type: ignore[misc]
                case Refuse():
                    self._reason = command.reason
                    flow.around.count(command.reason)
                    flow.note("refused", command.text, {"reason": command.reason})
                case Fail():
                    self._tell_withheld()
                    flow.fail(command.reason, command.text)
        if flow.agent.ended and flow.trace.offsets[0] >= self._heard:
            flow.end_of(Direction.CLIENT)
        if self._mediator.ready:
            flow.deadline = 0.0
        self._watch()

    def _record(self, number: int, data: bytes, secrets: tuple[tuple[int, int, str], ...]) -> None:
        """Bytes of a direction, with asterisks for credentials."""
        flow = self._flow
        if secrets:
            direction = Direction.SERVER if number else Direction.CLIENT
            shown = bytearray(data)
            for start, end, what in secrets:
                shown[start:end] = REDACTED * (end - start)
                text = f"{what}: {end - start} bytes are kept by length only"
                flow.note("redacted", text, {"what": what}, direction, start, end)
            data = bytes(shown)
        self._recording.data(flow.trace, number, data)

    def _shut(self, peer: Direction) -> None:
        leg = self._leg(peer)
        if leg is not None:
            if peer is Direction.CLIENT:
                self._flow.end_of(Direction.SERVER)

            def shut() -> None:
                leg.shut()
                self._finish_if_over()

            self._recording.then(shut)

    def _hand_over(self, to: Callable[[], None]) -> None:
        self._tell_withheld()
        self._done = True
        for leg in (self._flow.agent, self._flow.upstream):
            if leg is not None:
                leg.watch(False)
        self._recording.then(to)

    def _tell_withheld(self) -> None:
        if self._withheld:
            text = f"{self._withheld} bytes of the server were for the gateway, not for the agent"
            self._flow.note("withheld", text, {"bytes": self._withheld})
            self._withheld = 0

    # -- what takes its time ---------------------------------------------------------------------------------------

    def _wait(self, work: Callable[[Any], Coroutine[Any, Any, Commands]], command: Command) -> None:
        """Do something behind what was recorded; nothing is read until the mediator has heard of it."""
        self._busy += 1
        self._watch()

        async def then() -> None:
            commands = await work(command)
            self._busy -= 1
            if not self._flow.over:
                self._carry_out(commands)

        self._recording.then(lambda: self._flow.spawn(then()))

    async def _identify(self, command: Identify) -> Commands:
        try:
            identity = await self._flow.around.verify(command.token)
        except VerbatimError as error:
            self._flow.around.count("token")
            self._flow.note("token-refused", str(error), {"method": command.method})
            return self._mediator.unidentified(str(error))
        known = self._flow.identity
        if known is not None and known.method == command.method and _person(known) != _person(identity):
            text = "this connection is another identity's; connect anew"
            self._flow.around.count("token")
            self._flow.note("token-refused", text, {"method": command.method})
            return self._mediator.unidentified(text)
        return self._mediator.identified(self._flow.identified(identity, command.method))

    async def _connect(self, command: Dial) -> Commands:
        try:
            leg = await self._dial(command)
        except Failure as failure:
            self._flow.hang_up()
            if failure is self._flow.refusal:
                return self._mediator.refused(failure.reason, failure.text)
            self._flow.note("unreachable", failure.text, {"reason": failure.reason})
            return self._mediator.dial_failed(failure.reason, failure.text)
        self._adopt(Direction.SERVER, leg)
        if isinstance(self._mediator, Routed):
            self._mediator.routed(self._flow.rule, self._secret())
        return self._mediator.dialled()

    async def _secure(self, command: StartTls) -> Commands:
        flow = self._flow
        rule = flow.rule
        if command.peer is Direction.SERVER:
            name = (await flow.hello()).sni if command.mirror else command.server_name or self._name
            await flow.secure_upstream(rule, name, command.alpn)
            flow.tell_upstream()
        else:
            tls = None if flow.upstream is None else flow.upstream.tls
            self._name = await flow.accept_tls(command.alpn, None if tls is None else tls.getpeercert(True))
        return self._mediator.secured(command.peer)

    def _stop(self, reason: str, text: str) -> None:
        """End for a reason outside of the protocol: the mediator has the last word, if it can have one."""
        flow = self._flow
        if flow.over:
            return
        if not self._done:
            self._busy = 0
            self._carry_out(self._mediator.stop(reason, text))
        if not flow.over:
            flow.fail(reason, text)


def _person(identity: Identity) -> tuple[str, str, tuple[str, ...]]:
    """Who it is, whatever token says so."""
    return identity.issuer, identity.subject, identity.act
