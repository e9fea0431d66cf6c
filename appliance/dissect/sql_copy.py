"""COPY data of one direction, in batches (PostgreSQL 18 documentation, 54.2.6 and "COPY", File Formats).

CopyData messages may be cut anywhere by the client, so a batch is a run of bytes, not of rows. Text format is decoded;
a character that two batches share is in the later one. Binary format is shown like text format, one row a line, with
each field as text where its bytes are printable UTF-8, else in hexadecimal: the types of the fields are not on the
wire, hence the flag `undecoded`. Replication data is only counted.
"""

from appliance.dissect.sql_text import hexadecimal, text
from appliance.model import Direction, Message

MAX_BATCH = 65536  # bytes of the stream that one message covers; one CopyData may exceed it
MAX_CARRY = 65536  # bytes of an unfinished row of binary format that wait for the next batch
SIGNATURE = b"PGCOPY\n\xff\r\n\0"


class Copy:
    """One COPY in one direction. `form` is text, binary or replication."""

    def __init__(self, direction: Direction, form: str, reply_to: int | None) -> None:
        self.direction = direction
        self.form = form
        self.reply_to = reply_to
        self.bytes = 0  # payload in all
        self._data = bytearray()  # payload of this batch, and what the last one left
        self._messages = 0
        self._payload = 0
        self._start = self._end = self._ts_ns = self._end_ns = 0
        self._cut = False
        self._headed = False  # binary: the signature and header were read
        self._broken = False  # binary: does not fit its layout; shown as one value

    @property
    def held(self) -> int:
        """Bytes that wait to become a message."""
        return len(self._data)

    def add(self, body: bytes, start: int, end: int, ts_ns: int, end_ns: int, cut: bool, codec: str) -> list[Message]:
        """One CopyData message."""
        if not self._messages:
            self._start, self._ts_ns = start, ts_ns
        self._messages += 1
        self._payload += len(body)
        self.bytes += len(body)
        self._end, self._end_ns = end, end_ns
        self._cut = self._cut or cut
        if self.form != "replication":
            self._data += body
        return self.flush(codec) if end - self._start >= MAX_BATCH else []

    def flush(self, codec: str, last: bool = False) -> list[Message]:
        """What was collected as a message, if anything was."""
        if not self._messages:
            return []
        shown = ""
        flags = ("truncated",) if self._cut else ()
        if self.form == "text":
            shown = self._text(codec, last)
        elif self.form == "binary":
            shown = self._rows(last)
            flags = (*flags, "undecoded")
        attrs = {"format": self.form, "bytes": self._payload, "messages": self._messages}
        message = Message(
            self.direction,
            "copy",
            self._ts_ns,
            self._start,
            self._end,
            shown,
            attrs,
            self.reply_to,
            flags,
            self._end_ns,
        )
        self._messages = self._payload = 0
        self._cut = False
        return [message]

    def _text(self, codec: str, last: bool) -> str:
        data = bytes(self._data)
        keep = 0 if last or codec != "utf-8" else _unfinished(data)
        self._data = bytearray(data[len(data) - keep :])
        return text(data[: len(data) - keep], codec)

    def _rows(self, last: bool) -> str:
        data = bytes(self._data)
        at = 0
        if not self._headed and not self._broken:
            at = self._header(data)
        lines: list[str] = []
        while self._headed and not self._broken:
            row = _row(data, at)
            if row is None:
                break
            fields, at = row
            if fields is None:
                self._broken = True
            elif fields:
                lines.append("\t".join(fields))
        if self._broken or last or len(data) - at > MAX_CARRY:
            if at < len(data):
                self._broken = True
                lines.append(_guess(data[at:]))
            at = len(data)
        self._data = bytearray(data[at:])
        return "\n".join(lines)

    def _header(self, data: bytes) -> int:
        """Place behind the signature, the flags and the extension."""
        size = len(SIGNATURE)
        if not data.startswith(SIGNATURE[: len(data)]):
            self._broken = True
        elif len(data) >= size + 8:
            end = size + 8 + int.from_bytes(data[size + 4 : size + 8], "big")
            if end <= len(data):
                self._headed = True
                return end
        return 0


def _row(data: bytes, at: int) -> tuple[list[str] | None, int] | None:
    """Fields of the row at `at` and the place behind it; None: not all of it is there; (None, at): it is not one."""
    if at + 2 > len(data):
        return None
    count = int.from_bytes(data[at : at + 2], "big", signed=True)
    if count < -1:
        return None, at
    place = at + 2
    fields: list[str] = []
    for _ in range(count):
        if place + 4 > len(data):
            return None
        length = int.from_bytes(data[place : place + 4], "big", signed=True)
        place += 4
        if length < -1:
            return None, at
        if length < 0:
            fields.append("\\N")
            continue
        if place + length > len(data):
            return None
        fields.append(_guess(data[place : place + length]))
        place += length
    return fields, place


def _guess(raw: bytes) -> str:
    try:
        shown = raw.decode("utf-8")
    except UnicodeDecodeError:
        return hexadecimal(raw)
    return shown if shown.isprintable() else hexadecimal(raw)


def _unfinished(data: bytes) -> int:
    """Bytes at the end that are the beginning of a UTF-8 character."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < needed else 0
        if byte < 0x80:
            break
    return 0
