"""SSH messages as values: one table of layouts, from which they are written and read.

Layouts: RFC 4252 §5 to §8 and RFC 4256 §3 (log-in), RFC 4253 §11 (disconnect), RFC 4254 §4 to §7 (connections); FILE is
this appliance's own, in the range that RFC 4250 §4.1.2 leaves to private use. What follows the common fields of a
message depends on its method, type or name: it has a table of its own.

    encode(DATA, recipient=0, data=b"ls\\n")
    parse(payload).fields["data"]

`parse` takes a whole payload and raises `ValueError` where it does not fit its layout; bytes behind the last field are
such an error too.
"""

import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

DISCONNECT: Final = 1
USERAUTH_REQUEST: Final = 50
USERAUTH_FAILURE: Final = 51
USERAUTH_SUCCESS: Final = 52
USERAUTH_BANNER: Final = 53
USERAUTH_INFO_REQUEST: Final = 60
USERAUTH_INFO_RESPONSE: Final = 61
GLOBAL_REQUEST: Final = 80
REQUEST_SUCCESS: Final = 81
REQUEST_FAILURE: Final = 82
CHANNEL_OPEN: Final = 90
OPEN_CONFIRMATION: Final = 91
OPEN_FAILURE: Final = 92
WINDOW_ADJUST: Final = 93
DATA: Final = 94
EXTENDED_DATA: Final = 95
EOF: Final = 96
CLOSE: Final = 97
CHANNEL_REQUEST: Final = 98
CHANNEL_SUCCESS: Final = 99
CHANNEL_FAILURE: Final = 100
FILE: Final = 192


Layout = tuple[tuple[str, str], ...]  # names and types of the fields

_CHANNEL: Final[Layout] = (("recipient", "uint32"),)
LAYOUTS: Final[dict[int, Layout]] = {
    DISCONNECT: (("reason", "uint32"), ("description", "text"), ("language", "text")),
    USERAUTH_REQUEST: (("user", "text"), ("service", "text"), ("method", "text")),
    USERAUTH_FAILURE: (("methods", "text"), ("partial", "boolean")),
    USERAUTH_SUCCESS: (),
    USERAUTH_BANNER: (("text", "text"), ("language", "text")),
    USERAUTH_INFO_REQUEST: (("name", "text"), ("instruction", "text"), ("language", "text"), ("prompts", "prompts")),
    USERAUTH_INFO_RESPONSE: (("responses", "strings"),),
    GLOBAL_REQUEST: (("name", "text"), ("want_reply", "boolean")),
    REQUEST_SUCCESS: (("data", "rest"),),
    REQUEST_FAILURE: (),
    CHANNEL_OPEN: (("type", "text"), ("sender", "uint32"), ("window", "uint32"), ("maximum", "uint32")),
    OPEN_CONFIRMATION: (*_CHANNEL, ("sender", "uint32"), ("window", "uint32"), ("maximum", "uint32"), ("data", "rest")),
    OPEN_FAILURE: (*_CHANNEL, ("reason", "uint32"), ("description", "text"), ("language", "text")),
    WINDOW_ADJUST: (*_CHANNEL, ("bytes", "uint32")),
    DATA: (*_CHANNEL, ("data", "string")),
    EXTENDED_DATA: (*_CHANNEL, ("type", "uint32"), ("data", "string")),
    EOF: _CHANNEL,
    CLOSE: _CHANNEL,
    CHANNEL_REQUEST: (*_CHANNEL, ("type", "text"), ("want_reply", "boolean")),
    CHANNEL_SUCCESS: _CHANNEL,
    CHANNEL_FAILURE: _CHANNEL,
    FILE: (("path", "text"), ("direction", "text"), ("bytes", "uint64"), ("sha256", "text")),
}

_ORIGIN: Final[Layout] = (("originator", "text"), ("originator_port", "uint32"))
_SIZE: Final[Layout] = (("columns", "uint32"), ("rows", "uint32"), ("width", "uint32"), ("height", "uint32"))
_ADDRESS: Final[Layout] = (("address", "text"), ("port", "uint32"))
VARIANTS: Final[dict[int, tuple[str, dict[str, Layout]]]] = {  # field that chooses, and what follows
    USERAUTH_REQUEST: (
        "method",
        {
            "none": (),
            "password": (("change", "boolean"), ("password", "string"), ("changed", "more")),
            "publickey": (("signed", "boolean"), ("algorithm", "text"), ("key", "string"), ("signature", "more")),
            "keyboard-interactive": (("language", "text"), ("submethods", "text")),
        },
    ),
    GLOBAL_REQUEST: (
        "name",
        {
            "tcpip-forward": _ADDRESS,
            "cancel-tcpip-forward": _ADDRESS,
            "streamlocal-forward@openssh.com": (("path", "text"),),
            "cancel-streamlocal-forward@openssh.com": (("path", "text"),),
            "keepalive@openssh.com": (),
            "no-more-sessions@openssh.com": (),
        },
    ),
    CHANNEL_OPEN: (
        "type",
        {
            "session": (),
            "x11": _ORIGIN,
            "direct-tcpip": (*_ADDRESS, *_ORIGIN),
            "forwarded-tcpip": (*_ADDRESS, *_ORIGIN),
            "direct-streamlocal@openssh.com": (("path", "text"), ("reserved", "text"), ("reserved_port", "uint32")),
            "forwarded-streamlocal@openssh.com": (("path", "text"), ("reserved", "text")),
            "auth-agent@openssh.com": (),
        },
    ),
    CHANNEL_REQUEST: (
        "type",
        {
            "pty-req": (("term", "text"), *_SIZE, ("modes", "string")),
            "x11-req": (("single", "boolean"), ("protocol", "text"), ("cookie", "string"), ("screen", "uint32")),
            "auth-agent-req@openssh.com": (),
            "env": (("name", "text"), ("value", "text")),
            "shell": (),
            "exec": (("command", "text"),),
            "subsystem": (("name", "text"),),
            "window-change": _SIZE,
            "xon-xoff": (("client_can_do", "boolean"),),
            "signal": (("signal", "text"),),
            "break": (("milliseconds", "uint32"),),
            "eow@openssh.com": (),
            "exit-status": (("status", "uint32"),),
            "exit-signal": (("signal", "text"), ("core_dumped", "boolean"), ("error", "text"), ("language", "text")),
        },
    ),
}

