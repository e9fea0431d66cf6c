"""From records to rows: a few flows between a few hosts, whose packets say anything.

    settings (1 byte), how the records are cut into frames (4 bytes); then operations: packets, records without packets,
    frames of other kinds, damage

What holds: nothing is raised; rows have gapless numbers and can be stored; messages and findings lie within their
stream, no byte of which comes twice; redacted bytes are asterisks; and however the records were cut into frames,
repeated after a crash, and the assembler saved and loaded in between, the rows are the same.
"""

import json
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from msgspec import structs

from appliance import config
from appliance.journal import Damage, Frame, FrameKind, Layout
from appliance.model import ChunkRow, Direction, EventRow, FindingRow, MessageRow, Row, SessionRow
from appliance.session.assembler import Assembler
from appliance.store import rows as store
from appliance.wire.abi import Flow, Kind, SideState
from appliance.wire.clock import CLOCK
from tests.fuzz.script import Script
from tests.fuzz.targets import Target
from tests.session.test_state import decoded, encoded
from tests.session.traffic import ACK, STREAM, T0, Peer, Recorded, ip4, record, udp

MAX_OPERATIONS: Final = 200
MAX_HELD: Final = 1 << 20
SAYINGS: Final = (
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"\0\0\0\x17\0\3\0\0user\0u\0database\0",
    b"p\0\0\0\x0bsecret\0",
    b"R\0\0\0\x08\0\0\0\3R\0\0\0\x08\0\0\0\0Z\0\0\0\5I",
    b"Q\0\0\0\x0dSELECT 1\0",
    b"D\0\0\0\x0b\0\1\0\0\0\x011C\0\0\0\x0dSELECT 1\0Z\0\0\0\5I",
    b"\x16\x03\x01\0\5\1\0\0\1\0\x17\3\3\0\2ab",
    b"\xab\xcd\1\0\0\1\0\0\0\0\0\0\7example\3org\0\0\1\0\1",
    b"plain words\n",
)
HOSTS: Final = ("10.0.0.2", "10.0.1.3", "10.0.2.4")
LEASE: Final = {"event": "granted", "id": "00000000000000ab", "address": "10.0.0.2", "identity": {"subject": "alice"}}

Said = tuple[FrameKind, bytes]
Item = bytes | Said | Damage  # a record with its bytes; a frame of another kind; a hole in the journal


def content(script: Script) -> bytes:
    """What protocols say, whole or cut, or anything."""
    choice = script.byte()
    if choice < 128:
        return SAYINGS[choice % len(SAYINGS)]
    return script.piece(120) if choice < 200 else SAYINGS[choice % len(SAYINGS)][: script.below(64)]


