"""What the tests of this folder share: a capture file to the records that its journal holds."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, TCP

from appliance.config import Journal
from appliance.ingest import spans
from appliance.ingest.capture import Capture
from appliance.ingest.summary import Summary
from appliance.journal import Frame, FrameKind, JournalKey, Reader, Writer
from appliance.model import Identity
from appliance.wire.abi import Record
from appliance.wire.records import records
from tests.vectors.pcap import make

KEY = JournalKey(b"k" * 32)


def frames(folder: Path, key: JournalKey = KEY) -> list[Frame]:
    with Reader(folder, key) as reader:
        found: list[Frame] = []
        while (frame := reader.read()) is not None:
            assert isinstance(frame, Frame), frame
            found.append(frame)
    return found


def journal(capture: Path, folder: Path, identity: Identity | None = None) -> tuple[Summary, list[Frame]]:
    settings = Journal(segment_bytes=2**22, max_bytes=2**26, min_free_bytes=1)
    with Writer(folder, KEY, b"s" * 16, settings=settings) as writer, Capture(capture) as opened:
        summary = spans.write(
            opened, writer, sha256="5a" * 32, node="gateway", identity=identity, progress=lambda read: None
        )
    return summary, frames(folder)


def packets(found: Iterable[Frame]) -> list[tuple[Record, bytes]]:
    """Records with the packet bytes behind them."""
    return [
        (record, bytes(data)) for frame in found if frame.kind is FrameKind.SPAN for _, record, data in records(frame)
    ]


def said(found: Iterable[Frame], kind: FrameKind) -> list[dict[str, Any]]:
    return [json.loads(frame.payload) for frame in found if frame.kind is kind]


def events(found: Iterable[Frame]) -> dict[str, dict[str, Any]]:
    """EVENT frames by what they tell of."""
    return {event["kind"]: event for event in said(found, FrameKind.EVENT)}


def file(folder: Path, *contents: bytes, link: int = make.ETHERNET, cut: int = 2**18) -> Path:
    """A pcap file of these packets; times count seconds from 1 on."""
    path = folder / "some.pcap"
    head = make.pcap((), link)
    parts = [
        n.to_bytes(4, "little")
        + bytes(4)
        + min(len(packet), cut).to_bytes(4, "little")
        + len(packet).to_bytes(4, "little")
        + packet[:cut]
        for n, packet in enumerate(contents, 1)
    ]
    path.write_bytes(head + b"".join(parts))
    return path


def conversation(port: int, up: bytes, down: bytes, size: int = 1000) -> list[bytes]:
    """Raw IPv4 packets of a whole TCP connection from `port`: handshake, both streams in pieces, both FINs."""
    sides = ("10.0.0.1", "10.0.0.2")
    position = [1000, 5000]
    found: list[bytes] = []

    def send(side: int, flags: str, data: bytes = b"") -> None:
        ports = (port, 80) if side == 0 else (80, port)
        segment = TCP(
            sport=ports[0], dport=ports[1], seq=position[side], ack=position[1 - side], flags=flags, window=65535
        )
        found.append(bytes(IP(src=sides[side], dst=sides[1 - side]) / segment / data))
        position[side] += len(data) + ("S" in flags or "F" in flags)

    send(0, "S")
    send(1, "SA")
    send(0, "A")
    for side, data in ((0, up), (1, down)):
        for at in range(0, len(data), size):
            send(side, "PA", data[at : at + size])
            send(1 - side, "A")
    send(0, "FA")
    send(1, "FA")
    send(0, "A")
    return found
