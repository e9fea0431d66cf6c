"""What a Redis server sends, cut into replies (redis.io, "Redis serialization protocol specification").

    LINE  `+ - : _ # , (`       ──► one value
    LINE  `$ ! =` and a length  ──► BULK, then LINE; `$?`: pieces `;L` up to `;0`
    LINE  `* % ~ > |` and N     ──► so many values belong to it (`%` and `|`: twice); `*?`: up to a line `.`
    any   other line            ──► IGNORED: this direction is not read any more
    any   gap                   ──► goes on behind it if it lies within a bulk string, else SEARCHING
    SEARCHING  a line that can be a reply's first ──► LINE

A `Reply` is printed while it arrives, up to a maximum. Only lines wait to be whole.
"""

import re
from collections.abc import Iterator
from enum import Enum
from typing import Final

import msgspec

from appliance.dissect.redis_printed import ATTRIBUTES, EMPTY, MARKS, PAIRS, Printed
from appliance.dissect.redis_words import REDACTED, SECRET_PARAMETERS, hide, quoted, readable, split

MAX_KEPT: Final = 65536  # bytes of one bulk string that are kept
MAX_LINE: Final = 65536  # bytes of a simple string or an error that are kept
MAX_HEADER: Final = 32  # bytes of the line of any other type
MAX_CREDENTIAL: Final = 65536  # bytes redacted in one bulk string

MONITORED: Final = re.compile(rb"[0-9]{1,12}\.[0-9]{6} \[[0-9]{1,6} [^\]]{0,120}\] ")
_BEGINS: Final = re.compile(
    rb"(?:\+[A-Z][ -~]{0,200}|-[A-Z]+ [ -~]{1,200}|:-?[0-9]{1,19}|[$*%~>](?:-1|[0-9]{1,10})|_|#[tf])\r\n"
)
REPLICATION: Final = -1  # kind of what stands for the begin of a replication stream
_LENGTH: Final = re.compile(rb"[0-9]{1,10}")
_INTEGER: Final = re.compile(rb"[+-]?[0-9]{1,19}")
_DOUBLE: Final = re.compile(rb"[+-]?(?:inf|nan|[0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][+-]?[0-9]{1,5})?)", re.IGNORECASE)
_BIG: Final = re.compile(rb"[+-]?[0-9]{1,20000}")
_BULKS: Final = b"$!="
_LONG: Final = b"+-("


class Reply(msgspec.Struct, gc=False):
    """One whole reply, push message or, `kind` 0, bytes that are none. `kind`: its type byte."""

    kind: int
    text: str
    raw: bytes  # the value of a line or bulk string; cut at MAX_KEPT
    heads: list[bytes]  # first values of an aggregate
    start: int
    end: int
    ts_ns: int
    end_ns: int
    flags: tuple[str, ...] = ()


class Mode(Enum):
    LINE = 0
    BULK = 1
    LONG = 2  # a line is too long to be kept
    SEARCHING = 3
    IGNORED = 4


