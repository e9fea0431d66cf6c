"""A capture file to a journal stream: OPEN, CLOCK, SPANs, what could not be recorded as EVENTs, CLOSE."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.errors import MalformedInput
from appliance.ingest.capture import Capture
from appliance.ingest.link import LINKS
from appliance.ingest.packet import Skip, record
from appliance.ingest.summary import Summary
from appliance.journal import FrameKind, Writer
from appliance.model import Identity

SPAN: Final = 2**18  # bytes of records after which a frame is written
PROGRESS: Final = 2**22  # bytes of the file between two reports


def write(
    capture: Capture,
    writer: Writer,
    *,
    sha256: str,
    node: str,
    identity: Identity | None,
    progress: Callable[[int], None],
) -> Summary:
    """Append the whole capture. Times of the frames are those of the packets, so that a second run writes the same.

    `progress` is told how many bytes of the file were read. Raises `MalformedInput` when no packet has a link type that
    can be read.
    """
    packets_of_file = iter(capture)
    first = next(packets_of_file, None)
    journal = _Journal(writer, first.time_ns if first else 0)
    journal.say(FrameKind.OPEN, _opening(capture.path, sha256, node, identity))
    journal.append(FrameKind.CLOCK, bytes(16))  # record times are Unix times
    skipped: Counter[Skip] = Counter()
    links: Counter[int] = Counter()
    packets = size = told = 0
    for time_ns, link, wire, frame in chain([first] if first else [], packets_of_file):
        if capture.offset - told > PROGRESS:
            told = capture.offset
            progress(told)
        parse = LINKS.get(link)
        if parse is None:
            links[link] += 1
            skipped[Skip.LINK] += 1
            continue
        network = parse(frame)
        if network is None:
            skipped[Skip.NOT_IP] += 1
            continue
        packed = record(frame, network.start, wire, time_ns, network.tag)
        if isinstance(packed, Skip):
            skipped[packed] += 1
            continue
        packets += 1
        size += len(frame)
        journal.add(packed, time_ns)
    if skipped[Skip.LINK] and not packets and len(skipped) == 1:
        known = ", ".join(str(link) for link in sorted(LINKS))
        raise MalformedInput(
            f"{capture.path}: link type {min(links)} is not supported (only {known}); convert it with editcap -T"
        )
    if capture.unreadable:
        skipped[Skip.MALFORMED] += capture.unreadable
    journal.flush()
    summary = Summary(
        file=capture.path.name,
        sha256=sha256,
        stream=writer.stream.hex(),
        packets=packets,
        captured=size,
        skipped={reason.value: count for reason, count in sorted(skipped.items())},
        lost=capture.lost,
        fault=capture.fault,
    )
    _confess(journal, summary, capture, links)
    journal.say(FrameKind.CLOSE, {})
    return summary


def _opening(path: Path, sha256: str, node: str, identity: Identity | None) -> dict[str, Any]:
    said: dict[str, Any] = {
        "node": node,
        "source": f"ingest:{path.name}",
        "ring": sha256[:16],  # one file, one "ring"
        "boot": "",
        "sha256": sha256,
    }
    return said | ({"identity": asdict(identity)} if identity is not None else {})


def _confess(journal: "_Journal", summary: Summary, capture: Capture, links: Counter[int]) -> None:
    """What of the file is not in the records, each with counts."""
    if summary.skipped:
        total = sum(summary.skipped.values())
        text = f"{total} packets of the capture could not be recorded"
        attrs = {"counts": summary.skipped, "link_types": {str(link): count for link, count in sorted(links.items())}}
        journal.say(FrameKind.EVENT, {"kind": "packets-skipped", "text": text, **attrs})
    if summary.lost:
        text = f"the capturing system says that it dropped {summary.lost} packets"
        journal.say(FrameKind.EVENT, {"kind": "capture-lost", "text": text, "packets": summary.lost})
    if summary.fault:
        text = f"the capture file could not be read to its end: {summary.fault}"
        journal.say(FrameKind.EVENT, {"kind": "capture-truncated", "text": text, "offset": capture.offset})
    if capture.untimed:
        text = f"{capture.untimed} packets have no time in the capture and got that of the packet before"
        journal.say(FrameKind.EVENT, {"kind": "packets-untimed", "text": text, "packets": capture.untimed})


class _Journal:
    """Collects records into spans; `time` is that of the newest one."""

    def __init__(self, writer: Writer, time_ns: int) -> None:
        self._writer = writer
        self._span: list[bytes] = []
        self._size = 0
        self.time = time_ns

    def add(self, packed: bytes, time_ns: int) -> None:
        if self._size and self._size + len(packed) > self._writer.max_payload:
            self.flush()
        self._span.append(packed)
        self._size += len(packed)
        self.time = time_ns
        if self._size >= SPAN:
            self.flush()

    def flush(self) -> None:
        if self._span:
            self.append(FrameKind.SPAN, b"".join(self._span))
            self._span.clear()
            self._size = 0

    def say(self, kind: FrameKind, value: dict[str, Any]) -> None:
        self.append(kind, msgspec.json.encode(value))

    def append(self, kind: FrameKind, payload: bytes) -> None:
        self._writer.append(kind, payload, time_ns=self.time)
