"""WebSocket (RFC 6455), behind an HTTP/1.1 Upgrade: the messages of both directions.

Messages, of kind `text`, `binary`, `ping`, `pong` and `close`; attrs bytes (of payload, as sent), frames, and of those
compressed by permessage-deflate (RFC 7692) compressed and inflated_bytes; of `close` code and reason. `frame`: a header
that is not whole or can be none (attrs.fault). `data`: bytes where no frame could be found, behind a gap.
Flags: truncated, malformed (a rule of RFC 6455 is broken), undecoded, gap. Session attrs: subprotocol, extensions, and
degraded once a direction had to be searched for its next frame.
"""

from typing import Any

from appliance.dissect import Match, Output, Torn
from appliance.dissect.websocket_frames import WebSocketSide
from appliance.model import Direction

END = 1 << 62  # behind every offset


class WebSocket:
    protocol = "websocket"
    opaque = False
    successor: str | None = None

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self.attrs: dict[str, Any] = {}
        self._received = {Direction.CLIENT: client_offset, Direction.SERVER: server_offset}
        self._sides = {direction: WebSocketSide(direction, None) for direction in Direction}

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        """Never: its first bytes say too little, and HTTP hands over."""
        return Match.NO

    def inherit(self, legacy: dict[str, Any]) -> None:
        extensions = str(legacy.get("extensions", ""))
        self._sides = {direction: WebSocketSide(direction, extensions) for direction in Direction}
        if extensions:
            self.attrs["extensions"] = extensions
        if legacy.get("protocol"):
            self.attrs["subprotocol"] = str(legacy["protocol"])

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        out: Output = []
        self._sides[direction].take(data, self._received[direction], ts_ns, out)
        self._received[direction] += len(data)
        self._notice(direction)
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        out: Output = []
        self._sides[direction].lose(ts_ns, out, length)
        self._received[direction] += length
        self._notice(direction)
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        out: Output = []
        self._sides[direction].end(ts_ns, out)
        return out

    def settled(self, direction: Direction) -> int:
        return self._received[direction]

    def guarded(self, direction: Direction) -> int:
        """Nothing here is known to be a credential."""
        return END

    def torn(self, direction: Direction) -> Torn:
        return Torn()

    def resume(self, direction: Direction, torn: Torn | None) -> None:
        self._sides[direction].resume()
        self._notice(direction)

    @property
    def held(self) -> int:
        return sum(side.held for side in self._sides.values())

    def shed(self) -> Output:
        for side in self._sides.values():
            side.shed()
        return []

    def _notice(self, direction: Direction) -> None:
        if self._sides[direction].degraded:
            self.attrs["degraded"] = True
