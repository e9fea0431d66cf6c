"""Redis: RESP2 and RESP3 (redis.io, "Redis serialization protocol specification"), and inline commands.

The client's direction is cut into commands by redis_commands, the server's into replies by redis_replies; here they are
matched. Replies come in the order of the commands, but for what a server sends by itself.

    client                              expected of the server
    any command                         one reply
    SUBSCRIBE, UNSUBSCRIBE, ...         a confirmation for each channel, or for all of them
    MONITOR                             one reply, and lines from then on
    CLIENT REPLY OFF, SKIP              nothing, and nothing for what follows (SKIP: for the next one)
    SYNC, PSYNC                         one reply, then a replication stream: not read
    (gap, malformed)                    nothing is known; matched again from the first command behind a whole reply

Kinds: `command`; `reply`, `error`, `push` (RESP3's push type; in RESP2 the messages of subscribed channels), `event` (a
line of MONITOR), `replication` (undecoded); `malformed` (no RESP: this direction is not read any more) and
`undissected` (bytes between a gap and the place where dissection goes on). Text is what a person would type in
redis-cli, and what that would print. Attrs: command (its name), arguments (how many), inline, unanswered (the client
asked for no reply); code (of an error), channel and pattern (of a push).

Session attrs: user (once AUTH or HELLO succeeded), resp, database, client_name, replication, midstream.

Redacted: `password` of AUTH, HELLO, ACL SETUSER, CONFIG SET, MIGRATE and SENTINEL, in lines of MONITOR and in replies
that name a credential (CONFIG GET) too.
"""

from collections import deque
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, Final

import msgspec

from appliance.dissect import Match, Output, Torn, redis_detection
from appliance.dissect.redis_commands import Command, Commands, Lost
from appliance.dissect.redis_printed import MAX_TEXT
from appliance.dissect.redis_replies import MONITORED, REPLICATION, Replies, Reply
from appliance.dissect.redis_words import is_raw, named, readable, typed
from appliance.model import Direction, Message, Redaction

MAX_PENDING: Final = 65536  # commands that wait for a reply; of those beyond only the number is kept
END: Final = 1 << 62  # behind every offset

_WORDS: Final = frozenset((b"message", b"pmessage", b"smessage"))
_SUBSCRIBING: Final = frozenset(
    ("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE")
)
_CONFIRMED: Final = {name.lower().encode(): name for name in _SUBSCRIBING}


class Tag(IntEnum):
    """What a reply means beyond itself."""

    PLAIN = 0
    RAW = 1  # text that is printed as it is
    SUBSCRIPTION = 2
    MONITOR = 3
    AUTH = 4
    HELLO = 5
    SELECT = 6
    RESET = 7
    NAME = 8
    SYNC = 9


class Pending(msgspec.Struct, gc=False):
    """A command that waits for its reply. `left`: confirmations to come, -1: until another reply comes."""

    start: int
    name: str
    tag: int = 0
    said: str = ""
    left: int = 1


_TAGS: Final = {
    "MONITOR": Tag.MONITOR,
    "AUTH": Tag.AUTH,
    "HELLO": Tag.HELLO,
    "SELECT": Tag.SELECT,
    "RESET": Tag.RESET,
    "CLIENT": Tag.NAME,
    "SYNC": Tag.SYNC,
    "PSYNC": Tag.SYNC,
    **dict.fromkeys(_SUBSCRIBING, Tag.SUBSCRIPTION),
    **dict.fromkeys(("INFO", "LOLWUT", "CLUSTER", "LATENCY", "MEMORY"), Tag.RAW),
}


