"""What a Redis client sends, cut into commands: arrays of bulk strings (RESP2 and RESP3), and inline commands.

    IDLE       `*N`          ──► HEADER, N arguments follow; N < 1: nothing
    IDLE       other byte    ──► a line is an inline command
    HEADER     `$L`          ──► BULK, L bytes and two more; behind the last one: IDLE, a command
    any        other header  ──► IGNORED: this direction is not read any more
    any        gap           ──► goes on behind it if it lies within a bulk string, else SEARCHING
    SEARCHING  `*N $L`       ──► IDLE there; what was passed over may be a credential, so it is redacted

Whatever is not a header passes through at once, however long: only headers and inline lines wait to be whole, and of
arguments no more than `MAX_KEPT` bytes are kept. A credential's range is known from its header, so it is redacted piece
by piece as it arrives, at most `MAX_CREDENTIAL` bytes: a "password" without end would be a place to hide.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import ClassVar, Final

import msgspec

from appliance.dissect import Torn
from appliance.dissect.redis_words import REDACTED, SENSITIVE, Secrets, hide, split

MAX_HEADER: Final = 32  # bytes of `*N` or `$L` with the line's end
MAX_INLINE: Final = 65536  # bytes of an inline command, as PROTO_INLINE_MAX_SIZE
MAX_ARGUMENTS: Final = 1 << 31  # of a command, as the server has it
MAX_BULK: Final = 1 << 31  # bytes of one; the server's proto-max-bulk-len can be no more on most machines
MAX_KEPT: Final = 65536  # bytes of the arguments of one command that are kept
MAX_WORDS: Final = 4096  # arguments of one command that are kept
MAX_WORD: Final = 64  # bytes of an option's name; what is longer is none
MAX_CREDENTIAL: Final = 65536  # bytes redacted in one argument, and behind a gap
_LOOK: Final = 256  # bytes of an endless line in which the command's name is looked for
_SHORT: Final = 64  # arguments of a command that is read in one go
START: Final = re.compile(rb"\*[1-9][0-9]{0,9}\r\n\$[0-9]{1,10}\r\n")
PART: Final = re.compile(rb"\*(?:[1-9][0-9]{0,9}(?:\r(?:\n(?:\$(?:[0-9]{1,10}\r?)?)?)?)?)?")  # of START


class Command(msgspec.Struct, gc=False):
    """One command. `flags`: truncated, malformed, redacted; `words`: those that are kept, credentials replaced."""

    words: list[bytes]
    count: int
    start: int
    end: int
    ts_ns: int
    end_ns: int
    flags: tuple[str, ...] = ()
    inline: bool = False


class Lost(msgspec.Struct, gc=False):
    """Bytes that are in no command: passed over behind a gap (`malformed` false), or no RESP."""

    start: int
    end: int
    ts_ns: int
    end_ns: int
    malformed: bool = False


class Mode(Enum):
    IDLE = 0
    HEADER = 1
    BULK = 2
    SEARCHING = 3
    IGNORED = 4


class Commands:
    """The client's direction. `secrets`: ranges to redact, for the caller to take."""

    def __init__(self, offset: int) -> None:
        self.received = offset
        self.mode = Mode.IDLE
        self.secrets: list[tuple[int, int]] = []
        self._buffer = bytearray()  # the start of a header, a line or, SEARCHING, of a command; ends at `received`
        self._ts_ns = 0  # of the first byte of what is being read
        self._start = offset
        self._count = 0
        self._index = 0
        self._words: list[bytes] = []
        self._kept = 0
        self._flags: set[str] = set()
        self._rule = Secrets(0)
        self._left = 0  # bytes of this argument, with the line's end, that are to come
        self._argument = bytearray()
        self._shown = 0  # of its bytes, how many may be kept
        self._secret = -1  # of its bytes, from which on it is a credential; -1: it is none
        self._length = 0
        self._holed = False  # bytes of it are missing
        self._budget = MAX_CREDENTIAL  # of bytes to redact

    # -- what the dissector says of itself -------------------------------------------------------------------------

    @property
    def searching(self) -> bool:
        return self.mode is Mode.SEARCHING

    @property
    def settled(self) -> int:
        return self.received - len(self._buffer)

    @property
    def guarded(self) -> int:
        """Missing bytes may be a credential's, but for the rest of an argument that is none."""
        if self.mode is Mode.BULK and self._secret < 0:
            return self.received + self._left
        return self.settled

    @property
    def held(self) -> int:
        return len(self._buffer) + len(self._argument) + self._kept + 64 * len(self._words)

    def torn(self) -> Torn:
        if self.mode is Mode.BULK and self._secret >= 0:
            return Torn(size=min(self._left, MAX_CREDENTIAL), upto=MAX_CREDENTIAL)
        if self.mode is Mode.HEADER and self._rule.sensitive:
            return Torn(upto=MAX_CREDENTIAL)
        if self.mode is Mode.IDLE and self._buffer and self._lined:
            return Torn(line=True)
        return Torn(upto=self._budget) if self.mode is Mode.SEARCHING else Torn()

    def search(self, *, credential: bool, ts_ns: int = 0) -> None:
        """The next byte may lie anywhere within a command; `credential`: of one that may hold one."""
        self.mode = Mode.SEARCHING
        self._budget = MAX_CREDENTIAL if credential else 0
        self._start, self._ts_ns = self.received, ts_ns

    # -- input -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, ts_ns: int) -> list[Command | Lost]:
        out: list[Command | Lost] = []
        buffer = self._buffer
        if not buffer:
            if self.mode is Mode.IDLE:
                self._ts_ns = ts_ns
        elif self._lined and b"\n" not in data and len(buffer) + len(data) < MAX_INLINE:
            buffer += data
            self.received += len(data)
            return out
        base = self.settled
        if buffer:
            data = bytes(buffer) + data
            buffer.clear()
        self.received = base + len(data)
        at, size = 0, len(data)
        while at < size:
            mode = self.mode
            if mode is Mode.BULK:
                at = self._bulk(data, at, base, ts_ns, out)
                continue
            if mode is Mode.IDLE:
                if data[at] == 0x2A:
                    at = self._short(data, at, base, ts_ns, out)
                    if at >= size:
                        break
                self._start = base + at
            after = self._STEPS[mode](self, data, at, base, ts_ns, out)
            if after < 0:
                buffer += data[at:]
                break
            at = after
        return out

    @property
    def _lined(self) -> bool:
        """Whether what waits is the start of an inline command."""
        return self.mode is Mode.IDLE and self._buffer[:1] != b"*"

    def gap(self, length: int, ts_ns: int) -> list[Command | Lost]:
        out: list[Command | Lost] = []
        if self.mode is Mode.BULK and length <= self._left:
            self._flags.add("truncated")
            self._shown = min(self._shown, len(self._argument))
            self._left -= length
            self.received += length
            self._holed = True
            if not self._left:
                self._argument_ends(self.received, ts_ns, out)
            return out
        if self.mode is Mode.IGNORED:
            self.received += length
            return out
        self._break_off(ts_ns, out)
        self.received += length
        if self.mode is not Mode.SEARCHING:
            self.search(credential=True, ts_ns=ts_ns)
        return out

    def close(self, ts_ns: int) -> list[Command | Lost]:
        out: list[Command | Lost] = []
        self._break_off(ts_ns, out)
        return out

    # -- reading ---------------------------------------------------------------------------------------------------

    def _short(self, data: bytes, at: int, base: int, ts_ns: int, out: list[Command | Lost]) -> int:
        """Whole short commands without credentials, the usual ones. Returns the place of the first other one."""
        size = len(data)
        find = data.find
        while at < size and data[at] == 0x2A:
            end = find(b"\r\n", at, at + MAX_HEADER)
            digits = data[at + 1 : end]
            if end < 0 or not digits.isdigit():
                return at
            count = int(digits)
            if not 0 < count <= _SHORT:
                return at
            words = []
            place = end + 2
            for _ in range(count):
                end = find(b"\r\n", place, place + MAX_HEADER)
                digits = data[place + 1 : end]
                if end < 0 or data[place] != 0x24 or not digits.isdigit():
                    return at
                length = int(digits)
                place = end + 4 + length
                if place > size:
                    return at
                words.append(data[end + 2 : place - 2])
            if place - at > MAX_KEPT or words[0].upper() in SENSITIVE:
                return at
            out.append(Command(words, count, base + at, base + place, self._ts_ns, ts_ns))
            self._ts_ns = ts_ns
            at = place
        return at

    def _idle(self, data: bytes, at: int, base: int, ts_ns: int, out: list[Command | Lost]) -> int:
        if data[at] != 0x2A:
            return self._inline(data, at, base, ts_ns, out)
        end = data.find(b"\r\n", at, at + MAX_HEADER)
        if end < 0:
            return -1 if len(data) - at < MAX_HEADER else self._malformed(data, at, base, ts_ns, out)
        digits = data[at + 1 : end]
        count = int(digits) if digits.isdigit() else 0 if digits[:1] == b"-" and digits[1:].isdigit() else -1
        if not 0 <= count < MAX_ARGUMENTS:
            return self._malformed(data, at, base, ts_ns, out)
        if count:
            self.mode = Mode.HEADER
            self._count, self._index, self._words, self._kept = count, 0, [], 0
            self._rule = Secrets(count)
        else:
            self._ts_ns = ts_ns
        return end + 2

    def _header(self, data: bytes, at: int, base: int, ts_ns: int, out: list[Command | Lost]) -> int:
        end = data.find(b"\r\n", at, at + MAX_HEADER)
        if end < 0 and data[at] == 0x24 and len(data) - at < MAX_HEADER:
            return -1
        digits = data[at + 1 : end]
        if end < 0 or data[at] != 0x24 or not digits.isdigit() or int(digits) >= MAX_BULK:
            return self._malformed(data, at, base, ts_ns, out)
        length = int(digits)
        after = end + 2
        if length and after >= len(data):  # its first byte tells whether it is a credential
            return -1
        self.mode = Mode.BULK
        self._left, self._length = length + 2, length
        self._holed = False
        self._secret = self._rule.is_secret(data[after : after + 1] if length else b"")
        self._budget = MAX_CREDENTIAL
        room = MAX_KEPT - self._kept if len(self._words) < MAX_WORDS else 0
        self._shown = min(length, room)
        return after

    def _bulk(self, data: bytes, at: int, base: int, ts_ns: int, out: list[Command | Lost]) -> int:
        step = min(self._left, len(data) - at)
        content = max(min(self._left - 2, step), 0)
        if self._secret >= 0:
            passed = self._length + 2 - self._left
            self._redact(base + at + max(self._secret - passed, 0), base + at + content)
        missing = self._shown - len(self._argument)
        if missing > 0:
            self._argument += data[at : at + min(content, missing)]
        self._left -= step
        at += step
        if not self._left:
            self._argument_ends(base + at, ts_ns, out)
        return at

    def _argument_ends(self, end: int, ts_ns: int, out: list[Command | Lost]) -> None:
        word = bytes(self._argument)
        self._argument.clear()
        secret, self._secret = self._secret, -1
        if self._rule.sensitive:
            if self._holed and self._length <= MAX_WORD:
                self._rule.lose()
            else:
                self._rule.take(word if self._length <= MAX_WORD else None)
        if secret >= 0 and self._length > secret:
            self._flags.add("redacted")
            word = word[:secret] + REDACTED
        elif len(word) < self._length:
            self._flags.add("truncated")
        if len(self._words) < MAX_WORDS:
            self._words.append(word)
            self._kept += len(word)
        else:
            self._flags.add("truncated")
        self._index += 1
        self.mode = Mode.HEADER
        if self._index == self._count:
            self._emit(end, ts_ns, out)

    def _emit(self, end: int, ts_ns: int, out: list[Command | Lost]) -> None:
        flags = tuple(sorted(self._flags))
        out.append(Command(self._words, self._count, self._start, end, self._ts_ns, ts_ns, flags))
        self._words, self._kept, self._rule = [], 0, Secrets(0)
        self._flags.clear()
        self.mode = Mode.IDLE
        self._ts_ns = ts_ns

    def _inline(self, data: bytes, at: int, base: int, ts_ns: int, out: list[Command | Lost]) -> int:
        end = data.find(b"\n", at, at + MAX_INLINE)
        if end < 0:
            return -1 if len(data) - at < MAX_INLINE else self._malformed(data, at, base, ts_ns, out)
        self._tell_line(data[at:end], base + at, base + end + 1, ts_ns, out, whole=True)
        self._ts_ns = ts_ns
        return end + 1

    def _tell_line(
        self, line: bytes, start: int, end: int, ts_ns: int, out: list[Command | Lost], *, whole: bool
    ) -> None:
        line = line.rstrip(b"\r\n")
        words, balanced = split(line)
        if not words:
            return
        values = [word.value for word in words]
        flags = [] if balanced or not whole else ["malformed"]
        hidden = hide(words, whole=whole and balanced)
        for number, first in hidden:
            self._budget = MAX_CREDENTIAL
            self._redact(start + first, start + words[number].end)
            values[number] = line[words[number].start : first] + REDACTED
        flags += ["redacted"] if hidden else []
        flags += [] if whole else ["truncated"]
        out.append(Command(values, len(values), start, end, self._ts_ns, ts_ns, tuple(flags), True))

    def _search(self, data: bytes, at: int, base: int, ts_ns: int, out: list[Command | Lost]) -> int:
        """Where a command begins: at the first byte, or behind a line's end."""
        place, size = at, len(data)
        while True:
            begins = place == at or data[place - 1] == 0x0A or base + place == self._start
            match = START.match(data, place) if begins else None
            if match is not None:
                self._pass_over(base + at, base + place, ts_ns, out)
                self.mode = Mode.IDLE
                self._ts_ns = ts_ns
                return place
            if begins and size - place < MAX_HEADER and PART.fullmatch(data, place):
                break
            place = data.find(b"*", place + 1)
            if place < 0:
                place = size
                break
        if at < place < size or (place == size and data[size - 1] == 0x0A):
            place -= 1  # the line's end before it is needed again
        self._redact(base + at, base + place)
        self._buffer += data[place:]
        return size

    def _ignored(self, data: bytes, at: int, base: int, ts_ns: int, out: list[Command | Lost]) -> int:
        self._redact(base + at, base + len(data))
        return len(data)

    _STEPS: ClassVar[dict[Mode, Callable[..., int]]] = {
        Mode.IDLE: _idle,
        Mode.HEADER: _header,
        Mode.SEARCHING: _search,
        Mode.IGNORED: _ignored,
    }

    # -- what is not whole -----------------------------------------------------------------------------------------

    def _redact(self, start: int, end: int) -> None:
        end = min(end, start + self._budget)
        if start < end:
            self._budget -= end - start
            self.secrets.append((start, end))

    def _pass_over(self, start: int, end: int, ts_ns: int, out: list[Command | Lost]) -> None:
        self._redact(start, end)
        if self._start < end:
            out.append(Lost(self._start, end, self._ts_ns or ts_ns, ts_ns))

    def _malformed(self, data: bytes, at: int, base: int, ts_ns: int, out: list[Command | Lost]) -> int:
        """The server closes the connection here, or is none of Redis."""
        sensitive = self.mode is Mode.HEADER and self._rule.sensitive
        if self.mode is Mode.IDLE and data[at] != 0x2A:
            words, _ = split(data[at : at + _LOOK])
            sensitive = bool(words) and words[0].value.upper() in SENSITIVE
        self._budget = MAX_CREDENTIAL if sensitive else 0  # what follows may be one
        out.append(Lost(self._start, base + at + 1, self._ts_ns, ts_ns, True))
        self.mode = Mode.IGNORED
        self._words, self._kept = [], 0
        return at

    def _break_off(self, ts_ns: int, out: list[Command | Lost]) -> None:
        """What is being read will not be completed."""
        rest = bytes(self._buffer)
        start = self.settled
        self._buffer.clear()
        if self.mode is Mode.SEARCHING:
            self._pass_over(start, self.received, ts_ns, out)
            self._start = self.received
        elif self.mode is Mode.IDLE and rest:
            if rest[:1] == b"*":
                out.append(Command([], 0, start, self.received, self._ts_ns, ts_ns, ("truncated",)))
            else:
                self._tell_line(rest, start, self.received, ts_ns, out, whole=False)
        elif self.mode in (Mode.HEADER, Mode.BULK):
            if self.mode is Mode.BULK:
                word = bytes(self._argument)
                if self._secret >= 0:
                    self._flags.add("redacted")
                    word = word[: self._secret] + REDACTED
                self._words.append(word)
                self._argument.clear()
            self._flags.add("truncated")
            self._emit(self.received, ts_ns, out)
        self._secret = -1
        if self.mode is not Mode.IGNORED and self.mode is not Mode.SEARCHING:
            self.mode = Mode.IDLE
