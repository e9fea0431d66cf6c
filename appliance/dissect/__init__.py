"""Dissectors turn the two byte streams of a session into messages. One file a protocol.

They are sans-IO: no socket, no file, no clock. Bytes in, `Message` and `Redaction` out, with byte ranges that point
into the streams. They never raise on captured bytes: what cannot be understood becomes a message with a flag
(`malformed`, `truncated`), and the stream's bytes are kept by the caller in any case.

A dissector's state is plain, picklable data (no generators, no compressor objects), bounded by named maximums.
`settled(direction)` tells up to which offset its bytes are final: no later `Redaction` will cover bytes before it.
The caller stores bytes only up to there, so that a credential that arrives in pieces is never stored in part.
"""

from enum import Enum
from typing import Any, NamedTuple, Protocol

from appliance.model import Direction, Message, Redaction

Output = list[Message | Redaction]


class Match(Enum):
    """Verdict of a detector on the first bytes of both directions."""

    NO = 0
    MORE = 1  # could still become this protocol
    YES = 2


class Torn(NamedTuple):
    """What a direction may go on with where its dissection broke off: the rest of a credential.

    `line`: up to the end of the line. `size`: the next bytes, so many. `upto`: so many at most, until a message begins.
    """

    line: bool = False
    size: int = 0
    upto: int = 0


class Dissector(Protocol):
    """One session's dissector. `protocol` names it; `attrs` is metadata of the session known so far (JSON values; what
    changes later is another value, as rows keep the one that they were given). Where another dissector is of the same
    protocol, `form` tells it apart (see `registry`).

    `opaque` is true once the bytes that follow are encrypted. `successor` names the dissector to hand both
    directions to from here on (HTTP upgrade, TLS after SSLRequest); None while there is none.

    What a successor has to know of how it came to be is in `legacy`, plain data; a dissector that wants to know has
    `inherit(legacy)`, called before anything else.

    Where credentials are understood there are three more methods. `guarded(direction)`: the offset from which on bytes
    that are missing may hold one. `torn(direction)`: what follows if the dissection breaks off now. `resume(direction,
    torn)`: called once, before anything else: the first byte may lie anywhere within a message; `torn` is what the
    dissector before this one said, None if nobody knows.
    """

    protocol: str
    opaque: bool
    successor: str | None

    @property
    def attrs(self) -> dict[str, Any]: ...

    @property
    def held(self) -> int:
        """Bytes in memory beyond those of a new one, roughly: whatever a peer can make grow counts."""
        ...

    def shed(self) -> Output:
        """Memory is short: give up what is kept for text and context only. Redactions stay as they are."""
        ...

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        """The stream offsets of the first byte of each direction that it will be given."""
        ...

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        """Judge by the first bytes of both directions (either may be empty). Must answer NO or YES on 4 KiB or more."""
        ...

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        """Take the next bytes of one direction."""
        ...

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        """`length` bytes of this direction are lost. Offsets go on behind them; resynchronise or degrade."""
        ...

    def close(self, direction: Direction, ts_ns: int) -> Output:
        """This direction ended. What is buffered comes out, flagged `truncated`."""
        ...

    def settled(self, direction: Direction) -> int:
        """Offset before which no byte will be redacted any more."""
        ...
