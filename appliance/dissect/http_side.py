"""What is known of one direction of HTTP/1.x; the table of its states is in http_framing.py."""

from enum import Enum, auto

from appliance.dissect import Torn
from appliance.dissect.http_lost import Lost, last_line
from appliance.dissect.http_message import MAX_CREDENTIAL_BODY, Open
from appliance.dissect.http_secrets import opens_secret_field


class State(Enum):
    HEAD = auto()
    FIXED = auto()
    UNTIL_CLOSE = auto()
    CHUNK_SIZE = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    WAIT = auto()
    LOST = auto()
    __hash__ = object.__hash__  # it is looked up for every segment; that of an enum is many times slower


BODY = frozenset((State.FIXED, State.UNTIL_CLOSE, State.CHUNK_DATA))


class Side:
    """One direction. `buffer` holds what is not a whole unit yet; it ends at offset `received`."""

    def __init__(self, offset: int) -> None:
        self.state = State.HEAD
        self.received = offset
        self.buffer = bytearray()
        self.place = 0  # bytes of the buffer that were consumed in this turn
        self.scanned = 0  # bytes of the buffer that hold no end of a head
        self.begun = False  # the buffer begins with a start line
        self.buffer_ns = 0  # arrival of the buffer's first byte
        self.last_ns = 0
        self.message: Open | None = None
        self.remaining = 0  # of a body or chunk
        self.lost: Lost | None = None

    @property
    def offset(self) -> int:
        return self.received - len(self.buffer) + self.place

    def torn(self) -> Torn:
        """What follows if the dissection breaks off now."""
        if self.lost is not None:
            return self.lost.torn(self.buffer)
        if self.message is None or self.state is State.TRAILERS:
            return Torn(line=opens_secret_field(last_line(self.buffer)))
        if not self.message.guarded:
            return Torn()
        return Torn(size=self.remaining) if self.state is State.FIXED else Torn(upto=MAX_CREDENTIAL_BODY)