class Replies:
    """The server's direction. `secrets`: ranges to redact, for the caller to take.

    `syncing`: the command that asked for replication, "" before. After SYNC a bulk string is its begin; before either
    answer empty lines keep the connection alive.

    A string behind the name of a credential is taken for one, whatever was asked: which command a reply is for may not
    be known.
    """

    def __init__(self, offset: int) -> None:
        self.received = offset
        self.mode = Mode.LINE
        self.syncing = ""
        self.secrets: list[tuple[int, int]] = []
        self._waiting = bytearray()  # the start of a line; ends at `received`
        self._limit = MAX_HEADER  # bytes that it may have
        self._start = offset
        self._ts_ns = 0
        self._begun = False  # a reply has
        self._kind = 0
        self._raw = b""
        self._printed = Printed()
        self._left = 0  # bytes of the bulk string, with its end, that are to come
        self._bulk_kind = 0
        self._shown = 0  # of its bytes, how many are kept
        self._bulk = bytearray()
        self._streamed = False  # it comes in pieces
        self._secret = 0  # of its bytes, how many are a credential's

    @property
    def searching(self) -> bool:
        return self.mode is Mode.SEARCHING

    @property
    def settled(self) -> int:
        return self.received - len(self._waiting)

    @property
    def held(self) -> int:
        return len(self._waiting) + len(self._bulk) + len(self._raw) + self._printed.held

    def search(self, ts_ns: int = 0) -> None:
        """The next byte may lie anywhere."""
        self.mode = Mode.SEARCHING
        self._start, self._ts_ns = self.received, ts_ns

    def ignore(self) -> None:
        """Read nothing any more."""
        self.mode = Mode.IGNORED
        self._waiting.clear()
        self._clear()

    # -- input -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, ts_ns: int) -> Iterator[Reply]:
        """Read what has come: replies, one by one. What the caller changes between them counts for the next."""
        waiting = self._waiting
        if waiting and b"\n" not in data and len(waiting) + len(data) < self._limit:
            waiting += data
            self.received += len(data)
            return
        if not waiting and not self._begun and self.mode is Mode.LINE:
            self._ts_ns = ts_ns
        base = self.settled
        if waiting:
            data = bytes(waiting) + data
            waiting.clear()
        self.received = base + len(data)
        at, size = 0, len(data)
        while at < size:
            mode = self.mode
            if mode is Mode.LINE:
                kind = data[at]
                if self.syncing and not self._begun and (kind == 0x0A or (kind == 0x24 and self.syncing == "SYNC")):
                    at += 1
                    if kind == 0x24:
                        self.ignore()
                        yield Reply(REPLICATION, "", b"", [], base + at - 1, base + at, ts_ns, ts_ns)
                        return
                    continue
                end = data.find(b"\r\n", at, at + MAX_LINE)
                if end < 0:
                    if not self._unfinished(data, at, base):
                        yield self._malformed(base + at, ts_ns)
                    if self.mode is not Mode.LONG:
                        return
                    at += MAX_LINE
                    continue
                if not self._begun:
                    self._begun, self._start = True, base + at
                if not self._line(kind, data[at + 1 : end], base + at + 1):
                    yield self._malformed(base + at, ts_ns)
                    return
                at = end + 2
            elif mode is Mode.BULK:
                at = self._take_bulk(data, at, base)
            elif mode is Mode.LONG:
                end = data.find(b"\n", at)
                at = size if end < 0 else end + 1
                if end >= 0:
                    self.mode = Mode.LINE
                    self._printed.advance()
            elif mode is Mode.SEARCHING:
                at = self._search(data, at)
                if self.mode is Mode.LINE:
                    if self._start < base + at:
                        yield self._lost(base + at, ts_ns)
                    self._ts_ns = ts_ns
                continue
            else:
                return
            if self._kind and not self._printed.levels and self.mode is Mode.LINE and not self._streamed:
                yield self._whole(base + at, ts_ns)
                self._clear()
                self._ts_ns = ts_ns

    def gap(self, length: int, ts_ns: int) -> Iterator[Reply]:
        if self.mode is Mode.IGNORED:
            self.received += length
            return
        if self.mode is Mode.BULK and length < self._left:
            self._printed.flags.add("truncated")
            self._shown = len(self._bulk)
            self._left -= length
            self._secret -= length
            self.received += length
            return
        yield from self.close(ts_ns)
        self.received += length
        if self.mode is not Mode.SEARCHING:
            self.search(ts_ns)

    def close(self, ts_ns: int) -> Iterator[Reply]:
        """What is being read will not be completed."""
        if self.mode is Mode.SEARCHING:
            if self._start < self.received:
                yield self._lost(self.received, ts_ns)
            self._start = self.received
        elif self.mode is not Mode.IGNORED and (self._begun or self._waiting):
            if not self._begun:
                self._start, self._kind = self.settled, self._waiting[0]
            if self.mode is Mode.BULK:
                self._show_bulk()
            self._printed.flags.add("truncated")
            self._kind = self._kind or 0x2A
            yield self._whole(self.received, ts_ns)
            self._clear()
            self.mode = Mode.LINE
        self._waiting.clear()

    # -- lines -----------------------------------------------------------------------------------------------------

    def _unfinished(self, data: bytes, at: int, base: int) -> bool:
        """The start of a line: it waits, or only its first `MAX_LINE` bytes are kept; False: it is none."""
        long = data[at] in _LONG
        self._limit = MAX_LINE if long else MAX_HEADER
        if len(data) - at < self._limit:
            self._waiting += data[at:]
            return True
        if not long or self._streamed:
            return False
        if not self._begun:
            self._begun, self._start = True, base + at
        self._printed.flags.add("truncated")
        self.mode = Mode.LONG
        return self._scalar(data[at], data[at + 1 : at + MAX_LINE], base + at + 1)

    def _line(self, kind: int, body: bytes, start: int) -> bool:
        """One whole line; False: it is no RESP."""
        if self._streamed:
            return kind == 0x3B and self._open_bulk(body)
        if kind in _BULKS:
            self._bulk_kind = kind
            if body == b"?" and kind == 0x24:
                self._streamed, self._shown = True, MAX_KEPT
                return True
            if body == b"-1":
                self._bulk_kind = 0
                self._value(kind, b"", "(nil)")
                self._printed.advance()
                return True
            return self._open_bulk(body)
        if kind in MARKS:
            return self._open(kind, body)
        if kind == 0x2E:
            return not body and self._printed.close()
        if not self._scalar(kind, body, start):
            return False
        self._printed.advance()
        return True

    def _scalar(self, kind: int, body: bytes, start: int) -> bool:
        if kind == 0x2B:
            hidden = monitor_secrets(body) if self._begun and not self._printed.levels else []
            for first, last in reversed(hidden):
                self.secrets.append((start + first, start + last))
                body = body[:first] + REDACTED + body[last:]
                self._printed.flags.add("redacted")
            shown = readable(body)
        elif kind == 0x2D:
            shown = "(error) " + readable(body)
        elif kind == 0x3A and _INTEGER.fullmatch(body):
            shown = "(integer) " + body.decode()
        elif kind == 0x5F and not body:
            shown = "(nil)"
        elif kind == 0x23 and body in (b"t", b"f"):
            shown = "(true)" if body == b"t" else "(false)"
        elif kind == 0x2C and _DOUBLE.fullmatch(body):
            shown = "(double) " + body.decode()
        elif kind == 0x28 and _BIG.fullmatch(body):
            shown = body.decode()
        else:
            return False
        self._value(kind, body, shown)
        return True

    # -- bulk strings ----------------------------------------------------------------------------------------------

    def _open_bulk(self, body: bytes) -> bool:
        if not _LENGTH.fullmatch(body):
            return False
        length = int(body)
        if self._streamed and not length:
            self._streamed = False
            self._show_bulk()
            self._printed.advance()
            return True
        if not self._streamed:
            self._shown = min(length, MAX_KEPT)
            secret = self._printed.levels and self._printed.before.upper() in SECRET_PARAMETERS
            self._secret = min(length, MAX_CREDENTIAL) if secret else 0
        if length > MAX_KEPT - len(self._bulk):
            self._printed.flags.add("truncated")
        self._left = length + 2
        self.mode = Mode.BULK
        return True

    def _take_bulk(self, data: bytes, at: int, base: int) -> int:
        step = min(self._left, len(data) - at)
        content = max(min(self._left - 2, step), 0)
        if self._secret > 0 and content:
            self.secrets.append((base + at, base + at + min(content, self._secret)))
            self._secret -= content
            self._printed.flags.add("redacted")
        missing = self._shown - len(self._bulk)
        if missing > 0 and content:
            self._bulk += data[at : at + min(content, missing)]
        self._left -= step
        if not self._left:
            self.mode = Mode.LINE
            if not self._streamed:
                self._show_bulk()
                self._printed.advance()
        return at + step

    def _show_bulk(self) -> None:
        raw, kind = bytes(self._bulk), self._bulk_kind
        self._bulk.clear()
        if "redacted" in self._printed.flags and self._printed.before.upper() in SECRET_PARAMETERS:
            raw = REDACTED
        if kind == 0x21:
            shown = "(error) " + readable(raw)
        elif kind == 0x3D:
            shown = readable(raw[4:] if raw[3:4] == b":" else raw)
        else:
            shown = quoted(raw)
        self._value(kind, raw, shown)

    # -- values ----------------------------------------------------------------------------------------------------

    def _open(self, kind: int, body: bytes) -> bool:
        """An aggregate begins."""
        streamed = body == b"?"
        if not streamed and body != b"-1" and not _LENGTH.fullmatch(body):
            return False
        if not self._printed.levels and kind != ATTRIBUTES:
            self._kind = kind
        count = -1 if streamed else int(body) * (2 if kind in PAIRS else 1)
        if count > 0 or streamed:
            return self._printed.open(kind, count, 1 if streamed else len(body))
        if kind != ATTRIBUTES:
            self._value(kind, b"", "(nil)" if count else EMPTY[kind])
            self._printed.advance()
        return True

    def _value(self, kind: int, raw: bytes, shown: str) -> None:
        """A value that holds no others, or none at all."""
        if not self._printed.levels:
            self._kind, self._raw = kind, raw
        self._printed.value(raw, shown)

    # -- what comes out --------------------------------------------------------------------------------------------

    def _whole(self, end: int, ts_ns: int) -> Reply:
        printed = self._printed
        text, flags = printed.text()
        return Reply(self._kind, text, self._raw, printed.heads, self._start, end, self._ts_ns, ts_ns, flags)

    def _malformed(self, at: int, ts_ns: int) -> Reply:
        """A line at `at` is no RESP."""
        start = self._start if self._begun else at
        self.ignore()
        return Reply(0, "", b"", [], start, at + 1, self._ts_ns, ts_ns, ("malformed",))

    def _lost(self, end: int, ts_ns: int) -> Reply:
        return Reply(0, "", b"", [], self._start, end, self._ts_ns or ts_ns, ts_ns, ("undecoded",))

    def _clear(self) -> None:
        self._begun, self._kind, self._raw, self._streamed = False, 0, b"", False
        self._printed.clear()
        self._bulk.clear()
        self._left = self._secret = 0

    # -- behind a gap ----------------------------------------------------------------------------------------------

    def _search(self, data: bytes, at: int) -> int:
        """A line that can be a reply's first, at the first byte or behind a line's end."""
        size = len(data)
        while at < size:
            end = data.find(b"\n", at, at + MAX_LINE)
            if end < 0:
                if size - at < MAX_LINE:
                    self._waiting += data[at:]
                    self._limit = MAX_LINE
                return size
            if _BEGINS.match(data, at):
                self.mode = Mode.LINE
                return at
            at = end + 1
        return size


def monitor_secrets(line: bytes) -> list[tuple[int, int]]:
    """Ranges of credentials in a line of MONITOR: its time, its client in brackets, and a command in quotes."""
    begin = MONITORED.match(line)
    if begin is None:
        return []
    words, whole = split(line[begin.end() :])
    return [(begin.end() + first, begin.end() + words[number].end) for number, first in hide(words, whole=whole)]
