"""A session of two streams: what these give out becomes bytes for the dissector, copies, and findings."""

from itertools import groupby

from appliance.model import Row
from appliance.session.chunks import Chunk
from appliance.session.memory import STREAM_BYTES
from appliance.session.pieces import Data, Gap, Late, Note, Overlap, Piece, Stray
from appliance.session.reassembly import Stream
from appliance.session.session import Birth, Session
from appliance.session.tcp_segment import REJECTS, STRAYS

FORGET_NS = 10_000_000_000  # silence after which delivered bytes are not kept for comparison any more


class StreamSession(Session):
    """Base of `TcpSession`, which judges the segments and gives them to `streams`."""

    __slots__ = ("_gaps", "streams")

    BYTES = STREAM_BYTES

    def __init__(self, birth: Birth, max_text: int, max_buffer: int) -> None:
        super().__init__(birth, max_text)
        strict = bool(birth.flow)
        self.streams = (Stream(max_buffer, strict), Stream(max_buffer, strict))
        self._gaps: list[Gap | None] = [None, None]  # a finding that may still grow

    @property
    def held_bytes(self) -> int:
        return super().held_bytes + sum(stream.held_bytes for stream in self.streams)

    @property
    def weight(self) -> int:
        return super().weight + self.streams[0].weight + self.streams[1].weight

    def unblock(self, out: list[Row]) -> bool:
        gaps = False
        for side, stream in enumerate(self.streams):
            pieces: list[Piece] = []
            stream.unblock(self.last_ns, pieces)
            if pieces:
                self._put(side, pieces, self.last_ns, out)
            gaps = gaps or any(isinstance(piece, Gap) for piece in pieces)
        self.forget()
        self.flush(out)
        return gaps

    def forget(self) -> None:
        """A silent session needs less memory."""
        for stream in self.streams:
            stream.forget()

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
                hidden = self._hidden(side, piece.start, piece.data, piece.ts_ns, out, outlet.copies + 1)
                number = outlet.copy(piece.start, piece.data, piece.ts_ns, chunks, hidden)
                text = f"{len(piece.data)} bytes were sent with two contents; the stream has what receivers keep"
                attrs = {"copy": number}
                self.finding("overlap", side, piece.start, end, piece.ts_ns, text, out, attrs)
            elif isinstance(piece, Late):
                end = piece.offset + len(piece.data)
                hidden = self._hidden(side, piece.offset, piece.data, piece.ts_ns, out)
                outlet.late(piece.offset, piece.data, piece.ts_ns, hidden)
                text = "bytes came after they had been given up; they are in the stream, but were not dissected"
                self.finding("late", side, piece.offset, end, piece.ts_ns, text, out)
            elif isinstance(piece, Stray):
                start = max(0, piece.start)
                hidden = self._hidden(side, piece.start, piece.data, piece.ts_ns, out, outlet.copies + 1)
                number = outlet.copy(piece.start, piece.data, piece.ts_ns, chunks, hidden)
                strayed = {"copy": number, "offset": piece.start, "bytes": len(piece.data), "reason": piece.why}
                end = start + len(piece.data)
                if piece.why in STRAYS:
                    self.finding("out-of-window", side, start, end, piece.ts_ns, STRAYS[piece.why], out, strayed)
                else:
                    text = f"a segment that receivers drop: {REJECTS[piece.why]}"
                    self.finding("rejected", side, start, end, piece.ts_ns, text, out, strayed)
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
        text = "a FIN that is not the end of the stream; receivers ignore it"
        self.finding(note.kind, side, note.start, note.end, note.ts_ns, text, out)
