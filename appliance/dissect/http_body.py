"""HTTP content for search: content codings undone, then text by media type and charset. Pure and bounded.

Content codings (RFC 9110 §8.4): gzip, deflate (zlib-wrapped, and bare as some servers send it), br (RFC 7932),
zstd (RFC 8878). What decodes to more than `MAX_DECODED`, or to more than `MAX_RATIO` times its size, is cut.
"""

import re
import zlib
from dataclasses import dataclass
from functools import lru_cache

import brotli
import msgspec
import zstandard

MAX_DECODED = 1 << 20  # bytes that one body is decoded to
MAX_RATIO = 256  # decoded to encoded, per coding, once it is more than FREE_DECODED
FREE_DECODED = 1 << 16
MAX_CODINGS = 4
MAX_MEMBERS = 64  # gzip members or zstd frames in one body
MAX_WINDOW = 1 << 23  # zstd window
MAX_PARTS = 64  # of a multipart body

_CHARSET = re.compile(
    r"utf-?(8|16|32)(-?[lb]e)?|us-ascii|ascii|iso-?8859-\d{1,2}|latin-?\d|windows-\d{3,4}|cp\d{3,4}|koi8-[ru]"
    r"|gb2312|gbk|gb18030|big5|euc-?(jp|kr)|shift[_-]jis|iso-2022-(jp|kr)",
    re.IGNORECASE,
)
_TEXTUAL = re.compile(
    r"text/.*|.*[/+](json|xml|yaml|ndjson|jsonl|json-seq)|application/(x-)?(javascript|ecmascript|x-www-form-urlencoded"
    r"|graphql|sql|toml|x-sh|www-form-urlencoded|x-json|x-ndjson|x-yaml|jsonlines)|message/.*|image/svg\+xml"
)
_BINARY = re.compile(r"(image|audio|video|font)/.*")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_PARAMETER = re.compile(r';[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))')


@dataclass(frozen=True, slots=True)
class MediaType:
    """`type/subtype` in lower case, and the parameters that matter here.

    `charset`: "" unless it is one to decode by. `textual`: all of the content is text.
    """

    name: str
    charset: str
    boundary: str
    textual: bool


class Decoded(msgspec.Struct, frozen=True):
    data: bytes
    flags: tuple[str, ...]  # truncated: cut by a limit or short; undecoded: unknown or broken coding


def media_type(field: str) -> MediaType:
    """A Content-Type field value (RFC 9110 §8.3)."""
    return _usual_type(field) if len(field) < 64 else _media_type(field)


def _media_type(field: str) -> MediaType:
    name, _, _ = field.partition(";")
    found = {key.lower(): quoted or plain for key, quoted, plain in _PARAMETER.findall(field[:1024])}
    name, charset = name.strip().lower(), found.get("charset", "")
    textual = name == "application/json" or _TEXTUAL.fullmatch(name) is not None
    return MediaType(name, charset if _CHARSET.fullmatch(charset) else "", found.get("boundary", ""), textual)


_usual_type = lru_cache(256)(_media_type)


def codings(field: str) -> list[str]:
    """The codings of a Content-Encoding field value, in the order they were applied."""
    if not field:
        return []
    return [name for part in field.split(",") if (name := part.strip().lower()) not in ("", "identity")]


def decode(body: bytes, encodings: list[str], *, whole: bool) -> Decoded:
    """Undo the content codings. `whole` false: the body is a prefix, a short end is expected."""
    if not encodings and whole and len(body) <= MAX_DECODED:
        return Decoded(body, ())
    if len(encodings) > MAX_CODINGS:
        return Decoded(b"", ("undecoded",))
    flags: set[str] = set()
    for name in reversed(encodings):
        if not body:
            break
        undo = _CODINGS.get(name)
        limit = min(MAX_DECODED, max(FREE_DECODED, len(body) * MAX_RATIO))
        try:
            if undo is None:
                return Decoded(b"", ("undecoded",))
            body, ended = undo(body, limit)
        except (zlib.error, brotli.error, zstandard.ZstdError, MemoryError, ValueError):
            return Decoded(b"", ("undecoded",))
        if len(body) > limit:
            body, ended = body[:limit], False
        if not ended:
            flags.add("truncated")
    if len(body) > MAX_DECODED:
        body = body[:MAX_DECODED]
        flags.add("truncated")
    if not whole:
        flags.add("truncated")
    return Decoded(body, tuple(sorted(flags)))