class Redis:
    """One connection."""

    protocol = "redis"
    opaque = False
    successor: str | None = None

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self.attrs: dict[str, Any] = {}
        self._commands = Commands(client_offset)
        self._replies = Replies(server_offset)
        self._pending: deque[Pending] = deque()
        self._beyond = 0  # commands that wait behind these
        self._ahead = 0  # replies that came before their command did
        self._lost = False  # which command a reply is for is not known
        self._answered = True  # a whole reply was the last thing that came
        self._silent = False  # CLIENT REPLY OFF
        self._skip = False  # CLIENT REPLY SKIP came before
        self._subscribed = False
        self._monitoring = False
        self._replicated: tuple[int, int] | None = None  # where replication begins, and when

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        return redis_detection.detect(client, server)

    # -- input -----------------------------------------------------------------------------------------------------

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        out: Output = []
        if direction is Direction.CLIENT:
            self._take_commands(self._commands.receive(data, ts_ns), out)
            return out
        self._take_replies(self._replies.receive(data, ts_ns), out)
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        out: Output = []
        if direction is Direction.CLIENT:
            self._take_commands(self._commands.gap(length, ts_ns), out)
            if self._commands.searching:
                self._lose()
        else:
            self._take_replies(self._replies.gap(length, ts_ns), out)
            if self._replies.searching:
                self._lose()
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        out: Output = []
        if direction is Direction.CLIENT:
            self._take_commands(self._commands.close(ts_ns), out)
            return out
        self._take_replies(self._replies.close(ts_ns), out)
        if self._replicated is not None:
            start, begun_ns = self._replicated
            end = self._replies.received
            if start < end:
                attrs = {"bytes": end - start}
                flags = ("undecoded",)
                out.append(Message(direction, "replication", begun_ns, start, end, "", attrs, None, flags, ts_ns))
            self._replicated = (end, ts_ns)
        return out

    def settled(self, direction: Direction) -> int:
        return self._commands.settled if direction is Direction.CLIENT else self._replies.settled

    def guarded(self, direction: Direction) -> int:
        """A client may log in again at any time; a server tells credentials to monitors only."""
        if direction is Direction.CLIENT:
            return self._commands.guarded
        return self._replies.settled if self._monitoring else END

    def torn(self, direction: Direction) -> Torn:
        return self._commands.torn() if direction is Direction.CLIENT else Torn()

    def resume(self, direction: Direction, torn: Torn | None) -> None:
        self.attrs = {**self.attrs, "midstream": True}
        if direction is Direction.CLIENT:
            self._commands.search(credential=torn != Torn())
        else:
            self._replies.search()
        self._lost = True

    @property
    def held(self) -> int:
        return self._commands.held + self._replies.held + 150 * len(self._pending)

    def shed(self) -> Output:
        """Commands that wait are forgotten: their replies have no `reply_to`."""
        self._lose()
        return []

    # -- commands --------------------------------------------------------------------------------------------------

    def _take_commands(self, taken: Iterable[Command | Lost], out: Output) -> None:
        client = Direction.CLIENT
        for one in taken:
            if type(one) is Lost:
                out.append(_flawed(client, one.start, one.end, one.ts_ns, one.end_ns, malformed=one.malformed))
                self._lose()
                continue
            assert isinstance(one, Command)
            words = one.words
            flags = one.flags
            if not words:
                out.append(Message(client, "command", one.ts_ns, one.start, one.end, "", {}, None, flags, one.end_ns))
                continue
            name = named(words[0])
            text = typed(words)
            attrs: dict[str, Any] = {"command": name, "arguments": one.count - 1}
            if one.inline:
                attrs["inline"] = True
            if len(text) > MAX_TEXT:
                text = text[:MAX_TEXT]
                flags = (*flags, "truncated") if "truncated" not in flags else flags
            if not self._expect(one, name):
                attrs["unanswered"] = True
            out.append(Message(client, "command", one.ts_ns, one.start, one.end, text, attrs, None, flags, one.end_ns))
        self._redactions(client, self._commands.secrets, out)

    def _expect(self, one: Command, name: str) -> bool:
        """Its reply is waited for; False: there will be none."""
        tag = _TAGS.get(name, 0)
        if tag == Tag.NAME and len(one.words) > 2 and named(one.words[1]) == "REPLY":
            return self._expect_reply(named(one.words[2]), one, name)
        if self._silent or self._skip:
            self._skip = False
            return False
        self._push(self._special(one, name, tag) if tag else Pending(one.start, name))
        return True

    def _expect_reply(self, choice: str, one: Command, name: str) -> bool:
        if choice == "OFF":
            self._silent = True
            return False
        if choice == "SKIP" and not self._silent:
            self._skip = True
            return False
        self._silent = self._silent and choice != "ON"
        if not self._silent:
            self._push(Pending(one.start, name))
        return not self._silent

    def _special(self, one: Command, name: str, tag: int) -> Pending:
        words = one.words
        said, left = "", 1
        second = named(words[1]) if len(words) > 1 else ""
        if tag in (Tag.RAW, Tag.NAME) and is_raw(words):
            tag = Tag.RAW
        elif tag == Tag.RAW or (tag == Tag.NAME and second != "SETNAME"):
            tag = Tag.PLAIN
        elif tag == Tag.NAME and len(words) > 2:
            said = readable(words[2][:256])
        elif tag == Tag.SUBSCRIPTION:
            left = one.count - 1 or (-1 if name.startswith(("UN", "PUN", "SUN")) else 1)
        elif tag == Tag.AUTH:
            said = readable(words[1][:256]) if one.count == 3 and second else "default"
        elif tag == Tag.SELECT:
            said = second
        elif tag == Tag.SYNC:
            self._replies.syncing = name
        elif tag == Tag.HELLO:
            upper = [named(word) for word in words[:8]]
            user = upper.index("AUTH") + 1 if "AUTH" in upper[2:] else 0
            said = f"{second[:4]} {readable(words[user][:256]) if 0 < user < len(words) else ''}"
        return Pending(one.start, name, tag, said, left)

    def _push(self, pending: Pending) -> None:
        if self._lost:
            if not self._answered:
                return
            self._lost = False
        self._answered = False
        if self._ahead:
            self._ahead -= 1
        elif len(self._pending) < MAX_PENDING and not self._beyond:
            self._pending.append(pending)
        else:
            self._beyond += 1

    def _lose(self) -> None:
        self._pending.clear()
        self._beyond = self._ahead = 0
        self._lost, self._answered = True, False

    # -- replies ---------------------------------------------------------------------------------------------------

    def _take_replies(self, taken: Iterable[Reply], out: Output) -> None:
        server = Direction.SERVER
        for one in taken:
            kind = one.kind
            if not kind:
                malformed = "malformed" in one.flags
                out.append(_flawed(server, one.start, one.end, one.ts_ns, one.end_ns, malformed=malformed))
                self._lose()
                continue
            if kind == REPLICATION:
                self._replicate(one.start, one.ts_ns)
                continue
            text, attrs = one.text, {}
            said = "reply"
            reply_to: int | None = None
            if kind == 0x3E or (kind == 0x2A and self._subscribed and one.heads and one.heads[0] in _WORDS):
                said = "push"
                attrs = _pushed(one.heads)
                reply_to = self._confirm(one)
            elif kind == 0x2B and self._monitoring and MONITORED.match(one.raw):
                said = "event"
            else:
                pending = self._answer(one)
                if pending is not None:
                    reply_to = pending.start
                    attrs["command"] = pending.name
                    if pending.tag:
                        text = self._effect(pending, one)
                if kind == 0x2D or kind == 0x21:
                    said = "error"
                    attrs["code"] = readable(one.raw.split(b" ", 1)[0][:64])
            flags = one.flags
            out.append(Message(server, said, one.ts_ns, one.start, one.end, text, attrs, reply_to, flags, one.end_ns))
            if kind == 0x2B and self._replies.syncing and one.raw.startswith((b"FULLRESYNC", b"CONTINUE")):
                self._replicate(one.end, one.end_ns)
        self._redactions(server, self._replies.secrets, out)

    def _confirm(self, one: Reply) -> int | None:
        """The start of the command that a confirmation is for. It ends with the last one."""
        name = _CONFIRMED.get(one.heads[0].lower()) if len(one.heads) > 2 else None
        if name is None:
            return None
        while self._pending and self._pending[0].left < -1 and self._pending[0].name != name:
            self._pending.popleft()
        if not self._pending or self._pending[0].name != name:
            return None
        pending = self._pending[0]
        self._subscribed = self._subscribed or not name.startswith(("UN", "PUN", "SUN"))
        pending.left -= 1
        if pending.left == 0 or (pending.left < 0 and one.heads[2] == b"0"):
            self._pending.popleft()
        return pending.start

    def _answer(self, one: Reply) -> Pending | None:
        """The command that a reply is for; None: nobody knows."""
        self._answered = True
        if self._lost:
            return None
        while self._pending and self._pending[0].left < -1:  # all of its confirmations have come
            if self._pending[0].name.lower().encode() == (one.heads[0].lower() if one.heads else b""):
                break
            self._pending.popleft()
        if self._pending:
            pending = self._pending[0]
            confirmed = pending.tag == Tag.SUBSCRIPTION and one.kind == 0x2A and self._confirm(one) is not None
            if not confirmed:
                self._pending.popleft()
            return pending
        if self._beyond:
            self._beyond -= 1
        else:
            self._ahead = min(self._ahead + 1, MAX_PENDING)
        return None

    def _effect(self, pending: Pending, one: Reply) -> str:
        """What a reply changes. Returns its text."""
        tag, done = pending.tag, one.raw == b"OK"
        if tag == Tag.RAW and one.kind == 0x24 and one.raw:
            return readable(one.raw)[:MAX_TEXT]
        if tag == Tag.AUTH and done:
            self._know(user=pending.said)
        elif tag == Tag.HELLO and one.kind in b"*%":
            version, _, user = pending.said.partition(" ")
            self._know(**({"resp": int(version)} if version in ("2", "3") else {}), **({"user": user} if user else {}))
        elif tag == Tag.SELECT and done and pending.said.isascii() and pending.said.isdigit():
            self._know(database=int(pending.said[:9]))
        elif tag == Tag.NAME and done:
            self._know(client_name=pending.said)
        elif tag == Tag.MONITOR and done:
            self._monitoring = True
        elif tag == Tag.RESET and one.raw == b"RESET":
            self._silent = self._skip = self._subscribed = self._monitoring = False
            self._know(resp=2, database=0, user="default")
        return one.text

    def _know(self, **said: Any) -> None:
        self.attrs = {**self.attrs, **said}

    def _replicate(self, start: int, ts_ns: int) -> None:
        self._replicated = (start, ts_ns)
        self._replies.ignore()
        self._lose()
        self._know(replication=True)

    @staticmethod
    def _redactions(direction: Direction, secrets: list[tuple[int, int]], out: Output) -> None:
        if secrets:
            out += [Redaction(direction, start, end, "password") for start, end in secrets]
            secrets.clear()


def _pushed(heads: list[bytes]) -> dict[str, Any]:
    """What a push says of itself."""
    said: dict[str, Any] = {"push": readable(heads[0]) if heads else ""}
    if len(heads) > 2:
        if heads[0] == b"pmessage":
            said["pattern"] = readable(heads[1])
            said["channel"] = readable(heads[2])
        elif heads[0] in _WORDS or heads[0] in _CONFIRMED:
            said["channel"] = readable(heads[1])
    return said


def _flawed(direction: Direction, start: int, end: int, ts_ns: int, end_ns: int, *, malformed: bool) -> Message:
    kind, flag = ("malformed", "malformed") if malformed else ("undissected", "undecoded")
    return Message(direction, kind, ts_ns, start, end, "", {}, None, (flag,), end_ns)
