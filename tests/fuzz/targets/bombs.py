"""HTTP bodies that decode to much more than they are, and bodies that are no such thing.

    codings (1 byte: how many, 1 byte each), one more that is claimed, then how the body is made: pieces and their
    repetitions, encoded, damaged at one place

What holds: no more than `MAX_DECODED` bytes come out, in bounded time and memory, however often it is packed; what was
packed honestly and is small comes out as it was; the text that is made of it can be stored.
"""

import gzip
import time
import tracemalloc
import zlib
from typing import Final

import brotli
import zstandard

from appliance.dissect.http_body import MAX_DECODED, codings, decode, media_type, text_of
from tests.fuzz.script import Script
from tests.fuzz.targets import Target

NAMES: Final = ("gzip", "deflate", "br", "zstd", "identity", "x-gzip", "compress")
KINDS: Final = (
    "text/plain; charset=", "application/json", "multipart/form-data; boundary=", "image/png", "",
    "text/html; charset=utf-16",
)  # fmt: skip
MAX_MADE: Final = 1 << 25  # bytes that a bomb is made of
BIG: Final = 1 << 24  # of which memory is measured
MAX_MEMORY: Final = 10 << 20  # bytes at one time while it is decoded
MAX_SECONDS: Final = 2.0  # of CPU


def pack(name: str, body: bytes, level: int) -> bytes:
    match name:
        case "gzip" | "x-gzip":
            return gzip.compress(body, level % 10, mtime=0)
        case "deflate":
            return zlib.compress(body, level % 10)
        case "br":
            return bytes(brotli.compress(body, quality=level % 5))
        case "zstd":
            return bytes(zstandard.ZstdCompressor(level=1 + level % 5).compress(body))
    return body


def check(data: bytes) -> None:
    script = Script(data)
    names = [NAMES[script.below(len(NAMES))] for _ in range(script.below(6))]
    damage, at, level = script.below(4), script.number(2), script.byte()
    kind = KINDS[script.below(len(KINDS))] + script.piece(16).decode("latin-1")
    made = bytearray()
    while script.more and len(made) < MAX_MADE:
        unit, times = script.piece(64), 1 << script.below(26)
        made += (unit * min(times, MAX_MADE // max(1, len(unit))))[: MAX_MADE - len(made)]
    honest = bytes(made)
    body = honest
    for name in names:
        body = pack(name, body, level)
    if damage == 1:
        body = body[: at % (len(body) + 1)]
    elif damage == 2 and body:
        place = at % len(body)
        body = body[:place] + bytes([body[place] ^ (level | 1)]) + body[place + 1 :]
    elif damage == 3:
        body += body[: at % (len(body) + 1)]
    if len(honest) >= BIG:
        tracemalloc.start()
    begun = time.thread_time()
    read = decode(body, names, whole=True)
    if len(honest) >= BIG:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= MAX_MEMORY + 2 * len(body), f"{peak} bytes of memory for {len(body)}"
    said = text_of(read.data, media_type(kind))
    spent = time.thread_time() - begun
    assert spent < MAX_SECONDS, f"{spent:.1f} s of CPU for {len(body)} bytes"
    assert len(read.data) <= MAX_DECODED, f"decoded to {len(read.data)} bytes"
    if said is not None:
        said.encode()
        assert len(said) <= 4 * MAX_DECODED, f"{len(said)} characters"
    known = "compress" not in names and len(names) - names.count("identity") <= 4 and "identity" not in names
    if known and not damage and len(honest) <= 4096 and not read.flags:
        assert read.data == honest, "not what was packed"
    if known and not damage and len(honest) <= 4096:
        assert "undecoded" not in read.flags or (not honest and not names), "packed honestly, but not decoded"
    codings(kind)


def seeds() -> list[bytes]:
    head = b"\0\x05utf-8"
    bodies = (b"\x05hello\0", b"\1a\x13", b"\x02ab\x08\x04\r\n--\3")
    found = []
    for number in range(len(NAMES)):
        for damage in range(4):
            found.append(bytes([1, number, damage, 9, 0, 6]) + head + bodies[number % len(bodies)])
    bombs = [bytes([1, number, 0, 0, 0, 6]) + head + b"\1a\x19" for number in range(4)]
    bombs.append(bytes([4, 0, 1, 2, 3, 0, 0, 0, 9]) + head + b"\1a\x13" * 4)
    parts = b"\x10--x\r\nContent-Typ\0\x12e: text/plain\r\n\r\nhi\0"
    return [*found, *bombs, bytes([0, 0, 0, 0, 0, 2, 1]) + b"x" + parts]


TARGETS: Final = {"http_body": Target(check, seeds, size=512)}