def _gzip(body: bytes, limit: int) -> tuple[bytes, bool]:
    """RFC 1952. Bytes behind the last member are ignored, as browsers and curl do."""
    if body[:2] != b"\x1f\x8b":
        raise ValueError
    out = bytearray()
    for _ in range(MAX_MEMBERS):
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        out += member.decompress(body, limit + 1 - len(out))
        if not member.eof or len(out) > limit:
            return bytes(out), False
        body = member.unused_data
        if body[:2] != b"\x1f\x8b":
            return bytes(out), True
    return bytes(out), False


def _deflate(body: bytes, limit: int) -> tuple[bytes, bool]:
    try:
        stream = zlib.decompressobj()
        out = stream.decompress(body, limit + 1)
    except zlib.error:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        out = stream.decompress(body, limit + 1)
    return out, stream.eof


def _brotli(body: bytes, limit: int) -> tuple[bytes, bool]:
    stream = brotli.Decompressor()
    out = bytes(stream.process(body, output_buffer_limit=limit + 1))
    return out, bool(stream.is_finished())


def _zstd(body: bytes, limit: int) -> tuple[bytes, bool]:
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(body, read_across_frames=True)
    out = bytes(reader.read(limit + 1))
    return out, len(out) <= limit and _zstd_ended(body)


def _zstd_ended(body: bytes) -> bool:
    """The reader does not say whether the last frame was whole; the decompressor object does, frame by frame."""
    for _ in range(MAX_MEMBERS):
        frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
        frame.decompress(body)
        body = frame.unused_data
        if not frame.eof or not body:
            return bool(frame.eof)
    return False


_CODINGS = {
    "gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "br": _brotli, "zstd": _zstd,
}  # fmt: skip


def text_of(data: bytes, kind: MediaType) -> str | None:
    """The content as text, or None if it is binary."""
    if kind.boundary and kind.name.startswith("multipart/"):
        return _multipart(data, kind.boundary)
    if kind.textual:
        return _decode_text(data, kind.charset)
    if _BINARY.fullmatch(kind.name):
        return None
    try:  # unnamed, or of a type that says little
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return None
        text = data[: error.start].decode("utf-8")
    return None if _CONTROL.search(text) else text


def _decode_text(data: bytes, charset: str) -> str:
    if data[:1] >= b"\xef":
        if data[:3] == b"\xef\xbb\xbf":
            return data[3:].decode("utf-8", "replace")
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return data.decode("utf-16", "replace")
    if charset:
        try:
            return data.decode(charset, "replace")
        except LookupError:
            pass
    return data.decode("utf-8", "replace")


def _multipart(data: bytes, boundary: str) -> str:
    """RFC 2046 §5.1: header lines and text of every part; of binary parts only how long they are."""
    said: list[str] = []
    parts = (b"\r\n" + data).split(b"\r\n--" + boundary.encode("latin-1", "replace"), MAX_PARTS + 1)
    for part in parts[1 : MAX_PARTS + 1]:
        if part.startswith(b"--"):
            break
        head, _, content = part.lstrip(b" \t").removeprefix(b"\r\n").partition(b"\r\n\r\n")
        fields = head.decode("utf-8", "replace").replace("\r\n", "\n")
        named = re.search(r"(?im)^content-type[ \t]*:[ \t]*(.*)$", fields)
        kind = media_type(named.group(1) if named else "")
        text = None if kind.name.startswith("multipart/") else text_of(content, kind)
        said.append(f"{fields}\n\n{text if text is not None else f'[{len(content)} bytes]'}")
    return "\n".join(said)
