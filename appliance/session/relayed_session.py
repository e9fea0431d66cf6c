"""A session that a relay terminated: its plaintext as the relay took it, in order and without packets."""

from dataclasses import replace
from typing import Any, NamedTuple

from appliance.dissect.conversation import Handover
from appliance.errors import MalformedInput
from appliance.identity.leases import identity_from_json
from appliance.journal.relayed import Relayed
from appliance.model import UNBOUND, Coverage, Ending, Identity, Row
from appliance.session import coverage
from appliance.session.chunks import Chunk
from appliance.session.events import text_of
from appliance.session.pieces import Data
from appliance.session.session import DIRECTIONS, Birth, Session

RELAYED_BYTES = 9 * 1024  # of one of which nothing waits, as measured
NOWHERE = "::"  # address of a peer that the journal that is left does not name
LANE = "relay"
MAX_EARLY = 64  # notes about bytes that wait for these; what is beyond is told with the relay's offsets
SAID = ("sni", "alpn", "ja4")  # of the agent's TLS, as a dissector of TLS calls them
ENDINGS = frozenset(Ending)


class Announced(NamedTuple):
    """A credential that the relay told of and whose bytes, or the last of them, have not come. Offsets of the relay."""

    side: int
    start: int
    end: int
    what: str


class Left(NamedTuple):
    """What is kept of a flow that goes on while its session was given up."""

    birth: Birth
    relay: dict[str, Any]
    reached: tuple[int | None, int | None]  # the relay's offsets, up to which that session has the bytes; None: unknown
    announced: tuple[Announced, ...]
    handover: Handover | None


def identity_of(said: object, lease_id: str) -> Identity:
    """From the JSON of a record; what is not readable is nobody. `lease_id`: the lease in force, "" without one."""
    try:
        found = identity_from_json(said) if said else UNBOUND
    except MalformedInput:
        found = UNBOUND
    if found == UNBOUND and lease_id:
        return Identity(lease_id=lease_id, method="lease")
    return replace(found, lease_id=found.lease_id or lease_id)


def number_of(said: dict[str, Any], name: str) -> int:
    found = said.get(name)
    return found if isinstance(found, int) else 0


