"""A result as it arrives: its columns, its rows in batches, their count."""

import struct
from collections.abc import Sequence

import msgspec

from appliance.dissect.postgres_columns import Columns
from appliance.dissect.postgres_fields import is_binary
from appliance.dissect.postgres_types import value
from appliance.dissect.sql_frames import Frame
from appliance.dissect.sql_text import Repeats, hexadecimal, text
from appliance.dissect.table import WEIGHT, Batch
from appliance.model import Message

_NONE = 0xFFFFFFFF
_U32 = struct.Struct("!I")


class Result(msgspec.Struct):
    """The result of one statement. `columns` None: nothing said what they are."""

    columns: Columns | None
    formats: tuple[int, ...] | None  # asked for by Bind; None: as the columns say
    reply_to: int | None
    offset: int  # rows of the same portal that came before
    repeats: Repeats
    _oids: Sequence[int] = ()  # per column: type OID if binary, else -1
    _batch: Batch = msgspec.field(default_factory=Batch)

    def __post_init__(self) -> None:
        columns, formats = self.columns, self.formats
        if columns is not None and formats is not None:
            self._oids = [oid if is_binary(formats, at) else -1 for at, oid in enumerate(columns.types)]
        elif columns is not None:
            self._oids = columns.formats

    @property
    def held(self) -> int:
        """Bytes in memory, roughly: of the columns, and of the rows that wait to become a message."""
        return WEIGHT * len(self._oids) + 4 * self._batch.size

    @property
    def count(self) -> int:
        """Rows so far."""
        return self._batch.count

    @property
    def full(self) -> bool:
        return self._batch.full

    def add(self, frame: Frame, codec: str) -> None:
        """One DataRow. Never raises: a row that does not fit is kept as far as it goes, flagged."""
        body = frame.body
        flags = self._batch.flags
        oids = self._oids
        size = len(body)
        count = int.from_bytes(body[:2], "big")
        if count != len(oids):
            oids = self._unknown(count)
        row: list[str | None] = []
        at = 2
        for oid in oids:
            if at + 4 > size:
                flags.add("truncated" if frame.cut else "malformed")
                break
            (length,) = _U32.unpack_from(body, at)
            at += 4
            if length == _NONE:
                row.append(None)
                continue
            end = at + length
            if end > size:
                flags.add("truncated" if frame.cut else "malformed")
                if at < size:
                    row.append(text(body[at:], codec) if oid < 0 else hexadecimal(body[at:]))
                break
            if oid < 0:
                row.append(str(body[at:end], codec, "backslashreplace"))
            else:
                shown, understood = value(body[at:end], oid, True, codec)
                row.append(shown)
                if not understood:
                    flags.add("undecoded")
            at = end
        else:
            if at != size:
                flags.add("malformed")
        if frame.cut:
            flags.add("truncated")
        self._batch.add(frame, row)

    def _unknown(self, count: int) -> Sequence[int]:
        """A row with other columns than announced: the formats that were asked for are all that is known."""
        if self.columns is not None:
            self._batch.flags.add("malformed")
        return [0 if is_binary(self.formats or (), number) else -1 for number in range(count)]

    def flush(self) -> list[Message]:
        """The rows since the last time as one message, if there are any."""
        return self._batch.flush(self.columns, self.offset, self.reply_to, self.repeats)
