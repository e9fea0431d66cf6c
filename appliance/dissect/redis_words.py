"""Redis commands as words: how redis-cli writes them, and which of their arguments are credentials.

Sources: the command reference of redis.io (AUTH, HELLO, ACL SETUSER, CONFIG SET, MIGRATE, SENTINEL SET), and sds.c and
redis-cli.c of Redis 7 for quoting. Names of commands and options are case-insensitive.
"""

import re
from functools import lru_cache
from typing import Final, NamedTuple

MAX_NAME: Final = 64  # characters of a command's name
REDACTED: Final = b"(redacted)"  # what stands for a credential in text, as in Redis' own logs

SENSITIVE: Final = frozenset((b"AUTH", b"HELLO", b"ACL", b"CONFIG", b"MIGRATE", b"SENTINEL"))
SECRET_PARAMETERS: Final = frozenset(
    (
        b"REQUIREPASS",
        b"MASTERAUTH",
        b"PRIMARYAUTH",
        b"AUTH-PASS",
        b"SENTINEL-PASS",
        b"TLS-KEY-FILE-PASS",
        b"TLS-CLIENT-KEY-FILE-PASS",
    )
)
_RAW: Final = frozenset(("INFO", "LOLWUT"))
_RAW_PAIRS: Final = frozenset(
    (
        "CLIENT LIST",
        "CLIENT INFO",
        "CLUSTER NODES",
        "CLUSTER INFO",
        "LATENCY GRAPH",
        "LATENCY DOCTOR",
        "MEMORY DOCTOR",
        "MEMORY MALLOC-STATS",
    )
)

