"""Capture files: whatever is in one, its packets are read with bounded memory, and go through to rows.

What holds: the reader gives up only by `MalformedInput`; it gives out no more bytes than the file has; every record
made of a packet reads back as it was written; the assembler takes them all.
"""

import os
from pathlib import Path
from typing import Final

from appliance.errors import MalformedInput
from appliance.ingest.capture import Capture
from appliance.ingest.link import LINKS
from appliance.ingest.packet import Skip, record
from appliance.journal import Frame, FrameKind
from appliance.wire.abi import Record
from appliance.wire.records import records
from tests.fuzz.targets import Target
from tests.session.traffic import T0, Recorded, feed, ingest

MAX_PACKETS: Final = 2048
VECTORS: Final = Path(__file__).parents[2] / "vectors" / "pcap"
WORDS: Final = (
    b"\n\r\r\n", b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d", b"\6\0\0\0", b"\1\0\0\0", b"\5\0\0\0", b"\x81\x00",
    b"\x88\xa8", b"\x86\xdd\x60", b"\x08\x00\x45", b"\x2c\x00", b"\x00\x00\xc2\x04",
)  # fmt: skip


def check(data: bytes) -> None:
    file = os.memfd_create("capture")
    try:
        os.write(file, data)
        try:
            found = _records(Path(f"/proc/self/fd/{file}"), len(data))
        except MalformedInput:
            return
    finally:
        os.close(file)
    payload = b"".join(found)
    again = [made.pack() + bytes(part) for _, made, part in records(Frame(1, FrameKind.SPAN, T0, payload))]
    assert [one.ljust(len(packed), b"\0") for one, packed in zip(again, found, strict=True)] == found, "not read back"
    Recorded(feed(ingest(found)))


def _records(path: Path, size: int) -> list[bytes]:
    found: list[bytes] = []
    given = 0
    with Capture(path) as capture:
        for number, (time_ns, link, wire, frame) in enumerate(capture):
            given += len(frame)
            assert given <= size >= capture.offset, "more bytes than the file has"
            assert 0 <= time_ns < 1 << 63, "a time that cannot be stored"
            assert wire >= len(frame), "more captured than there was"
            if number >= MAX_PACKETS:
                break
            parse = LINKS.get(link)
            network = parse(frame) if parse is not None else None
            if network is None:
                continue
            packed = record(frame, network.start, wire, time_ns, network.tag)
            if not isinstance(packed, Skip):
                assert len(packed) % 8 == 0, "not padded"
                assert len(packed) <= len(frame) + Record.LAYOUT.size + 8, "more than the packet"
                found.append(packed)
    return found


def seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted(VECTORS.glob("*.pcap*")) if path.stat().st_size <= 4096]


TARGETS: Final = {"capture": Target(check, seeds, WORDS, 2048)}
