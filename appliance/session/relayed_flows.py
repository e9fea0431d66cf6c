"""The open sessions of a relay's stream, by its number of the flow; bounded in number and memory, as `memory.py` says.

Idle flows are the relay's to end. A session that was given up goes on as another one with the next record of its flow:
what that needs is kept for as long as the flow lives, of which the relay has `relay.max_connections` at most.
"""

from collections import OrderedDict
from collections.abc import Iterator

from appliance import config
from appliance.dissect.conversation import Handover
from appliance.model import Ending, Row
from appliance.session.memory import QUIET_NS, SHEDDABLE, Relief, Weights
from appliance.session.refresh import Refresher
from appliance.session.relayed_session import RELAYED_BYTES, Left, RelayedSession


class RelayedFlows:
    """Times are recorded times, ns."""

    def __init__(self, settings: config.Record) -> None:
        self._sessions: OrderedDict[int, RelayedSession] = OrderedDict()  # longest silent first
        self._left: dict[int, Left] = {}  # flows whose sessions were given up
        self._active: dict[int, RelayedSession] = {}  # to be looked at by the next tick
        self._weights = Weights(settings.max_memory)
        self._refresher = Refresher()

        self.use(settings)

    def use(self, settings: config.Record) -> None:
        """Work within these limits from now on."""
        self._max = settings.max_sessions
        self._weights.limit = settings.max_memory

    @property
    def weight(self) -> int:
        """Bytes of all sessions' state, about, when last looked at."""
        return self._weights.total

    @property
    def full(self) -> bool:
        """Whether there is no room for the memory of one more."""
        return self._weights.total + RELAYED_BYTES > self._weights.limit

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[RelayedSession]:
        """In order of flows, so that what is said of all of them comes in the same order every time."""
        return iter(sorted(self._sessions.values(), key=lambda session: session.serial))

    def find(self, flow: int) -> RelayedSession | None:
        return self._sessions.get(flow)

    def left(self, flow: int) -> Left | None:
        """What is known of a flow whose session was given up. Asked once."""
        return self._left.pop(flow, None)

    def begin(self, flow: int, session: RelayedSession, now: int, out: list[Row]) -> None:
        while len(self) >= self._max:
            text = f"more than {self._max} sessions were open; the longest silent one was given up"
            self._give_up(next(iter(self._sessions.values())), text, out)
        session.serial = flow
        session.began = session.touched = now
        self._sessions[flow] = session
        self._weights.put(flow, session.weight)
        session.open(out)

    def touched(self, session: RelayedSession) -> None:
        """A record of it came."""
        self._sessions.move_to_end(session.serial)
        self._active[session.serial] = session

    def end(self, session: RelayedSession, ending: Ending, out: list[Row]) -> Handover | None:
        flow = session.serial
        handover = session.finish(ending, out)
        del self._sessions[flow]
        self._active.pop(flow, None)
        self._weights.drop(flow)
        return handover

    def interrupt(self, out: list[Row]) -> None:
        """The relay that served them is gone, and with it all flows."""
        for session in self:
            self.end(session, Ending.INTERRUPTED, out)
        self._left.clear()

    def tick(self, now: int, wall_ns: int, out: list[Row]) -> None:
        """Recorded time passed: let chunks go, bring rows up to date."""
        active, self._active = self._active, {}
        for flow, session in active.items():
            session.idle_work(wall_ns, out)
            self._refresher.note(session)
            self._weights.put(flow, session.weight)
        self._refresher.work(now, self.find, out)

    def relieve(self, now: int, out: list[Row]) -> Relief | None:
        """Look how much memory the sessions that had records take now, and give some up if it is too much."""
        weights = self._weights
        for flow, session in self._active.items():
            weights.put(flow, session.weight)
        if not weights.over:
            return None
        done = Relief(before=weights.total)
        self._lighten(now - QUIET_NS, done, out)
        self._lighten(now, done, out)
        heavy = iter(() if weights.enough else weights.heaviest())
        text = f"the state of all sessions was more than {weights.limit} bytes, and this one's was given up"
        while not weights.enough and self._sessions:
            bare = 2 * len(self) * RELAYED_BYTES > weights.limit
            worst = next(iter(self._sessions)) if bare else next(heavy)
            if (given_up := self.find(worst)) is not None:
                self._give_up(given_up, text, out)
                done.evicted += 1
        done.after = weights.total
        return done

    def _lighten(self, until: int, done: Relief, out: list[Row]) -> None:
        """Give up what sessions hold that had no record after `until`, but not these themselves."""
        weights = self._weights
        if weights.enough:
            return
        known = (self.find(flow) for flow in weights.heaviest())
        heavy = [session for session in known if session is not None and session.touched <= until]
        for session in heavy:
            if not weights.enough and session.conversation.held >= SHEDDABLE:
                session.shed(out)
                done.shed += weights.put(session.serial, session.weight)
        for session in heavy:
            if not weights.enough and session.held_bytes:
                session.unblock(out)
                weights.put(session.serial, session.weight)

    def _give_up(self, session: RelayedSession, text: str, out: list[Row]) -> None:
        session.finding("evicted", None, 0, 0, session.last_ns, text, out)
        session.damaged = True
        handover = self.end(session, Ending.INTERRUPTED, out)
        self._left[session.serial] = session.left(handover)