_PLAIN: Final = re.compile(rb"[!#-&(-\[\]-~]++(?: [!#-&(-\[\]-~]++)*+")
_SAFE: Final = re.compile(rb"[ !#-\[\]-~]*+")
_ESCAPES: Final = {
    **{code: f"\\x{code:02x}" for code in (*range(32), 127)},
    **{code: f"\\xc2\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{0xDC00 + byte: f"\\x{byte:02x}" for byte in range(0x80, 0x100)},
    **dict(zip(b'\a\b\t\n\r"\\', ("\\a", "\\b", "\\t", "\\n", "\\r", '\\"', "\\\\"), strict=True)),
}
_LINES: Final = {code: shown for code, shown in _ESCAPES.items() if code not in (9, 10, 34, 92)}
_UNESCAPES: Final = {ord("n"): 10, ord("r"): 13, ord("t"): 9, ord("b"): 8, ord("a"): 7}
_SPACES: Final = b" \t\n\r\v\f\0"


class Word(NamedTuple):
    """An argument of an inline command and where it lies in its line, quotes included."""

    value: bytes
    start: int
    end: int


@lru_cache(512)
def named(word: bytes) -> str:
    """The name of a command, in upper case."""
    return word[:MAX_NAME].upper().decode("ascii", "backslashreplace")


def quoted(value: bytes) -> str:
    """As redis-cli prints a string: in quotes, escaped; but what is UTF-8 stays readable."""
    if _SAFE.fullmatch(value):
        return f'"{value.decode("ascii")}"'
    return '"' + value.decode("utf-8", "surrogateescape").translate(_ESCAPES) + '"'


def typed(arguments: list[bytes]) -> str:
    """What a person would type in redis-cli."""
    joined = b" ".join(arguments)
    if joined.count(b" ") == len(arguments) - 1 and _PLAIN.fullmatch(joined):
        return joined.decode("ascii")
    return " ".join([word.decode("ascii") if _PLAIN.fullmatch(word) and b" " not in word else quoted(word)
                     for word in arguments])  # fmt: skip


def readable(value: bytes) -> str:
    """Text that redis-cli prints without quotes, lines as they are."""
    text = value.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    return text.translate(_LINES)


def is_raw(arguments: list[bytes]) -> bool:
    """Whether redis-cli prints the answer without quotes."""
    name = named(arguments[0])
    return name in _RAW or (len(arguments) > 1 and f"{name} {named(arguments[1])}" in _RAW_PAIRS)


class Secrets:
    """Tells of one command's arguments, in order, which are credentials. `count`: all of them; 0: not known."""

    __slots__ = ("_count", "_index", "_name", "_next", "_over", "_sub", "sensitive")

    def __init__(self, count: int) -> None:
        self._count = count
        self._index = 0
        self._name = b""
        self._sub = b""
        self._next = 0  # the argument that is one because of a word before it; -1: a word is lost, any may be
        self._over = False  # none follows
        self.sensitive = True  # whether one may follow

    def is_secret(self, first: bytes) -> int:
        """Of the next argument, by its `first` byte: from which of its bytes on it is one; -1: it is none."""
        index, name = self._index, self._name
        if not index or self._over or not self.sensitive:
            return -1
        if name == b"AUTH":
            return -1 if index == 1 and self._count == 3 else 0
        if index == self._next or self._next < 0:
            return 0
        if name == b"ACL" and index > 2 and self._sub == b"SETUSER" and first in (b">", b"<"):
            return 1
        return -1

    def take(self, word: bytes | None) -> None:
        """The next argument, upper or lower case; None: it is lost, or too long for a word that means something."""
        index = self._index
        self._index = index + 1
        word = None if word is None else word.upper()
        if not index:
            self._name = word or b""
            self.sensitive = self._name in SENSITIVE
        elif index == 1:
            self._sub = word or b""
        if not index or not self.sensitive or self._over or self._next < 0:
            return
        if self._next >= index:
            self._next = 0 if self._next == index else self._next
            return
        if (self._name == b"HELLO" and word == b"AUTH") or (
            self._name == b"MIGRATE" and index > 5 and word == b"AUTH2"
        ):
            self._next = index + 2
        elif self._name == b"MIGRATE" and index > 5:
            self._over = word == b"KEYS"
            self._next = index + 1 if word == b"AUTH" else 0
        elif self._name in (b"CONFIG", b"SENTINEL") and word in SECRET_PARAMETERS:
            self._next = index + 1

    def lose(self) -> None:
        """Bytes are missing: which argument is one can no longer be told."""
        self._index += 1
        self._next = -1


def split(line: bytes) -> tuple[list[Word], bool]:
    """The words of an inline command (sdssplitargs of sds.c), and whether its quotes are balanced."""
    words: list[Word] = []
    at, size = 0, len(line)
    while True:
        while at < size and line[at] in _SPACES:
            at += 1
        if at >= size:
            return words, True
        start = at
        value = bytearray()
        while at < size and line[at] not in _SPACES:
            mark = line[at]
            if mark not in b"\"'":
                value.append(mark)
                at += 1
                continue
            at = _quoted(line, at + 1, mark, value)
            if at < 0 or (at < size and line[at] not in _SPACES):
                return [*words, Word(bytes(value), start, size)], False
        words.append(Word(bytes(value), start, at))


def _quoted(line: bytes, at: int, mark: int, value: bytearray) -> int:
    """Reads up to the closing quote. Returns the place behind it, -1: there is none."""
    size = len(line)
    while at < size:
        byte = line[at]
        if byte == mark:
            return at + 1
        if byte == 0x5C and mark == 0x22 and at + 1 < size:
            code = line[at + 2 : at + 4]
            if line[at + 1] == 0x78 and len(code) == 2 and all(one in b"0123456789abcdefABCDEF" for one in code):
                value.append(int(code, 16))
                at += 4
            else:
                value.append(_UNESCAPES.get(line[at + 1], line[at + 1]))
                at += 2
        elif byte == 0x5C and line[at + 1 : at + 2] == b"'":
            value.append(0x27)
            at += 2
        else:
            value.append(byte)
            at += 1
    return -1


def hide(words: list[Word], *, whole: bool) -> list[tuple[int, int]]:
    """Which words of a line are credentials, and where in the line these begin; `whole`: no more words may follow."""
    secrets = Secrets(len(words) if whole else 0)
    found: list[tuple[int, int]] = []
    for number, word in enumerate(words):
        skipped = secrets.is_secret(word.value[:1])
        if skipped >= 0:
            plain = len(word.value) == word.end - word.start  # else it is in quotes
            first = word.start + (skipped if plain else 0)
            if first < word.end:
                found.append((number, first))
        secrets.take(word.value)
    return found
