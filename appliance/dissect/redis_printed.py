"""A Redis value as redis-cli prints it, written line by line while it arrives: values are nested and have no bound."""

from typing import Final

import msgspec

MAX_TEXT: Final = 65536  # characters of one reply
MAX_DEPTH: Final = 64  # of aggregates in each other
MAX_HEADS: Final = 3  # first values of an aggregate that the dissector looks at
MAX_HEAD: Final = 1024  # bytes of one of these
MAX_WORD: Final = 64  # bytes of a value that may be the name of the next one

MARKS: Final = {0x2A: ")", 0x25: "#", 0x7E: "~", 0x3E: ")", 0x7C: "|"}  # * % ~ > |
EMPTY: Final = {0x2A: "(empty array)", 0x25: "(empty hash)", 0x7E: "(empty set)", 0x3E: "(empty push)"}
PAIRS: Final = b"%|"
ATTRIBUTES: Final = 0x7C  # these describe the value that follows, and are none themselves


class _Level(msgspec.Struct):
    """An aggregate that is being read. `left` < 0: streamed, its end is a line."""

    kind: int
    left: int
    indent: str
    width: int  # of its largest number
    index: int = 0

    def number(self) -> str:
        """What stands before its next value."""
        at = self.index // 2 if self.kind in PAIRS else self.index
        return f"{at + 1:>{self.width}}{MARKS[self.kind]} "


class Printed:
    """One reply. Each value is told by `value`, or `open`, its values, and `close` if it is streamed; `advance` follows
    every one that is whole. It is whole itself where `levels` is empty then."""

    def __init__(self) -> None:
        self.levels: list[_Level] = []
        self.heads: list[bytes] = []
        self.flags: set[str] = set()
        self.before = b""  # the value before, if it is short
        self._lines: list[str] = []
        self._size = 0
        self._prefix = ""  # numbers that stand before the next value, in its line

    @property
    def held(self) -> int:
        return 2 * self._size + 64 * len(self._lines) + 250 * len(self.levels) + sum(map(len, self.heads))

    def text(self) -> tuple[str, tuple[str, ...]]:
        """What was printed, and the flags of it."""
        text = self._lines[0] if len(self._lines) == 1 else "\n".join(self._lines)
        if len(text) > MAX_TEXT:
            text = text[:MAX_TEXT]
            self.flags.add("truncated")
        return text, tuple(sorted(self.flags)) if self.flags else ()

    def clear(self) -> None:
        """Another reply begins."""
        self._size, self._prefix, self.before = 0, "", b""
        self.heads, self._lines = [], []
        if self.levels:
            self.levels.clear()
        if self.flags:
            self.flags.clear()

    def open(self, kind: int, count: int, width: int) -> bool:
        """An aggregate of `count` values, -1: streamed. False: too many in each other."""
        if len(self.levels) >= MAX_DEPTH:
            return False
        prefix = self._before_value()
        indent = self._indent()
        if prefix.endswith(" => "):
            self._say(prefix.rstrip())
            prefix = indent
        self._prefix = prefix
        self.levels.append(_Level(kind, count, indent, width))
        self.before = b""
        return True

    def value(self, raw: bytes, shown: str) -> None:
        """A value that holds no others, or none at all."""
        levels = self.levels
        if not levels:
            self._say(self._prefix + shown if self._prefix else shown)
            return
        if len(levels) == 1 and levels[0].kind != ATTRIBUTES and len(self.heads) < MAX_HEADS:
            self.heads.append(raw[:MAX_HEAD])
        self.before = raw if len(raw) <= MAX_WORD else b""
        if self._size <= MAX_TEXT:
            self._say(self._before_value() + shown)
        else:
            self.flags.add("truncated")

    def advance(self) -> None:
        """A value is whole, and with it the aggregates that it ends."""
        levels = self.levels
        while levels:
            level = levels[-1]
            level.index += 1
            if level.left > 0:
                level.left -= 1
            if level.left:
                return
            levels.pop()
            if level.kind == ATTRIBUTES:  # the value that it describes comes now
                self.flags.add("attributes")
                return

    def close(self) -> bool:
        """A streamed aggregate ends. False: there is none."""
        if not self.levels or self.levels[-1].left >= 0:
            return False
        level = self.levels.pop()
        if level.kind == ATTRIBUTES:
            self.flags.add("attributes")
            return True
        if not level.index:
            self._say(self._prefix + EMPTY[level.kind])
            self._prefix = ""
        self.advance()
        return True

    def _indent(self) -> str:
        if not self.levels:
            return ""
        level = self.levels[-1]
        return level.indent + " " * (level.width + 2)

    def _before_value(self) -> str:
        """The numbers before the next value, in its line."""
        prefix, self._prefix = self._prefix, ""
        if not self.levels:
            return prefix
        level = self.levels[-1]
        if level.kind in PAIRS and level.index % 2:
            said = self._lines.pop() if self._lines and self._size <= MAX_TEXT else level.indent
            self._size = max(self._size - len(said), 0)
            return said + " => "
        return (level.indent if level.index else prefix) + level.number()

    def _say(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line) + 1
