"""One direction of HTTP/1.x that lost its framing: everything is raw until a line is a start line again.

The bytes may be the rest of a head or of a token exchange, so what looks like a credential is redacted, and a line that
is not whole is kept, up to `MAX_LINE` bytes.
"""

from typing import Final

from appliance.dissect import Output
from appliance.dissect.http_head import START
from appliance.dissect.http_secrets import (
    ends_in_secret_field,
    field_secrets,
    mask,
    missing_name,
    opens_secret_field,
    stray_secrets,
)
from appliance.dissect.raw import Raw
from appliance.model import Direction, Redaction

MAX_LINE: Final = 1 << 13
_BEFORE: Final = b"api-key:\n"  # stands for the line that a folded line goes on with


def mask_fields(direction: Direction, block: bytes, start: int, out: Output) -> bytes:
    """Redact the credentials among header lines at `start`. Returns the very same object if there are none."""
    ranges = field_secrets(block)
    out += [Redaction(direction, start + first, start + last, what) for first, last, what in ranges]
    return mask(block, ranges)


def last_line(block: bytes | bytearray) -> bytes:
    """What follows the last line end."""
    return bytes(block[block.rfind(b"\n") + 1 :])


class Lost:
    """`inside`: the part of a line that was seen before, b"" at the start of one or where nobody knows."""

    def __init__(self, direction: Direction, offset: int, inside: bytes) -> None:
        self._direction = direction
        self._raw = Raw(offset, offset)
        self._line_start = not inside
        self._secret = opens_secret_field(inside)
        self._folds = False  # the last whole line was a credential's: a folded line goes on with it
        self._first = not inside  # of a line whose begin nobody saw: its field's name may have lost its first bytes
        self._scanned = 0

    def search(self, buffer: bytearray, offset: int, ts_ns: int, out: Output) -> bool:
        """Look for a start line; `buffer` is at `offset`. Removes what is raw from it. True: it begins with one."""
        if not self._line_start:
            end = buffer.find(b"\n") + 1
            offset += self._give(buffer, end or len(buffer), offset, ts_ns, out)
            if not end:
                return False
            self._line_start, self._secret = True, False
        last = buffer.rfind(b"\n", self._scanned) + 1
        self._scanned = len(buffer)
        if last:
            with memoryview(buffer) as view, view[:last] as part:
                found = START[self._direction].search(part)
                length = found.start() if found else last
                del found  # it holds the view
            offset += self._give(buffer, length, offset, ts_ns, out)
            if length < last:
                out += self._raw.close(self._direction, ts_ns)
                return True
        if len(buffer) > MAX_LINE:
            secret = opens_secret_field(bytes(buffer[:MAX_LINE]))
            self._give(buffer, len(buffer), offset, ts_ns, out)
            self._line_start, self._secret = False, secret
        return False

    def pause(self, ts_ns: int) -> Output:
        """The other direction speaks: bring out what was gathered."""
        return self._raw.close(self._direction, ts_ns)

    def end(self, buffer: bytearray, offset: int, ts_ns: int) -> tuple[Output, bytes]:
        """Nothing follows, or a gap does. Also returns the line that it ends in, which may go on behind the gap."""
        out: Output = []
        inside = last_line(buffer) if self._line_start else b"authorization:" if self._secret else b""
        self._give(buffer, len(buffer), offset, ts_ns, out)
        return out + self._raw.close(self._direction, ts_ns), inside

    def _give(self, buffer: bytearray, length: int, offset: int, ts_ns: int, out: Output) -> int:
        if not length:
            return 0
        block = bytes(buffer[:length])
        if self._secret:
            hidden = len(block.removesuffix(b"\n"))  # a carriage return may be cut from its line feed
            if hidden:
                out.append(Redaction(self._direction, offset, offset + hidden, "authorization"))
            block = b"*" * hidden + block[hidden:]
        elif self._line_start:
            before = _BEFORE if self._folds else missing_name(block) if self._first else b""
            self._first = False
            lines = before + block
            ranges = stray_secrets(lines)
            at = offset - len(before)
            out += [Redaction(self._direction, at + first, at + last, what) for first, last, what in ranges]
            block = mask(lines, ranges)[len(before) :]
            self._folds = ends_in_secret_field(lines)
        del buffer[:length]
        self._scanned = max(self._scanned - length, 0)
        out += self._raw.receive(self._direction, block, ts_ns)
        return length
