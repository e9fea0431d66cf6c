"""Behind the last answer: what an agent still sends is recorded, not passed, so that it has time to read that answer (a
connection that is closed over unread bytes is reset, RFC 9112 §9.6)."""

from typing import Final

from appliance.model import Direction
from appliance.relay.mediator import Commands, Fail, Take

MAX_LATE: Final = 2**20  # bytes


class Late:
    """`reason` and `text`: why the flow fails once the agent has ended; "" where it ends as it should. `hides`: a token
    may be in these bytes, and nobody reads where."""

    def __init__(self, reason: str, text: str, *, hides: bool) -> None:
        self._reason, self._text = reason, text
        self._hides = hides
        self._bytes = 0
        self._over = False

    def take(self, data: bytes) -> Commands:
        self._bytes += len(data)
        out: Commands = [Take(Direction.CLIENT, data, ((0, len(data), "unread"),) if self._hides else ())]
        if self._bytes > MAX_LATE:
            self._reason = self._reason or "late"
            self._text = self._text or "the agent goes on sending behind the last answer"
            out += self.end()
        return out

    def end(self) -> Commands:
        """The agent has ended."""
        if self._over or not self._reason:
            return []
        self._over = True
        return [Fail(self._reason, self._text)]
