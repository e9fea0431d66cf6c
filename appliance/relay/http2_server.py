"""What a server says in HTTP/2 passes as it came; between its frames there is room for the gateway's own.

Nothing is decoded: streams that end are noticed by their frames' headers. Settings that would have the agent fill
memory of the gateway (its dynamic table) are lowered.
"""

from dataclasses import dataclass
from typing import Final

from appliance.dissect.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADERS,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    fault_of,
)
from appliance.model import Direction
from appliance.relay import http2_say as say
from appliance.relay.http2_block import MAX_TABLE
from appliance.relay.http_head import Malformed
from appliance.relay.mediator import Commands, Pass, Say, Take

MAX_SETTINGS: Final = 4096  # bytes of a SETTINGS frame
MAX_FRAMES: Final = 256  # of one header block
HEADER_TABLE_SIZE: Final = 1  # a setting
CLIENT, SERVER = Direction.CLIENT, Direction.SERVER


@dataclass(slots=True)
class Stream:
    """`left`: bytes of the body that its Content-Length promises, None where none is given."""

    left: int | None
    grpc: bool
    agent_ended: bool
    server_ended: bool = False
    answered: bool = False  # an answer has begun


class ServerFrames:
    """`streams`: those that are open, which end here."""

    def __init__(self, streams: dict[int, Stream]) -> None:
        self._streams = streams
        self._held = b""  # a frame's header that is not whole, or SETTINGS
        self._left = 0  # bytes of the present frame's payload that are to pass
        self._block = 0  # the stream whose header block is not whole
        self._frames = 0  # of that block
        self._opened = False  # the first SETTINGS are said
        self._own = bytearray()  # frames of the gateway that wait for room

    def say(self, data: bytes) -> Commands:
        """Frames of the gateway, as soon as there is room for them."""
        self._own += data
        return self._flush()

    def open(self) -> Commands:
        """There is no server: the gateway begins itself."""
        out: Commands = [] if self._opened else [Say(CLIENT, say.settings())]
        self._opened = True
        return out + self._flush()

    @property
    def _room(self) -> bool:
        return self._opened and not self._left and not self._block

    def _flush(self) -> Commands:
        if not self._own or not self._room:
            return []
        said = bytes(self._own)
        self._own.clear()
        return [Say(CLIENT, said)]

    def receive(self, data: bytes) -> Commands:
        """Raises `Malformed`: nothing of `data` is to be passed then."""
        data = self._held + data if self._held else data
        self._held = b""
        out: Commands = []
        at, begin = 0, 0  # begin: of what passes and is not in `out` yet
        while at < len(data):
            if self._left:
                size = min(self._left, len(data) - at)
                self._left -= size
                at += size
            else:
                size = self._head(data, at)
                if not size:
                    break
                if data[at + 3] == SETTINGS and not data[at + 4] & ACK:
                    frame = data[at : at + size]
                    lowered = _lowered(frame)
                    if lowered != frame:
                        out += [Pass(SERVER, data[begin:at])] if begin < at else []
                        out += [Take(SERVER, frame), Say(CLIENT, lowered)]
                        begin = at + size
                    self._opened = True
                at += size
            if self._own and self._room:
                out += [Pass(SERVER, data[begin:at])] if begin < at else []
                out += self._flush()
                begin = at
        if begin < at:
            out.append(Pass(SERVER, data[begin:at]))
        self._held = data[at:]
        return out

    def _head(self, data: bytes, at: int) -> int:
        """A frame begins: how much of it passes at once (its header; SETTINGS whole); 0: there is not enough of it."""
        if len(data) - at < HEADER:
            return 0
        length, kind, flags = int.from_bytes(data[at : at + 3]), data[at + 3], data[at + 4]
        stream = int.from_bytes(data[at + 5 : at + HEADER]) & 0x7FFFFFFF
        fault = fault_of(kind, flags, stream, length)
        if fault or (not self._opened and (kind != SETTINGS or flags & ACK)):
            raise Malformed("not a frame of HTTP/2, or not the first one")
        if (self._block or stream) != stream or bool(self._block) != (kind == CONTINUATION):
            raise Malformed("a frame within a header block, or a part of one outside")
        if kind == SETTINGS and not flags & ACK:
            if length > MAX_SETTINGS:
                raise Malformed(f"settings of more than {MAX_SETTINGS} bytes")
            return HEADER + length if len(data) - at >= HEADER + length else 0
        if kind in (HEADERS, PUSH_PROMISE, CONTINUATION):
            self._frames = self._frames + 1 if kind == CONTINUATION else 1
            if self._frames > MAX_FRAMES:
                raise Malformed(f"a header block of more than {MAX_FRAMES} frames")
            self._block = 0 if flags & END_HEADERS else stream
        self._note(kind, flags, stream)
        self._left = length
        return HEADER

    def _note(self, kind: int, flags: int, stream: int) -> None:
        """What the frame does to its stream."""
        known = self._streams.get(stream)
        if known is None:
            return
        known.answered = known.answered or kind == HEADERS
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            known.server_ended = True
        if kind == RST_STREAM or (known.server_ended and known.agent_ended):
            del self._streams[stream]


def _lowered(frame: bytes) -> bytes:
    """SETTINGS whose table fits."""
    out = bytearray(frame)
    for at in range(HEADER, len(frame), 6):
        if (
            int.from_bytes(frame[at : at + 2]) == HEADER_TABLE_SIZE
            and int.from_bytes(frame[at + 2 : at + 6]) > MAX_TABLE
        ):
            out[at + 2 : at + 6] = MAX_TABLE.to_bytes(4)
    return bytes(out)
