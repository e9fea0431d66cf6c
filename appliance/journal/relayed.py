"""What a relay writes to its journal stream: records of relayed flows, in SPAN frames of layout RELAY.

Format version 1. Integers are little-endian. A record is a header of 32 bytes and `length` bytes, padded with zeros to
a multiple of 8:

    0 length u32 | 4 version u8 (1) | 5 kind u8 | 6 direction u8 | 7 zero u8 | 8 flow u64 | 16 time u64 | 24 offset u64

`flow` is the relay's number of the flow, from 1, unique in the stream. `time` is wall time, ns; it never runs backwards
within a flow. `direction`: 0 what the agent says, 1 what it is told. Records of one flow follow each other in the order
in which things happened; OPEN is the first, CLOSE the last.

    1 OPEN   JSON: node, client_address, client_port, server_address, server_port (the original destination), rule
             (number, 0: none), identity (JSON as of a lease, or null), lease_id (16 hex digits, "": none), kernel_flow
             (start of the agent's leg in the kernel's map, ns of CLOCK_BOOTTIME; 0: none)
    2 DATA   plaintext bytes; `offset` is that of the first one in its direction, gapless
    3 NOTE   JSON: kind, text, attrs, and `start` and `end` where it is about bytes of `direction`. Kinds that say what
             the session is: `identified` (attrs.identity replaces that of OPEN), `redacted` (attrs.what; these bytes
             are asterisks in DATA), `upstream` (attrs: the server's leg), `tls` with attrs.version (attrs: the agent's
             TLS), `protocol` with attrs.protocol (the name of a dissector); of several, all attrs count. The others are
             findings: `refused`, `certificate`, `generated` (the gateway itself said these bytes), `withheld` (the
             gateway did not pass these bytes on), ...
    4 EOF    this direction ended by itself (FIN, close_notify); `offset`: its bytes in all
    5 CLOSE  JSON: ending (as of model.Ending), reason, legs: {"agent": LEG, "upstream": LEG or null} where LEG is
             {"kernel": {"sent", "acked", "packets"} or null, "socket": {"received", "acked"} or null}: bytes that the
             peer sent, and bytes of ours that it acknowledged, as the program counted them on arrival, and as the
             socket did (TCP_INFO), which is looked at last; each byte once, without those that SYN and FIN count for.
             Ciphertext where the leg speaks TLS. All connections to servers count together

A body of DATA is never cut by a frame's end, and bytes that are `redacted` are noted before the DATA that holds them.

The first frame that a process writes is OPEN: flows that are open in the stream then ended with the process before it.
While flows are open it writes a frame each second at least, a CLOCK if there is nothing else: what a reader makes of
the stream must not depend on when it reads, so what waits for time waits for the frames' times.
"""

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple

from appliance.errors import DamagedEvidence

VERSION: Final = 1
HEADER: Final = struct.Struct("<IBBBBQQQ")
MAX_RECORD: Final = 2**19  # bytes of one record's body: a frame has room for it
_ZEROS: Final = bytes(8)


class RelayedKind(IntEnum):
    OPEN = 1
    DATA = 2
    NOTE = 3
    EOF = 4
    CLOSE = 5


_KINDS: Final = {int(kind): kind for kind in RelayedKind}


class Relayed(NamedTuple):
    """One record. `direction`: 0 from the agent, 1 to the agent. `at`: its offset in the frame's payload."""

    kind: RelayedKind
    direction: int
    flow: int
    time_ns: int
    offset: int
    body: bytes
    at: int = 0

    def said(self) -> dict[str, Any]:
        """The JSON object of OPEN, NOTE and CLOSE; {} where it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def header(kind: RelayedKind, direction: int, flow: int, time_ns: int, offset: int, length: int) -> bytes:
    return HEADER.pack(length, VERSION, kind, direction, 0, flow, time_ns, offset)


def padding(length: int) -> bytes:
    return _ZEROS[: -length & 7]


def encode(kind: RelayedKind, direction: int, flow: int, time_ns: int, offset: int, body: bytes) -> bytes:
    """One whole record."""
    return header(kind, direction, flow, time_ns, offset, len(body)) + body + padding(len(body))


def size(length: int) -> int:
    """Bytes of a record with a body of `length` bytes."""
    return HEADER.size + length + (-length & 7)


def scan(payload: bytes) -> Iterator[Relayed]:
    """The records of a frame. Raises `DamagedEvidence` where they don't fit, after those before it."""
    at, end = 0, len(payload)
    while at < end:
        if at + HEADER.size > end:
            raise DamagedEvidence(f"a relay's record at {at} is cut")
        length, version, kind, direction, zero, flow, time_ns, offset = HEADER.unpack_from(payload, at)
        if version != VERSION or zero or direction > 1 or length > end - at - HEADER.size:
            raise DamagedEvidence(f"a relay's record at {at} is not of version {VERSION}, or cut")
        known = _KINDS.get(kind)
        if known is None:
            raise DamagedEvidence(f"a relay's record at {at} is of the unknown kind {kind}")
        start = at + HEADER.size
        yield Relayed(known, direction, flow, time_ns, offset, payload[start : start + length], at)
        at += size(length)
