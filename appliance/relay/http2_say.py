"""Frames of HTTP/2 that the gateway makes itself (RFC 9113 §6)."""

from typing import Final

from appliance.dissect.http2_frames import (
    CONTINUATION,
    DEFAULT_FRAME,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from appliance.relay.http2_head import encode
from appliance.relay.http_answer import challenges

NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
REFUSED_STREAM: Final = 7
_GRPC: Final = {400: 13, 401: 16, 403: 7, 421: 7, 504: 4}  # statuses of gRPC; UNAVAILABLE for all others
_GRPC_UNAVAILABLE: Final = 14


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def headers(stream: int, block: bytes, *, end_stream: bool) -> bytes:
    """A header block, in as many frames as it takes."""
    pieces = [block[at : at + DEFAULT_FRAME] for at in range(0, len(block), DEFAULT_FRAME)] or [b""]
    out = bytearray()
    for number, piece in enumerate(pieces):
        flags = END_HEADERS if number == len(pieces) - 1 else 0
        if number:
            out += frame(CONTINUATION, flags, stream, piece)
        else:
            out += frame(HEADERS, flags | (END_STREAM if end_stream else 0), stream, piece)
    return bytes(out)


def settings(payload: bytes = b"") -> bytes:
    return frame(SETTINGS, 0, 0, payload)


def reset(stream: int, error: int) -> bytes:
    return frame(RST_STREAM, 0, stream, error.to_bytes(4))


def goaway(last: int, error: int) -> bytes:
    return frame(GOAWAY, 0, 0, last.to_bytes(4) + error.to_bytes(4))


def credit(size: int) -> bytes:
    """The connection's window opens again by what was discarded."""
    return frame(WINDOW_UPDATE, 0, 0, size.to_bytes(4))


def answer(stream: int, status: int, text: str, *, grpc: bool) -> bytes:
    """An answer without a body, which no window can hold up; `text` is for people."""
    said = "".join(character if " " <= character <= "~" else "?" for character in text)[:1024].encode()
    if grpc:
        fields = [
            (b":status", b"200"),
            (b"content-type", b"application/grpc"),
            (b"grpc-status", str(_GRPC.get(status, _GRPC_UNAVAILABLE)).encode()),
            (b"grpc-message", said.replace(b"%", b"%25")),
        ]
    else:
        fields = [(b":status", str(status).encode()), (b"content-length", b"0"), (b"verbatim-reason", said)]
        fields += [(name.lower().encode(), value.encode()) for name, value in challenges(status)]
    return headers(stream, encode(fields), end_stream=True)
