"""Names that come out the same whenever the same journal is read again."""

import hashlib
from uuid import UUID

from appliance.wire.records import OFFSET_BITS

# Records begin at multiples of 8 in their span, and are longer, so the places behind one's are free for other events.
RING_LOST = 1
STATE_LOST = 2
CLOCK_STEPPED = 3
FRAGMENTS_LOST = 4
REBOOTED = 5
MEMORY_BEFORE = -2  # behind all that is said of the record before this one
MEMORY = 6
UNREADABLE = 7  # what follows this record


def session_id(stream: bytes, position: int, started_ns: int) -> UUID:
    """UUID version 7 in shape (RFC 9562 §5.7): 48 bits of Unix milliseconds, the rest a digest of stream and position.

    A record opens at most one session and positions are unique in a stream, so are the ids. Times before 1970 count
    as 1970.
    """
    digest = int.from_bytes(hashlib.sha256(stream + position.to_bytes(16, "big")).digest()[:10], "big")
    milliseconds = max(0, started_ns // 1_000_000) & (1 << 48) - 1
    high = 7 << 12 | digest >> 62 & 0xFFF
    low = 0b10 << 62 | digest & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | high << 64 | low)


def relayed_id(stream: bytes, flow: int, started_ns: int, position: int = 0) -> UUID:
    """The same for a relay's flow, by its number and the time of its OPEN record; `position`: of the record with which
    another session goes on with it. The relay can tell the id by this.
    """
    return session_id(stream, flow << 64 | (position or started_ns), started_ns)


def frame_position(number: int) -> int:
    """Position of what a whole frame says."""
    return number << OFFSET_BITS
