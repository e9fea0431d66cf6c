"""Capture files: pcap and pcapng, to packets with their times, in the order of the file.

pcap: draft-ietf-opsawg-pcap; micro- and nanoseconds, both byte orders, and the "modified" variant (magic a1b2cd34) with
its longer record headers. pcapng: draft-ietf-opsawg-pcapng; several sections, interfaces and byte orders in one file,
enhanced, simple and obsolete packet blocks, `if_tsresol`, `if_tsoffset`, and the drop counters of statistics blocks.
dpkt's readers know one interface and one byte order per file and end silently where a file is cut, hence these.

A file that ends in the middle of a packet gives what is there; `Capture.fault` says so.
"""

import struct
from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from appliance.errors import MalformedInput

MAX_PACKET: Final = 2**20 - 4096  # bytes; with its record it fits a journal frame
_MAX_BLOCK: Final = MAX_PACKET + 2**16  # a packet block with its options
_MAX_INTERFACES: Final = 65536
_MAX_TIME: Final = 2**63 - 1
_NS: Final = 1_000_000_000
_SECTION, _INTERFACE, _OBSOLETE, _SIMPLE, _STATISTICS, _ENHANCED = 0x0A0D0D0A, 1, 2, 3, 5, 6
_READ_WHOLE: Final = frozenset({_SECTION, _INTERFACE, _OBSOLETE, _SIMPLE, _STATISTICS, _ENHANCED})
_TSRESOL, _TSOFFSET, _IFDROP, _OSDROP = 9, 14, 5, 7  # option codes
_PCAP: Final = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000, 0),
    b"\xa1\xb2\xc3\xd4": (">", 1000, 0),
    b"\x4d\x3c\xb2\xa1": ("<", 1, 0),
    b"\xa1\xb2\x3c\x4d": (">", 1, 0),
    b"\x34\xcd\xb2\xa1": ("<", 1000, 8),
    b"\xa1\xb2\xcd\x34": (">", 1000, 8),
}  # byte order, nanoseconds per unit, bytes that each record header has beyond 16
_ORDERS: Final = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


class Packet(NamedTuple):
    """`data`: the captured bytes from the link layer on; `wire`: how many the packet had."""

    time_ns: int
    link: int
    wire: int
    data: bytes


class _Interface(NamedTuple):
    link: int
    snap: int  # 0: no limit
    multiply: int  # ticks to nanoseconds
    divide: int
    offset_ns: int


class _End(Exception):
    """The file cannot be read on: why."""


