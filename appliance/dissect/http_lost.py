"""One direction of HTTP/1.x that lost its framing: everything is raw until a line is a start line again.

The bytes may be the rest of a head or of a token exchange, so what looks like a credential is redacted, and a line that
is not whole is kept, up to `MAX_LINE` bytes.
"""

from typing import Final

from appliance.dissect import Output, Torn
from appliance.dissect.http_head import START
from appliance.dissect.http_secrets import (
    Range,
    ends_in_secret_field,
    field_secrets,
    mask,
    missing_name,
    opens_secret_field,
    stray_secrets,
    torn_secrets,
)
from appliance.dissect.raw import Raw
from appliance.model import Direction, Redaction

MAX_LINE: Final = 1 << 13
SECRET_LINE: Final = b"authorization:"  # stands for the begin of a line that goes on with a credential
_BEFORE: Final = b"api-key:\n"  # stands for the line that a folded line goes on with


def mask_fields(direction: Direction, block: bytes, start: int, out: Output) -> bytes:
    """Redact the credentials among header lines at `start`. Returns the very same object if there are none."""
    ranges = field_secrets(block)
    out += [Redaction(direction, start + first, start + last, what) for first, last, what in ranges]
    return mask(block, ranges)


def mask_stray(direction: Direction, block: bytes, start: int, out: Output) -> bytes:
    """The same for bytes that are no header lines, or begin within one."""
    ranges = stray_ranges(block, unseen=False)
    out += [Redaction(direction, start + first, start + last, what) for first, last, what in ranges]
    return mask(block, ranges)


def last_line(block: bytes | bytearray) -> bytes:
    """What follows the last line end."""
    return bytes(block[block.rfind(b"\n") + 1 :])


def stray_ranges(block: bytes, *, unseen: bool) -> list[Range]:
    """Credentials in bytes that may begin within a header line; `unseen`: or anywhere else, see `torn_secrets`."""
    before = missing_name(block)
    found = _moved(stray_secrets(before + block), -len(before))
    if unseen:
        torn = torn_secrets(block)
        found += [one for one in torn if all(one[1] <= first or last <= one[0] for first, last, _ in found)]
    return found


def _moved(ranges: list[Range], by: int) -> list[Range]:
    return [(start + by, end + by, what) for start, end, what in ranges] if by else ranges


