"""The sessions that are open: found by addresses and ports, ended by time, bounded in number.

A session that ended stays known for `STUB_NS`, so that the last acknowledgements don't open another one and the
kernel's counters still find it.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping

from appliance import config
from appliance.dissect.conversation import Handover
from appliance.model import Ending, Row
from appliance.session.datagrams import DatagramSession
from appliance.session.memory import (
    DATAGRAM_BYTES,
    QUIET_NS,
    SHEDDABLE,
    STREAM_BYTES,
    STUB_BYTES,
    Relief,
    Weights,
)
from appliance.session.refresh import Refresher
from appliance.session.session import LINGER_NS
from appliance.session.streams import FORGET_NS
from appliance.session.tcp import TcpSession
from appliance.session.tcp_segment import ACK, SYN, Segment
from appliance.wire.abi import Record

STUB_NS = 10_000_000_000  # longer than the kernel keeps ended flows
MAX_STUBS = 8192
MAX_UNHEARD = 65536  # numbers of flows whose counters the kernel still has to tell when no stub is left for them
MAX_LEFT = 4096  # interrupted streams of which is known how to read on

Key = tuple[bytes, bytes, int, int, int]  # source, destination, their ports, protocol
AnySession = TcpSession | DatagramSession


def key_of(record: Record) -> Key:
    """What names the flow of a record, as its sender sees it."""
    return record.source, record.destination, record.source_port, record.destination_port, record.protocol


def choose(current: TcpSession, side: int, segment: Segment) -> tuple[TcpSession | None, int]:
    """The session that a segment between known ports belongs to, and who sent it; None: to a new one.

    `side` is the sender's in `current`. Between `current` and the one before it the nearer sequence number decides.
    """
    previous = current.previous
    if previous is not None and previous.closed:
        current.previous = previous = None
    before = side
    if previous is not None and previous.birth.client_port != current.birth.client_port:
        before = 1 - side  # the former server opened the newer one
    if segment.flags & (SYN | ACK) == SYN:
        if not current.closed and not current.starts_anew(side, segment):
            return current, side
        if previous is not None and not previous.starts_anew(before, segment):
            return previous, before
        return None, 0
    if previous is not None:
        former, newer = previous.misfit(before, segment), current.misfit(side, segment)
        if former < newer or (former == newer and not current.answered):
            return previous, before
    return (None, 0) if current.closed else (current, side)


class Sessions:
    """All open sessions, and those that ended a moment ago. Times are recorded times, ns."""

    def __init__(self, settings: config.Record) -> None:
        self._serial = 0
        self._flows: dict[Key, tuple[AnySession, int]] = {}
        self._keys: dict[int, Key] = {}
        self._streams: OrderedDict[int, TcpSession] = OrderedDict()  # longest silent first, by serial
        self._datagrams: OrderedDict[int, DatagramSession] = OrderedDict()
        self._active: dict[int, AnySession] = {}  # to be looked at by the next tick
        self._ended: deque[tuple[int, int]] = deque()  # deadline, serial; here and below none is kept alive by it
        self._silent: deque[tuple[int, int]] = deque()  # serials to be asked to forget, and when
        self._stubs: deque[tuple[int, AnySession]] = deque()
        self._waiting: dict[tuple[int, Key], AnySession] = {}  # stubs without the kernel's counters
        self._unheard: OrderedDict[int, None] = OrderedDict()  # flows of such stubs as were dropped
        self._left: OrderedDict[Key, Handover] = OrderedDict()  # of interrupted streams, by the client's key
        self._weights = Weights(settings.max_memory)
        self._refresher = Refresher()

        self.use(settings)

    def use(self, settings: config.Record) -> None:
        """Work within these limits from now on."""
        self._max = settings.max_sessions
        self._stream_idle = int(settings.idle * 1e9)
        self._datagram_idle = int(settings.datagram_idle * 1e9)
        self._weights.limit = settings.max_memory

    @property
    def weight(self) -> int:
        """Bytes of all sessions' state, about, when last looked at."""
        return self._weights.total

    @property
    def full(self) -> bool:
        """Whether there is no room for the memory of one more."""
        return self._weights.total + STREAM_BYTES > self._weights.limit

    def __len__(self) -> int:
        return len(self._streams) + len(self._datagrams)

    def __iter__(self) -> Iterator[AnySession]:
        """In order of serial, so that what is said of all of them comes in the same order every time."""
        both: list[AnySession] = [*self._streams.values(), *self._datagrams.values()]
        return iter(sorted(both, key=lambda session: session.serial))

    def within(self, since: int, until: int) -> list[AnySession]:
        """Those that were open at any time between these, also if they ended a moment ago."""
        ended = [
            session
            for forgotten, session in self._stubs
            if (session.deadline - LINGER_NS if session.deadline else forgotten - STUB_NS) >= since
        ]
        going = [session for session in self if not session.deadline or session.deadline - LINGER_NS >= since]
        return [session for session in (*ended, *going) if session.began <= until]

    def find(self, key: Key) -> tuple[AnySession, int] | None:
        """The newest session between these ports, and who of it the sender is."""
        return self._flows.get(key)

    def of_flow(self, flow: int, key: Key) -> AnySession | None:
        """The session, open or just ended, that the kernel knows by this number."""
        found = self._flows.get(key)
        session = found[0] if found is not None else None
        if session is not None and session.flow == flow:
            return session
        if isinstance(session, TcpSession) and session.previous is not None and session.previous.flow == flow:
            return session.previous
        return self._waiting.pop((flow, key), None)

    def knew(self, flow: int) -> bool:
        """Whether the session of a flow was dropped before the kernel's counters came. Asked once."""
        return self._unheard.pop(flow, flow) is None

    def begin(self, session: AnySession, key: Key, side: int, now: int, out: list[Row]) -> None:
        """Open a session; `key` and `side` are those of the packet that begins it."""
        former = self._flows.get(key)
        while len(self) >= self._max:
            self._make_place(now, out)
        if isinstance(session, TcpSession) and former is not None and not former[0].closed:
            assert isinstance(former[0], TcpSession)  # the protocol is part of the key
            self._displace(former[0], session, now, out)
        self._serial += 1
        session.serial = self._serial
        session.touched = now
        turned = key[1], key[0], key[3], key[2], key[4]
        self._flows[key] = session, side
        self._flows[turned] = session, 1 - side
        self._keys[session.serial] = turned if side else key
        if isinstance(session, TcpSession):
            self._streams[session.serial] = session
            self._succeed(session)
        else:
            self._datagrams[session.serial] = session
        self._silent.append((now + FORGET_NS, session.serial))
        self._weights.put(session.serial, session.weight)
        session.open(out)

    def touched(self, session: AnySession) -> None:
        """A packet of it came."""
        serial = session.serial
        if isinstance(session, TcpSession):
            self._streams.move_to_end(serial)
        else:
            self._datagrams.move_to_end(serial)
        self._active[serial] = session
        if session.deadline != session.queued:
            session.queued = session.deadline
            if session.deadline:
                self._ended.append((session.deadline, serial))

    def relieve(self, now: int, out: list[Row]) -> Relief | None:
        """Look how much memory the sessions that had packets take now, and give some up if it is too much.

        The steps and their order: `memory.py`.
        """
        weights = self._weights
        for serial, session in self._active.items():
            weights.put(serial, session.weight)
        if not weights.over:
            return None
        done = Relief(before=weights.total)
        while not weights.enough and self._close_lingering(now, out):
            done.closed += 1
        while not weights.enough and self._close_quiet(now, out):
            done.closed += 1
        while not weights.enough and self._stubs:
            self._unlink(self._stubs.popleft()[1])
            done.dropped += 1
        self._lighten(now - QUIET_NS, done, out)
        while not weights.enough and self._mostly_bare and (stream := self._quiet(self._streams, now)) is not None:
            self._give_up(stream, done, now, out)
        self._lighten(now, done, out)
        self._evict(done, now, out)
        done.after = weights.total
        return done

    def _close_lingering(self, now: int, out: list[Row]) -> bool:
        """Close the session that ended first, if there is one: late packets would make a new one."""
        while self._ended:
            deadline, serial = self._ended.popleft()
            session = self._open(serial)
            if session is not None and session.deadline == deadline:
                self._close(session, session.ending, now, out)
                return True
        return False

    def _close_quiet(self, now: int, out: list[Row]) -> bool:
        """Close the datagram session that has been silent for longest, if it is quiet."""
        session = self._quiet(self._datagrams, now)
        if session is not None:
            self._close(session, session.ending if session.deadline else Ending.IDLE, now, out)
        return session is not None

    @staticmethod
    def _quiet(group: Mapping[int, AnySession], now: int) -> AnySession | None:
        longest = next(iter(group.values()), None)
        return longest if longest is not None and now - longest.touched >= QUIET_NS else None

    @property
    def _mostly_bare(self) -> bool:
        """Whether more than half of the limit goes to sessions as such."""
        bare = len(self._streams) * STREAM_BYTES + len(self._datagrams) * DATAGRAM_BYTES
        return 2 * bare > self._weights.limit

    def _lighten(self, until: int, done: Relief, out: list[Row]) -> None:
        """Give up what sessions hold that had no packet after `until`, but not these themselves."""
        weights = self._weights
        for stream in self._streams.values():
            if weights.enough or stream.touched > until:
                break
            stream.forget()
            done.forgotten += weights.put(stream.serial, stream.weight)
        if weights.enough:
            return
        known = (self._open(serial) for serial in weights.heaviest())
        heavy = [session for session in known if session is not None and session.touched <= until]
        for session in heavy:
            if not weights.enough and session.conversation.held >= SHEDDABLE:
                session.shed(out)
                done.shed += weights.put(session.serial, session.weight)
        for session in heavy:
            if not weights.enough and session.held_bytes:
                done.unblocked += session.unblock(out)
                if session.conversation.held >= SHEDDABLE:
                    session.shed(out)
                weights.put(session.serial, session.weight)

    def _evict(self, done: Relief, now: int, out: list[Row]) -> None:
        weights = self._weights
        heavy = iter(() if weights.enough else weights.heaviest())
        while not weights.enough and len(self):
            session = self._longest_silent() if self._mostly_bare else self._open(next(heavy))
            if session is not None:
                self._give_up(session, done, now, out)

    def _give_up(self, session: AnySession, done: Relief, now: int, out: list[Row]) -> None:
        text = f"the state of all sessions was more than {self._weights.limit} bytes, and this one's was given up"
        self._interrupt(session, text, now, out)
        done.evicted += 1

    def tick(self, now: int, wall_ns: int, out: list[Row]) -> None:
        """Recorded time passed: let chunks go, close what is over, give up memory."""
        active, self._active = self._active, {}
        for serial, session in active.items():
            if session.closed:
                continue
            if session.idle_work(wall_ns + session.ahead, out):
                self._active[serial] = session
            self._refresher.note(session)
            self._weights.put(serial, session.weight)
        while self._ended and self._ended[0][0] <= now:
            deadline, serial = self._ended.popleft()
            ended = self._open(serial)
            if ended is not None and ended.deadline == deadline:
                self._close(ended, ended.ending, now, out)
        groups: tuple[tuple[Mapping[int, AnySession], int], ...] = (
            (self._streams, self._stream_idle),
            (self._datagrams, self._datagram_idle),
        )
        for group, idle in groups:
            while group:
                session = next(iter(group.values()))
                if now - session.touched < idle:
                    break
                self._close(session, session.ending if session.deadline else Ending.IDLE, now, out)
        self._refresher.work(now, self._open, out)
        self._forget(now)

    def end_all(self, ending: Ending, now: int, out: list[Row]) -> None:
        """Close every session, the oldest first."""
        for session in self:
            self._close(session, session.ending if session.deadline else ending, now, out)
        self._ended.clear()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _open(self, serial: int) -> AnySession | None:
        return self._streams.get(serial) or self._datagrams.get(serial)

    def _displace(self, former: TcpSession, session: TcpSession, now: int, out: list[Row]) -> None:
        """Another connection between the same ports begins; packets may still belong to the former one.

        One former session is kept. Where the newest never got an answer, its SYN was not real: then the one before it.
        """
        older = former.previous
        former.previous = None
        if older is not None and not older.closed:
            if not all(former.packets):
                former, older = older, former
            self._close(older, older.ending if older.deadline else Ending.IDLE, now, out)
        session.previous = former

    def _longest_silent(self) -> AnySession:
        heads: list[AnySession] = [next(iter(self._streams.values()))] if self._streams else []
        heads += [next(iter(self._datagrams.values()))] if self._datagrams else []
        return min(heads, key=lambda one: (one.touched, one.serial))

    def _make_place(self, now: int, out: list[Row]) -> None:
        """For one more, by number."""
        if not self._close_lingering(now, out) and not self._close_quiet(now, out):
            text = f"more than {self._max} sessions were open; the longest silent one was given up"
            self._interrupt(self._longest_silent(), text, now, out)

    def _interrupt(self, session: AnySession, text: str, now: int, out: list[Row]) -> None:
        session.finding("evicted", None, 0, 0, session.last_ns, text, out)
        session.damaged = True
        self._close(session, session.ending if session.deadline else Ending.INTERRUPTED, now, out)

    def _close(self, session: AnySession, ending: Ending, now: int, out: list[Row]) -> None:
        if session.closed:
            return
        handover = session.finish(ending, out)
        serial = session.serial
        if ending is Ending.INTERRUPTED and handover is not None:
            self._left[self._keys[serial]] = handover
            if len(self._left) > MAX_LEFT:
                self._left.popitem(last=False)
        self._weights.put(serial, STUB_BYTES)
        self._streams.pop(serial, None)
        self._datagrams.pop(serial, None)
        self._active.pop(serial, None)
        self._stubs.append((now + STUB_NS, session))
        if session.flow and session.kernel is None:
            self._waiting[session.flow, self._keys[serial]] = session
        if len(self._stubs) > MAX_STUBS:
            self._unlink(self._stubs.popleft()[1])

    def _succeed(self, session: TcpSession) -> None:
        """If it goes on with the packets of one that was interrupted, it is told how to read them."""
        key = self._keys[session.serial]
        left = self._left.pop(key, None)
        if left is not None:
            session.conversation.succeed(left)
        elif (left := self._left.pop((key[1], key[0], key[3], key[2], key[4]), None)) is not None:
            session.conversation.succeed(left.turned())

    def _unlink(self, session: AnySession) -> None:
        key = self._keys.pop(session.serial)
        self._weights.drop(session.serial)
        for one in (key, (key[1], key[0], key[3], key[2], key[4])):
            found = self._flows.get(one)
            if found is not None and found[0] is session:
                del self._flows[one]
        if self._waiting.get((session.flow, key)) is session:
            del self._waiting[session.flow, key]
            self._unheard[session.flow] = None
            if len(self._unheard) > MAX_UNHEARD:
                self._unheard.popitem(last=False)
        if isinstance(session, TcpSession):
            session.previous = None

    def _forget(self, now: int) -> None:
        while self._silent and self._silent[0][0] <= now:
            _, serial = self._silent.popleft()
            session = self._open(serial)
            if session is None:
                continue
            if now - session.touched >= FORGET_NS:
                session.forget()
            self._silent.append((max(session.touched, now) + FORGET_NS, serial))
        while self._stubs and self._stubs[0][0] <= now:
            self._unlink(self._stubs.popleft()[1])
