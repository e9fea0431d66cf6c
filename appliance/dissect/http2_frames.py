"""Frames of HTTP/2 (RFC 9113 §4, §6): names, numbers, and what a header of nine bytes may look like."""

import re
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER: Final = 9  # bytes of a frame header
DEFAULT_FRAME: Final = 1 << 14  # SETTINGS_MAX_FRAME_SIZE unless another one was said
LARGEST_FRAME: Final = (1 << 24) - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
NAMES: Final = (
    "DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY", "WINDOW_UPDATE",
    "CONTINUATION",
)  # fmt: skip
END_STREAM: Final = 0x01
ACK: Final = 0x01
END_HEADERS: Final = 0x04
PADDED: Final = 0x08
PRIORITIZED: Final = 0x20

MAX_FRAME_SIZE: Final = 0x05  # a setting

ERRORS: Final = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip

_FLAGS: Final = (0x09, 0x2D, 0x00, 0x00, 0x01, 0x0C, 0x01, 0x00, 0x00, 0x04)  # defined ones
_SIZES: Final = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_OF_STREAM: Final = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, CONTINUATION))
_OF_CONNECTION: Final = frozenset((SETTINGS, PING, GOAWAY))


OPENING: Final = re.compile(  # what `plausible` headers begin with, all of their bytes
    rb"\x00[\x00-\x40][\x00-\xff]"
    rb"(?:[\x00-\x03\x05\x09][\x00-\x2d](?!\x00{4})[\x00-\x7f][\x00-\xff]{3}|[\x04\x06\x07][\x00\x01]\x00{4}"
    rb"|\x08\x00[\x00-\x7f][\x00-\xff]{3})"
)


def name_of(kind: int) -> str:
    return NAMES[kind] if kind < len(NAMES) else f"0x{kind:02x}"


def error_name(code: int) -> str:
    return ERRORS[code] if code < len(ERRORS) else f"0x{code:08x}"


def fault_of(kind: int, flags: int, stream: int, length: int) -> str:
    """What RFC 9113 §6 forbids about this frame header by itself; "" if nothing."""
    if (kind in _OF_STREAM and not stream) or (kind in _OF_CONNECTION and stream):
        return "stream"
    if length != _SIZES.get(kind, length) or (kind == GOAWAY and length < 8):
        return "size"
    if kind == SETTINGS and (length % 6 or (flags & ACK and length)):
        return "size"
    least = (flags & PADDED > 0) + (5 if kind == HEADERS and flags & PRIORITIZED else 0) + 4 * (kind == PUSH_PROMISE)
    if kind in (DATA, HEADERS, PUSH_PROMISE) and length < (least if kind != DATA else min(least, 1)):
        return "size"
    return ""


def plausible(data: bytes | bytearray, place: int) -> int:
    """The length of the whole frame whose header is at `place`, if bytes found anywhere may be one; else 0."""
    kind, flags = data[place + 3], data[place + 4]
    if data[place] or kind >= len(_FLAGS) or flags & ~_FLAGS[kind] or data[place + 5] & 0x80:
        return 0
    length = int.from_bytes(data[place : place + 3])
    stream = int.from_bytes(data[place + 5 : place + HEADER])
    if length > DEFAULT_FRAME or fault_of(kind, flags, stream, length):
        return 0
    return HEADER + length


def midstream(data: bytes) -> bool:
    """Whether bytes whose begin was not seen are frames: one whole, and another one's header or the end behind it."""
    if len(data) < HEADER:
        return False
    size = plausible(data, 0)
    if not size or size > len(data):
        return False
    return size == len(data) or (len(data) >= size + HEADER and plausible(data, size) > 0)