class RelayedSession(Session):
    """`packets` counts records; a row has the kernel's packets, which the relay tells at the end.

    `relay`: what NOTE records said of the session, by kind, and the flow's number, rule and kernel's flow.
    """

    BYTES = RELAYED_BYTES

    __slots__ = ("_announced", "_at", "_early", "_legs", "_midstream", "_missing", "_origin", "relay")

    def __init__(self, birth: Birth, max_text: int, relay: dict[str, Any]) -> None:
        super().__init__(birth, max_text)
        self.relay = relay
        self._origin: list[int | None] = [0, 0]  # the relay's offset of the first byte; None: not known yet
        self._early: list[Relayed] = []  # notes about bytes of which it is not known
        self._announced: list[Announced] = []
        self._at = [0, 0]
        self._missing = [0, 0]
        self._midstream = False
        self._legs: coverage.Legs | None = None

    def resume(self, left: Left | None, ts_ns: int, out: list[Row]) -> None:
        """Its flow began before it: in a session that was given up, or, if nothing is left, in what of the journal is
        gone.
        """
        self._midstream = True
        self._origin = [None, None] if left is None else [*left.reached]
        for direction in DIRECTIONS:
            self.conversation.unseen(direction)
        if left is not None and left.handover is not None:
            self.conversation.succeed(left.handover)
        self.finding("midstream", None, 0, 0, ts_ns, "the start was not seen", out)
        for one in () if left is None else left.announced:
            self._announce(one, out)

    def left(self, handover: Handover | None) -> Left:
        """For the session that goes on with its flow."""
        client, server = (
            None if origin is None else origin + at for origin, at in zip(self._origin, self._at, strict=True)
        )
        return Left(self.birth, self.relay, (client, server), self._ahead(), handover)

    # -- records ---------------------------------------------------------------------------------------------------

    def data(self, record: Relayed, now: int, out: list[Row]) -> None:
        """The next bytes of one direction."""
        side, body, ts_ns = record.direction, record.body, record.time_ns
        self._count(side, len(body), ts_ns, now)
        if self._origin[side] is None:
            self._place(side, record.offset, now, out)
        start = self._offset(side, record.offset)
        if start != self._at[side]:
            start, body = self._jump(side, start, body, ts_ns, out)
        if body:
            self._at[side] = start + len(body)
            self._data(side, Data(start, body, ts_ns), out)

    def note(self, record: Relayed, now: int, out: list[Row]) -> None:
        """Something that the relay knows of the session, or of some of its bytes."""
        said, side, ts_ns = record.said(), record.direction, record.time_ns
        self._count(side, 0, ts_ns, now)
        kind, text = text_of(said, "kind") or "note", text_of(said, "text")
        found = said.get("attrs")
        attrs: dict[str, Any] = found if isinstance(found, dict) else {}
        ranged = "start" in said and "end" in said
        if ranged and self._origin[side] is None and len(self._early) < MAX_EARLY:
            self._early.append(record)
            return
        start = self._offset(side, number_of(said, "start")) if ranged else 0
        end = self._offset(side, number_of(said, "end")) if ranged else 0
        if kind == "identified":
            lease_id = self.birth.identity.lease_id
            self.birth = replace(self.birth, identity=identity_of(attrs.get("identity"), lease_id))
            self.revise(out)
        elif kind == "redacted":
            low, high = number_of(said, "start"), number_of(said, "end")
            self._announce(Announced(side, low, high, text_of(attrs, "what") or "credential"), out)
        elif kind == "protocol" and (name := text_of(attrs, "protocol")):
            self.relay = self.relay | {kind: name}
            self._emit(self.conversation.adopt(name), out)
            self._settle_both(out)
        elif kind == "upstream" or (kind == "tls" and "version" in attrs):
            self.relay = self.relay | {kind: self.relay.get(kind, {}) | attrs}
            self.revise(out)
        else:
            self.finding(kind, side if ranged else None, start, end, ts_ns, text, out, attrs)

    def ended(self, record: Relayed, now: int, out: list[Row]) -> None:
        """One direction ended by itself."""
        side, ts_ns = record.direction, record.time_ns
        self._count(side, 0, ts_ns, now)
        if self._origin[side] is None:
            self._place(side, record.offset, now, out)
        end = self._offset(side, record.offset)
        if end > self._at[side]:
            self._jump(side, end, b"", ts_ns, out)
        self._end(side, ts_ns, out)

    def told(self, record: Relayed, now: int) -> Ending:
        """The relay's last word: how it ended, and the counts of both legs."""
        said = record.said()
        self._count(record.direction, 0, record.time_ns, now)
        legs = said.get("legs")
        both: dict[str, Any] = legs if isinstance(legs, dict) else {}
        self._legs = coverage.Leg.parse(both.get("agent")), coverage.Leg.parse(both.get("upstream"))
        self.relay = self.relay | {"reason": text_of(said, "reason")}
        ending = text_of(said, "ending")
        return Ending(ending) if ending in ENDINGS and ending != Ending.OPEN else Ending.INTERRUPTED

    def unblock(self, out: list[Row]) -> bool:
        self.flush(out)
        return False

    # -- inside ----------------------------------------------------------------------------------------------------

    def _offset(self, side: int, said: int) -> int:
        """From the relay's offset to this session's."""
        return said - (self._origin[side] or 0)

    def _place(self, side: int, offset: int, now: int, out: list[Row]) -> None:
        """The first byte of this direction is the relay's byte `offset`."""
        self._origin[side] = offset
        for one in self._announced:
            if one.side == side:
                self._redact_announced(one, out)
        early, self._early = self._early, []
        for record in early:
            self.note(record, now, out)

    def _jump(self, side: int, start: int, body: bytes, ts_ns: int, out: list[Row]) -> tuple[int, bytes]:
        """Bytes are missing before these, or some come again; where they begin then, and what of them is new."""
        following = self._at[side]
        if start > following:
            lost = start - following
            self._missing[side] += lost
            self._at[side] = start
            text = f"{lost} bytes are missing"
            self.finding("gap", side, following, start, ts_ns, text, out, {"reason": "journal"})
            self._lost(side, lost, ts_ns, out)
            return start, body
        again, body = body[: following - start], body[following - start :]
        if again:
            outlet, chunks = self.outlets[side], list[Chunk]()
            hidden = self._hidden(side, start, again, ts_ns, out, outlet.copies + 1)
            number = outlet.copy(start, again, ts_ns, chunks, hidden)
            text = f"{len(again)} bytes came twice; the stream has the first ones"
            self.finding("overlap", side, start, start + len(again), ts_ns, text, out, {"copy": number})
            self._chunks(side, chunks, out)
            self._settle(side, out)
        return following, body

    def _announce(self, one: Announced, out: list[Row]) -> None:
        self._announced = [*self._ahead()[1 - MAX_EARLY :], one]
        if self._origin[one.side] is not None:
            self._redact_announced(one, out)

    def _redact_announced(self, one: Announced, out: list[Row]) -> None:
        side = one.side
        self._redact(side, max(0, self._offset(side, one.start)), self._offset(side, one.end), one.what, out)

    def _ahead(self) -> tuple[Announced, ...]:
        """What was announced and is not there."""
        return tuple(one for one in self._announced if self._offset(one.side, one.end) > self._at[one.side])

    def _redact(self, side: int, start: int, end: int, what: str, out: list[Row]) -> None:
        """What the relay made asterisks of is told once, also where the dissector takes it for a credential too."""
        if start < end and not self.outlets[side].hides(start, end):
            super()._redact(side, start, end, what, out)

    def _finish_streams(self, out: list[Row]) -> None:
        """No byte waits: the relay took them in order."""
        for side in (0, 1):
            if self._origin[side] is None and self._early:
                self._place(side, 0, self.touched, out)
                self._origin[side] = None  # still

    def _sides(self) -> tuple[coverage.Side, coverage.Side]:
        return self._side(0), self._side(1)

    def _side(self, side: int) -> coverage.Side:
        leg = self._legs[side] if self._legs is not None else None
        packets = (leg.packets if leg is not None else None) or 0
        carried = self.carried[side]
        return coverage.Side(packets, carried, carried, None, self._missing[side], not self._midstream)

    def _judge(self, sides: tuple[coverage.Side, coverage.Side]) -> Coverage:
        if not self.closed:
            begun = all(side.begun and not side.missing for side in sides) and not self.damaged
            return Coverage.OPEN if begun else Coverage.PARTIAL
        return coverage.judge_relayed(sides, self._legs, self.conversation.opaque, self.damaged)

    def _attrs(self, sides: tuple[coverage.Side, coverage.Side]) -> dict[str, Any]:
        tls = self.relay.get("tls") or {}
        attrs = {name: tls[name] for name in SAID if tls.get(name)} | super()._attrs(sides)
        attrs["coverage"] = coverage.statement_relayed(sides, self._legs)
        attrs["relay"] = self.relay
        return attrs
