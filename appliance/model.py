"""The nouns that travel between stages, frozen and free of I/O.

Times are integers, nanoseconds since the Unix epoch (UTC). Offsets count bytes from the start of one
direction's stream. Rows (`SessionRow`, `MessageRow`, `ChunkRow`, `FindingRow`, `EventRow`) are what the store
keeps; each has a `seq` that is gapless from 0 within its session and table, so that what a crash left
unwritten is known exactly (see `appliance/record/`).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec


class Direction(StrEnum):
    """Whose bytes they are: the initiator's or the responder's."""

    CLIENT = "client"
    SERVER = "server"
    __hash__ = str.__hash__  # it is a key on every path; that of an enum is many times slower

    @property
    def other(self) -> "Direction":
        return Direction.SERVER if self is Direction.CLIENT else Direction.CLIENT


class Coverage(StrEnum):
    """What of a session was recorded, worst first: one-sided, partial, opaque, complete; judged at its end."""

    ONE_SIDED = "one-sided"  # bytes or packets of one direction only were seen
    PARTIAL = "partial"  # bytes are missing, or the start was not seen
    OPAQUE = "opaque"  # every byte is there, but encrypted
    COMPLETE = "complete"  # every byte that the peer acknowledged is there
    OPEN = "open"  # the session goes on, and nothing is known to be missing so far


class Ending(StrEnum):
    """How a session ended."""

    OPEN = "open"  # not ended (yet)
    FIN = "fin"
    RST = "rst"
    IDLE = "idle"  # no packet for the configured time
    CUT = "cut"  # its lease expired or was revoked
    EOF = "eof"  # the capture file ended
    INTERRUPTED = "interrupted"  # the machine started anew, the recorder lost its state, or it was given up


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a session belongs to, from a verified access token (RFC 9068, RFC 8693). Never holds the token itself."""

    issuer: str = ""
    subject: str = ""
    client: str = ""
    act: tuple[str, ...] = ()  # RFC 8693 actor chain, current actor first: subjects
    groups: tuple[str, ...] = ()
    run_id: str = ""
    lease_id: str = ""  # 16 hex digits, the kernel's lease number
    method: str = "unbound"  # lease, unbound, ingest, or the in-band protocol that carried the token
    token_sha256: str = ""


UNBOUND = Identity()


class Message(msgspec.Struct, frozen=True):
    """One dissected unit. `start` and `end` are the byte range in its direction's stream, end excluded.

    A `msgspec.Struct`, as the rows are: made tens of thousands of times a second, four times as fast as a dataclass.
    """

    direction: Direction
    kind: str  # query, rows, result, request, response, error, ...: documented by each dissector
    ts_ns: int  # arrival of its first byte
    start: int
    end: int
    text: str = ""  # what a person would search for: SQL, rows, URL, headers, decoded body
    attrs: dict[str, Any] = msgspec.field(default_factory=dict)  # JSON values only
    reply_to: int | None = None  # start, in the other direction, of the message that this one answers
    flags: tuple[str, ...] = ()  # truncated, malformed, redacted, undecoded, ...
    end_ns: int = 0  # arrival of its last byte; 0: same as ts_ns


@dataclass(frozen=True, slots=True)
class Redaction:
    """Bytes of a credential: kept by length only, everywhere."""

    direction: Direction
    start: int
    end: int
    what: str  # password, authorization, token, cookie, ...


class SessionRow(msgspec.Struct, frozen=True):
    """The state of a session. Revisions are appended; the highest one is the truth."""

    session_id: UUID
    seq: int  # revision
    started_ns: int
    ended_ns: int  # last packet so far
    ending: Ending
    node: str
    source: str  # "wire", or "ingest:" and the file's name
    client_address: str
    client_port: int
    server_address: str
    server_port: int
    transport: str  # tcp, udp, icmp, or the IP protocol number
    protocol: str  # dissector's name; "" while undetected
    identity: Identity
    coverage: Coverage
    client_bytes: int  # of the reassembled stream, gaps not counted
    server_bytes: int
    client_packets: int
    server_packets: int
    messages: int
    findings: tuple[str, ...]  # kinds, sorted, each once
    lane: str
    attrs: dict[str, Any]  # coverage statement in numbers, protocol metadata (SNI, JA4, database, user, ...)


class MessageRow(msgspec.Struct, frozen=True):
    session_id: UUID
    seq: int
    started_ns: int  # of the session: the partition
    protocol: str
    message: Message


class ChunkRow(msgspec.Struct, frozen=True):
    """Bytes of one direction. `copy` 0 is the stream; 1 and up are conflicting copies kept beside it."""

    session_id: UUID
    seq: int
    started_ns: int
    direction: Direction
    offset: int
    ts_ns: int
    data: bytes
    copy: int = 0
    redacted: tuple[tuple[int, int], ...] = ()  # ranges within data that were replaced by asterisks


class FindingRow(msgspec.Struct, frozen=True):
    """Something about a session that must not stay silent: gap, overlap, midstream, redacted, ..."""

    session_id: UUID
    seq: int
    started_ns: int
    ts_ns: int
    kind: str
    direction: Direction | None
    start: int
    end: int
    text: str
    attrs: dict[str, Any]


class EventRow(msgspec.Struct, frozen=True):
    """What happened outside of any session: refusal, lease, revocation, restart, gap of the journal."""

    stream: str  # hex id of the journal stream
    position: int  # of the journal record; unique and rising within the stream
    ts_ns: int
    kind: str
    address: str  # the agent's, where there is one
    text: str
    attrs: dict[str, Any]


Row = SessionRow | MessageRow | ChunkRow | FindingRow | EventRow
