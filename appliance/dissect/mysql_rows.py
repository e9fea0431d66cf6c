"""A result of MySQL as it arrives: its columns, its rows in batches, their count.

Text rows are length-encoded strings, 0xFB for NULL ("Text Resultset Row"). Binary rows have a zero, a bitmap of NULLs
that begins at bit 2, and the values in the layout of their types ("Binary Protocol Resultset Row").
"""

import struct

import msgspec

from appliance.dissect.mysql_charsets import codec
from appliance.dissect.mysql_columns import Columns
from appliance.dissect.mysql_types import Kind, decoder, is_bytes, lenenc, shown_bytes
from appliance.dissect.sql_frames import Frame
from appliance.dissect.sql_text import Repeats, hexadecimal
from appliance.dissect.table import WEIGHT, Batch
from appliance.model import Message

_NULL = 0xFB


class Result(msgspec.Struct):
    """The result of one statement."""

    columns: Columns
    binary: bool
    reply_to: int | None
    offset: int  # rows of the same cursor that came before
    repeats: Repeats
    _codecs: list[str] = []  # per column; a Struct copies it
    _bytes: list[Kind | None] = []  # per column: its kind if its text may be no text
    _batch: Batch = msgspec.field(default_factory=Batch)

    def __post_init__(self) -> None:
        self._codecs = [codec(kind.charset) for kind in self.columns.types]
        self._bytes = [kind if is_bytes(kind) else None for kind in self.columns.types]

    @property
    def held(self) -> int:
        """Bytes in memory, roughly: of the columns, and of the rows that wait to become a message."""
        return WEIGHT * len(self._codecs) + 4 * self._batch.size

    @property
    def count(self) -> int:
        """Rows so far."""
        return self._batch.count

    @property
    def full(self) -> bool:
        return self._batch.full

    def add(self, frame: Frame) -> None:
        """One row. Never raises: a row that does not fit is kept as far as it goes, flagged."""
        row: list[str | None] = []
        try:
            whole = (self._binary if self.binary else self._text)(frame.body, row)
        except (ValueError, IndexError, struct.error):
            whole = False
        if frame.cut:
            self._batch.flags.add("truncated")
        elif not whole:
            self._batch.flags.add("malformed")
        self._batch.add(frame, row)

    def flush(self) -> list[Message]:
        """The rows since the last time as one message, if there are any."""
        return self._batch.flush(self.columns, self.offset, self.reply_to, self.repeats)

    def _text(self, body: bytes, row: list[str | None]) -> bool:
        """Appends the values; returns whether the row ends with the last one."""
        at, size = 0, len(body)
        codecs, special = self._codecs, self._bytes
        for number in range(len(codecs)):
            length = body[at]
            at += 1
            if length > 250:
                if length == _NULL:
                    row.append(None)
                    continue
                length, at = lenenc(body, at - 1)
            end = at + length
            kind = special[number]
            if kind is None:
                row.append(str(body[at:end], codecs[number], "backslashreplace"))
            else:
                row.append(shown_bytes(body[at:end], kind))
            at = end
            if at > size:
                return False
        return at == size

    def _binary(self, body: bytes, row: list[str | None]) -> bool:
        types = self.columns.types
        at = 1 + (len(types) + 9) // 8
        if body[0] or at > len(body):
            return False
        for number, kind in enumerate(types, 2):
            if body[1 + (number >> 3)] >> (number & 7) & 1:
                row.append(None)
                continue
            try:
                shown, at = decoder(kind)(body, at)
            except (ValueError, IndexError, struct.error):
                row.append(hexadecimal(body[at:]))
                self._batch.flags.add("undecoded")
                return False
            row.append(shown)
        return at == len(body)
