"""Journals of made-up traffic, written by the real `Writer`, records as the kernel program makes them.

Three kinds, the same bytes every time: `bulk` (long streams of super-packets), `postgres` (short SELECTs as pgbench -S
sends them, some extended queries, some larger results) and `http` (requests and responses with JSON bodies on
connections that stay open).
"""

import hashlib
import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance import config
from appliance.journal import RING, FrameKind, JournalKey, Writer
from appliance.wire.abi import ABI, RECORD_F_GSO, Kind, Record, pack_address
from appliance.wire.clock import CLOCK
from appliance.wire.records import RING_HEADER, padded

T0 = 1_780_000_000_000_000_000
SPAN = {"bulk": 2**20, "archive": 2**20, "postgres": 2**16, "http": 2**16}  # bytes of a frame
FIN, SYN, PSH, ACK = 1, 2, 8, 16
SUPER = 45 * 1448  # payload of a super-packet
LIMITS = config.Journal(segment_bytes=64 * 2**20, max_bytes=2**40, min_free_bytes=2**20)
NAMES = ("amelie", "bogdan", "chiara", "dmitri", "elena", "farid", "greta", "hiroshi", "ines", "joris", "kavya", "luca")
WORDS = (
    *("account", "balance", "billing", "branch", "customer", "delivery", "discount", "invoice", "ledger", "limit"),
    *("order", "parcel", "payment", "price", "product", "quantity", "refund", "region", "return", "shipment", "status"),
    *("stock", "subject", "summary", "supplier", "tariff", "ticket", "transfer", "vendor", "warehouse"),
)


