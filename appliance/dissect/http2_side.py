"""What is known of one direction of HTTP/2; the table of its states is in http2.py."""

from enum import Enum, auto

from appliance.dissect.http2_frames import DEFAULT_FRAME
from appliance.dissect.http2_hpack import Decoder
from appliance.dissect.http_spans import Spans


class State(Enum):
    PREFACE = auto()
    FRAME = auto()
    DATA = auto()
    SKIP = auto()
    LOST = auto()
    __hash__ = object.__hash__  # it is looked up for every segment; that of an enum is many times slower


class Pending:
    """A header block that has not ended. `promised`: the stream that a PUSH_PROMISE announces, else 0."""

    def __init__(self, stream: int, promised: int, start: int, ts_ns: int, *, end_stream: bool) -> None:
        self.stream = stream
        self.promised = promised
        self.start = start
        self.ts_ns = ts_ns
        self.end_stream = end_stream
        self.data = bytearray()
        self.spans = Spans()
        self.frames = 1
        self.broken = False  # too long: what follows is redacted and not read


class Side:
    """One direction. `buffer` holds what is not a whole unit yet; it ends at offset `received`."""

    def __init__(self, offset: int, state: State) -> None:
        self.state = state
        self.received = offset
        self.buffer = bytearray()
        self.need = 0  # bytes of the buffer before which nothing can be done
        self.buffer_ns = 0  # arrival of the buffer's first byte
        self.last_ns = 0
        self.remaining = 0  # DATA, SKIP: bytes of the frame's payload, padding not counted
        self.padding = 0
        self.stream = 0  # DATA: whose
        self.end_stream = False
        self.hide = False  # SKIP: the bytes may be a credential's
        self.block: Pending | None = None
        self.decoder = Decoder()
        self.limit: int | None = DEFAULT_FRAME  # bytes of a frame that the peer takes; None: nobody knows
        self.faults = 0  # said so far
        self.lost_from = -1  # LOST: where it began; -1 if nothing was passed over
        self.lost_ns = 0
        self.last_stream = 0  # the highest that was opened

    @property
    def offset(self) -> int:
        return self.received - len(self.buffer)
