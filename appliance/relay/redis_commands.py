"""What a Redis client sends, cut where commands begin, as far as a relay must know (RESP, redis.io "Redis serialization
protocol specification"; networking.c of Redis 7).

Whatever is no log-in passes as it came, however long and in whatever pieces. A command whose name is in `LOOKED_AT`
comes out whole, with its words. The server takes bytes for line ends that are none; here they must be CR LF, else both
would not agree on where a command begins.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from appliance.dissect.redis_commands import MAX_INLINE
from appliance.dissect.redis_words import SENSITIVE, Secrets, Word, hide, split

LOOKED_AT: Final = SENSITIVE | {b"RESET"}
MAX_HELD: Final = 1 << 18  # bytes of a command that is looked at
SECRET: Final = "password"  # noqa: S105
_MARKED: Final = 0x2A  # *, with which commands begin that are not inline
MAX_WORDS: Final = 4096  # arguments of one
NAMES: Final = {len(name) for name in LOOKED_AT}
SHORT: Final = 199  # bytes of arguments that are passed over in one go
_BEGIN: Final = re.compile(rb"\*([1-9][0-9]{0,9})\r\n\$([0-9]{1,10})\r\n")
_NOTHING: Final = re.compile(rb"\*(?:0|-1)\r\n")
_BULK: Final = re.compile(rb"\$([0-9]{1,10})\r\n")
_BEGINNING: Final = re.compile(rb"\*(?:-?[0-9]{0,10}|[0-9]{1,10}\r(?:\n(?:\$(?:[0-9]{1,10}\r?)?)?)?|-1\r)")
_HEADER: Final = re.compile(rb"\$(?:[0-9]{1,10}\r?)?|")


def _short(most: int) -> str:
    """A bulk string of up to `most` bytes whose length is right: digit by digit, so that few ways are tried."""

    def behind(prefix: str) -> str:
        ways = []
        for digit in "0123456789"[not prefix :]:
            number = prefix + digit
            if int(number) <= most:
                here, more = rf"\r\n.{{{number}}}\r\n", behind(number)
                ways.append(f"{digit}(?:{here}|{more})" if more else digit + here)
        return "|".join(ways)

    return rf"(?:\$(?:0\r\n\r\n|{behind('')}))"


def _usual(count: int) -> str:
    """A short command of `count` arguments that is not looked at."""
    looked_at = "|".join(rf"{len(name)}\r\n{name.decode()}\r" for name in sorted(LOOKED_AT))
    return rf"{count}\r\n(?!\$(?i:{looked_at})){_short(SHORT)}{{{count}}}"


# Most commands: passed over in one go.
_USUAL: Final = re.compile((r"(?:\*(?:" + "|".join(map(_usual, range(1, 7))) + "))*").encode("ascii"), re.DOTALL)


class Command(NamedTuple):
    """One that is looked at, whole. `words`: its arguments, at least one, and where they lie in `data`."""

    data: bytes
    words: list[Word]
    inline: bool
    secrets: tuple[tuple[int, int, str], ...]

    @property
    def name(self) -> bytes:
        return self.words[0].value.upper()


class Malformed(ValueError):
    """What is said is not RESP, or too long to be looked at. Its text has no byte of it."""


class Cutter:
    """The client's direction: `feed`, then `next` until it gives None."""

    def __init__(self, *, every: bool = False, most: int = MAX_HELD) -> None:
        """`every`: all commands come out whole, of up to `most` bytes."""
        self.every = every
        self.most = most
        self._data: bytes | bytearray = b""  # begins where nothing has come out yet
        self._need = 1  # bytes of it before there is anything to do
        self._left = 0  # arguments of the present command that follow this one
        self._skip = -1  # bytes of this argument that are to come; -1: a command begins
        self._mark = 0  # place behind what was read of the command that is looked at; 0: there is none
        self._words: list[Word] = []

    @property
    def looking(self) -> bool:
        """What is held is the beginning of a command that may have a credential."""
        return self.every or bool(self._mark) or self._data[:1] not in (b"", b"*", b"$", b"\r")

    def feed(self, data: bytes) -> None:
        if not self._data:
            self._data, self._need = data, 1
        elif isinstance(self._data, bytearray):
            self._data += data
        else:
            self._data = bytearray(self._data) + data

    def rest(self) -> bytes:
        """What is not whole."""
        rest, self._data = bytes(self._data), b""
        return rest

    def next(self) -> bytes | Command | None:
        """Bytes to pass, or a command that is looked at; None: more must come. Raises `Malformed`."""
        data = self._data
        if len(data) < self._need:
            return None
        at = 0 if self._mark else self._pass_over(data)
        if at:
            return self._cut(at)
        if self._mark:
            return self._gather()
        return None

    def _cut(self, at: int) -> bytes:
        data = self._data
        if at == len(data):
            self._data, self._need = b"", 1
            return bytes(data)
        self._data, self._need = data[at:], 1
        return bytes(data[:at])

    def _pass_over(self, data: bytes | bytearray) -> int:
        """Up to where nothing is to be looked at, or known. 0: more must come, or `_mark` is set."""
        at, size = 0, len(data)
        while at < size:
            after = self._in_argument(data, at) if self._skip >= 0 else self._command(data, at)
            if after < 0:
                break
            at = after
        if not at and not self._mark:
            self._need = size + 1
        elif at:
            self._mark = 0  # it is found again when it is the first
        return at

    def _in_argument(self, data: bytes | bytearray, at: int) -> int:
        """Behind what is there of it, and behind the next one's header; -1: more must come."""
        if self._skip:
            step = min(self._skip, len(data) - at)
            self._skip -= step
            return at + step
        ends = data[at : at + 2]
        if len(ends) < 2 and ends in (b"", b"\r"):
            return -1
        if ends != b"\r\n":
            return self._malformed(at, "an argument that does not end where its length says")
        if not self._left:
            self._skip = -1
            return at + 2
        found = _BULK.match(data, at + 2)
        if found is None:
            if _HEADER.fullmatch(data, at + 2):
                return -1
            return self._malformed(at, "an argument without its length")
        self._left, self._skip = self._left - 1, int(found[1])
        return found.end()

    def _command(self, data: bytes | bytearray, at: int) -> int:
        """Behind usual commands, or a command's first header; -1: more must come, or it is to be looked at."""
        if not self.every:
            usual = _USUAL.match(data, at)
            if usual is not None and usual.end() > at:
                return usual.end()
        if data[at] != _MARKED:
            return self._line(data, at)
        found = _BEGIN.match(data, at)
        if found is None:
            nothing = _NOTHING.match(data, at)
            if nothing is not None:
                return nothing.end()
            if _BEGINNING.fullmatch(data, at):
                return -1
            return self._malformed(at, "a command without its length")
        count, length = int(found[1]), int(found[2])
        name = bytes(data[found.end() : found.end() + length]) if length in NAMES else b""
        if not self.every and length in NAMES and len(name) < length:
            return -1
        if self.every or name.upper() in LOOKED_AT:
            self._left, self._mark = count, found.end(1) + 2 - at
            return -1
        self._left, self._skip = count - 1, length
        return found.end()

    def _line(self, data: bytes | bytearray, at: int) -> int:
        """An inline command."""
        end = data.find(b"\n", at)
        if (len(data) if end < 0 else end) - at > MAX_INLINE:
            return self._malformed(at, "a line that is too long for an inline command")
        if end < 0:
            return -1
        line = bytes(data[at:end])
        if b"\0" in line:
            return self._malformed(at, "a line with a NUL byte")
        words, _ = split(line)
        if words and (self.every or words[0].value.upper() in LOOKED_AT):
            self._mark = end + 1 - at
            return -1
        return end + 1

    def _malformed(self, at: int, text: str) -> int:
        """What came before passes first."""
        if at:
            return -1
        raise Malformed(text)

    # -- a command that is looked at -------------------------------------------------------------------------------

    def _gather(self) -> Command | None:
        data = self._data
        if data[0] != _MARKED:
            words, whole = split(bytes(data[: self._mark - 1]))
            found = tuple((first, words[number].end, SECRET) for number, first in hide(words, whole=whole))
            return self._found(words, found, inline=True)
        while self._left:
            header = _BULK.match(data, self._mark)
            if header is None:
                if not _HEADER.fullmatch(data, self._mark):
                    raise Malformed("an argument without its length")
                self._need = len(data) + 1
                return None
            end = header.end() + int(header[1])
            if end > self.most or len(self._words) >= MAX_WORDS:
                raise Malformed(f"a command of more than {self.most} bytes, or {MAX_WORDS} arguments, in this place")
            if len(data) < end + 2:
                self._need = end + 2
                return None
            if data[end : end + 2] != b"\r\n":
                raise Malformed("an argument that does not end where its length says")
            self._words.append(Word(bytes(data[header.end() : end]), header.end(), end))
            self._mark, self._left = end + 2, self._left - 1
        return self._found(self._words, tuple(_hidden(self._words)), inline=False)

    def _found(self, words: list[Word], secrets: tuple[tuple[int, int, str], ...], *, inline: bool) -> Command:
        whole = self._cut(self._mark)
        self._mark, self._words = 0, []
        return Command(whole, words, inline, secrets)


def _hidden(words: list[Word]) -> Iterator[tuple[int, int, str]]:
    """Where credentials lie."""
    rule = Secrets(len(words))
    for word in words:
        skipped = rule.is_secret(word.value[:1])
        if 0 <= skipped < len(word.value):
            yield word.start + skipped, word.end, SECRET
        rule.take(word.value)
