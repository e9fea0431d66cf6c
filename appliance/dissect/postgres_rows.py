"""A result as it arrives: its columns, its rows in batches, their count."""

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from appliance.dissect.postgres_columns import NOTHING, WEIGHT, Columns
from appliance.dissect.postgres_fields import is_binary
from appliance.dissect.postgres_frames import Frame
from appliance.dissect.postgres_session import Repeats
from appliance.dissect.postgres_types import hexadecimal, text, value
from appliance.model import Direction, Message

MAX_ROWS = 100  # of one message
MAX_ROWS_BYTES = 65536  # of the DataRows of one message; one row may exceed it
MAX_BRIEF = 8  # columns that it repeats in any case, see `Repeats`
NULL = "\\N"  # in a message's text, as in COPY; None in its attributes
_NONE = 0xFFFFFFFF
_U32 = struct.Struct("!I")


def within(columns: Columns, repeats: Repeats, offset: int) -> tuple[list[dict[str, str]], bool]:
    """What a message that ends at `offset` may repeat of the columns, and whether these are all."""
    shown = columns.shown
    if len(shown) > MAX_BRIEF and not repeats.allow(columns.size, offset):
        shown = shown[:MAX_BRIEF]
    return shown, len(shown) == len(columns.types)


class Result(msgspec.Struct):
    """The result of one statement. `columns` None: nothing said what they are."""

    columns: Columns | None
    formats: tuple[int, ...] | None  # asked for by Bind; None: as the columns say
    reply_to: int | None
    offset: int  # rows of the same portal that came before
    repeats: Repeats
    count: int = 0
    _oids: Sequence[int] = ()  # per column: type OID if binary, else -1
    _rows: list[list[str | None]] = []  # a Struct copies it
    _size: int = 0
    _start: int = 0
    _end: int = 0
    _ts_ns: int = 0
    _end_ns: int = 0
    _flags: set[str] = set()  # a Struct copies it

    def __post_init__(self) -> None:
        columns, formats = self.columns, self.formats
        if columns is not None and formats is not None:
            self._oids = [oid if is_binary(formats, at) else -1 for at, oid in enumerate(columns.types)]
        elif columns is not None:
            self._oids = columns.formats

    @property
    def held(self) -> int:
        """Bytes in memory, roughly: of the columns, and of the rows that wait to become a message."""
        return WEIGHT * len(self._oids) + 4 * self._size

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
            if at + 4 > size:
                self._flags.add("truncated" if frame.cut else "malformed")
                break
            (length,) = _U32.unpack_from(body, at)
            at += 4
            if length == _NONE:
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

    def _unknown(self, count: int) -> Sequence[int]:
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
        described, whole = within(self.columns or NOTHING, self.repeats, self._end)
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
