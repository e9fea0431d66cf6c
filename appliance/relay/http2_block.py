"""The agent's header blocks (RFC 9113 §4.3, RFC 7541): put together within bounds, decoded, masked for the record."""

from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError

from appliance.dissect.http2_frames import END_HEADERS, END_STREAM, HEADER, HEADERS, PADDED, PRIORITIZED
from appliance.dissect.http2_hpack import Decoder as Observer
from appliance.relay.http2_head import Fields, masked
from appliance.relay.http_head import Malformed

MAX_BLOCK: Final = 64 * 1024  # bytes of one header block
MAX_FRAMES: Final = 64  # that it may come in
MAX_LIST: Final = 64 * 1024  # bytes that it may decode to, as RFC 9113 §6.5.2 counts them
MAX_TABLE: Final = 64 * 1024  # bytes of the dynamic table
Span = tuple[int, int, int]  # where a piece is in the block, where in the frames, and its length


class Block:
    """One header block: `raw` are its frames as they came."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.end_stream = False
        self.raw = bytearray()
        self._data = bytearray()
        self._spans: list[Span] = []
        self._frames = 0

    @property
    def data(self) -> bytes:
        return bytes(self._data)

    def add(self, frame: bytes) -> bool:
        """A frame of it, with its header; True: it is the last one. Raises `Malformed`."""
        kind, flags = frame[3], frame[4]
        first, last = HEADER, len(frame)
        if kind == HEADERS:
            self.end_stream = bool(flags & END_STREAM)
            if flags & PADDED:
                first, last = first + 1, last - frame[HEADER]
            first += 5 if flags & PRIORITIZED else 0
        at = len(self.raw)
        self.raw += frame
        if last < first:
            raise Malformed("more padding than the frame has room for")
        self._spans.append((len(self._data), at + first, last - first))
        self._data += frame[first:last]
        self._frames += 1
        if len(self._data) > MAX_BLOCK or self._frames > MAX_FRAMES:
            raise Malformed(f"a header block of more than {MAX_BLOCK} bytes or {MAX_FRAMES} frames")
        return bool(flags & END_HEADERS)

    def place(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Where a range of the block is in `raw`: start, end, and where in the range that begins."""
        found = []
        for at, raw, length in self._spans:
            low, high = max(start, at), min(end, at + length)
            if low < high:
                found.append((raw + low - at, raw + high - at, low - start))
        return found


class Blocks:
    """Decodes one direction. `tokens`: names of the fields that may hold one; if there are any, credentials are masked
    in what goes on record."""

    def __init__(self, tokens: frozenset[bytes]) -> None:
        self._decoder = Decoder(MAX_LIST)
        self._decoder.max_allowed_table_size = MAX_TABLE
        self._observer = Observer(frozenset(name.decode() for name in tokens)) if tokens else None

    def read(self, block: Block) -> tuple[Fields, bytes, list[tuple[int, int, str]]]:
        """Its fields; its frames for the record; and which ranges of those are masked. Raises `Malformed`."""
        data = block.data
        try:
            fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(data, raw=True)]
        except (HPACKError, ValueError) as error:
            raise Malformed("a header block that cannot be decoded, or decodes to too much") from error
        if self._observer is None:
            return fields, bytes(block.raw), []
        seen = self._observer.decode(data)
        if seen.unread < len(data):
            raise Malformed("a header block that cannot be read")
        raw, ranges = bytearray(block.raw), []
        for start, end, what in seen.secrets:
            said = masked(data, start, end)
            for low, high, at in block.place(start, end):
                raw[low:high] = said[at : at + high - low]
                ranges.append((low, high, what))
        return fields, bytes(raw), ranges
