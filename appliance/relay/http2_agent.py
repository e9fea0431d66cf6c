"""What an agent says in HTTP/2, frame by frame: header blocks to requests and trailers, all else as it came."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Final

from appliance.dissect.http2_frames import (
    CONTINUATION,
    DATA,
    END_STREAM,
    HEADER,
    HEADERS,
    PADDED,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    WINDOW_UPDATE,
    fault_of,
)
from appliance.model import Direction
from appliance.relay import http2_say as say
from appliance.relay.http2_block import Block, Blocks
from appliance.relay.http2_head import Fields
from appliance.relay.http2_server import ServerFrames, Stream
from appliance.relay.http_head import Ambiguous, Malformed
from appliance.relay.mediator import Commands, Note, Pass, Take

MAX_REFUSED: Final = 1024  # streams of which is remembered that the server never heard of them
MAX_CONTROL: Final = 64 * 1024 + 256  # bytes of a frame other than DATA
CLIENT, SERVER = Direction.CLIENT, Direction.SERVER


class AgentFrames(ABC):
    """`tokens`: names of the fields that may hold one, if one is to be taken. The methods raise `Malformed` where the
    connection must end."""

    def __init__(self, tokens: frozenset[bytes]) -> None:
        self._hides = bool(tokens)
        self._held = bytearray()
        self._begun = False  # the preface was seen
        self._left = 0  # bytes of the present DATA frame that are to come
        self._data = (0, 0, 0)  # its stream, flags and length
        self._padding: int | None = None  # of it; None: that is still to come
        self._block: Block | None = None
        self._blocks = Blocks(tokens)
        self._streams: dict[int, Stream] = {}
        self._refused: OrderedDict[int, None] = OrderedDict()
        self._highest = 0
        self._server = ServerFrames(self._streams)
        self._run = bytearray()  # bytes that pass and are not said yet

    @abstractmethod
    def _request(self, block: Block, fields: Fields, out: Commands) -> None:
        """A request begins."""

    @abstractmethod
    def _trailers(self, block: Block, fields: Fields, out: Commands) -> None:
        """A request ends with fields."""

    # -- what becomes of bytes -------------------------------------------------------------------------------------

    def _pass(self, size: int) -> None:
        self._run += self._held[:size]
        del self._held[:size]

    def _drop(self, size: int, out: Commands) -> None:
        """The gateway deals with it."""
        self._flush(out)
        out.append(Take(CLIENT, bytes(self._held[:size])))
        del self._held[:size]

    def _flush(self, out: Commands) -> None:
        if self._run:
            out.append(Pass(CLIENT, bytes(self._run)))
            self._run.clear()

    def _take_held(self, out: Commands) -> None:
        """On record: what nobody will read; nobody knows where in it a token is."""
        self._flush(out)
        data = bytes(self._block.raw if self._block is not None else b"") + bytes(self._held)
        self._block = None
        self._held.clear()
        if data:
            out.append(Take(CLIENT, data, ((0, len(data), "unread"),) if self._hides else ()))

    def _refuse(self, stream: int) -> None:
        self._refused[stream] = None
        if len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)

    # -- frames ----------------------------------------------------------------------------------------------------

    def _preface(self) -> bool:
        """Is it there?"""
        size = min(len(self._held), len(PREFACE))
        if self._held[:size] != PREFACE[:size]:
            raise Malformed("not the preface of HTTP/2")
        self._begun = size == len(PREFACE)
        return self._begun

    def _frame(self, out: Commands) -> bool:
        """One frame, or a piece of one; False: there is not enough of it."""
        held = self._held
        if self._left:
            if held:
                self._piece(out)
            return bool(held)
        if len(held) < HEADER:
            return False
        length, kind, flags = int.from_bytes(held[:3]), held[3], held[4]
        stream = int.from_bytes(held[5:HEADER]) & 0x7FFFFFFF
        block = self._block
        if (block is not None) != (kind == CONTINUATION) or (block is not None and stream != block.stream):
            raise Malformed("a frame within a header block, or a part of one outside")
        fault = fault_of(kind, flags, stream, length)
        if fault:
            raise Malformed(f"a frame whose {fault} is not what it must be")
        if kind == DATA:
            self._begin_data(stream, flags, length, out)
            return True
        if length > MAX_CONTROL:
            raise Malformed(f"a frame of more than {MAX_CONTROL} bytes")
        if len(held) < HEADER + length:
            return False
        if kind in (HEADERS, CONTINUATION):
            self._fragment(kind, stream, HEADER + length, out)
        else:
            self._control(kind, stream, HEADER + length, out)
        return True

    def _control(self, kind: int, stream: int, size: int, out: Commands) -> None:
        if kind == PUSH_PROMISE:
            raise Malformed("a promise of an agent")
        if stream % 2 and stream > self._highest and kind in (RST_STREAM, WINDOW_UPDATE):
            raise Malformed("a frame of a stream that was not opened")
        if stream in self._refused:
            self._drop(size, out)
            return
        if kind == RST_STREAM:
            self._streams.pop(stream, None)
        self._pass(size)

    def _begin_data(self, stream: int, flags: int, length: int, out: Commands) -> None:
        known = self._streams.get(stream)
        if not stream % 2 or stream > self._highest or (known is not None and known.agent_ended):
            raise Malformed("a body of a stream that was not opened, or behind its end")
        self._data, self._left = (stream, flags, length), length
        self._padding = None if flags & PADDED and length else 0
        self._body(HEADER, out)
        if not length:
            self._end_data(out)

    def _body(self, size: int, out: Commands) -> None:
        if self._data[0] in self._refused:
            self._drop(size, out)
        else:
            self._pass(size)

    def _piece(self, out: Commands) -> None:
        stream, _, length = self._data
        size = min(self._left, len(self._held))
        content = size
        if self._padding is None:
            self._padding = self._held[0]
            if self._padding >= length:
                raise Malformed("more padding than the frame has room for")
            content -= 1
        behind = self._left - size  # bytes of the frame behind this piece
        content = max(0, content - max(0, self._padding - behind))
        known = self._streams.get(stream)
        if known is not None and known.left is not None:
            known.left -= content
            if known.left < 0:
                raise Ambiguous("cl-mismatch", "a body that is longer than its Content-Length")
        if not behind:
            self._check_end(stream)
        self._left -= size
        self._body(size, out)
        if not self._left:
            self._end_data(out)

    def _check_end(self, stream: int) -> None:
        known = self._streams.get(stream)
        if self._data[1] & END_STREAM and known is not None and known.left:
            raise Ambiguous("cl-mismatch", "a body that is shorter than its Content-Length")

    def _end_data(self, out: Commands) -> None:
        stream, flags, length = self._data
        if stream in self._refused:
            if length:
                out += self._server.say(say.credit(length))
        elif flags & END_STREAM:
            self._ended(stream)

    def _ended(self, stream: int) -> None:
        known = self._streams.get(stream)
        if known is None:
            return
        known.agent_ended = True
        if known.server_ended:
            del self._streams[stream]

    def _fragment(self, kind: int, stream: int, size: int, out: Commands) -> None:
        if kind == HEADERS:
            if not stream % 2:
                raise Malformed("a request on a stream of the server")
            self._block = Block(stream)
        block = self._block
        assert block is not None
        frame = bytes(self._held[:size])
        del self._held[:size]
        if not block.add(frame):
            return
        fields, raw, ranges = self._blocks.read(block)
        self._block = None
        self._flush(out)
        for start, end, what in ranges:
            text = f"{what}: {end - start} bytes are kept by length only"
            out.append(Note("redacted", text, {"what": what}, CLIENT, start, end))
        out.append(Take(CLIENT, raw))
        if stream > self._highest:
            self._highest = stream
            self._request(block, fields, out)
        elif stream in self._streams:
            self._trailers(block, fields, out)
        # else the server has reset the stream, or the gateway has answered: they are for nobody
