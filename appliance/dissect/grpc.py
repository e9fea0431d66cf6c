"""gRPC over HTTP (PROTOCOL-HTTP2.md and PROTOCOL-WEB.md of grpc/grpc): the length-prefixed messages within a body.

Kind `grpc-message`: attrs content_type, path (service and method), number (from 1 in its direction), length (bytes as
sent), encoding where its flag says that it is compressed, and trailers for the block of them that grpc-web puts in the
body. Text is a reading of the protobuf, see protobuf.py; of other formats the text. Its range is that of the message
with its five bytes of prefix, and of the frame headers in between. Flags: truncated, undecoded, gap, malformed.
"""

from typing import Any, Final

from appliance.dissect import Output
from appliance.dissect.http_body import decode
from appliance.dissect.protobuf import readable
from appliance.dissect.raw import printable
from appliance.model import Direction, Message

PREFIX: Final = 5  # bytes: flags, length
MAX_KEPT: Final = 1 << 16  # bytes of one message that are read for text
COMPRESSED: Final = 0x01
TRAILERS: Final = 0x80  # grpc-web

# https://grpc.io/docs/guides/status-codes/
STATUS: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_TYPES: Final = ("application/grpc", "application/grpc-web")  # grpc-web-text hides its messages in Base64
_PROTOBUF: Final = ("", "proto")


def is_grpc(content_type: str) -> bool:
    """Whether a body of this media type holds length-prefixed messages."""
    return content_type.startswith("application/grpc") and content_type.partition("+")[0] in _TYPES


def status_name(code: str) -> str:
    """ "" if there is no such status."""
    known = code.isascii() and code.isdigit() and len(code) < 3 and int(code) < len(STATUS)
    return STATUS[int(code)] if known else ""


class GrpcBody:
    """Reads a body that is still open. `encoding`: of its compressed messages. `reply`: the start of the request."""

    def __init__(self, direction: Direction, content_type: str, encoding: str, path: str, reply: int | None) -> None:
        self._direction = direction
        self._content_type = content_type
        self._encoding = encoding.strip().lower()
        self._path = path
        self._reply = reply
        self._prefix = bytearray()
        self._kept = bytearray()
        self._left = 0  # bytes of the message that did not come yet
        self._start = self._end = 0
        self._ts_ns = 0
        self._count = 0
        self._lost = False

    @property
    def held(self) -> int:
        return len(self._kept)

    def attrs(self) -> dict[str, Any]:
        return {"grpc_messages": self._count}

    def take(self, data: bytes | bytearray | memoryview, offset: int, ts_ns: int, out: Output) -> None:
        """The next bytes of the body, at `offset` of the stream."""
        place = 0
        while place < len(data) and not self._lost:
            if not self._prefix:
                self._start, self._ts_ns = offset + place, ts_ns
            if len(self._prefix) < PREFIX:
                step = min(PREFIX - len(self._prefix), len(data) - place) if self._prefix else 1
                self._prefix += data[place : place + step]
                self._left = int.from_bytes(self._prefix[1:]) if len(self._prefix) == PREFIX else 1
            else:
                step = min(self._left, len(data) - place)
                room = MAX_KEPT - len(self._kept)
                if room > 0:
                    self._kept += data[place : place + min(step, room)]
                self._left -= step
            place += step
            self._end = offset + place
            if self._prefix[0] & ~(COMPRESSED | TRAILERS):  # so the length can't be trusted either
                self._say(ts_ns, out, {"malformed"})
                self._lost = True
            elif not self._left:
                self._say(ts_ns, out, set())

    def lose(self, ts_ns: int, out: Output) -> None:
        """Bytes are missing, and with them where messages begin."""
        if self._prefix:
            self._say(ts_ns, out, {"gap", "truncated"})
        self._lost = True

    def end(self, ts_ns: int, out: Output) -> None:
        if self._prefix:
            self._say(ts_ns, out, {"truncated"})

    def _say(self, ts_ns: int, out: Output, flags: set[str]) -> None:
        self._count += 1
        length = int.from_bytes(self._prefix[1:]) if len(self._prefix) == PREFIX else 0
        attrs: dict[str, Any] = {
            "content_type": self._content_type,
            "path": self._path,
            "number": self._count,
            "length": length,
        }
        kept = bytes(self._kept)
        text = "" if "malformed" in flags else self._read(kept, length == len(kept), attrs, flags)
        out.append(
            Message(
                self._direction,
                "grpc-message",
                self._ts_ns,
                self._start,
                self._end,
                text,
                attrs,
                self._reply,
                tuple(sorted(flags)),
                end_ns=ts_ns,
            )
        )
        self._prefix.clear()
        self._kept.clear()

    def _read(self, kept: bytes, whole: bool, attrs: dict[str, Any], flags: set[str]) -> str:
        if not whole:
            flags.add("truncated")
        if self._prefix[0] & COMPRESSED:
            attrs["encoding"] = self._encoding
            read = decode(kept, [self._encoding or "identity"], whole=whole)
            flags.update(read.flags)
            kept = read.data[:MAX_KEPT]
            if len(read.data) > MAX_KEPT:
                flags.add("truncated")
        if self._prefix[0] & TRAILERS:
            attrs["trailers"] = True
            return printable(kept).replace("\r\n", "\n").strip("\n")
        _, _, form = self._content_type.partition("+")
        return readable(kept) if form in _PROTOBUF else printable(kept)