@dataclass
class Flow:
    """Both ends of one connection. `send` gives a record's bytes as they stand in the ring."""

    number: int
    server_port: int
    ends: tuple[bytes, bytes] = field(init=False)
    sent: list[int] = field(default_factory=lambda: [1000, 900_000])
    flow: int = 0

    def __post_init__(self) -> None:
        client = f"10.{self.number >> 16 & 255}.{self.number >> 8 & 255}.{self.number & 255}"
        self.ends = (pack_address(client), pack_address("10.250.0.3"))
        self.flow = 2 * self.number + 1

    def send(self, side: int, flags: int, data: bytes, time_ns: int) -> bytes:
        ports = (40_000, self.server_port) if side == 0 else (self.server_port, 40_000)
        source, destination = self.ends[side], self.ends[1 - side]
        seq, ack = self.sent[side] & 0xFFFFFFFF, self.sent[1 - side] & 0xFFFFFFFF
        if flags == SYN:
            ack = 0
        options = b"\x02\x04\x05\xb4\x01\x03\x03\x07" if flags & SYN else b""
        size = 20 + len(options)
        length = 20 + size + len(data)
        packet = (
            struct.pack(">BBHHHBBH", 0x45, 0, length & 0xFFFF, 7, 0x4000, 64, 6, 0)
            + source[12:]
            + destination[12:]
            + struct.pack(">HHIIBBHHH", *ports, seq, ack, size << 2, flags, 0xFFFF, 0, 0)
            + options
            + data
        )
        segments = -(-len(data) // 1448)
        record = Record.LAYOUT.pack(
            *(ABI, Kind.PACKET, 1, side, 4, 6, 0, RECORD_F_GSO if segments > 1 else 0, 1 + side, length, time_ns, 0),
            *(self.flow, 0, source, destination, *ports, seq, ack, 0xFFFF, flags, 0, len(data)),
            *(1448 if segments > 1 else 0, segments if segments > 1 else 0, 20 + size, 0, 0),
        )
        self.sent[side] += len(data) + (1 if flags & (SYN | FIN) else 0)
        room = len(record) + length
        return RING_HEADER.pack(room, 0) + record + packet + bytes(padded(room) - room)

    def handshake(self, time_ns: int) -> Iterator[bytes]:
        yield self.send(0, SYN, b"", time_ns)
        yield self.send(1, SYN | ACK, b"", time_ns + 50_000)
        yield self.send(0, ACK, b"", time_ns + 100_000)

    def goodbye(self, time_ns: int) -> Iterator[bytes]:
        yield self.send(0, FIN | ACK, b"", time_ns)
        yield self.send(1, FIN | ACK, b"", time_ns + 50_000)
        yield self.send(0, ACK, b"", time_ns + 100_000)


Packets = Iterator[tuple[int, bytes]]  # time, record


def bulk(size: int, flows: int = 4, rate: int = 10**9, *, words: bool = True) -> Packets:
    """`size` bytes from server to client in all, over `flows` connections, at `rate` bytes a second of recorded time.

    Every other connection carries `words`, the rest what does not compress.
    """
    draw = random.Random(1)
    pool = [" ".join(draw.choices(WORDS, k=12_000)).encode()[:SUPER] for _ in range(16)]
    pool += [draw.randbytes(SUPER) for _ in range(16)]
    now = 0
    conns = [Flow(number + 1, 9000) for number in range(flows)]
    for conn in conns:
        yield from ((now, one) for one in conn.handshake(now))
        yield now, conn.send(0, PSH | ACK, b"\x00send\xff me everything\n", now + 200_000)
    now += 1_000_000
    for turn in range(size // SUPER):
        conn = conns[turn % flows]
        now += SUPER * 10**9 // rate
        yield now, conn.send(1, ACK, pool[draw.randrange(16) + 16 * (not words or turn % flows & 1)], now)
        if turn // flows & 1:
            yield now, conn.send(0, ACK, b"", now)
    for conn in conns:
        yield from ((now, one) for one in conn.goodbye(now))


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


def _row(*values: str) -> bytes:
    cells = b"".join(struct.pack("!I", len(value)) + value.encode() for value in values)
    return _message(b"D", struct.pack("!H", len(values)) + cells)


def _columns(*names: str) -> bytes:
    one = b"".join(
        name.encode() + b"\0" + struct.pack("!IHIHIH", 16_384, 1, 25, 0xFFFF, 0xFFFFFFFF, 0) for name in names
    )
    return _message(b"T", struct.pack("!H", len(names)) + one)


READY = _message(b"Z", b"I")
_STARTUP = struct.pack("!I", 196_608) + b"user\0app\0database\0shop\0\0"
LOGIN = struct.pack("!I", 4 + len(_STARTUP)) + _STARTUP
WELCOME = (
    _message(b"R", bytes(4))
    + b"".join(_message(b"S", pair) for pair in (b"server_version\x0015.5\0", b"client_encoding\0UTF8\0"))
    + _message(b"K", bytes(8))
    + READY
)


def _ask(draw: random.Random) -> tuple[bytes, bytes, int]:
    """One exchange: what is asked, what is answered, and how many messages that makes."""
    kind = draw.random()
    if kind < 0.9:
        account = draw.randrange(1, 10_000_000)
        sql = f"SELECT abalance FROM pgbench_accounts WHERE aid = {account};"
        answer = _columns("abalance") + _row(str(draw.randrange(-5000, 5000))) + _message(b"C", b"SELECT 1\0") + READY
        return _message(b"Q", sql.encode() + b"\0"), answer, 3
    if kind < 0.95:
        search = b"SELECT id, name, region FROM customer WHERE name = $1 AND region = $2 AND status <> 'closed'"
        name, region = draw.choice(NAMES), draw.choice(WORDS)
        values = b"".join(struct.pack("!I", len(value)) + value.encode() for value in (name, region))
        asked = (
            _message(b"P", b"\0" + search + b"\0" + struct.pack("!H", 0))
            + _message(b"B", b"\0\0" + struct.pack("!HH", 0, 2) + values + struct.pack("!H", 0))
            + _message(b"D", b"P\0")
            + _message(b"E", b"\0" + bytes(4))
            + _message(b"S", b"")
        )
        rows = b"".join(_row(str(draw.randrange(10**6)), name, region) for _ in range(3))
        head = _message(b"1", b"") + _message(b"2", b"") + _columns("id", "name", "region")
        return asked, head + rows + _message(b"C", b"SELECT 3\0") + READY, 4
    region = draw.choice(WORDS)
    sql = f"SELECT id, name, email, note FROM customer WHERE region = '{region}' ORDER BY id LIMIT 50"
    rows = b"".join(
        _row(str(draw.randrange(10**6)), name, f"{name}@example.com", " ".join(draw.choices(WORDS, k=6)))
        for name in draw.choices(NAMES, k=50)
    )
    answer = _columns("id", "name", "email", "note") + rows + _message(b"C", b"SELECT 50\0") + READY
    return _message(b"Q", sql.encode() + b"\0"), answer, 3


def postgres(exchanges: int, flows: int = 16, every_ns: int = 100_000) -> Packets:
    """`exchanges` questions and answers, one each `every_ns`, in turn on `flows` connections."""
    draw = random.Random(2)
    now = 0
    conns = [Flow(number + 1, 5432) for number in range(flows)]
    for conn in conns:
        yield from ((now, one) for one in conn.handshake(now))
        yield now, conn.send(0, PSH | ACK, LOGIN, now + 200_000)
        yield now, conn.send(1, PSH | ACK, WELCOME, now + 300_000)
        now += 400_000
    for turn in range(exchanges):
        conn = conns[turn % flows]
        now += every_ns
        asked, answered, _ = _ask(draw)
        yield now, conn.send(0, PSH | ACK, asked, now)
        yield now, conn.send(1, PSH | ACK, answered, now + every_ns // 2)
        if turn % 20 == 0:
            yield now, conn.send(0, ACK, b"", now + every_ns * 2 // 3)
    for conn in conns:
        yield now, conn.send(0, PSH | ACK, _message(b"X", b""), now)
        yield from ((now, one) for one in conn.goodbye(now))


def _exchange(draw: random.Random) -> tuple[bytes, bytes]:
    order = draw.randrange(10**8)
    who = draw.choice(NAMES)
    asked = {
        "jsonrpc": "2.0",
        "id": order,
        "method": "tools/call",
        "params": {
            "name": f"{draw.choice(WORDS)}_{draw.choice(('lookup', 'update', 'list'))}",
            "arguments": {"customer": who, "order": order, "note": " ".join(draw.choices(WORDS, k=12))},
        },
    }
    many = 40 if draw.random() < 0.05 else 3
    items = [
        {
            "sku": f"{draw.choice(WORDS)}-{draw.randrange(10**5)}",
            "count": draw.randrange(9),
            "owner": draw.choice(NAMES),
        }
        for _ in range(many)
    ]
    answered = {"jsonrpc": "2.0", "id": order, "result": {"status": "ok", "items": items, "total": len(items)}}
    body, back = json.dumps(asked).encode(), json.dumps(answered).encode()
    request = (
        f"POST /v1/{draw.choice(WORDS)}/{order} HTTP/1.1\r\nHost: tools.example.com\r\nUser-Agent: agent/1.4\r\n"
        "Accept: application/json\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    response = (
        "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 23 Nov 2026 10:00:00 GMT\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(back)}\r\nConnection: keep-alive\r\n"
        f"X-Request-Id: {order:08x}\r\n\r\n"
    ).encode() + back
    return request, response


def http(exchanges: int, flows: int = 16, every_ns: int = 100_000) -> Packets:
    """`exchanges` requests and responses, one each `every_ns`, in turn on `flows` connections."""
    draw = random.Random(3)
    now = 0
    conns = [Flow(number + 1, 80) for number in range(flows)]
    for conn in conns:
        yield from ((now, one) for one in conn.handshake(now))
        now += 200_000
    for turn in range(exchanges):
        conn = conns[turn % flows]
        now += every_ns
        request, response = _exchange(draw)
        yield now, conn.send(0, PSH | ACK, request, now)
        yield now, conn.send(1, PSH | ACK, response, now + every_ns // 2)
        if turn % 20 == 0:
            yield now, conn.send(0, ACK, b"", now + every_ns * 2 // 3)
    for conn in conns:
        yield from ((now, one) for one in conn.goodbye(now))


def archive(size: int, flows: int = 4) -> Packets:
    """As `bulk`, without words: compressed or encrypted content."""
    return bulk(size, flows, words=False)


KINDS: dict[str, Callable[..., Packets]] = {"bulk": bulk, "archive": archive, "postgres": postgres, "http": http}


def spans(records: Packets, limit: int) -> Iterator[tuple[int, bytes]]:
    """Payloads of about `limit` bytes at most, each with the time of its last record."""
    span: list[bytes] = []
    size = last = 0
    for now, one in records:
        if size + len(one) > limit:
            yield last, b"".join(span)
            span.clear()
            size = 0
        span.append(one)
        size += len(one)
        last = now
    yield last, b"".join(span)


def write(data: Path, kind: str, amount: int, flows: int = 16) -> int:
    """Write a journal named `kind` below `data`; bytes of records in it."""
    folder = data / "journal" / kind
    position = 0
    stream = hashlib.sha256(kind.encode()).digest()[:16]
    with Writer(folder, JournalKey.load_or_create(data), stream, settings=LIMITS) as writer:
        opening = {"node": "gw", "source": "wire", "boot": "b", "ring": "r", "position": 0}
        writer.append(FrameKind.OPEN, json.dumps(opening).encode(), time_ns=T0)
        writer.append(FrameKind.CLOCK, CLOCK.pack(1, T0 + 1), time_ns=T0)
        for last, payload in spans(KINDS[kind](amount, flows), SPAN[kind]):
            writer.append(
                FrameKind.SPAN,
                payload,
                ring_start=position,
                ring_end=position + len(payload),
                layout=RING,
                time_ns=T0 + last,
            )
            position += len(payload)
    return position
