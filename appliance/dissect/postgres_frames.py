"""The protocol messages of PostgreSQL: which headers can be true, where to go on behind a gap.

It knows the layout of messages, not their meaning (PostgreSQL 18 documentation, 54.7 "Message Formats"). Its limits of
size are those that the server's src/backend/tcop/postgres.c and libpq's fe-protocol3.c enforce: what they accept is
accepted, and what makes them close the connection ends the dissection. A direction's bytes are cut into frames by
`Half`, in postgres_half.py.
"""

import re
import struct
from typing import Final

MAX_LENGTH = (1 << 30) - 1  # of a message: the server's own maximum
MAX_SHORT = 30000  # of a message that has no reason to be long
MAX_STARTUP = 10000
MAX_CREDENTIAL = 65535  # of a PasswordMessage, SASLInitialResponse, SASLResponse or GSSResponse
HEADER = 5
HEADER_LAYOUT: Final = struct.Struct("!BI")  # type byte and length field
CANCEL: Final = struct.pack("!I", 80877102)  # code of a CancelRequest, which holds a key behind its process id

CLIENT_TYPES: Final = b"BCDEFHPQSXcdfp"
SERVER_TYPES: Final = b"123ACDEGHIKNRSTVWZcdnstv"
_LONG: Final = frozenset(b"QPBFdDTVEANv")  # types that may exceed MAX_SHORT, of either side
_PLACES: Final = {
    known: re.compile(b"[" + re.escape(known) + rb"]\x00\x00..", re.DOTALL) for known in (CLIENT_TYPES, SERVER_TYPES)
}


# Kinds of frames beside the type bytes.
STARTUP_PACKET = -1  # body: code and the rest
INSANE = -3  # a header whose length cannot be; nothing is read behind it


def limit(kind: int, known: bytes) -> int:
    """Largest sane length field of a message type."""
    if kind == 0x70 and known == CLIENT_TYPES:
        return MAX_CREDENTIAL
    return MAX_LENGTH if kind in _LONG and kind in known else MAX_SHORT


def sane(data: bytes, at: int, known: bytes) -> bool:
    """Whether a header of a known type with a possible length is at `at`. Needs 5 bytes there."""
    kind, length = HEADER_LAYOUT.unpack_from(data, at)
    return kind in known and 4 <= length <= limit(kind, known)


def search(data: bytes, known: bytes) -> tuple[int, int]:
    """Where to go on in bytes whose context is lost: (place, 0), or (bytes to pass over, bytes needed from there).

    A place is a message of a known type and of at most 65,535 bytes which the header of another one
    follows, or which ends the data and is ReadyForQuery, Sync, Terminate or a Query with its NUL at its end.
    """
    at = 0
    size = len(data)
    while (place := _PLACES[known].search(data, at)) is not None:
        at = place.start()
        kind, length = HEADER_LAYOUT.unpack_from(data, at)
        end = at + 1 + length
        if not sane(data, at, known):
            at += 1
        elif end + HEADER <= size:
            if sane(data, end, known):
                return at, 0
            at += 1
        elif end == size and _ends_turn(kind, data, at, end, known):
            return at, 0
        else:
            return at, (end if end > size else end + HEADER) - at
    keep = max(size - HEADER + 1, 0)
    return keep, HEADER


def _ends_turn(kind: int, data: bytes, at: int, end: int, known: bytes) -> bool:
    if known == SERVER_TYPES:
        return kind == 0x5A and end - at == 6 and data[end - 1] in b"ITE"
    return (kind in b"SX" and end - at == 5) or (kind == 0x51 and data[end - 1] == 0)