class Capture:
    """An open capture file; iterate once. Raises `MalformedInput` when it is none.

    `offset`: bytes read so far. `fault`: why reading ended before the file did, or "". `untimed`: packets without a
    time, which got that of the packet before. `unreadable`: packet blocks without a valid interface or length. `lost`:
    packets that the capturing system says it dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.fault = ""
        self.untimed = 0
        self.unreadable = 0
        self.lost = 0
        try:
            if not path.is_file():
                what = "a folder" if path.is_dir() else "not a file"
                raise MalformedInput(f"{path}: {'no such file' if not path.exists() else what}; name a capture file")
            self._file = BufferedReader(FileIO(path), 2**18)
        except OSError as error:
            raise MalformedInput(f"{path}: {error.strerror}; name a readable capture file") from error
        try:
            self._packets = self._begin()
        except BaseException:
            self._file.close()
            raise

    def _begin(self) -> Iterator[Packet]:
        head = self._file.peek(24)[:24]
        magic = head[:4]
        if not head:
            raise MalformedInput(f"{self.path}: the file is empty; name a pcap or pcapng capture")
        if magic in _PCAP:
            if len(head) < 24:
                raise MalformedInput(f"{self.path}: the file ends within its header; copy it again")
            return self._pcap(*_PCAP[magic])
        if magic == _SECTION.to_bytes(4, "big"):
            if head[8:12] not in _ORDERS:
                raise MalformedInput(f"{self.path}: a pcapng file with a broken section header; copy it again")
            return self._pcapng()
        for start, name in _COMPRESSED.items():
            if head.startswith(start):
                raise MalformedInput(f"{self.path}: compressed with {name}; unpack it first")
        raise MalformedInput(f"{self.path}: neither pcap nor pcapng; save it as one of these")

    def __iter__(self) -> Iterator[Packet]:
        try:
            yield from self._packets
        except _End as end:
            self.fault = str(end)
        except OSError as error:
            self.fault = f"it cannot be read from byte {self.offset} on: {error.strerror}"

    def _take(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end of the file."""
        data = self._file.read(size)
        self.offset += len(data)
        return data

    def _whole(self, size: int) -> bytes:
        at = self.offset
        data = self._take(size)
        if len(data) < size:
            raise _End(f"it ends in the middle of the record at byte {at}")
        return data

    # -- pcap ------------------------------------------------------------------------------------------------------

    def _pcap(self, order: str, unit: int, more: int) -> Iterator[Packet]:
        (network,) = struct.unpack_from(order + "I", self._take(24), 20)
        link = network & 0xFFFF  # the rest tells of frame check sequences, which IP lengths cut off
        header = struct.Struct(order + "IIII")
        size = header.size + more
        while True:
            at = self.offset
            head = self._take(size)
            if len(head) < size:
                if head:
                    raise _End(f"it ends in the middle of the record at byte {at}")
                return
            seconds, fraction, captured, wire = header.unpack_from(head)
            if captured > MAX_PACKET:
                raise _End(f"the record at byte {at} claims {captured} bytes")
            data = self._take(captured)
            if data or not captured:
                yield Packet(seconds * _NS + fraction * unit, link, max(wire, captured), data)
            if len(data) < captured:
                raise _End(f"it ends in the middle of the record at byte {at}")

    # -- pcapng ----------------------------------------------------------------------------------------------------

    def _pcapng(self) -> Iterator[Packet]:
        order = "<"
        interfaces: list[_Interface] = []
        drops: dict[int, int] = {}
        last = 0
        while True:
            at = self.offset
            head = self._take(8)
            if not head:
                return
            if len(head) < 8:
                raise _End(f"it ends in the middle of the block at byte {at}")
            kind = int.from_bytes(head[:4], "little" if order == "<" else "big")
            body = b""
            if kind == _SECTION:  # reads the same in both byte orders
                body = self._whole(4)
                order = _ORDERS.get(body, "")
                if not order:
                    raise _End(f"the section at byte {at} has no valid byte order")
                interfaces, drops = [], {}
            (length,) = struct.unpack_from(order + "I", head, 4)
            rest = length - 12 - len(body)
            if length % 4 or rest < 0 or (kind in _READ_WHOLE and length > _MAX_BLOCK):
                raise _End(f"the block at byte {at} claims {length} bytes")
            if kind not in _READ_WHOLE:
                self._skip(rest + 4, at)
                continue
            body += self._take(rest)
            tail = self._take(4)
            if kind in (_ENHANCED, _SIMPLE, _OBSOLETE):
                packet = self._packet(kind, body, order, interfaces, last, cut=len(tail) < 4)
                if packet is not None:
                    last = packet.time_ns
                    yield packet
            if len(tail) < 4:
                raise _End(f"it ends in the middle of the block at byte {at}")
            if tail != head[4:]:
                raise _End(f"the block at byte {at} does not end where it should")
            if kind == _SECTION and struct.unpack_from(order + "H", body.ljust(6), 4) != (1,):
                raise _End(f"the section at byte {at} is of another pcapng version than 1")
            if kind == _INTERFACE:
                if len(interfaces) >= _MAX_INTERFACES:
                    raise _End(f"there are more than {_MAX_INTERFACES} interfaces")
                interfaces.append(_interface(body, order))
            elif kind == _STATISTICS and len(body) >= 12:
                (number,) = struct.unpack_from(order + "I", body)
                if number >= len(interfaces):  # of none; what is remembered of each must not grow with the file
                    continue
                options = _options(body, 12, order)
                said = [options[code] for code in (_IFDROP, _OSDROP) if len(options.get(code, b"")) == 8]
                dropped = sum(struct.unpack(order + "Q", value)[0] for value in said)
                self.lost += max(0, dropped - drops.get(number, 0))  # counters go on rising over several such blocks
                drops[number] = max(dropped, drops.get(number, 0))

    def _skip(self, size: int, at: int) -> None:
        while size:
            part = self._take(min(size, 2**18))
            if not part:
                raise _End(f"it ends in the middle of the block at byte {at}")
            size -= len(part)

    def _packet(
        self, kind: int, body: bytes, order: str, interfaces: list[_Interface], last: int, *, cut: bool
    ) -> Packet | None:
        fixed = 4 if kind == _SIMPLE else 20
        if len(body) < fixed:
            self.unreadable += 1
            return None
        if kind == _SIMPLE:
            number, high, low = 0, 0, 0
            (wire,) = struct.unpack_from(order + "I", body)
            captured = wire
            if interfaces and interfaces[0].snap:
                captured = min(wire, interfaces[0].snap)
            captured = min(captured, len(body) - fixed)
        elif kind == _ENHANCED:
            number, high, low, captured, wire = struct.unpack_from(order + "IIIII", body)
        else:
            number, _, high, low, captured, wire = struct.unpack_from(order + "HHIIII", body)
        if number >= len(interfaces) or (captured > len(body) - fixed and not cut):
            self.unreadable += 1
            return None
        interface = interfaces[number]
        if kind == _SIMPLE:
            self.untimed += 1
            time_ns = last
        else:
            ticks = high << 32 | low
            time_ns = ticks * interface.multiply // interface.divide + interface.offset_ns
        data = body[fixed : fixed + captured]  # shorter where the file is cut
        return Packet(min(max(time_ns, 0), _MAX_TIME), interface.link, max(wire, len(data)), data)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _interface(body: bytes, order: str) -> _Interface:
    if len(body) < 8:
        return _Interface(-1, 0, 1000, 1, 0)  # its packets count as of an unknown link type
    link, _, snap = struct.unpack_from(order + "HHI", body)
    options = _options(body, 8, order)
    resolution = options.get(_TSRESOL, b"\x06")[:1] or b"\x06"
    exponent = resolution[0] & 0x7F
    divide = 2**exponent if resolution[0] & 0x80 else 10**exponent
    offset = options.get(_TSOFFSET, b"")
    seconds = struct.unpack(order + "q", offset)[0] if len(offset) == 8 else 0
    multiply = _NS
    if divide <= _NS and _NS % divide == 0:
        multiply, divide = _NS // divide, 1
    return _Interface(link, snap, multiply, divide, seconds * _NS)


def _options(body: bytes, at: int, order: str) -> dict[int, bytes]:
    """Options by code, the last of each."""
    found: dict[int, bytes] = {}
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        if code == 0:
            break
        found[code] = body[at + 4 : at + 4 + length]
        at += 4 + (length + 3 & ~3)
    return found
