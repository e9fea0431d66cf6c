"""A stream of which nobody knows where its messages begin: its start was not seen, or what read it failed.

It is recorded as `raw` (kind `data`), but its bytes may be the rest of a head or of a token exchange, so what looks
like a credential is redacted, as HTTP does where it lost its framing. A line that is not whole waits, up to `MAX_LINE`
bytes, for its end, an end of the direction or a turn of direction. Successors: `http1`, at a line that is a start line;
`postgres`, where the server's first word is that a log-in is done; `redis`, where what the client sends begins with a
command.
"""

from typing import Any

from appliance.dissect import Match, Output, Torn
from appliance.dissect.http_lost import SECRET_LINE, Lost
from appliance.dissect.http_secrets import opens_secret_field
from appliance.dissect.postgres_fields import AUTHENTICATED
from appliance.dissect.redis_commands import START as COMMAND
from appliance.model import Direction


class _Side:
    def __init__(self, direction: Direction, offset: int) -> None:
        self.received = offset
        self.buffer = bytearray()  # ends at `received`
        self.buffer_ns = 0  # arrival of its first byte
        self.lost = Lost(direction, offset, b"")

    @property
    def offset(self) -> int:
        return self.received - len(self.buffer)


class Unframed:
    """What a stream falls back to where `Raw` would store credentials."""

    protocol = "raw"
    opaque = False

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self.attrs: dict[str, Any] = {}
        self.successor: str | None = None
        offsets = {Direction.CLIENT: client_offset, Direction.SERVER: server_offset}
        self._sides = {direction: _Side(direction, offset) for direction, offset in offsets.items()}

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        return Match.YES

    def resume(self, direction: Direction, torn: Torn | None) -> None:
        side = self._sides[direction]
        inside = SECRET_LINE if torn is not None and torn.line else b""
        side.lost = Lost(direction, side.offset, inside, torn, unseen=torn != Torn())

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        side, other = self._sides[direction], self._sides[direction.other]
        out: Output = []
        first = side.lost.untouched and not side.buffer
        logged_in = direction is Direction.SERVER and first and AUTHENTICATED.startswith(data[: len(AUTHENTICATED)])
        if logged_in and other.lost.untouched:  # what it answers is the rest of a password
            other.lost.hide(other.buffer, other.offset, other.buffer_ns, out)
        out += other.lost.turn(other.buffer, other.offset, other.buffer_ns)
        if not side.buffer:
            side.buffer_ns = ts_ns
        side.buffer += data
        side.received += len(data)
        if logged_in and side.buffer.startswith(AUTHENTICATED):
            self.successor = "postgres"
            return out
        if direction is Direction.CLIENT and len(side.buffer) == len(data) and COMMAND.match(data):
            self.successor = "redis"
            return out
        before = len(side.buffer)
        if side.lost.search(side.buffer, side.offset, side.buffer_ns, out):
            self.successor = "http1"
        if len(side.buffer) < before:
            side.buffer_ns = ts_ns
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        side = self._sides[direction]
        out, inside = side.lost.end(side.buffer, side.offset, side.buffer_ns)
        torn = side.lost.torn()
        side.received += length
        inside = inside if opens_secret_field(inside) else b""  # else what follows may begin a line
        side.lost = Lost(direction, side.received, inside, torn, unseen=True)
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        side = self._sides[direction]
        return side.lost.end(side.buffer, side.offset, side.buffer_ns)[0]

    def settled(self, direction: Direction) -> int:
        return self._sides[direction].offset

    def rest(self, direction: Direction) -> bytes:
        return bytes(self._sides[direction].buffer)

    def torn(self, direction: Direction) -> Torn:
        side = self._sides[direction]
        return side.lost.torn(side.buffer)

    def inside(self) -> dict[Direction, Torn | None]:
        """The same before what `rest` gives; None where nothing was taken yet."""
        return {direction: None if side.lost.untouched else side.lost.torn() for direction, side in self._sides.items()}

    @property
    def held(self) -> int:
        return sum(len(side.buffer) + side.lost.held for side in self._sides.values())

    def shed(self) -> Output:
        """Bursts end here."""
        return [item for side in self._sides.values() for item in side.lost.pause(side.buffer_ns)]
