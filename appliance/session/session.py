"""One session: what is common to all transports. Numbers its rows and feeds the dissector and the outlets.

Every row goes to the list that the caller passes in, in order; each table's `seq` counts from 0.
"""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

from appliance.dissect import Output
from appliance.dissect.conversation import Conversation, Handover
from appliance.model import (
    ChunkRow,
    Coverage,
    Direction,
    Ending,
    FindingRow,
    Identity,
    Message,
    MessageRow,
    Redaction,
    Row,
    SessionRow,
)
from appliance.session import coverage
from appliance.session.chunks import Chunk, Outlet, merged
from appliance.session.pieces import Data
from appliance.wire.abi import Flow, FlowEnd, SideState

MAX_FINDINGS = 1000  # rows of one kind in one session; more are only counted
LINGER_NS = 2_000_000_000  # recorded time after its end for which packets still belong to a session
DIRECTIONS = (Direction.CLIENT, Direction.SERVER)
ENDINGS: dict[int, Ending] = {
    FlowEnd.FIN: Ending.FIN,
    FlowEnd.RST: Ending.RST,
    FlowEnd.IDLE: Ending.IDLE,
    FlowEnd.CUT: Ending.CUT,
}


@dataclass(frozen=True, slots=True)
class Birth:
    """What is fixed when a session begins. `flow`: the kernel's, 0 for ingest. Times are wall times."""

    session_id: UUID
    started_ns: int
    node: str
    source: str
    client_address: str
    client_port: int
    server_address: str
    server_port: int
    transport: str
    identity: Identity
    lane: str
    flow: int