MAX_STRINGS: Final = 64  # prompts or responses of one message


class Parsed(NamedTuple):
    """One message. `fields` by name; `places`: where the strings' contents lie in the payload."""

    number: int
    fields: dict[str, Any]
    places: dict[str, tuple[int, int]]


class Reader:
    """Reads the types of RFC 4251 §5 from front to back; past the end is a `ValueError`."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        start = self.at
        if size > len(self.data) - start:
            raise ValueError("a field ends behind its message")
        self.at = start + size
        return self.data[start : start + size]

    def byte(self) -> int:
        return self.take(1)[0]

    def uint32(self) -> int:
        return int.from_bytes(self.take(4))

    def uint64(self) -> int:
        return int.from_bytes(self.take(8))

    def boolean(self) -> bool:
        return self.take(1) != b"\0"

    def string(self) -> bytes:
        return self.take(self.uint32())

    def text(self) -> str:
        return shown(self.string())

    def rest(self) -> bytes:
        return self.take(self.left)

    def more(self) -> bytes | None:
        """A string that may be missing."""
        return self.string() if self.left else None

    def strings(self) -> list[bytes]:
        return [self.string() for _ in range(self._count())]

    def prompts(self) -> list[tuple[str, bool]]:
        """What is asked, and whether the answer is shown while it is typed."""
        return [(self.text(), self.boolean()) for _ in range(self._count())]

    def _count(self) -> int:
        count = self.uint32()
        if count > MAX_STRINGS:
            raise ValueError(f"{count} strings in one message; at most {MAX_STRINGS}")
        return count


def shown(data: bytes) -> str:
    """A string of the protocol as text; what is not UTF-8 is escaped."""
    return data.decode("utf-8", "backslashreplace")


def string(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!I", len(data)) + data


def layout(number: int, fields: Mapping[str, Any]) -> Layout | None:
    """All fields of a message; None: what follows the common ones is not known, it is `data`."""
    common = LAYOUTS[number]
    if number not in VARIANTS:
        return common
    chooser, variants = VARIANTS[number]
    chosen = variants.get(fields[chooser])
    return None if chosen is None else (*common, *chosen)


def encode(number: int, **fields: Any) -> bytes:
    """The payload of a message. Text and strings as `str` or `bytes`; `data` is what follows of an unknown variant."""
    chosen = layout(number, fields)
    if chosen is None:
        chosen = (*LAYOUTS[number], ("data", "rest"))
    parts = [bytes([number])]
    for name, kind in chosen:
        value: Any = fields.get(name, _DEFAULTS.get(kind))
        if kind in ("text", "string"):
            parts.append(string(value))
        elif kind == "boolean":
            parts.append(b"\1" if value else b"\0")
        elif kind == "uint32":
            parts.append(struct.pack("!I", value))
        elif kind == "uint64":
            parts.append(struct.pack("!Q", value))
        elif kind == "rest":
            parts.append(value)
        elif kind == "more":
            parts.append(b"" if value is None else string(value))
        elif kind == "strings":
            parts.append(struct.pack("!I", len(value)) + b"".join(map(string, value)))
        else:
            asked = b"".join(string(text) + (b"\1" if echo else b"\0") for text, echo in value)
            parts.append(struct.pack("!I", len(value)) + asked)
    return b"".join(parts)


_DEFAULTS: Final[dict[str, Any]] = {
    "text": "", "string": b"", "boolean": False, "uint32": 0, "uint64": 0, "rest": b"", "more": None, "strings": (),
    "prompts": (),
}  # fmt: skip


def parse(payload: bytes) -> Parsed:
    """Read a whole payload. Raises `ValueError`: it does not fit, or its number is not known."""
    if not payload or payload[0] not in LAYOUTS:
        raise ValueError("a message of an unknown number")
    number = payload[0]
    reader = Reader(payload, 1)
    fields: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    _read(reader, LAYOUTS[number], fields, places)
    if number in VARIANTS:
        chosen = layout(number, fields)
        _read(reader, (("data", "rest"),) if chosen is None else chosen[len(LAYOUTS[number]) :], fields, places)
    if reader.left:
        raise ValueError("bytes behind the last field")
    return Parsed(number, fields, places)


def _read(reader: Reader, fields: Layout, found: dict[str, Any], places: dict[str, tuple[int, int]]) -> None:
    for name, kind in fields:
        before = reader.at
        found[name] = getattr(reader, kind)()
        if kind in ("string", "more", "rest"):
            places[name] = (min(before + (0 if kind == "rest" else 4), reader.at), reader.at)
        elif kind == "strings":
            places[name] = (before + 4, reader.at)
