"""What an agent says once the gateway has logged in for it: where commands begin, and which one must not pass.

Only headers and first bytes are looked at. COM_CHANGE_USER would leave the gateway's credential for another one, and
with it what is on record of who acts. A command's packet has the number 0; so has every 256th packet of a file that the
server asked for (LOAD DATA LOCAL), which follows a packet with the number 255 that was not the file's empty last one.
"""

from typing import Final

from appliance.dissect.mysql_frames import CHANGE_USER, FULL, HEADER, WORD
from appliance.model import Direction
from appliance.relay import mediator
from appliance.relay import mysql_messages as messages
from appliance.relay.mediator import ANY, Fail, Pass, Say, Shut, Take

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
FORBIDDEN: Final = frozenset({CHANGE_USER, 0xFE})  # 0xFE: MariaDB's COM_MULTI could hold it
LAST: Final = 255  # number behind which they begin again


class Commands:
    """The agent's direction."""

    __slots__ = ("_content", "_held", "_more", "_number", "_skip")

    def __init__(self) -> None:
        self._held = b""  # a header, not whole yet, or without its first byte
        self._skip = 0  # bytes of the present packet that are to come
        self._more = False  # another packet continues it
        self._content = False  # it is of a file, and not the last one
        self._number = 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """What may pass, and what is refused: from the beginning of a command on that must not."""
        if self._held:
            data, self._held = self._held + data, b""
        at, size = min(self._skip, len(data)), len(data)
        self._skip -= at
        while at < size:
            if size - at < HEADER:
                break
            (word,) = WORD.unpack_from(data, at)
            length, number = word & FULL, word >> 24
            if length and size - at == HEADER:
                break
            if self._more:
                self._more = length == FULL
            else:
                content = number != 0 or (self._content and self._number == LAST)
                if not content and length and data[at + HEADER] in FORBIDDEN:
                    return data[:at], data[at:]
                self._content, self._more = content and length > 0, length == FULL
            self._number = number
            end = at + HEADER + length
            self._skip = max(0, end - size)
            at = min(end, size)
        self._held = data[at:]
        return data[:at] if self._held else data, b""

    def rest(self) -> bytes:
        """What waits for more of its header."""
        held, self._held = self._held, b""
        return held


class Opened:
    """The session of an agent for whom the gateway has logged in."""

    def __init__(self) -> None:
        self._agent = Commands()
        self._over = False

    def limit(self, direction: Direction) -> int:
        return 0 if self._over else ANY

    def receive(self, direction: Direction, data: bytes) -> mediator.Commands:
        if self._over:
            return []
        if direction is SERVER:
            return [Pass(SERVER, data)]
        passed, refused = self._agent.take(data)
        out: mediator.Commands = [Pass(CLIENT, passed)] if passed else []
        if refused:
            text = "COM_CHANGE_USER is refused: the gateway has logged in for the agent"
            out.append(Take(CLIENT, refused, messages.hidden(refused, HEADER + 1)))
            out.append(Say(CLIENT, messages.error(1, messages.FORBIDDEN, text, "Connect anew instead")))
            out += self._fail("change-user", text)
        return out

    def ended(self, direction: Direction) -> mediator.Commands:
        rest = self._agent.rest() if direction is CLIENT else b""
        return [*([Pass(CLIENT, rest)] if rest else []), Shut(direction.other)]

    def stop(self, reason: str, text: str) -> mediator.Commands:
        """An error only where nothing moves: else it would come amid an answer, maybe. Clients take the number 0 for
        what a server says by itself."""
        if self._over:
            return []
        rest = self._agent.rest()
        out: mediator.Commands = [Take(CLIENT, rest)] if rest else []
        if reason == "idle":
            out.append(Say(CLIENT, messages.error(0, messages.CODES[reason], text)))
        return [*out, *self._fail(reason, text)]

    def _fail(self, reason: str, text: str) -> mediator.Commands:
        self._over = True
        return [Fail(reason, text)]
