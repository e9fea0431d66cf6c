"""Is this Redis? RESP is known by its first command; of inline commands only those that other protocols do not have."""

import re
from typing import Final

from appliance.dissect import Match
from appliance.dissect.redis_commands import PART, START

_NAMES: Final = (
    b"AUTH", b"HELLO", b"PING", b"INFO", b"GET", b"SET", b"SELECT", b"KEYS", b"CONFIG", b"CLIENT", b"MONITOR",
    b"COMMAND", b"EXISTS", b"DEL", b"INCR", b"ECHO", b"DBSIZE", b"TTL", b"TYPE", b"SCAN", b"HGETALL", b"LRANGE",
    b"SUBSCRIBE", b"ROLE", b"TIME", b"QUIT",
)  # fmt: skip
_INLINE: Final = re.compile(rb"(?:%b)(?: [^\r\n]*)?\r?\n" % b"|".join(_NAMES), re.IGNORECASE)
_LOGIN: Final = re.compile(rb"AUTH [^\r\n]|HELLO [23] AUTH ", re.IGNORECASE)
_ANSWER: Final = re.compile(rb"(?!\+OK [^\r])[+\-:$*_%~#,(>=!|]")  # POP3 greets with `+OK` and words
_REFUSED: Final = re.compile(rb"-(?:ERR max number of clients|DENIED Redis is running)")


def detect(client: bytes, server: bytes) -> Match:
    """By an array of bulk strings; or by an inline command, and an answer where the command alone is no proof."""
    if not client:
        if _REFUSED.match(server):
            return Match.YES
        return Match.MORE if server[:1] == b"-" and len(server) < 32 else Match.NO
    if client[:1] == b"*":
        if START.match(client):
            return Match.YES
        return Match.MORE if PART.fullmatch(client) else Match.NO
    if not client[:1].isalpha() or len(client) > 1024 or (server and not _ANSWER.match(server)):
        return Match.NO
    if _LOGIN.match(client):
        return Match.YES
    if not _INLINE.match(client):
        return Match.MORE if b"\n" not in client and _begins_inline(client) else Match.NO
    return Match.YES if server else Match.MORE


def _begins_inline(client: bytes) -> bool:
    """Whether a line that is not whole yet may become an inline command that is recognised."""
    word, space, _ = client.partition(b" ")
    word = word.rstrip(b"\r").upper()
    return word in _NAMES if space or client.endswith(b"\r") else any(name.startswith(word) for name in _NAMES)
