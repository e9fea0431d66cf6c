"""Server-sent events (WHATWG HTML §9.2) in a text/event-stream body, said one by one as they arrive.

Kind `event`: attrs content_type, and event, id and retry where the event has such a field (the last one counts). Its
text is the block of lines as sent, comments too; its range is that of the block and the blank line behind it, with
what the transfer coding puts in between.
"""

import re
from typing import Any, Final

from appliance.dissect import Output
from appliance.dissect.http_spans import Spans
from appliance.model import Direction, Message

MAX_EVENT: Final = 1 << 16  # bytes of one event
MAX_NAME: Final = 256  # characters of an event's name or id in attrs
_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")
_LINE: Final = re.compile(r"\r\n|\r|\n")
_NAMED: Final = ("event", "id", "retry")


class Events:
    """Reads a body that is still open. `reply`: the start of the request."""

    def __init__(self, direction: Direction, content_type: str, reply: int | None) -> None:
        self._direction = direction
        self._content_type = content_type
        self._reply = reply
        self._data = bytearray()
        self._spans = Spans()
        self._ts_ns = 0  # arrival of the first byte of `_data`
        self._scanned = 0
        self._count = 0

    @property
    def held(self) -> int:
        return len(self._data) + self._spans.held

    def attrs(self) -> dict[str, Any]:
        return {"events": self._count}

    def take(self, data: bytes | bytearray | memoryview, offset: int, ts_ns: int, out: Output) -> None:
        """The next bytes of the body, at `offset` of the stream."""
        if not self._data:
            self._ts_ns = ts_ns
        self._data += data
        self._spans.add(offset, len(data))
        place = 0
        for found in _END.finditer(self._data, max(self._scanned - 3, 0)):
            place = self._cut(place, found.end(), ts_ns, out)
            self._say(place, found.end(), ts_ns, out, ())
            place = found.end()
        place = self._cut(place, len(self._data), ts_ns, out)
        if place:
            del self._data[:place]
            self._spans = self._spans.after(place)
        self._scanned = len(self._data)

    def lose(self, ts_ns: int, out: Output) -> None:
        """Bytes are missing: what comes next begins a new block, as far as anybody knows."""
        self.end(ts_ns, out)

    def end(self, ts_ns: int, out: Output) -> None:
        if self._data:
            self._say(0, len(self._data), ts_ns, out, ("truncated",))
            self._data.clear()
            self._spans = Spans()
            self._scanned = 0

    def _cut(self, start: int, end: int, ts_ns: int, out: Output) -> int:
        """Say what is too long piece by piece; returns where the last one begins."""
        while end - start > MAX_EVENT:
            self._say(start, start + MAX_EVENT, ts_ns, out, ("truncated",))
            start += MAX_EVENT
        return start

    def _say(self, start: int, end: int, ts_ns: int, out: Output, flags: tuple[str, ...]) -> None:
        since, self._ts_ns = self._ts_ns, ts_ns
        block = _LINE.sub("\n", self._data[start:end].decode("utf-8", "replace")).strip("\n")
        if not block.strip():  # blank lines alone are no event
            return
        ranges = self._spans.ranges(start, end)
        attrs: dict[str, Any] = {"content_type": self._content_type}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if name in _NAMED:
                attrs[name] = value.removeprefix(" ")[:MAX_NAME]
        self._count += 1
        first, last = ranges[0][0], ranges[-1][1]
        said = Message(self._direction, "event", since, first, last, block, attrs, self._reply, flags, end_ns=ts_ns)
        out.append(said)