class Lost:
    """`inside`: the part of a line that was seen before, b"" at the start of one or where nobody knows.

    `torn`: what of a credential may come first. `unseen`: nobody knows what came before; `head`: but it was a head.
    """

    def __init__(
        self,
        direction: Direction,
        offset: int,
        inside: bytes,
        torn: Torn | None = None,
        *,
        unseen: bool = False,
        head: bool = False,
    ) -> None:
        self._direction = direction
        self._raw = Raw(offset, offset)
        self._line_start = not inside
        self._secret = opens_secret_field(inside)
        self._folds = False  # the last whole line was a credential's: a folded line goes on with it
        self._hidden, self._veiled = (torn.size, torn.upto) if torn is not None else (0, 0)
        self._unseen = unseen
        self._head = head
        self._first = not inside  # of a line whose begin nobody saw: its field's name may have lost its first bytes
        self._scanned = 0

    def search(self, buffer: bytearray, offset: int, ts_ns: int, out: Output) -> bool:
        """Look for a start line; `buffer` is at `offset`. Removes what is raw from it. True: it begins with one."""
        if self._hidden:
            length = min(self._hidden, len(buffer))
            offset += self._hide(buffer, length, offset, ts_ns, out)
            self._hidden -= length
            if not buffer:
                return False
        if not self._line_start:
            end = buffer.find(b"\n") + 1
            offset += self._give(buffer, end or len(buffer), offset, ts_ns, out)
            if not end:
                return False
            self._line_start, self._secret = True, False
        if self._first and self._unseen and self._waits(buffer):
            return False
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
            secret = opens_secret_field(bytes(buffer[:MAX_LINE])) or (self._first and self._head)
            self._give(buffer, len(buffer), offset, ts_ns, out)
            self._line_start, self._secret = False, secret
        return False

    def _waits(self, buffer: bytearray) -> bool:
        """What the first line is, the second one tells."""
        if buffer.count(b"\n", 0, MAX_LINE) > 1 or len(buffer) > MAX_LINE:
            return False
        return START[self._direction].match(buffer) is None

    def pause(self, ts_ns: int) -> Output:
        """The other direction speaks: bring out what was gathered."""
        return self._raw.close(self._direction, ts_ns)

    def hide(self, buffer: bytearray, offset: int, ts_ns: int, out: Output) -> None:
        """All of the buffer turns out to be a credential."""
        self._hide(buffer, len(buffer), offset, ts_ns, out)
        self._first = False

    def turn(self, buffer: bytearray, offset: int, ts_ns: int) -> Output:
        """The other direction speaks, and lines don't wait for their end: what comes next begins a line, if it may."""
        out: Output = []
        inside = last_line(buffer) if self._line_start else b""
        self._give(buffer, len(buffer), offset, ts_ns, out)
        if self._line_start or not self._secret:
            self._secret = opens_secret_field(inside)
            self._line_start = not self._secret
        return out + self._raw.close(self._direction, ts_ns)

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self._raw.held

    @property
    def untouched(self) -> bool:
        """Nothing was taken yet, and nobody knows what came before."""
        return self._first and self._unseen

    def torn(self, buffer: bytes | bytearray = b"") -> Torn:
        """What follows may go on with; `buffer` is what was not taken yet."""
        line = self._secret if not self._line_start else opens_secret_field(last_line(buffer))
        return Torn(line, self._hidden, self._veiled)

    def end(self, buffer: bytearray, offset: int, ts_ns: int) -> tuple[Output, bytes]:
        """Nothing follows, or a gap does. Also returns the line that it ends in, which may go on behind the gap."""
        out: Output = []
        inside = last_line(buffer) if self._line_start else SECRET_LINE if self._secret else b""
        self._give(buffer, len(buffer), offset, ts_ns, out)
        return out + self._raw.close(self._direction, ts_ns), inside

    def _give(self, buffer: bytearray, length: int, offset: int, ts_ns: int, out: Output) -> int:
        if not length:
            return 0
        if self._veiled:
            veiled = min(length, self._veiled)
            self._hide(buffer, veiled, offset, ts_ns, out)
            self._veiled -= veiled
            return veiled + self._give(buffer, length - veiled, offset + veiled, ts_ns, out)
        block = bytes(buffer[:length])
        if self._secret:
            hidden = len(block.removesuffix(b"\n"))  # a carriage return may be cut from its line feed
            if hidden:
                out.append(Redaction(self._direction, offset, offset + hidden, "authorization"))
            block = b"*" * hidden + block[hidden:]
        elif self._line_start:
            before = _BEFORE if self._folds else missing_name(block) if self._first else b""
            lines = before + block
            unseen = self._unseen and self._first
            ranges = stray_ranges(block, unseen=True) if unseen else _moved(stray_secrets(lines), -len(before))
            if unseen and self._head and (size := len(block.partition(b"\n")[0].removesuffix(b"\r"))):
                ranges = [(0, size, "authorization"), *(one for one in ranges if one[0] >= size)]
            self._first = False
            out += [Redaction(self._direction, offset + first, offset + last, what) for first, last, what in ranges]
            block = mask(block, ranges)
            self._folds = ends_in_secret_field(lines)
        del buffer[:length]
        self._scanned = max(self._scanned - length, 0)
        out += self._raw.receive(self._direction, block, ts_ns)
        return length

    def _hide(self, buffer: bytearray, length: int, offset: int, ts_ns: int, out: Output) -> int:
        """Pass over bytes of which each may be a credential's."""
        if length:
            del buffer[:length]
            self._scanned = max(self._scanned - length, 0)
            out.append(Redaction(self._direction, offset, offset + length, "token"))
            out += self._raw.receive(self._direction, b"*" * length, ts_ns)
        return length
