"""A TCP session: two streams, the opening and closing handshakes, and what the peers say of each other's bytes.

An ending is an assumption until `LINGER_NS` later: a reset or a FIN may be forged, and one that the receiver ignored
(RFC 5961) shows by new bytes from its alleged sender, which open the session again.
"""

from itertools import groupby
from typing import Any, NamedTuple

from appliance.model import Ending, Row
from appliance.session import coverage
from appliance.session.chunks import Chunk
from appliance.session.pieces import Data, Gap, Late, Note, Overlap, Piece, Stray
from appliance.session.reassembly import HOLD_NS, Stream
from appliance.session.session import LINGER_NS, Birth, Session
from appliance.wire.abi import SIDE_F_SYN, Flow

FIN, SYN, RST, ACK = 1, 2, 4, 16
UNKNOWN_SCALE = 14  # the largest (RFC 7323 §2.3), where the SYN was not seen
FORGET_NS = 10_000_000_000  # silence after which delivered bytes are not kept for comparison any more
STRAYS = {
    "out-of-window": "bytes beyond the receiver's window",
    "beyond-fin": "bytes behind the acknowledged end of the stream",
    "before-start": "bytes before the first byte of the recorded stream",
}


class Segment(NamedTuple):
    """A packet as TCP sees it. `scale`: of a SYN's option, else None. `payload`: its length on the wire."""

    seq: int
    ack: int
    flags: int
    window: int
    payload: int
    data: bytes
    scale: int | None