class Session(ABC):
    """Base of `TcpSession` and `DatagramSession`, which turn packets into `_data`, `_lost` and findings, and of
    `RelayedSession`, which does so with a relay's records.

    `BYTES` is what one takes in memory of which nothing waits.
    """

    BYTES: ClassVar[int]

    __slots__ = (
        "_counted",
        "_dropped",
        "_former",
        "_found",
        "_news",
        "_seqs",
        "_shown",
        "ahead",
        "began",
        "birth",
        "bypassed",
        "carried",
        "closed",
        "conversation",
        "damaged",
        "deadline",
        "ending",
        "flow",
        "kernel",
        "last_ns",
        "messages",
        "outlets",
        "packets",
        "protocol",
        "queued",
        "queued_row",
        "refreshed",
        "serial",
        "touched",
    )

    def __init__(self, birth: Birth, max_text: int) -> None:
        self.birth = birth
        self.flow = birth.flow
        stream = birth.transport == "tcp"
        self.conversation = Conversation(birth.transport, max_text=max_text)
        self.outlets: tuple[Outlet, ...] = (Outlet(join=stream), Outlet(join=stream))  # none of a closed session
        self.packets = [0, 0]
        self.carried = [0, 0]
        self.messages = 0
        self.protocol = ""
        self.ending = Ending.OPEN
        self.deadline = 0  # recorded time at which an ended session is closed
        self.closed = False
        self.damaged = False  # the journal or the ring lost something while it was open
        self.bypassed = False  # packets may have passed that not even the kernel counted
        self.kernel: tuple[coverage.Kernel, coverage.Kernel] | None = None
        self._counted = 0  # start of the flow whose counters were added last
        self._former: tuple[coverage.Kernel, coverage.Kernel] | None = None  # those before it
        self.last_ns = birth.started_ns
        self.ahead = 0  # ns by which its clock is before the wall clock, which was set back while it was open
        self.serial = 0  # its number among all sessions
        self.queued = 0  # the deadline with which it stands in the queue of ended sessions
        self.touched = 0  # recorded time of the last packet
        self.began = 0  # recorded time of the first packet
        self.queued_row = False  # waits for a row that is up to date
        self.refreshed = 0  # rows that were made for no other reason
        self._shown = 0  # packets of which the last row knows
        self._seqs = [0, 0, 0, 0]  # session, message, chunk, finding
        self._found: Counter[str] = Counter()
        self._news = False  # a kind of finding that the last revision did not have
        self._dropped: Counter[str] = Counter()

    # -- what the assembler asks -----------------------------------------------------------------------------------

    @property
    def held_bytes(self) -> int:
        """Bytes of the capture in memory, those in the dissector not counted."""
        return sum(outlet.held_bytes for outlet in self.outlets)

    @property
    def weight(self) -> int:
        """Bytes in memory, about."""
        held = sum(outlet.weight for outlet in self.outlets)
        return self.BYTES + held + self.conversation.held

    def shed(self, out: list[Row]) -> None:
        """Memory is short: what the dissector keeps for text and context is given up."""
        self._emit(self.conversation.shed(), out)
        text = "memory was short: texts and references of messages that were in progress may be cut"
        self.finding("memory", None, 0, 0, self.last_ns, text, out, {"weight": self.weight})
        self._settle_both(out)

    @abstractmethod
    def unblock(self, out: list[Row]) -> bool:
        """Memory is short: nothing waits for holes to fill, or for more to come. Whether a hole became a gap."""

    def open(self, out: list[Row]) -> None:
        self.revise(out)

    def idle_work(self, wall_ns: int, out: list[Row]) -> bool:
        """Recorded time passed: let chunks go. Whether there may be more to do later."""
        self.flush(out)
        if self._news:
            self.revise(out)
        return False

    def icmp_error(self, side: int, kind: int, code: int, length: int, wall_ns: int, now: int, out: list[Row]) -> None:
        """An ICMP error about a packet of this session. What it quotes may hold a credential and is not kept."""
        self.last_ns, self.touched = max(self.last_ns, wall_ns), now
        text = f"ICMP error type {kind} code {code}"
        self.finding("icmp-error", side, 0, 0, wall_ns, text, out, {"type": kind, "code": code, "bytes": length})

    def flush(self, out: list[Row]) -> None:
        """End the chunks in the making."""
        chunks: list[Chunk] = []
        for side, outlet in enumerate(self.outlets):
            outlet.flush(chunks)
            self._chunks(side, chunks, out)

    def flow_end(self, flow: Flow) -> None:
        """Add the kernel's counters. A flow that was picked up again, with another start, has several such records.

        Of one start there may be several too, each in place of the one before: the counters only rise, and two
        processors that see the last packets, or a wire process that was killed between writing and forgetting, tell of
        an end twice.
        """
        if flow.start != self._counted:
            self._counted, self._former = flow.start, self.kernel
        past = self._former or (coverage.Kernel(0, 0, 0, 0), coverage.Kernel(0, 0, 0, 0))
        self.kernel = (_add(past[0], flow.client), _add(past[1], flow.server))

    def finish(self, ending: Ending, out: list[Row]) -> Handover | None:
        """Close for good: everything that waits comes out, and the last revision. What a session after it must know."""
        self._finish_streams(out)
        handover = self.conversation.handover()
        for direction in DIRECTIONS:
            self._emit(self.conversation.close(direction, self.last_ns), out)
        chunks: list[Chunk] = []
        for side, outlet in enumerate(self.outlets):
            outlet.finish(chunks)
            self._chunks(side, chunks, out)
        self.outlets = ()
        self.ending = ending
        self.closed = True
        self.protocol = self.conversation.protocol
        self.conversation.retire()
        self.revise(out)
        return handover

    def revise(self, out: list[Row]) -> None:
        """Emit the state as it is now."""
        birth, sides = self.birth, self._sides()
        out.append(
            SessionRow(
                session_id=birth.session_id,
                seq=self._next(0),
                started_ns=birth.started_ns,
                ended_ns=self.last_ns,
                ending=self.ending if self.closed else Ending.OPEN,
                node=birth.node,
                source=birth.source,
                client_address=birth.client_address,
                client_port=birth.client_port,
                server_address=birth.server_address,
                server_port=birth.server_port,
                transport=birth.transport,
                protocol=self.protocol,
                identity=birth.identity,
                coverage=self._judge(sides),
                client_bytes=sides[0].recorded,
                server_bytes=sides[1].recorded,
                client_packets=sides[0].packets,
                server_packets=sides[1].packets,
                messages=self.messages,
                findings=tuple(sorted(self._found)),
                lane=birth.lane,
                attrs=self._attrs(sides),
            )
        )
        self._shown = sum(self.packets)
        self._news = False

    @property
    def outdated(self) -> bool:
        """Whether packets came since the last row."""
        return sum(self.packets) != self._shown

    def blame(self, kind: str, text: str, attrs: dict[str, Any], out: list[Row]) -> None:
        """A finding about the recording itself, on the session's row at once: nothing else may come for long."""
        self.finding(kind, None, 0, 0, self.last_ns, text, out, attrs)
        self.revise(out)

    def finding(
        self,
        kind: str,
        side: int | None,
        start: int,
        end: int,
        ts_ns: int,
        text: str,
        out: list[Row],
        attrs: dict[str, Any] | None = None,
    ) -> None:
        """Say something that must not stay silent; above `MAX_FINDINGS` of a kind it is only counted."""
        self._news = self._news or kind not in self._found
        self._found[kind] += 1
        if self._found[kind] > MAX_FINDINGS:
            self._dropped[kind] += 1
            return
        out.append(
            FindingRow(
                self.birth.session_id,
                self._next(3),
                self.birth.started_ns,
                ts_ns,
                kind,
                None if side is None else DIRECTIONS[side],
                max(0, start),
                max(0, end),
                text,
                attrs or {},
            )
        )

    # -- what transports give in -----------------------------------------------------------------------------------

    def _count(self, side: int, payload: int, wall_ns: int, now: int) -> None:
        self.packets[side] += 1
        self.carried[side] += payload
        if wall_ns > self.last_ns:
            self.last_ns = wall_ns
        self.touched = now

    def _data(self, side: int, piece: Data, out: list[Row]) -> None:
        """The next bytes of one direction."""
        direction = DIRECTIONS[side]
        found = self.conversation.receive(direction, piece.data, piece.ts_ns)
        if found or not self.protocol:
            self._emit(found, out)
        chunks: list[Chunk] = []
        self.outlets[side].push(piece, self.conversation.settled(direction), chunks)
        if chunks:
            self._chunks(side, chunks, out)
        self._settle(1 - side, out)

    def _lost(self, side: int, length: int, ts_ns: int, out: list[Row]) -> None:
        """Bytes of one direction that will not come."""
        direction = DIRECTIONS[side]
        self._emit(self.conversation.gap(direction, length, ts_ns), out)
        self._settle_both(out)

    def _end(self, side: int, ts_ns: int, out: list[Row]) -> None:
        """One direction ended for good."""
        self._emit(self.conversation.close(DIRECTIONS[side], ts_ns), out)
        self._settle_both(out)

    def _settle_both(self, out: list[Row]) -> None:
        for side in (0, 1):
            self._settle(side, out)

    def _settle(self, side: int, out: list[Row]) -> None:
        """What came may have settled bytes of the other direction too."""
        outlet = self.outlets[side]
        if outlet.behind:
            chunks: list[Chunk] = []
            outlet.release(self.conversation.settled(DIRECTIONS[side]), chunks)
            self._chunks(side, chunks, out)

    def _emit(self, found: Output, out: list[Row]) -> None:
        for item in found:
            if isinstance(item, Message):
                self.messages += 1
                out.append(
                    MessageRow(
                        self.birth.session_id,
                        self._next(1),
                        self.birth.started_ns,
                        self.conversation.protocol_of(item),
                        item,
                    )
                )
                if "smuggling" in item.flags:
                    self._smuggling(item, out)
            elif isinstance(item, Redaction):
                self._redact(DIRECTIONS.index(item.direction), item.start, item.end, item.what, out)
        protocol = self.conversation.protocol
        if protocol != self.protocol:
            self.protocol = protocol
            self.revise(out)

    def _smuggling(self, item: Message, out: list[Row]) -> None:
        cases = item.attrs.get("smuggling", [])
        text = f"HTTP that two parsers may read differently: {', '.join(cases)}"
        side = DIRECTIONS.index(item.direction)
        self.finding("smuggling", side, item.start, item.end, item.ts_ns, text, out, {"cases": cases})

    def _redact(self, side: int, start: int, end: int, what: str, out: list[Row]) -> None:
        self.outlets[side].redact(start, end)
        text = f"{what}: {end - start} bytes are kept by length only"
        self.finding("redacted", side, start, end, self.last_ns, text, out, {"what": what})

    def _hidden(
        self, side: int, start: int, data: bytes, ts_ns: int, out: list[Row], copy: int = 0
    ) -> list[tuple[int, int]]:
        """Ranges of late bytes, or of a copy with this number, that are kept by length only."""
        hidden = merged(self.conversation.aside(DIRECTIONS[side], start, data, late=not copy))
        for low, high in hidden:
            text = f"unread: {high - low} bytes are kept by length only"
            if copy:  # it has no bytes of the stream
                attrs = {"what": "unread", "copy": copy, "offset": start + low, "bytes": high - low}
                self.finding("redacted", side, start, start, ts_ns, text, out, attrs)
            else:
                self.finding("redacted", side, start + low, start + high, ts_ns, text, out, {"what": "unread"})
        return hidden

    def _chunks(self, side: int, chunks: list[Chunk], out: list[Row]) -> None:
        birth = self.birth
        for offset, data, ts_ns, copy, redacted in chunks:
            out.append(
                ChunkRow(
                    birth.session_id,
                    self._next(2),
                    birth.started_ns,
                    DIRECTIONS[side],
                    max(0, offset),
                    ts_ns,
                    data,
                    copy,
                    redacted,
                )
            )
        chunks.clear()

    # -- for transports to say -------------------------------------------------------------------------------------

    @abstractmethod
    def _finish_streams(self, out: list[Row]) -> None:
        """Bring out what the streams still hold."""

    @abstractmethod
    def _sides(self) -> tuple[coverage.Side, coverage.Side]:
        """What was seen of the client's and of the server's direction."""

    def _judge(self, sides: tuple[coverage.Side, coverage.Side]) -> Coverage:
        """Only what is missing is said before the end: the rest may still change."""
        found = coverage.judge(sides, self.kernel, self.conversation.opaque, self.damaged, self.bypassed)
        return found if self.closed or found is Coverage.PARTIAL else Coverage.OPEN

    def _attrs(self, sides: tuple[coverage.Side, coverage.Side]) -> dict[str, Any]:
        attrs = self.conversation.attrs | {"coverage": coverage.statement(sides, self.kernel)}
        if self._dropped:
            attrs["findings_dropped"] = dict(sorted(self._dropped.items()))
        return attrs

    def _next(self, table: int) -> int:
        seq = self._seqs[table]
        self._seqs[table] = seq + 1
        return seq


def _add(past: coverage.Kernel, side: SideState) -> coverage.Kernel:
    return coverage.Kernel(
        past.packets + side.packets,
        past.bytes + side.bytes,
        past.refused + side.refused,
        past.refused_bytes + side.refused_bytes,
    )
