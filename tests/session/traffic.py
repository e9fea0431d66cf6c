"""Made-up traffic: records as the kernel program writes them, in frames, and what came out put together again."""

import gc
import struct
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from appliance import config
from appliance.journal import PLAIN, Damage, Frame, FrameKind
from appliance.model import ChunkRow, Direction, EventRow, FindingRow, MessageRow, Row, SessionRow
from appliance.session.assembler import Assembler
from appliance.session.relayed import RelayAssembler
from appliance.wire.abi import ABI, Kind, Record, pack_address
from appliance.wire.records import plain

STREAM = bytes(range(16))
T0 = 1_700_000_000_000_000_000
MS = 1_000_000
SECOND = 1_000_000_000
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
R = TypeVar("R", bound=Row)


def record(**values: Any) -> Record:
    fields: dict[str, Any] = {
        "version": ABI, "kind": Kind.PACKET, "lane": 1, "side": 0, "family": 4, "protocol": 6, "reason": 0, "flags": 0,
        "ifindex": 1, "length": 0, "time": T0, "lease": 0, "flow": 0, "count": 0, "source": bytes(16),
        "destination": bytes(16), "source_port": 0, "destination_port": 0, "seq": 0, "ack": 0, "window": 0xFFFF,
        "tcp_flags": 0, "reserved": 0, "payload": 0, "gso_size": 0, "gso_segs": 0, "header": 0, "vlan": 0,
    }  # fmt: skip
    return Record(**(fields | values))


def ip4(protocol: int, source: str, destination: str, payload: bytes, fragment: int = 0, number: int = 7) -> bytes:
    """An IPv4 packet; `fragment`: the flags and offset field. Checksums are not looked at."""
    addresses = pack_address(source)[12:] + pack_address(destination)[12:]
    length = 20 + len(payload)
    return struct.pack(">BBHHHBBH", 0x45, 0, length, number, fragment, 64, protocol, 0) + addresses + payload


@dataclass
class Peer:
    """Both ends of a TCP connection as the recorder sees them; every method gives one packet's bytes in a span."""

    client: str = "10.0.0.2"
    server: str = "10.0.1.3"
    client_port: int = 40000
    server_port: int = 5432
    flow: int = 0
    lease: int = 0
    client_isn: int = 1000
    server_isn: int = 900_000
    window: int = 0xFFFF

    def packet(
        self,
        side: int,
        flags: int,
        offset: int,
        data: bytes = b"",
        *,
        time: int = 0,
        acked: int | None = 0,
        cut: int = 0,
        options: bytes = b"",
        window: int | None = None,
        **more: Any,
    ) -> bytes:
        """`offset` 0 is the byte after the SYN; `acked` the offset that is expected from the other side. `time`: ns
        after `T0`. `cut`: payload bytes that the capture left out."""
        isns = (self.client_isn, self.server_isn)
        seq = isns[side] + 1 + offset & 0xFFFFFFFF
        ack = 0 if acked is None else isns[1 - side] + 1 + acked & 0xFFFFFFFF
        ports = (self.client_port, self.server_port)
        hosts = (self.client, self.server)
        if acked is not None:
            flags |= ACK
        room = self.window if window is None else window
        size = 5 + len(options) // 4
        head = struct.pack(">HHIIBBHHH", ports[side], ports[1 - side], seq, ack, size << 4, flags, room, 0, 0) + options
        packet = ip4(6, hosts[side], hosts[1 - side], head + data)
        packet = packet[: len(packet) - cut]
        values: dict[str, Any] = {
            "side": side, "length": len(packet), "time": T0 + time, "flow": self.flow, "lease": self.lease,
            "source": pack_address(hosts[side]), "destination": pack_address(hosts[1 - side]),
            "source_port": ports[side], "destination_port": ports[1 - side], "seq": seq, "ack": ack, "window": room,
            "tcp_flags": flags, "payload": len(data), "header": 20 + 4 * size,
        }  # fmt: skip
        return plain(record(**(values | more)), packet)

    def handshake(self, time: int = 0) -> list[bytes]:
        return [
            self.packet(0, SYN, -1, acked=None, time=time),
            self.packet(1, SYN, -1, acked=0, time=time + MS),
            self.packet(0, 0, 0, time=time + 2 * MS),
        ]

    def goodbye(self, sent: int, received: int, time: int = SECOND) -> list[bytes]:
        """Both FINs, acknowledged."""
        return [
            self.packet(0, FIN, sent, acked=received, time=time),
            self.packet(1, FIN, received, acked=sent + 1, time=time + MS),
            self.packet(0, 0, sent + 1, acked=received + 1, time=time + 2 * MS),
        ]


