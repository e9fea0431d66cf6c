"""Where a body ends: chunked coding read strictly (RFC 9112 §7.1), a length counted down.

Lines of the coding itself pass only when they are whole and were judged.
"""

import re
from typing import Final

from appliance.relay.http_head import CR, CRLF, Ambiguous, Body, Framing, Malformed, check_trailer

MAX_LINE: Final = 4096  # bytes of a chunk's size and extensions
MAX_TRAILERS: Final = 16 * 1024
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(;[\t -~\x80-\xff]*)?")
_SPACED: Final = re.compile(rb"[ \t]*[0-9A-Fa-f]{1,15}[ \t]*(;.*)?", re.DOTALL)


class BodyReader:
    """Says which bytes belong to one body; they pass unchanged."""

    def __init__(self, body: Body) -> None:
        self._framing = body.framing
        self._left = body.length  # of the body, or of the present chunk
        self._closing = False  # the CRLF behind a chunk comes next
        self._last = False  # the last chunk was seen: trailers follow
        self._trailers = 0
        self.done = body.framing is Framing.NONE or (body.framing is Framing.LENGTH and not body.length)

    @property
    def until_close(self) -> bool:
        return self._framing is Framing.CLOSE

    def take(self, data: bytes | bytearray) -> int:
        """How many of these bytes pass; those behind them are to be given again, with more. Raises `Malformed`."""
        if self._framing is Framing.CLOSE:
            return len(data)
        if self._framing is not Framing.CHUNKED:
            size = min(self._left, len(data))
            self._left -= size
            self.done = not self._left
            return size
        at = 0
        while at < len(data) and not self.done:
            if self._left:
                size = min(self._left, len(data) - at)
                self._left -= size
                self._closing = not self._left
            elif self._closing:
                size = self._close(data[at : at + 2])
            else:
                size = self._line(data, at)
            if not size:
                break
            at += size
        return at

    def _close(self, data: bytes | bytearray) -> int:
        if data == CRLF:
            self._closing = False
            return len(CRLF)
        if data == b"\r":
            return 0
        if data[:1] == b"\n":
            raise Ambiguous("bare-lf", "a line that ends with LF alone")
        raise Ambiguous("chunk-end", "a chunk that is longer than it says")

    def _line(self, data: bytes | bytearray, at: int) -> int:
        """A line of the coding; 0: it is not whole."""
        end = data.find(b"\n", at, at + MAX_LINE)
        if end < 0:
            if len(data) - at >= MAX_LINE:
                raise Malformed(f"a line of the chunked coding of more than {MAX_LINE} bytes")
            return 0
        if end == at or data[end - 1] != CR:
            raise Ambiguous("bare-lf", "a line that ends with LF alone")
        line = bytes(data[at : end - 1])
        if b"\r" in line:
            raise Ambiguous("bare-cr", "a CR within a line")
        if self._last:
            self._trailer(line)
        else:
            self._size(line)
        return end + 1 - at

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailers += len(line)
        if self._trailers > MAX_TRAILERS:
            raise Malformed(f"trailers of more than {MAX_TRAILERS} bytes", 431)
        check_trailer(line)

    def _size(self, line: bytes) -> None:
        found = _SIZE.fullmatch(line)
        if found is None:
            if _SPACED.fullmatch(line):
                raise Ambiguous("chunk-space", "a blank beside a chunk's size")
            raise Ambiguous("chunk-size", "a chunk's size that is no number")
        self._left = int(found[1], 16)
        self._last = not self._left
