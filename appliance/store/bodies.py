"""Bodies of HTTP requests: length, chunks, compression and forms, each within a limit."""

import re
import zlib
from collections.abc import Callable
from typing import BinaryIO

from appliance.errors import MalformedInput, Refused

READ = 1 << 20
MAX_FORM_PARTS = 256
_BOUNDARY = re.compile(r'boundary="?([^";]{1,70})"?')
_NAME = re.compile(rb'\bname="([^"\r\n]{1,200})"')


def read(stream: BinaryIO, length: str | None, transfer: str, limit: int) -> bytes:
    """The body as it was sent: `length` bytes, or chunked (RFC 9112, section 7.1). Raises `Refused` above `limit`."""
    if "chunked" in transfer.lower():
        return _chunked(stream, limit)
    if length is None:
        return b""
    if not length.isascii() or not length.isdigit():
        raise MalformedInput("Content-Length is not a number")
    if int(length) > limit:
        raise Refused(f"body is larger than {limit} bytes; send smaller batches")
    body = stream.read(int(length))
    if len(body) != int(length):
        raise MalformedInput("body ends early")
    return body


def _chunked(stream: BinaryIO, limit: int) -> bytes:
    body = bytearray()
    while True:
        line = stream.readline(64)
        try:
            size = int(line.split(b";")[0], 16) if line.endswith(b"\n") else -1
        except ValueError:
            size = -1
        if size < 0:
            raise MalformedInput("chunk of the body has no size")
        if len(body) + size > limit:
            raise Refused(f"body is larger than {limit} bytes; send smaller batches")
        if size == 0:
            while stream.readline(4096) not in (b"\r\n", b"\n", b""):  # trailers
                pass
            return bytes(body)
        part = stream.read(size)
        if len(part) != size or stream.readline(3) not in (b"\r\n", b"\n"):
            raise MalformedInput("chunk of the body ends early")
        body += part


def decode(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo a Content-Encoding, all frames of it: clickhouse-connect sends one frame per block of rows."""
    match encoding.lower():
        case "" | "identity":
            return body
        case "lz4":
            import lz4.frame

            return _frames(body, limit, lz4.frame.LZ4FrameDecompressor)
        case "zstd":
            from backports import zstd

            return _frames(body, limit, zstd.ZstdDecompressor)
        case "gzip":
            return _frames(body, limit, lambda: _Zlib(31))
        case "deflate":
            return _frames(body, limit, lambda: _Zlib(15))
    raise Refused("Content-Encoding is none of lz4, zstd, gzip, deflate")


class _Zlib:
    """zlib's decompressor with the interface of the others."""

    def __init__(self, bits: int) -> None:
        self._inner = zlib.decompressobj(bits)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


def _frames(body: bytes, limit: int, start: Callable[[], object]) -> bytes:
    whole = bytearray()
    rest = body
    while rest:
        frame: object = start()
        given = rest
        while True:
            try:
                part = frame.decompress(given, max_length=limit + 1 - len(whole))  # type: ignore[attr-defined]
            except Exception as error:  # each library has its own class
                raise MalformedInput("compressed body is damaged") from error
            whole += part
            if len(whole) > limit:
                raise Refused(f"body is larger than {limit} bytes when unpacked; send smaller batches")
            given = b""
            if frame.eof:  # type: ignore[attr-defined]
                break
            if not part:
                raise MalformedInput("compressed body ends early")
        rest = frame.unused_data or b""  # type: ignore[attr-defined]
    return bytes(whole)


def form(body: bytes, content_type: str) -> dict[str, str]:
    """Text fields of a multipart form (RFC 7578), which clickhouse-connect uses for long parameters."""
    found = _BOUNDARY.search(content_type)
    if not found:
        raise MalformedInput("form has no boundary")
    parts = (b"\r\n" + body).split(b"\r\n--" + found[1].encode("latin-1"))
    if len(parts) > MAX_FORM_PARTS + 2 or not parts[-1].startswith(b"--"):
        raise MalformedInput("form is not complete, or has too many fields")
    fields: dict[str, str] = {}
    for part in parts[1:-1]:
        head, gap, value = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if not gap or not name or b"filename=" in head:
            raise MalformedInput("form has a field without a name, or a file")
        fields[name[1].decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    return fields
