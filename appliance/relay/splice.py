"""Bytes pass unchanged: read into the batch, recorded, sent from there when the journal has them."""

from collections.abc import Callable
from typing import Final

from appliance.model import Direction, Ending
from appliance.relay.failure import Failure
from appliance.relay.flow import NUMBER, Flow
from appliance.relay.leg import Leg

READ: Final = 256 * 1024  # bytes of one direction in one turn


class Splice:
    """Both directions of `flow`, whose legs are connected."""

    def __init__(self, flow: Flow) -> None:
        upstream = flow.upstream
        assert upstream is not None
        self._flow = flow
        self._most = flow.around.settings.relay.buffer_bytes
        self._slot, self._fill = flow.around.recording.slot, flow.around.recording.fill
        flow.deadline = 0.0
        flow.stop = flow.fail
        agent = flow.agent
        agent.readable = self._reader(Direction.CLIENT, agent, upstream)
        upstream.readable = self._reader(Direction.SERVER, upstream, agent)
        agent.drained = self._drainer(upstream)
        upstream.drained = self._drainer(agent)
        agent.broken = self._breaker(Direction.CLIENT, agent)
        upstream.broken = self._breaker(Direction.SERVER, upstream)
        for direction, leg, other in ((Direction.CLIENT, agent, upstream), (Direction.SERVER, upstream, agent)):
            if leg.ended:  # before somebody else handed it over
                self._ended(direction, leg, other)
            else:
                leg.watch(other.waiting <= self._most)

    def _reader(self, direction: Direction, leg: Leg, other: Leg) -> Callable[[], None]:
        flow, trace, number = self._flow, self._flow.trace, NUMBER[direction]
        slot, fill, most, around = self._slot, self._fill, self._most, self._flow.around

        def read() -> None:
            view = slot(READ)
            if not view:
                if around.recording.stalled:  # the journal takes nothing
                    leg.watch(False)
                    around.recording.when_flowing(lambda: leg.watch(not flow.over and not leg.ended))
                else:  # it has enough for now
                    around.loop.call_soon(leg.wake)
                return
            try:
                size = leg.read_into(view)
            except Failure as failure:
                self._failed(failure, direction)
                return
            if size > 0:
                fill(trace, number, size, other)
                flow.touched = around.second
                if other.waiting > most:
                    leg.watch(False)
                elif leg.held:
                    around.loop.call_soon(leg.wake)
            if leg.ended:
                flow.tell_unconfirmed(direction, leg)
                self._ended(direction, leg, other)

        return read

    def _drainer(self, source: Leg) -> Callable[[], None]:
        """The other leg has taken everything: `source` may be read again."""
        flow = self._flow

        def drained() -> None:
            if not flow.over and not source.ended:
                source.watch(True)
            self._finish_if_over()

        return drained

    def _breaker(self, direction: Direction, leg: Leg) -> Callable[[], None]:
        """`leg` takes nothing more: what its peer said before is still read, and then that it is gone."""

        def broke() -> None:
            if leg.ended:
                self._failed(Failure("reset", "the connection failed"), direction)
            elif not self._flow.over:
                leg.watch(True)

        return broke

    def _ended(self, direction: Direction, leg: Leg, other: Leg) -> None:
        leg.watch(False)
        self._flow.end_of(direction)

        def tell() -> None:
            other.shut(whole=not leg.unconfirmed)
            self._finish_if_over()

        self._flow.around.recording.then(tell)

    def _finish_if_over(self) -> None:
        flow = self._flow
        agent, upstream = flow.agent, flow.upstream
        if upstream is not None and agent.shut_down and upstream.shut_down:
            flow.finish(Ending.FIN, "")

    def _failed(self, failure: Failure, direction: Direction) -> None:
        """A leg broke: its peer reset it, or its TLS is not what it should be."""
        flow = self._flow
        side = "agent" if direction is Direction.CLIENT else "server"
        if failure.reason == "reset":
            flow.finish(Ending.RST, f"{side}-reset")
        else:
            flow.note(failure.reason, f"{side}: {failure.text}", {"side": side}, direction)
            flow.finish(Ending.RST, failure.reason)