def udp(source: tuple[str, int], destination: tuple[str, int], data: bytes, time: int = 0, **more: Any) -> bytes:
    packet = ip4(
        17, source[0], destination[0], struct.pack(">HHHH", source[1], destination[1], 8 + len(data), 0) + data
    )
    values: dict[str, Any] = {
        "protocol": 17, "length": len(packet), "time": T0 + time, "source": pack_address(source[0]),
        "destination": pack_address(destination[0]), "source_port": source[1], "destination_port": destination[1],
        "payload": len(data), "header": 28,
    }  # fmt: skip
    return plain(record(**(values | more)), packet)


def span(number: int, *packets: bytes) -> Frame:
    return Frame(number, FrameKind.SPAN, T0, b"".join(packets), 0, 0, PLAIN)


def frame(number: int, kind: FrameKind, payload: bytes = b"{}") -> Frame:
    return Frame(number, kind, T0, payload, 0, 0, PLAIN)


CLOCK = struct.pack("<QQ", 0, 0)


def ingest(packets: Sequence[bytes], *, size: int = 10, close: bool = True) -> list[Frame]:
    """The frames that an ingest of these packets writes, `size` packets in a span."""
    opened = b'{"node": "gw", "source": "ingest:x.pcap", "ring": "", "boot": ""}'
    frames = [frame(1, FrameKind.OPEN, opened), frame(2, FrameKind.CLOCK, CLOCK)]
    for start in range(0, len(packets), size):
        frames.append(span(len(frames) + 1, *packets[start : start + size]))
    if close:
        frames.append(frame(len(frames) + 1, FrameKind.CLOSE))
    return frames


def assembler(**settings: Any) -> Assembler:
    return Assembler(STREAM, config.Record(**settings), "gw")


def feed(frames: Iterable[Frame | Damage], into: Assembler | None = None, **settings: Any) -> list[Row]:
    machine = into or assembler(**settings)
    return [row for one in frames for row in machine.feed(one)]


def run(packets: Sequence[bytes], **settings: Any) -> "Recorded":
    """What an ingest of these packets leaves in the store."""
    return Recorded(feed(ingest(packets), **settings))


@dataclass
class Recorded:
    """Rows, checked for gapless numbers, by session."""

    rows: list[Row]
    last: dict[UUID, SessionRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        following: dict[tuple[type, UUID], int] = {}
        for row in self.rows:
            if isinstance(row, EventRow):
                continue
            key = (type(row), row.session_id)
            assert row.seq == following.get(key, 0), "seq has a gap"
            following[key] = row.seq + 1
            if isinstance(row, SessionRow):
                self.last[row.session_id] = row

    @property
    def sessions(self) -> list[SessionRow]:
        return list(self.last.values())

    @property
    def session(self) -> SessionRow:
        (only,) = self.last.values()
        return only

    @property
    def events(self) -> list[EventRow]:
        return [row for row in self.rows if isinstance(row, EventRow)]

    def _of(self, kind: type[R], session: SessionRow | None) -> Iterator[R]:
        wanted = (session or self.session).session_id
        return (row for row in self.rows if isinstance(row, kind) and getattr(row, "session_id", None) == wanted)

    def chunks(self, session: SessionRow | None = None) -> list[ChunkRow]:
        return list(self._of(ChunkRow, session))

    def messages(self, session: SessionRow | None = None) -> list[MessageRow]:
        return list(self._of(MessageRow, session))

    def findings(self, session: SessionRow | None = None, kind: str = "") -> list[FindingRow]:
        return [row for row in self._of(FindingRow, session) if kind in ("", row.kind)]

    def stream(self, direction: Direction, session: SessionRow | None = None) -> bytes:
        """The bytes of one direction, gaps as zeros; no byte may come twice."""
        out = bytearray()
        taken = bytearray()
        for row in self.chunks(session):
            if row.direction is direction and row.copy == 0:
                end = row.offset + len(row.data)
                out.extend(bytes(max(0, end - len(out))))
                taken.extend(bytes(max(0, end - len(taken))))
                assert not any(taken[row.offset : end]), "stored twice"
                out[row.offset : end] = row.data
                taken[row.offset : end] = b"\1" * len(row.data)
        return bytes(out)


def memory_taken(machine: Assembler | RelayAssembler, frames: Iterable[Frame | Damage]) -> int:
    """Bytes that are held once these were fed."""
    gc.collect()
    tracemalloc.start()
    for one in frames:
        machine.feed(one)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken
