"""The journal: append-only files of sealed frames, the write-ahead log of everything that is recorded.

In: payloads from one writer per stream. Out: the same payloads, in order, to one reader, in another process and at
another time. Never here: a frame that was acknowledged and is skipped in silence; a frame that was not written by the
stream's writer; plaintext on the disk (payloads hold captured passwords and tokens).

Words: MUST, SHOULD and MAY as in RFC 2119. Integers are little-endian and unsigned. Format version 1.

Stream
    A folder. `stream` holds three lines of ASCII, each ended by LF: `verbatim-journal 1`, the stream id (16 bytes,
    hex), the id of the journal key (8 bytes, hex): HKDF-SHA256(key, no salt, info "verbatim journal key id", 8).
    Readers and writers MUST refuse another version or another key by an error, not as damage; a segment of another
    version than its stream is damage. A writer holds an
    exclusive flock on `lock`; a second one MUST be refused.

Segment
    A file named by its sequence (16 hex digits, from 1) and `.seg`. It is as long as the header says, from its birth
    on; what lies behind the last frame is stale and has no meaning. Header, 96 bytes:
        0 magic "VBJOURNL" | 8 version u16 | 10 zero u16 | 12 header length u32 | 16 key id 8 | 24 stream id 16
        40 sequence u64 | 48 number of its first frame u64 | 56 size of the file u64 | 64 salt 16 | 80 tag 16
    key ‖ mark (32 + 8 bytes) = HKDF-SHA256(journal key, salt, info "verbatim journal segment 1" ‖ header[0:80], 40).
    The tag is AES-256-GCM(key, nonce of 12 bytes 0xff, empty plaintext, additional data header[0:80]). Since the whole
    header goes into the key, every frame authenticates it. The salt MUST be fresh random bytes at every use of a file.
    A file MUST have its header before it gets its `.seg` name. A writer that opens a stream MUST begin a new segment,
    and MUST NOT add to a segment after a failed write: so no nonce is used twice under one key.

Frame
    Frames follow the header without holes, each on a multiple of 8. Header, 48 bytes:
        0 mark 8 | 8 kind u8 | 9 layout u8 | 10 zero u16 | 12 payload length u32 (at most 1048576) | 16 number u64
        24 time u64 (realtime, ns) | 32 ring start u64 | 40 ring end u64
    then AES-256-GCM(key, nonce = number as 12 bytes, payload, additional data: the frame's header), which is as long as
    the payload, its tag of 16 bytes, and zeros up to a multiple of 8. Numbers begin at 1 and rise by 1 over the whole
    stream. A frame MUST be written by one call, and MUST fit its segment; otherwise it begins the next one.

    Kinds: 1 SPAN, records; layout 0 (PLAIN): each a struct record (bpf/wire.h) and its bytes, padded to 8; layout 1
    (RING): each behind the kernel ring buffer's 8-byte record header, and ring start and end are the ring's consumer
    positions; layout 2 (RELAY): records of a relay (journal/relayed.py). 2 CLOCK `<QQ`: boottime and realtime, ns; the
    wall time of a record is its time, minus boottime, plus realtime, of the last CLOCK before it. 3 LEASE, 4 EVENT,
    5 OPEN, 6 CLOSE: JSON objects.
    The position of a record is (frame number << 24) + its offset in the payload.

Reading
    A frame counts only if its tag is right and its number is the expected one or a later one (then frames are
    missing). Where none is found, the segment is over if a later one exists, and otherwise not written yet. The reader
    goes on with the first frame of the next segment if that has the expected number: a frame that was begun at the end
    of the segment before is a torn tail, never acknowledged, and counted. If it has a later number, or a later frame
    of the same segment is authentic (it begins with the mark, at a multiple of 8), frames are missing: the reader MUST
    report which. A damaged last frame cannot be told from a torn one. A writer that opens a stream MUST go on behind
    the last authentic frame, and behind the released cursor.

Reuse
    The reader releases a cursor (`released`: segment, offset, frame; ASCII decimals). Segments before the one of the
    cursor, but never the newest, MAY be kept to be read again, and are renamed to `.free` in the end; the writer SHOULD
    take these before it makes new files: pages that the system has allocated already take a fifth of the time. Their
    old frames have another key and mark. A reader that lost its cursor, and finds the first segment gone, SHOULD begin
    at the released one: what lies before it was read.

Example: journal key 00 01 … 1f, stream 0011…ff, salt 01 × 16, file of 4096 bytes. Its header:

    56424a4f55524e4c01000000600000009ec57f95ecf7c11e0011223344556677
    8899aabbccddeeff010000000000000001000000000000000010000000000000
    0101010101010101010101010101010177ffe8cbfb5185105e2c80acd9bbfa4f

Its second frame, at 200, is a RING span "0123456789abcdef" of ring positions 64 to 80, number 2, time 2000:

    d844a257728fe94201010000100000000200000000000000d007000000000000
    40000000000000005000000000000000dc3e4ad917c94b4fa56c28870e44f789
    3cd55b4893f3fc27a4031daf24a486af

All of this file, and more, is in tests/vectors/journal.
"""

from appliance.journal.aside import Aside, set_aside, set_damage_aside, set_foreign_aside
from appliance.journal.folder import Cursor, beginning, release
from appliance.journal.format import MAX_PAYLOAD, PLAIN, RELAY, RING, Buffer, Frame, FrameKind, Layout
from appliance.journal.key import JournalKey
from appliance.journal.reader import Damage, Reader
from appliance.journal.writer import JournalFull, Writer

__all__ = [
    "MAX_PAYLOAD",
    "PLAIN",
    "RELAY",
    "RING",
    "Aside",
    "Buffer",
    "Cursor",
    "Damage",
    "Frame",
    "FrameKind",
    "JournalFull",
    "JournalKey",
    "Layout",
    "Reader",
    "Writer",
    "beginning",
    "release",
    "set_aside",
    "set_damage_aside",
    "set_foreign_aside",
]