class TcpSession(Session):
    """`previous`: an older connection between the same ports that packets may still belong to."""

    __slots__ = (
        *("_both_scale", "_gaps", "_midstream", "_only_resets", "_reset_at", "_scales", "_untold"),
        *("previous", "streams"),
    )

    def __init__(self, birth: Birth, max_text: int, max_buffer: int) -> None:
        super().__init__(birth, max_text)
        strict = bool(birth.flow)
        self.streams = (Stream(max_buffer, strict), Stream(max_buffer, strict))
        self.previous: TcpSession | None = None
        self._scales = [UNKNOWN_SCALE, UNKNOWN_SCALE]
        self._both_scale = True  # unless a SYN came without the option
        self._midstream = [False, False]
        self._untold = [0, 0]  # wall time of a pick-up that the SYN may still explain
        self._only_resets = [True, True]
        self._reset_at: list[int | None] = [None, None]  # offset of its reset
        self._gaps: list[Gap | None] = [None, None]  # a finding that may still grow

    @property
    def held_bytes(self) -> int:
        return super().held_bytes + sum(stream.held_bytes for stream in self.streams)

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
        seq, ack, flags, window, payload, data, _ = segment
        self._count(side, payload, wall_ns, now)
        stream, other = self.streams[side], self.streams[1 - side]
        pieces: list[Piece] = []
        if flags & RST:
            self._reset(side, segment, wall_ns, now, out)
            if not payload:
                return
        else:
            if flags & SYN:
                self._syn(side, segment, wall_ns, out)
                seq = (seq + 1) & 0xFFFFFFFF
            elif not stream.synchronised and not self._midstream[side]:
                self._midstream[side], self._untold[side] = True, wall_ns
            self._only_resets[side] = False
        if flags & ACK and not flags & RST:
            shift = self._scales[side] if self._both_scale and not flags & SYN else 0
            said: list[Piece] = []
            other.acknowledge(ack, window << shift, wall_ns, said)
            if said:
                self._put(1 - side, said, wall_ns, out)
        stream.segment(seq, data, payload - len(data), wall_ns, pieces)
        if flags & FIN:
            stream.end((seq + payload) & 0xFFFFFFFF, wall_ns, pieces)
        if pieces:
            self._put(side, pieces, wall_ns, out)
        if self._untold[0] or self._untold[1]:
            self._tell_midstream(wall_ns, out)
        if stream.fin is not None or other.fin is not None:
            self._closing(wall_ns, now, out)
        if self.deadline and not flags & RST:
            self._reopening(side, wall_ns, out)
        self._refresh(out)

    def icmp_error(self, side: int, kind: int, code: int, length: int, wall_ns: int, now: int, out: list[Row]) -> None:
        """An ICMP error about a packet of this session. What it quotes may hold a credential and is not kept."""
        self.last_ns, self.touched = max(self.last_ns, wall_ns), now
        text = f"ICMP error type {kind} code {code}"
        self.finding("icmp-error", side, 0, 0, wall_ns, text, out, {"type": kind, "code": code, "bytes": length})

    def kernel_end(self, flow: Flow, ending: Ending, now: int) -> None:
        """The kernel's last word on the flow. It may be wrong on the end as well, so packets are still waited for."""
        self.flow_end(flow)
        for side, state in enumerate((flow.client, flow.server)):
            if state.flags & SIDE_F_SYN:
                self._midstream[side] = False
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

    def forget(self) -> None:
        """A silent session needs less memory."""
        for stream in self.streams:
            stream.forget()

    # -- handshakes ------------------------------------------------------------------------------------------------

    def _syn(self, side: int, segment: Segment, wall_ns: int, out: list[Row]) -> None:
        stream = self.streams[side]
        if not stream.syn(segment.seq):
            text = "a SYN with another sequence number in a live connection"
            self.finding("handshake-conflict", side, stream.next, stream.next, wall_ns, text, out)
            return
        self._midstream[side], self._untold[side] = False, 0
        self._scales[side] = segment.scale or 0
        if segment.scale is None:
            self._both_scale = False

    def _tell_midstream(self, wall_ns: int, out: list[Row]) -> None:
        """Once it is too late for a SYN, which captures may put behind its data."""
        for side, since in enumerate(self._untold):
            if since and wall_ns - since >= HOLD_NS:
                self._untold[side] = 0
                self.finding("midstream", side, 0, 0, since, "the start of this direction was not seen", out)

    def _reset(self, side: int, segment: Segment, wall_ns: int, now: int, out: list[Row]) -> None:
        stream = self.streams[side]
        answers = bool(segment.flags & ACK) and stream.origin is None
        at = stream.next + stream.distance(segment.seq)
        if not answers and not stream.covers(segment.seq):
            text = "a reset outside of the window; receivers ignore it"
            self.finding("reset-ignored", side, stream.next, stream.next, wall_ns, text, out, {"offset": at})
            return
        if not self.deadline:
            self.ending = Ending.RST
            self.deadline = now + LINGER_NS
            self._reset_at[side] = max(at, stream.top)

    def _closing(self, wall_ns: int, now: int, out: list[Row]) -> None:
        """After a FIN: each direction ends when its receiver acknowledged that."""
        client, server = self.streams
        for side, stream in enumerate(self.streams):
            if stream.closed and stream.fin is not None and stream.next >= stream.fin:
                self._end(side, wall_ns, out)
        if client.closed and server.closed and not self.deadline:
            self.ending = Ending.FIN
            self.deadline = now + LINGER_NS

    def _reopening(self, side: int, wall_ns: int, out: list[Row]) -> None:
        stream = self.streams[side]
        reset = self._reset_at[side]
        if self.ending is Ending.RST:
            alive = reset is not None and stream.top > reset
        else:
            alive = self.ending in (Ending.IDLE, Ending.CUT)
        if alive:
            text = f"packets went on after what looked like its end ({self.ending})"
            self.finding("reopened", side, stream.next, stream.next, wall_ns, text, out)
            self.ending, self.deadline = Ending.OPEN, 0
            self._reset_at = [None, None]

    # -- pieces of the streams -------------------------------------------------------------------------------------

    def _put(self, side: int, pieces: list[Piece], wall_ns: int, out: list[Row]) -> None:
        """Take pieces of one direction. What the other one holds, its start being unknown, goes along by time."""
        other = self.streams[1 - side]
        if not other.holding:
            self._pieces(side, pieces, out)
            return
        held: list[Piece] = []
        other.begin(wall_ns, held)
        self._both(side, pieces, held, out)

    def _both(self, side: int, pieces: list[Piece], others: list[Piece], out: list[Row]) -> None:
        """Pieces of both directions, each in its order, by time."""
        timed: list[tuple[int, int, Piece]] = []
        for whose, some in ((side, pieces), (1 - side, others)):
            latest = 0
            for piece in some:
                latest = max(latest, piece.ts_ns)
                timed.append((latest, whose, piece))
        timed.sort(key=lambda entry: entry[:2])
        for whose, run in groupby(timed, lambda entry: entry[1]):
            self._pieces(whose, [piece for _, _, piece in run], out)

    def _pieces(self, side: int, pieces: list[Piece], out: list[Row]) -> None:
        outlet = self.outlets[side]
        chunks: list[Chunk] = []
        for piece in pieces:
            if isinstance(piece, Data):
                if self._gaps[side] is not None:
                    self._tell_gap(side, out)
                self._data(side, piece, out)
            elif isinstance(piece, Gap):
                self._gap(side, piece, out)
            elif isinstance(piece, Overlap):
                end = piece.start + len(piece.data)
                number = outlet.copy(piece.start, piece.data, piece.ts_ns, chunks)
                text = f"{len(piece.data)} bytes were sent again with another content; the first stay the stream"
                attrs = {"copy": number}
                self.finding("overlap", side, piece.start, end, piece.ts_ns, text, out, attrs)
            elif isinstance(piece, Late):
                end = piece.offset + len(piece.data)
                outlet.late(piece.offset, piece.data, piece.ts_ns)
                text = "bytes came after they had been given up; they are in the stream, but were not dissected"
                self.finding("late", side, piece.offset, end, piece.ts_ns, text, out)
            elif isinstance(piece, Stray):
                start = max(0, piece.start)
                number = outlet.copy(start, piece.data, piece.ts_ns, chunks)
                strayed = {"copy": number, "offset": piece.start, "bytes": len(piece.data), "reason": piece.why}
                end = start + len(piece.data)
                self.finding("out-of-window", side, start, end, piece.ts_ns, STRAYS[piece.why], out, strayed)
            else:
                self._note(side, piece, out)
        if chunks:
            self._chunks(side, chunks, out)
        self._settle(side, out)

    def _gap(self, side: int, gap: Gap, out: list[Row]) -> None:
        """Neighbouring gaps (a capture that keeps headers only) become one finding."""
        known = self._gaps[side]
        if known is not None and known.end == gap.start and known.why == gap.why:
            self._gaps[side] = known._replace(end=gap.end)
        else:
            if known is not None:
                self._tell_gap(side, out)
            self._gaps[side] = gap
        self._lost(side, gap.end - gap.start, gap.ts_ns, out)

    def _tell_gap(self, side: int, out: list[Row]) -> None:
        gap = self._gaps[side]
        if gap is not None:
            self._gaps[side] = None
            text = f"{gap.end - gap.start} bytes are missing"
            self.finding("gap", side, gap.start, gap.end, gap.ts_ns, text, out, {"reason": gap.why})

    def _note(self, side: int, note: Note, out: list[Row]) -> None:
        text = "a FIN before the end of the stream; receivers ignore it"
        self.finding(note.kind, side, note.start, note.end, note.ts_ns, text, out)

    def _finish_streams(self, out: list[Row]) -> None:
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
