"""A TCP session: the opening and closing handshakes, and what the peers say of each other's bytes.

What a receiver drops is no part of the conversation: segments without ACK, with old time stamps (PAWS), with
acknowledgements of what was never sent, with a signature that was not agreed on (`_fault`). The streams keep them in
doubt until the receiver's acknowledgements decide.

An ending is an assumption until `LINGER_NS` later: a reset may be forged, and one that the receiver ignored (RFC 5961)
shows by its acknowledgement of bytes behind it, which opens the session again.
"""

from typing import Any

from appliance.model import Ending, Row
from appliance.session import coverage
from appliance.session.pieces import Piece
from appliance.session.reassembly import HOLD_NS
from appliance.session.session import DIRECTIONS, LINGER_NS, Birth
from appliance.session.streams import StreamSession
from appliance.session.tcp_segment import ACK, FIN, REJECTS, RST, SYN, Segment
from appliance.wire.abi import SIDE_F_SYN, Flow

UNKNOWN_SCALE = 14  # the largest (RFC 7323 §2.3), where the SYN was not seen
PAWS_NS = 24 * 86_400 * 1_000_000_000  # silence after which any time stamp is new (RFC 7323 §5.5)


class TcpSession(StreamSession):
    """`previous`: an older connection between the same ports that packets may still belong to."""

    __slots__ = (
        *("_both_scale", "_calm", "_midstream", "_only_resets", "_scales", "_signed", "_stamps", "_untold"),
        *("previous", "stamped", "summed"),
    )

    def __init__(self, birth: Birth, max_text: int, max_buffer: int) -> None:
        super().__init__(birth, max_text, max_buffer)
        self.previous: TcpSession | None = None
        self._scales = [UNKNOWN_SCALE, UNKNOWN_SCALE]
        self._both_scale = True  # unless a SYN came without the option
        self._midstream = [False, False]
        self._untold = [0, 0]  # wall time of a pick-up that the SYN may still explain
        self._only_resets = [True, True]
        self._signed = [False, False]
        self._stamps: list[int | None] = [None, None]  # the newest that the receiver remembers (RFC 7323 §4.3)
        self.summed = [False, False]  # a checksum was right
        self.stamped = False  # both SYNs had time stamps
        self._calm = False  # known to be established with nothing that waits; what may change that clears it

    @property
    def answered(self) -> bool:
        """Both SYNs were seen."""
        return self.streams[0].synchronised and self.streams[1].synchronised

    def starts_anew(self, side: int, segment: Segment) -> bool:
        """Whether a SYN without ACK belongs to another connection."""
        stream = self.streams[side]
        if stream.synchronised:
            return stream.origin != (segment.seq + 1) & 0xFFFFFFFF
        return self.closed or not stream.may_follow(segment.seq)

    def misfit(self, side: int, segment: Segment) -> int:
        """How far a segment is from what is expected next; what is not known counts as far."""
        stream, other = self.streams[side], self.streams[1 - side]
        if stream.origin is not None:
            return abs(stream.distance(segment.seq))
        if other.origin is not None and segment.flags & ACK:
            return abs(other.distance(segment.ack))
        return 1 << 30

    def packet(self, side: int, segment: Segment, wall_ns: int, now: int, out: list[Row]) -> None:
        """Take one segment. `wall_ns` is its time for people, `now` recorded time for time-outs."""
        self._calm = False
        seq, ack, flags, window, payload, data = segment[:6]
        quiet = now - self.touched >= PAWS_NS
        self._count(side, payload, wall_ns, now)
        stream, other = self.streams[side], self.streams[1 - side]
        pieces: list[Piece] = []
        before = stream.next
        fault = segment.fault or self._fault(side, segment, quiet)
        if flags & RST:
            self._reset(side, segment, fault, wall_ns, now, out)
            fault = fault or "reset"
        if fault:
            fin = flags & (FIN | RST | SYN) == FIN
            stream.doubt(seq + bool(flags & SYN), data, fin, wall_ns, fault, pieces)
        elif flags & SYN and not self._syn(side, segment, wall_ns, out):
            stream.doubt(seq + 1, data, False, wall_ns, "syn-data", pieces)
        else:
            if flags & SYN:
                stream.doubt(seq + 1, data, False, wall_ns, "syn-data", pieces)
                seq, payload, data, flags = (seq + 1) & 0xFFFFFFFF, 0, b"", flags & ~FIN
            elif not stream.synchronised and not self._midstream[side]:
                self._midstream[side], self._untold[side] = True, wall_ns
                self.conversation.unseen(DIRECTIONS[side])
            self._only_resets[side] = False
            if flags & ACK:
                shift = self._scales[side] if self._both_scale and not flags & SYN else 0
                said: list[Piece] = []
                other.acknowledge(ack, window << shift, wall_ns, said)
                if said:
                    self._put(1 - side, said, wall_ns, out)
            if segment.urgent is not None:
                self._urgent(side, segment, wall_ns, out)
            stream.segment(seq, data, payload - len(data), wall_ns, pieces, bool(flags & FIN))
        if pieces:
            self._put(side, pieces, wall_ns, out)
        if self._untold[0] or self._untold[1]:
            self._tell_midstream(wall_ns, out)
        if stream.fin is not None or other.fin is not None:
            self._closing(wall_ns, now, out)
        if self.deadline and not flags & RST:
            self._reopening(side, stream.next > before, wall_ns, out)

    def _fault(self, side: int, segment: Segment, quiet: bool) -> str:
        """Why the receiver drops the segment (Linux: `tcp_validate_incoming`, `tcp_ack`), "" if it does not.

        A segment is not held against rules of which the recording does not know whether they were agreed on.
        """
        stream, other = self.streams[side], self.streams[1 - side]
        if segment.signed and stream.synchronised and not self._signed[side] and not segment.flags & SYN:
            return "signature"
        if segment.flags & RST:
            return ""
        if not segment.flags & (SYN | ACK):
            return "no-acknowledgement"
        if self.stamped and segment.stamp is not None:
            offset = stream.next + stream.distance(segment.seq)
            if not self._newer(side, offset, segment.stamp, quiet):
                return "old-timestamp"
        if segment.flags & ACK:
            if self.birth.flow and stream.synchronised and other.origin is None:
                return "unsent-acknowledged"
            return other.misplaced(other.offset(segment.ack), side)
        return ""

    def _newer(self, side: int, offset: int, stamp: int, quiet: bool) -> bool:
        """Whether a time stamp passes (RFC 7323 §5; Linux lets one go that is older by one); if so it is remembered."""
        recent, stream = self._stamps[side], self.streams[side]
        age = 0 if not recent or quiet else (recent - stamp + 0x80000000 & 0xFFFFFFFF) - 0x80000000
        if age > 1:
            return False
        if age <= 0 and offset <= stream.acked:
            self._stamps[side] = stamp
        return True

    def usual(
        self,
        side: int,
        seq: int,
        ack: int,
        window: int,
        stamp: int | None,
        data: bytes,
        wall_ns: int,
        now: int,
        out: list[Row],
    ) -> bool:
        """`packet` for a whole segment with ACK and without SYN, FIN and RST that comes next where nothing waits.

        False: it is not like that, and nothing has been done.
        """
        if not self._calm and not self._calmed():
            return False
        stream, other = self.streams[side], self.streams[1 - side]
        acked = other.offset(ack)
        if (
            not stream.fits(seq, len(data))
            or other.misplaced(acked, side)
            or (
                stamp is not None
                and self.stamped
                and not self._newer(side, stream.next, stamp, now - self.touched >= PAWS_NS)
            )
        ):
            return False
        self.packets[side] += 1
        if wall_ns > self.last_ns:
            self.last_ns = wall_ns
        self.touched = now
        self._only_resets[side] = False
        stream.started = True
        other.heard(acked, window << (self._scales[side] if self._both_scale else 0))
        if data:
            self.carried[side] += len(data)
            if self._gaps[side] is not None:
                self._tell_gap(side, out)
            self._data(side, stream.take(data, wall_ns), out)
        return True

    def _calmed(self) -> bool:
        """Whether nothing but the next segments are expected."""
        client, server = self.streams
        self._calm = (
            not (self.deadline or self.closed or any(self._untold))
            and self.previous is None
            and client.calm
            and server.calm
            and (client.synchronised or self._midstream[0])
            and (server.synchronised or self._midstream[1])
        )
        return self._calm

    def kernel_end(self, flow: Flow, ending: Ending, now: int) -> None:
        """The kernel's last word on the flow. It may be wrong on the end as well, so packets are still waited for."""
        self._calm = False
        self.flow_end(flow)
        for side, state in enumerate((flow.client, flow.server)):
            if state.flags & SIDE_F_SYN:
                self._midstream[side] = False
        misled = {Ending.FIN: "fin-ignored", Ending.RST: "reset-ignored"}.get(ending)
        if self.ending is Ending.OPEN and misled in self._found:
            return  # its books don't know that the receiver did not follow
        if self.ending is Ending.OPEN:
            self.ending = ending
        if not self.deadline:
            self.deadline = now + LINGER_NS

    def idle_work(self, wall_ns: int, out: list[Row]) -> bool:
        waiting = False
        for side, stream in enumerate(self.streams):
            pieces: list[Piece] = []
            stream.advance(wall_ns, pieces)
            if pieces:
                self._put(side, pieces, wall_ns, out)
            waiting = waiting or stream.waiting
        self._tell_midstream(wall_ns, out)
        super().idle_work(wall_ns, out)
        return waiting

    # -- handshakes ------------------------------------------------------------------------------------------------

    def _syn(self, side: int, segment: Segment, wall_ns: int, out: list[Row]) -> bool:
        stream = self.streams[side]
        again = stream.synchronised
        if not stream.syn(segment.seq):
            text = "a SYN with another sequence number in a live connection"
            self.finding("handshake-conflict", side, stream.next, stream.next, wall_ns, text, out)
            return False
        if again and stream.next:
            return True  # nobody learns anything from a repetition
        self._midstream[side], self._untold[side] = False, 0
        self.conversation.seen(DIRECTIONS[side])
        self._scales[side] = segment.scale or 0
        self._stamps[side], self._signed[side] = segment.stamp, segment.signed
        stream.selective = segment.selective
        if segment.scale is None:
            self._both_scale = False
        if self.streams[1 - side].synchronised:
            self.stamped = None not in self._stamps
            stream.selective = self.streams[1 - side].selective = stream.selective and self.streams[1 - side].selective
        return True

    def _tell_midstream(self, wall_ns: int, out: list[Row]) -> None:
        """Once it is too late for a SYN, which captures may put behind its data."""
        for side, since in enumerate(self._untold):
            if since and wall_ns - since >= HOLD_NS:
                self._untold[side] = 0
                self.finding("midstream", side, 0, 0, since, "the start of this direction was not seen", out)

    def _reset(self, side: int, segment: Segment, fault: str, wall_ns: int, now: int, out: list[Row]) -> None:
        stream, other = self.streams[side], self.streams[1 - side]
        at = stream.next + stream.distance(segment.seq)
        possible = stream.covers(segment.seq)
        if stream.origin is None and other.synchronised:  # the answer to a SYN must say so
            possible = bool(segment.flags & ACK) and not other.misplaced(other.offset(segment.ack), side)
        if fault or not possible:
            why = REJECTS[fault] if fault else "it is not at the place that its receiver expects"
            text = f"a reset that receivers ignore: {why}"
            self.finding("reset-ignored", side, stream.next, stream.next, wall_ns, text, out, {"offset": at})
            return
        if not self.deadline:
            self.ending = Ending.RST
            self.deadline = now + LINGER_NS
            stream.stop(segment.seq)

    def _urgent(self, side: int, segment: Segment, wall_ns: int, out: list[Row]) -> None:
        """Where the urgent pointer points as Linux and most others read it: one byte before RFC 9293's."""
        stream = self.streams[side]
        at = stream.next + stream.distance(segment.seq) + max(0, (segment.urgent or 0) - 1)
        if at >= stream.next:
            text = "an urgent byte: receivers that don't ask for it inline read the stream without it"
            self.finding("urgent", side, at, at + 1, wall_ns, text, out)

    def _closing(self, wall_ns: int, now: int, out: list[Row]) -> None:
        """After a FIN: each direction ends when its receiver acknowledged that."""
        client, server = self.streams
        for side, stream in enumerate(self.streams):
            if stream.closed and stream.fin is not None and stream.next >= stream.fin:
                self._end(side, wall_ns, out)
        if client.closed and server.closed and not self.deadline:
            self.ending = Ending.FIN
            self.deadline = now + LINGER_NS

    def _reopening(self, side: int, grew: bool, wall_ns: int, out: list[Row]) -> None:
        stream = self.streams[side]
        if self.ending is Ending.RST:
            alive = any(one.revived for one in self.streams) or (grew and not any(one.stopped for one in self.streams))
        else:
            alive = self.ending in (Ending.IDLE, Ending.CUT)
        if alive:
            text = f"packets went on after what looked like its end ({self.ending})"
            self.finding("reopened", side, stream.next, stream.next, wall_ns, text, out)
            self.ending, self.deadline = Ending.OPEN, 0
            for one in self.streams:
                one.revived = False

    def _finish_streams(self, out: list[Row]) -> None:
        self._calm = False
        pieces: tuple[list[Piece], list[Piece]] = ([], [])
        for side, stream in enumerate(self.streams):
            stream.finish(self.last_ns, pieces[side])
        self._both(0, *pieces, out)
        self._tell_midstream(self.last_ns + HOLD_NS, out)
        for side in (0, 1):
            self._settle(side, out)
            self._tell_gap(side, out)

    # -- the coverage statement ------------------------------------------------------------------------------------

    def _sides(self) -> tuple[coverage.Side, coverage.Side]:
        return self._side(0), self._side(1)

    def _side(self, side: int) -> coverage.Side:
        stream = self.streams[side]
        acknowledged = max(0, min(stream.acked, stream.fin) if stream.fin is not None else stream.acked)
        return coverage.Side(
            self.packets[side],
            self.carried[side],
            stream.recorded,
            acknowledged,
            stream.missing,
            not self._midstream[side] and (stream.synchronised or self._only_resets[side]),
        )

    def _attrs(self, sides: tuple[coverage.Side, coverage.Side]) -> dict[str, Any]:
        attrs = super()._attrs(sides)
        counts = {
            "retransmitted": [stream.retransmitted for stream in self.streams],
            "unverified": [stream.unverified for stream in self.streams],
            "keepalives": [stream.keepalives for stream in self.streams],
        }
        told = {name: {"client": pair[0], "server": pair[1]} for name, pair in counts.items() if any(pair)}
        return attrs | {"tcp": told} if told else attrs
