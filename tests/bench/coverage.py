"""Which bytes of a flow a recording holds, whatever recorded it."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import dpkt

from appliance.journal import Frame
from appliance.wire.abi import Kind
from appliance.wire.records import records

HALF, WHOLE = 2**31, 2**32
SYN = 0x02
Segment = tuple[int, int, bytes | memoryview]  # flags, sequence number, payload


class Stream:
    """The bytes of one direction, put together from segments in nearly any order."""

    def __init__(self) -> None:
        self._next: int | None = None  # absolute position that is wanted next
        self._late: dict[int, bytes] = {}
        self._digest = hashlib.sha256()
        self.contiguous = 0  # bytes from the start without a hole
        self.spans: list[tuple[int, int]] = []  # all that was seen, as positions

    def add(self, segment: Segment) -> None:
        flags, seq, data = segment
        if flags & SYN:
            if self._next is None:
                self._base = self._next = (seq + 1) % WHOLE
            return
        if self._next is None or not data:
            return
        begin = self._next + (seq - self._next + HALF) % WHOLE - HALF
        if begin < self._base:
            return
        self.spans.append((begin, begin + len(data)))
        if begin > self._next:
            self._late[begin] = bytes(data)
            return
        self._take(begin, data)
        while self._late and (first := min(self._late)) <= self._next:
            self._take(first, self._late.pop(first))

    def _take(self, begin: int, data: bytes | memoryview) -> None:
        assert self._next is not None
        fresh = data[self._next - begin :]
        self._digest.update(fresh)
        self._next += len(fresh)
        self.contiguous += len(fresh)

    def seen(self) -> int:
        """Different bytes in all segments, holes or not."""
        total, end = 0, -1
        for begin, stop in sorted(self.spans):
            total += max(0, stop - max(begin, end))
            end = max(end, stop)
        return total

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def journal_segments(frames: Iterable[Frame], port: int) -> Iterator[Segment]:
    """What clients sent to a server's port, as it lies in the journal."""
    for frame in frames:
        for _, record, data in records(frame):
            if record.kind == Kind.PACKET and record.destination_port == port:
                yield record.tcp_flags, record.seq, data[record.header : record.header + record.payload]


def capture_segments(path: Path, port: int) -> Iterator[Segment]:
    """The same from a capture file of Ethernet frames."""
    with path.open("rb") as file:
        try:
            for _, frame in dpkt.pcap.Reader(file):
                packet = dpkt.ethernet.Ethernet(frame).data
                if (
                    isinstance(packet, dpkt.ip.IP)
                    and isinstance(packet.data, dpkt.tcp.TCP)
                    and packet.data.dport == port
                ):
                    yield packet.data.flags, packet.data.seq, packet.data.data
        except dpkt.dpkt.NeedData:
            return  # the last packet was being written


def expected(path: Path, length: int) -> str:
    """SHA-256 of the first `length` bytes of the file's content, repeated."""
    content = path.read_bytes()
    digest = hashlib.sha256()
    while length > 0:
        digest.update(memoryview(content)[:length])
        length -= len(content)
    return digest.hexdigest()
