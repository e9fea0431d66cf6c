"""Any bytes: what is recorded when no other dissector fits.

Emits kind `data`: one burst of one direction, that is bytes without a turn of direction, a gap or a pause between them,
cut at `MAX_BURST`. Its text is what a person could read of it: the whole burst where it is UTF-8, else its printable
runs, one a line. Attrs: bytes, and dense where it looks encrypted or compressed, which is not searched for text.
No byte is ever held back: everything is settled on arrival.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from appliance.dissect import Match, Output
from appliance.model import Direction, Message

MAX_BURST = 65536  # bytes of one message
PAUSE_NS = 1_000_000_000  # a longer silence ends a burst
MIN_RUN = 6  # printable characters; shorter ones are mostly chance in binary data

SAMPLE = 2048  # bytes looked at, at the start, in the middle and at the end of a burst
DENSE = 240  # different byte values in every sample: encrypted or compressed, what is readable there is chance

# ASCII, then any mix of UTF-8 and ASCII; possessive, so that binary data costs no backtracking
_RUN = re.compile(
    rb"[\t\n\r\x20-\x7e]{3,}+"
    rb"(?:(?:[\xc3-\xdf][\x80-\xbf]|[\xe1-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})++[\t\n\r\x20-\x7e]*+)*+"
)
_CONTROLS = bytes(code for code in (*range(0x20), 0x7F) if code not in b"\t\n\r")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def printable(data: bytes) -> str:
    """The readable part of any bytes, for search: UTF-8 as it is, else its printable runs, one a line."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text and not (len(data.translate(None, _CONTROLS)) < len(data) if text.isascii() else _CONTROL.search(text)):
        return text
    runs = (run.decode("utf-8", "replace") for run in _RUN.findall(data) if len(run) >= MIN_RUN)
    return "\n".join(runs)


def is_dense(data: bytes) -> bool:
    """Whether the bytes look encrypted or compressed. Never true of less than four samples."""
    if len(data) < 4 * SAMPLE:
        return False
    middle = len(data) // 2
    samples = (data[:SAMPLE], data[middle : middle + SAMPLE], data[-SAMPLE:])
    return all(len(set(sample)) >= DENSE for sample in samples)


def said(direction: Direction, data: bytes, start: int, ts_ns: int, end_ns: int) -> Message:
    """The message of one burst, which begins at offset `start`."""
    attrs: dict[str, Any] = {"bytes": len(data)}
    if is_dense(data):
        attrs["dense"] = True
    text = "" if "dense" in attrs else printable(data)
    return Message(direction, "data", ts_ns, start, start + len(data), text, attrs, end_ns=end_ns)


@dataclass(slots=True)
class _Burst:
    start: int
    ts_ns: int
    end_ns: int
    data: bytearray = field(default_factory=bytearray)


class Raw:
    """Fits everything; the last of every registry."""

    protocol = "raw"
    opaque = False
    successor: str | None = None

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self.attrs: dict[str, Any] = {}
        self._received = {Direction.CLIENT: client_offset, Direction.SERVER: server_offset}
        self._burst: dict[Direction, _Burst] = {}  # at most one: a turn of direction ends the other's

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        return Match.YES

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        out = self._end(direction.other)
        burst = self._burst.get(direction)
        if burst is not None and ts_ns - burst.end_ns > PAUSE_NS:
            out += self._end(direction)
        taken = 0
        while taken < len(data):
            burst = self._burst.get(direction)
            if burst is None:
                burst = self._burst[direction] = _Burst(self._received[direction], ts_ns, ts_ns)
            part = data[taken : taken + MAX_BURST - len(burst.data)]
            burst.data += part
            burst.end_ns = ts_ns
            taken += len(part)
            self._received[direction] += len(part)
            if len(burst.data) == MAX_BURST:
                out += self._end(direction)
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        out = self._end(direction)
        self._received[direction] += length
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        return self._end(direction)

    def settled(self, direction: Direction) -> int:
        return self._received[direction]

    @property
    def held(self) -> int:
        return sum(len(burst.data) for burst in self._burst.values())

    def shed(self) -> Output:
        """Bursts end here."""
        return self._end(Direction.CLIENT) + self._end(Direction.SERVER)

    def _end(self, direction: Direction) -> Output:
        burst = self._burst.pop(direction, None)
        if burst is None:
            return []
        return [said(direction, bytes(burst.data), burst.start, burst.ts_ns, burst.end_ns)]
