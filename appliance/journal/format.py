"""Bytes of segments and frames: the pure part of the journal. The package docstring is the specification."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.errors import MalformedInput
from appliance.journal.key import JournalKey

Buffer = bytes | bytearray | memoryview

MAGIC: Final = b"VBJOURNL"
VERSION: Final = 1
STREAM_BYTES: Final = 16
SALT_BYTES: Final = 16
TAG_BYTES: Final = 16
MAX_PAYLOAD: Final = 2**20
_FIELDS: Final = struct.Struct("<8sHHI8s16sQQQ16s")  # magic version zero length key-id stream segment frame size salt
_FRAME: Final = struct.Struct("<8sBBHIQQQQ")  # mark kind layout zero length number time ring-start ring-end
HEADER_BYTES: Final = _FIELDS.size + TAG_BYTES
FRAME_HEADER_BYTES: Final = _FRAME.size
MAX_FRAME: Final = FRAME_HEADER_BYTES + MAX_PAYLOAD + TAG_BYTES
_INFO: Final = b"verbatim journal segment 1"
_HEADER_NONCE: Final = b"\xff" * 12  # no frame number: those fill 8 bytes only


class FrameKind(IntEnum):
    SPAN = 1
    CLOCK = 2
    LEASE = 3
    EVENT = 4
    OPEN = 5
    CLOSE = 6


class Layout(IntEnum):
    """How the records of a SPAN follow each other."""

    PLAIN = 0  # struct record and its bytes, padded to 8
    RING = 1  # the same, each behind the kernel ring buffer's own 8-byte header
    RELAY = 2  # a relay's records (journal/relayed.py)


PLAIN: Final = Layout.PLAIN
RING: Final = Layout.RING
RELAY: Final = Layout.RELAY


@dataclass(frozen=True, slots=True)
class Frame:
    """One authentic frame."""

    number: int
    kind: FrameKind
    time_ns: int
    payload: bytes
    ring_start: int = 0
    ring_end: int = 0
    layout: Layout = PLAIN


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself. `size`: bytes of the file."""

    key_id: bytes
    stream: bytes
    segment: int
    first_frame: int
    size: int
    salt: bytes

    def fields(self) -> bytes:
        return _FIELDS.pack(
            MAGIC,
            VERSION,
            0,
            HEADER_BYTES,
            self.key_id,
            self.stream,
            self.segment,
            self.first_frame,
            self.size,
            self.salt,
        )

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """None: not a segment header. Raises `MalformedInput` for the header of another format version."""
        if len(data) < HEADER_BYTES:
            return None
        magic, version, zero, length, *rest = _FIELDS.unpack_from(data)
        if magic != MAGIC:
            return None
        if version != VERSION:
            raise MalformedInput(
                f"journal format version {version}, and this program reads version {VERSION}; "
                "read this journal with the version of Verbatim that wrote it"
            )
        if zero or length != HEADER_BYTES:
            return None
        return cls(*rest)


class SegmentSeal:
    """Seals and opens the frames of one segment: a key of its own, derived from salt and header."""

    __slots__ = ("_aead", "_fields", "mark")

    def __init__(self, key: JournalKey, header: SegmentHeader) -> None:
        self._fields = header.fields()
        derived = HKDF(SHA256(), 40, salt=header.salt, info=_INFO + self._fields).derive(key.secret)
        self._aead = AESGCM(derived[:32])
        self.mark = derived[32:]  # first bytes of each of this segment's frames

    def header_bytes(self) -> bytes:
        """The whole segment header, `HEADER_BYTES` long."""
        return self._fields + self._aead.encrypt(_HEADER_NONCE, b"", self._fields)

    def header_is_authentic(self, data: bytes) -> bool:
        return data[:HEADER_BYTES] == self.header_bytes()

    def seal(
        self,
        into: memoryview,
        number: int,
        kind: FrameKind,
        payload: Buffer,
        *,
        length: int,
        time_ns: int,
        ring_start: int = 0,
        ring_end: int = 0,
        layout: Layout = PLAIN,
    ) -> int:
        """Write the frame of `payload` (`length` bytes) to the start of `into`; returns its padded length in bytes."""
        header = _FRAME.pack(self.mark, kind, layout, 0, length, number, time_ns, ring_start, ring_end)
        into[:FRAME_HEADER_BYTES] = header
        end = FRAME_HEADER_BYTES + length + TAG_BYTES
        self._aead.encrypt_into(number.to_bytes(12, "little"), payload, header, into[FRAME_HEADER_BYTES:end])
        padded = frame_bytes(length)
        into[end:padded] = bytes(padded - end)
        return padded

    def open(self, header: "FrameHeader", sealed: Buffer) -> bytes | None:
        """The payload, or None when `sealed` (ciphertext and tag) is not what the segment's writer sealed."""
        try:
            return self._aead.decrypt(header.number.to_bytes(12, "little"), sealed, header.raw)
        except InvalidTag:
            return None


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """A frame's header as read; not authentic before `SegmentSeal.open` says so."""

    raw: bytes
    kind: int
    layout: int
    length: int
    number: int
    time_ns: int
    ring_start: int
    ring_end: int

    @classmethod
    def parse(cls, data: bytes, mark: bytes) -> Self | None:
        """None unless these 48 bytes could begin a frame of the segment that `mark` belongs to."""
        if len(data) != FRAME_HEADER_BYTES or not data.startswith(mark):
            return None
        _, kind, layout, zero, length, number, time_ns, ring_start, ring_end = _FRAME.unpack(data)
        if zero or length > MAX_PAYLOAD:
            return None
        return cls(data, kind, layout, length, number, time_ns, ring_start, ring_end)

    def frame(self, payload: bytes) -> Frame | None:
        """None: a kind or layout that this version does not know."""
        try:
            kind, layout = FrameKind(self.kind), Layout(self.layout)
        except ValueError:
            return None
        return Frame(self.number, kind, self.time_ns, payload, self.ring_start, self.ring_end, layout)


def frame_bytes(length: int) -> int:
    """Bytes that a frame with a payload of `length` bytes takes in its segment."""
    return (FRAME_HEADER_BYTES + length + TAG_BYTES + 7) & ~7
