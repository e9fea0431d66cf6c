"""Values of PostgreSQL in their binary formats: any bytes, as any type that is known, in any encoding.

    type, encoding; then the value

What holds: nothing is raised; what does not fit its type is shown in hexadecimal, so nothing is left out; the text can
be stored and is in proportion to the bytes.
"""

import struct
from typing import Final

from appliance.dissect.postgres_charsets import CODECS
from appliance.dissect.postgres_types import DECODERS, MAX_PADDING, type_name, value
from appliance.dissect.sql_text import hexadecimal
from tests.fuzz.script import Script
from tests.fuzz.targets import Target

TYPES: Final = sorted(DECODERS)
ENCODINGS: Final = sorted(set(CODECS.values()))


def check(data: bytes) -> None:
    script = Script(data)
    oid, codec = TYPES[script.byte() % len(TYPES)], ENCODINGS[script.byte() % len(ENCODINGS)]
    raw = script.rest()
    for binary in (True, False):
        shown, understood = value(raw, oid, binary, codec)
        shown.encode()
        assert understood or shown == hexadecimal(raw), "neither understood nor shown as it is"
        assert len(shown) <= 2 * MAX_PADDING + 64 * (len(raw) + 1), f"{len(raw)} bytes became {len(shown)} characters"
    assert type_name(oid)


def seeds() -> list[bytes]:
    samples = (
        b"\x01", struct.pack("!i", -7), struct.pack("!q", 1 << 60), struct.pack("!d", 1.5e300), struct.pack("!f", 0.1),
        struct.pack("!HhHH3H", 3, 1, 0x4000, 4, 12, 3456, 7800), struct.pack("!qii", 1_500_000, 3, -14),
        struct.pack("!iiI2i", 1, 0, 23, 2, 1) + struct.pack("!iii", 4, 5, -1), b"\x02\x20\x00\x04\x0a\0\0\1",
        b"\x03\x40\x00\x10" + bytes(16), b"\x01{}", "größer".encode(), struct.pack("!i", 12) + b"\xff\xf0", bytes(16),
        struct.pack("!qi", 3_600_000_000, -19800),
    )  # fmt: skip
    return [
        bytes([number, at % len(ENCODINGS)]) + one for number in range(len(TYPES)) for at, one in enumerate(samples)
    ]


TARGETS: Final = {"values": Target(check, seeds, size=256)}
