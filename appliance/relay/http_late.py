"""Behind the last answer: what an agent still sends is recorded, not passed, so that it has time to read that answer (a
connection that is closed over unread bytes is reset, RFC 9112 §9.6)."""

from typing import Final

from appliance.model import Direction
from appliance.relay.mediator import Commands, Fail, Take

MAX_LATE: Final = 2**20  # bytes


class Late:
    """`hides`: a token may be in these bytes, and nobody reads where."""

    def __init__(self, *, hides: bool) -> None:
        self._hides = hides
        self._bytes = 0

    def take(self, data: bytes) -> Commands:
        self._bytes += len(data)
        out: Commands = [Take(Direction.CLIENT, data, ((0, len(data), "unread"),) if self._hides else ())]
        if self._bytes > MAX_LATE:
            out.append(Fail("late", "the agent goes on sending behind the last answer"))
        return out
