"""How results and bind values read in messages, the same for every database: rows in batches, of kind `rows`."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from appliance.dissect.sql_frames import Frame
from appliance.dissect.sql_text import Repeats
from appliance.model import Direction, Message

MAX_ROWS = 100  # of one message
MAX_ROWS_BYTES = 65536  # of the stream that the rows of one message cover; one row may exceed it
MAX_BRIEF = 8  # columns that it repeats in any case, see `Repeats`
MAX_DESCRIBED = 16384  # characters of column names that every message of a result repeats
OVERHEAD = 32  # characters of a column's description beside its name
WEIGHT = 280  # bytes in memory of one column, about
NULL = "\\N"  # in a message's text, as in PostgreSQL's COPY; None in its attributes


class Described(Protocol):
    """Columns: as messages have them, the characters of that, one type for each."""

    @property
    def shown(self) -> list[dict[str, str]]: ...
    @property
    def size(self) -> int: ...
    @property
    def types(self) -> Sequence[object]: ...


def within(columns: Described, repeats: Repeats, offset: int) -> tuple[list[dict[str, str]], bool]:
    """What a message that ends at `offset` may repeat of the columns, and whether these are all."""
    shown = columns.shown
    if len(shown) > MAX_BRIEF and not repeats.allow(columns.size, offset):
        shown = shown[:MAX_BRIEF]
    return shown, len(shown) == len(columns.types)


class Batch(msgspec.Struct):
    """Rows that wait to become a message."""

    count: int = 0  # of all rows so far
    size: int = 0  # bytes of those that wait
    flags: set[str] = set()  # a Struct copies it
    _rows: list[list[str | None]] = []  # a Struct copies it
    _start: int = 0
    _end: int = 0
    _ts_ns: int = 0
    _end_ns: int = 0

    @property
    def full(self) -> bool:
        return len(self._rows) >= MAX_ROWS or self.size >= MAX_ROWS_BYTES

    def add(self, frame: Frame, row: list[str | None]) -> None:
        if not self._rows:
            self._start, self._ts_ns = frame.start, frame.ts_ns
        self._rows.append(row)
        self.size += frame.end - frame.start
        self._end, self._end_ns = frame.end, frame.end_ns
        self.count += 1

    def flush(self, columns: Described | None, offset: int, reply_to: int | None, repeats: Repeats) -> list[Message]:
        """The rows since the last time as one message, if there are any. `offset`: rows that came before the first."""
        rows = self._rows
        if not rows:
            return []
        lines = ["\t".join([cell if cell is not None else NULL for cell in row]) for row in rows]
        described: list[dict[str, str]] = []
        if columns is not None:
            described, whole = within(columns, repeats, self._end)
            if not whole:
                self.flags.add("truncated")
            lines.insert(0, "\t".join([column["name"] for column in described]))
        attrs: dict[str, Any] = {
            "columns": described,
            "rows": rows,
            "row_offset": offset + self.count - len(rows),
        }
        message = Message(
            Direction.SERVER,
            "rows",
            self._ts_ns,
            self._start,
            self._end,
            "\n".join(lines),
            attrs,
            reply_to,
            tuple(sorted(self.flags)),
            self._end_ns,
        )
        self._rows, self.size = [], 0
        self.flags.clear()
        return [message]


def with_values(sql: str, parameters: list[str | None]) -> str:
    """A statement and its bind values, one a line."""
    lines = [f"${number} = {'NULL' if item is None else item}" for number, item in enumerate(parameters, 1)]
    return "\n".join([sql, *lines])
