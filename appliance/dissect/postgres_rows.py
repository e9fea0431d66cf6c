"""A result as it arrives: its columns, its rows in batches, their count."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from appliance.dissect.postgres_fields import Column, is_binary
from appliance.dissect.postgres_frames import Frame
from appliance.dissect.postgres_session import Repeats
from appliance.dissect.postgres_types import hexadecimal, text, type_name, value
from appliance.model import Direction, Message

MAX_ROWS = 100  # of one message
MAX_ROWS_BYTES = 65536  # of the DataRows of one message; one row may exceed it
MAX_DESCRIBED = 16384  # characters of column names that every message of a result repeats
OVERHEAD = 32  # characters of a column's description beside its name
MAX_BRIEF = 8  # columns that it repeats in any case, see `Repeats`
NULL = "\\N"  # in a message's text, as in COPY; None in its attributes
_NONE = 0xFFFFFFFF


class Description(NamedTuple):
    """Columns as messages have them, as far as `MAX_DESCRIBED` goes; `size` in characters; `total`: all of them."""

    columns: list[dict[str, str]]
    size: int
    total: int

    def within(self, repeats: Repeats, offset: int) -> tuple[list[dict[str, str]], bool]:
        """Those that a message that ends at `offset` may repeat, and whether these are all."""
        shown = self.columns
        if len(shown) > MAX_BRIEF and not repeats.allow(self.size, offset):
            shown = shown[:MAX_BRIEF]
        return shown, len(shown) == self.total


def describe(columns: list[Column]) -> Description:
    """What messages of a result say of its columns."""
    described: list[dict[str, str]] = []
    size = 0
    for column in columns:
        if size + len(column.name) > MAX_DESCRIBED:
            break
        size += len(column.name)
        described.append({"name": column.name, "type": type_name(column.oid)})
    return Description(described, size + OVERHEAD * len(described), len(columns))


@dataclass(slots=True)
class Result:
    """The result of one statement. `columns` None: nothing said what they are."""

    columns: list[Column] | None
    formats: tuple[int, ...] | None  # asked for by Bind; None: as the columns say
    reply_to: int | None
    offset: int  # rows of the same portal that came before
    repeats: Repeats
    count: int = 0
    description: Description = field(init=False)
    _oids: list[int] = field(default_factory=list)  # per column: type OID if binary, else -1
    _rows: list[list[str | None]] = field(default_factory=list)
    _size: int = 0
    _start: int = 0
    _end: int = 0
    _ts_ns: int = 0
    _end_ns: int = 0
    _flags: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.description = describe(self.columns or [])
        if self.columns is not None:
            for number, column in enumerate(self.columns):
                binary = column.binary if self.formats is None else is_binary(self.formats, number)
                self._oids.append(column.oid if binary else -1)

    @property
    def held(self) -> int:
        """Bytes of the DataRows that wait to become a message."""
        return self._size

    @property
    def full(self) -> bool:
        return len(self._rows) >= MAX_ROWS or self._size >= MAX_ROWS_BYTES

    def add(self, frame: Frame, codec: str) -> None:
        """One DataRow. Never raises: a row that does not fit is kept as far as it goes, flagged."""
        body = frame.body
        oids = self._oids
        size = len(body)
        count = int.from_bytes(body[:2], "big")
        if count != len(oids):
            oids = self._unknown(count)
        row: list[str | None] = []
        at = 2
        for oid in oids:
            length = int.from_bytes(body[at : at + 4], "big")
            at += 4
            if length == _NONE and at <= size:
                row.append(None)
                continue
            end = at + length
            if end > size:
                self._flags.add("truncated" if frame.cut else "malformed")
                if at < size:
                    row.append(text(body[at:], codec) if oid < 0 else hexadecimal(body[at:]))
                break
            if oid < 0:
                row.append(str(body[at:end], codec, "backslashreplace"))
            else:
                shown, understood = value(body[at:end], oid, True, codec)
                row.append(shown)
                if not understood:
                    self._flags.add("undecoded")
            at = end
        else:
            if at != size:
                self._flags.add("malformed")
        if frame.cut:
            self._flags.add("truncated")
        if not self._rows:
            self._start, self._ts_ns = frame.start, frame.ts_ns
        self._rows.append(row)
        self._size += frame.end - frame.start
        self._end, self._end_ns = frame.end, frame.end_ns
        self.count += 1

    def _unknown(self, count: int) -> list[int]:
        """A row with other columns than announced: the formats that were asked for are all that is known."""
        if self.columns is not None:
            self._flags.add("malformed")
        return [0 if is_binary(self.formats or (), number) else -1 for number in range(count)]

    def flush(self) -> list[Message]:
        """The rows since the last time as one message, if there are any."""
        rows = self._rows
        if not rows:
            return []
        lines = ["\t".join([cell if cell is not None else NULL for cell in row]) for row in rows]
        described, whole = self.description.within(self.repeats, self._end)
        if not whole:
            self._flags.add("truncated")
        if self.columns is not None:
            lines.insert(0, "\t".join([column["name"] for column in described]))
        attrs: dict[str, Any] = {
            "columns": described,
            "rows": rows,
            "row_offset": self.offset + self.count - len(rows),
        }
        message = Message(
            Direction.SERVER,
            "rows",
            self._ts_ns,
            self._start,
            self._end,
            "\n".join(lines),
            attrs,
            self.reply_to,
            tuple(sorted(self._flags)),
            self._end_ns,
        )
        self._rows, self._size = [], 0
        self._flags.clear()
        return [message]
