"""HTTP/2 on the wire, made by the `hpack` package and by hand."""

from collections.abc import Sequence

import hpack

from appliance.dissect.http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
)

Fields = Sequence[tuple[str, str]]
GET: Fields = ((":method", "GET"), (":scheme", "http"), (":authority", "a.example"), (":path", "/"))


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def settings(**values: int) -> bytes:
    numbers = {"table": 1, "frame": 5}
    return frame(
        SETTINGS,
        0,
        b"".join(numbers[name].to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values.items()),
    )


def post(path: str, *fields: tuple[str, str]) -> Fields:
    return ((":method", "POST"), (":scheme", "http"), (":authority", "a.example"), (":path", path), *fields)


def data(stream: int, body: bytes, *, end: bool = False, pad: int = -1) -> bytes:
    if pad >= 0:
        return frame(DATA, stream, bytes([pad]) + body + bytes(pad), PADDED | end)
    return frame(DATA, stream, body, int(end))


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, stream, code.to_bytes(4, "big"))


def goaway(last: int, code: int, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big") + debug)


class Peer:
    """One direction's encoder. `huffman`: how strings are sent."""

    def __init__(self, *, huffman: bool = True) -> None:
        self.encoder = hpack.Encoder()
        self.huffman = huffman

    def block(self, fields: Fields, *, never: Sequence[str] = ()) -> bytes:
        return self.encoder.encode([(name, value, name in never) for name, value in fields], huffman=self.huffman)

    def headers(
        self, stream: int, fields: Fields, *, end: bool = False, pieces: int = 1, never: Sequence[str] = ()
    ) -> bytes:
        block = self.block(fields, never=never)
        step = max(1, -(-len(block) // pieces))
        parts = [block[at : at + step] for at in range(0, len(block), step)]
        out = []
        for number, part in enumerate(parts):
            flags = END_HEADERS * (number == len(parts) - 1)
            if number == 0:
                out.append(frame(HEADERS, stream, part, flags | END_STREAM * end))
            else:
                out.append(frame(CONTINUATION, stream, part, flags))
        return b"".join(out)

    def push(self, stream: int, promised: int, fields: Fields) -> bytes:
        return frame(PUSH_PROMISE, stream, promised.to_bytes(4, "big") + self.block(fields), END_HEADERS)


def opening(**values: int) -> bytes:
    return PREFACE + settings(**values)