class Traffic:
    """Turns operations into records."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._time = 0
        self._at = [[0, 0] for _ in range(4)]
        self._peers = [
            Peer(flow=0, client_isn=0xFFFFFFF0),
            Peer(flow=77, lease=0xAB, client_port=40001, window=64),
            Peer(flow=78, client_port=40002, server_port=80),
            Peer(flow=0, client_port=80, server_port=40000),
        ]

    def __iter__(self) -> Iterator[Item]:
        for _ in range(MAX_OPERATIONS):
            if not self._script.more:
                return
            yield from self._operation(self._script.byte() % 16)

    def _operation(self, op: int) -> Iterator[Item]:
        script = self._script
        which, side = script.below(4), script.below(2)
        peer, at = self._peers[which], self._at[which]
        self._time += (script.byte() << script.below(28)) * 1000
        if op < 6:
            said = content(script)
            shift = (script.byte() - 128) if op == 5 else 0
            place = max(0, at[side] + shift)
            yield peer.packet(side, ACK, place, said, acked=at[1 - side], time=self._time)
            at[side] = max(at[side], place + len(said)) if op != 4 else at[side]
        elif op == 6:
            flags = script.byte() & 0x3F
            acked = None if script.flag() else max(0, at[1 - side] + script.byte() - 128)
            offset = at[side] + script.byte() - 128
            yield peer.packet(
                side, flags, offset, script.piece(32), acked=acked, time=self._time, window=script.number(2)
            )
        elif op == 7:
            yield from peer.handshake(self._time)
        elif op == 8:
            yield from peer.goodbye(at[0], at[1], self._time)
        elif op == 9:
            ends = ((HOSTS[0], 5353), (HOSTS[1 + script.below(2)], 53))
            yield udp(*(ends if side == 0 else ends[::-1]), content(script), time=self._time)
        elif op == 10:
            yield self._fragment(side)
        elif op == 11:
            yield self._related(peer, side)
        elif op == 12:
            yield self._without_packet(peer, side)
        elif op == 13:
            yield peer.packet(side, ACK, at[side], content(script), acked=0, time=self._time, cut=script.byte())
        elif op == 14:
            yield self._frame()
        else:
            yield self._any(peer)

    def _fragment(self, side: int) -> bytes:
        script = self._script
        part, content = script.number(2), script.piece(64)
        source, destination = HOSTS[side], HOSTS[1 - side]
        packet = ip4((6, 17, 1, 50)[script.below(4)], source, destination, content, part, script.below(3))
        return _packed(packet, flags=4, protocol=packet[9], header=20, payload=len(content), time=T0 + self._time)

    def _related(self, peer: Peer, side: int) -> bytes:
        packet = ip4(1, peer.server, peer.client, self._script.piece(40))
        header = 28 if self._script.flag() else self._script.byte()
        return _packed(
            packet, flags=32, header=header, side=side, source_port=peer.client_port,
            destination_port=peer.server_port, time=T0 + self._time,
        )  # fmt: skip

    def _without_packet(self, peer: Peer, side: int) -> bytes:
        script = self._script
        kind = (Kind.REFUSAL, Kind.FLOW_END, 4 + script.below(250))[script.below(3)]
        client, server = (
            SideState(packets=script.byte(), bytes=script.number(2), flags=script.byte()) for _ in range(2)
        )
        flow = Flow(T0, T0, peer.lease, 1, 1, script.byte() % 6, 0, client, server).pack()
        content = flow if kind == Kind.FLOW_END else b""
        return _packed(
            content[: len(content) - script.below(4)], kind=kind, flow=peer.flow, lease=peer.lease, side=side,
            reason=script.below(30), count=script.number(2), source_port=peer.client_port,
            destination_port=peer.server_port, time=T0 + self._time,
        )  # fmt: skip

    def _frame(self) -> Item:
        script = self._script
        match script.below(7):
            case 0:
                return FrameKind.CLOCK, CLOCK.pack(T0 + self._time, T0 + self._time + (script.number(3) << 20))
            case 1:
                return FrameKind.LEASE, json.dumps(LEASE).encode()
            case 2:
                return FrameKind.EVENT, script.piece(64)
            case 3:
                said = {"node": "gw", "ring": script.byte() % 3, "boot": str(script.byte() % 2), "position": 0}
                return FrameKind.OPEN, json.dumps(said).encode()
            case 4:
                return FrameKind((1 + script.below(5)) or 2), script.piece(64)
            case 5:
                return Damage(5, None if script.flag() else 1, "damaged on purpose")
        return FrameKind.CLOSE, b"{}"

    def _any(self, peer: Peer) -> bytes:
        """A record whose fields are anything, with bytes that are anything."""
        script = self._script
        content = script.piece(80)
        return _packed(
            content, flow=script.below(3), protocol=script.byte(), family=(4, 6, 0)[script.below(3)],
            flags=script.byte(), header=script.byte(), payload=script.number(2), seq=script.number(4),
            ack=script.number(4), tcp_flags=script.byte(), window=script.number(2), gso_size=script.byte(),
            lane=script.byte(), side=script.byte(), source_port=peer.client_port, destination_port=peer.server_port,
            time=T0 + self._time - script.number(3),
        )  # fmt: skip


def _packed(content: bytes, **values: Any) -> bytes:
    ends = {"source": b"\0" * 10 + b"\xff\xff\n\0\0\2", "destination": b"\0" * 10 + b"\xff\xff\n\0\1\3"}
    made = record(length=len(content), **(ends | values))
    return made.pack() + content


def framed(items: Sequence[Item], cuts: random.Random | None) -> Iterator[Frame | Damage]:
    """The items as a journal holds them: each record alone, or, with `cuts`, some together and some spans twice."""
    opened = {"node": "gw", "source": "ingest:x", "ring": "r", "boot": "b", "position": 0}
    number, position = 3, 0
    yield Frame(1, FrameKind.OPEN, T0, json.dumps(opened).encode())
    yield Frame(2, FrameKind.CLOCK, T0, CLOCK.pack(T0, T0))
    span, start = b"", 0
    for place, item in enumerate([*items, None]):
        if isinstance(item, bytes):
            piece = struct.pack("<II", len(item), 0) + item + bytes(-len(item) % 8)
            span += piece
            position += len(piece)
            if cuts is not None and cuts.randrange(4) and isinstance((*items, None)[place + 1], bytes):
                continue
        if span:
            made = Frame(number, FrameKind.SPAN, T0, span, start, position, Layout.RING)
            yield made
            if cuts is not None and not cuts.randrange(4):  # written again after a crash
                yield replace(made, number=number + 1)
            span, start = b"", position
            number += 2
        if isinstance(item, tuple):
            yield Frame(number, item[0], T0, item[1], position, position)
            number += 1
        elif isinstance(item, Damage):
            yield item
    yield Frame(number, FrameKind.OPEN, T0, json.dumps(opened).encode())
    yield Frame(number + 1, FrameKind.CLOSE, T0, b"{}")


def run(items: Sequence[Item], settings: config.Record, cuts: random.Random | None) -> list[Row]:
    assembler = Assembler(STREAM, settings, "gw")
    found: list[Row] = []
    for frame in framed(items, cuts):
        if cuts is not None and not cuts.randrange(16):
            assembler = decoded(encoded(assembler))
        found += assembler.feed(frame)
    assert assembler.held_bytes <= MAX_HELD, f"{assembler.held_bytes} bytes held"
    return found


def check(data: bytes) -> None:
    script = Script(data)
    small, seed = script.byte(), script.number(4)
    settings = config.Record(
        max_sessions=2 if small & 1 else 64, max_buffer=256 if small & 2 else 65536, max_body=16 if small & 4 else 65536
    )
    items = list(Traffic(script))
    alone, together = run(items, settings, None), run(items, settings, random.Random(seed))
    for number, (one, other) in enumerate(zip(_plain(alone), _plain(together), strict=False)):
        assert one == other, f"row {number}: one record a frame {one}, otherwise {other}"
    assert len(alone) == len(together), "more rows when cut otherwise"
    Recorded(alone)
    for table, part in store.by_table(alone).items():
        store.encode(table, part)
    ranges(alone)


def _plain(rows: Sequence[Row]) -> list[Row]:
    """Without what comes from positions: ids of sessions, places of events, numbers of frames."""
    ids: dict[UUID, UUID] = {}
    plain: list[Row] = []
    for row in rows:
        if isinstance(row, EventRow) and row.kind == "journal-gap":
            plain.append(structs.replace(row, position=0, text="", attrs={}))
        elif isinstance(row, EventRow):
            plain.append(structs.replace(row, position=0))
        elif isinstance(row, FindingRow) and row.kind == "journal-gap":
            session = ids.setdefault(row.session_id, UUID(int=len(ids)))
            plain.append(structs.replace(row, session_id=session, attrs={}))
        else:
            plain.append(structs.replace(row, session_id=ids.setdefault(row.session_id, UUID(int=len(ids)))))
    return plain


def ranges(rows: Sequence[Row]) -> None:
    ends: dict[tuple[UUID, Direction | None], int] = {}
    stored: dict[tuple[UUID, Direction], dict[int, int]] = {}
    for row in rows:
        if isinstance(row, ChunkRow) and not row.copy:
            place = stored.setdefault((row.session_id, row.direction), {})
            for offset, byte in enumerate(row.data, row.offset):
                assert offset not in place, f"offset {offset} is stored twice"
                place[offset] = byte
        if isinstance(row, ChunkRow | FindingRow):
            last = row.offset + len(row.data) if isinstance(row, ChunkRow) else row.end
            key = (row.session_id, row.direction)
            ends[key] = max(ends.get(key, 0), last)
    for row in rows:
        if isinstance(row, MessageRow):
            message = row.message
            end = ends.get((row.session_id, message.direction), 0)
            assert message.start <= message.end <= end, f"{message.kind} ends at {message.end}, the stream at {end}"
        elif isinstance(row, FindingRow) and row.kind == "redacted" and row.direction is not None:
            kept = stored.get((row.session_id, row.direction), {})
            shown = {kept[offset] for offset in range(row.start, row.end) if offset in kept}
            assert shown <= {0x2A}, "a redacted byte is stored"
        elif isinstance(row, SessionRow):
            assert row.client_bytes >= 0 <= row.server_bytes, "a negative count"


def seeds() -> list[bytes]:
    head = b"\0\1\2\3\4"

    def op(number: int, which: int, side: int, *more: int) -> bytes:
        return bytes([number, which, side, 10, 10, *more])

    hands = op(7, 2, 0)
    web = hands + op(0, 2, 0, 0) + op(0, 2, 1, 1) + op(8, 2, 0)
    database = op(7, 1, 0) + b"".join(op(0, 1, side, what) for side, what in ((0, 3), (1, 5), (0, 4), (0, 6), (1, 7)))
    others = op(9, 0, 0, 9) + op(10, 0, 0, 0, 0x20, 16, *range(16), 1, 0) + op(10, 0, 0, 2, 0, 8, *range(8), 1, 0)
    odd = op(12, 1, 0, 1, 5, 5, 0, 1, 5, 5, 0, 1, 1, 0, 3, 2, 0) + op(11, 1, 0, 8, *range(8), 1)
    frames = b"".join(op(14, 0, 0, kind, 1, 0, 0) for kind in range(7))
    late = hands + op(5, 2, 0, 0, 200) + op(5, 2, 0, 0, 100) + op(4, 2, 0, 0) + op(13, 2, 0, 0, 9)
    late += op(6, 2, 1, 4, 1, 128)
    return [head + part for part in (web, database, others, odd, frames, late, web + frames + database, late + odd)]


TARGETS: Final = {"assembler": Target(check, seeds, size=1024)}
