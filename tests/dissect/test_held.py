"""What dissectors say they hold is about what it takes, whatever a peer makes grow: the bound on memory needs it."""

import gc
import random
import struct
import tracemalloc
import zlib

import pytest

from appliance.dissect.conversation import Conversation
from appliance.model import Direction
from tests.dissect import http2_bytes as h2
from tests.dissect import mysql_bytes as mysql
from tests.dissect.harness import START_NS, C, S
from tests.dissect.ssh_bytes import said

EMPTY = 6000  # bytes of a conversation and a dissector without anything, about
COUNT = 10
Said = list[tuple[Direction, bytes]]

RELAYED = b"SSH-RELAYED-1\r\n"


def opened(number: int) -> bytes:
    return said(90, type="session", sender=number, window=1, maximum=1)


def named(number: int) -> bytes:
    head = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0)
    return head + b"\5h%04d\7example\3org\0" % number + struct.pack("!HH", 1, 1)


def prefixed(message: bytes) -> bytes:
    return struct.pack("!H", len(message)) + message


def typed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def columns(count: int) -> bytes:
    one = struct.pack("!IhIhih", 0, 0, 25, -1, -1, 0)
    return typed(b"T", struct.pack("!H", count) + b"".join(b"column%d\0" % number + one for number in range(count)))


START = struct.pack("!II", 17, 196608) + b"user\0me\0\0"
LOGIN: Said = [(C, START), (S, typed(b"R", bytes(4)) + typed(b"Z", b"I"))]
MYSQL: Said = [(whose, what) for whose, what in mysql.BEGINNING if isinstance(what, bytes)]
NAMES = [mysql.column(f"column{number}") for number in range(1600)]
PREPARED: Said = []
for at in range(200):
    PREPARED.append((C, mysql.command(0x16, b"select %d " % at + b"x" * 600)))
    PREPARED.append((S, mysql.answer(mysql.prepared(at, 20), *NAMES[:20], mysql.eof())))
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
FIELDS = b"".join(b"X%d: 1\r\n" % number for number in range(3000)) + b"\r\n"
JSON = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
DESCRIBED: Said = []
for at in range(100):
    asked = typed(b"P", b"s%d\0select\0\0\0" % at) + typed(b"D", b"Ss%d\0" % at) + typed(b"S", b"")
    answered = typed(b"1", b"") + typed(b"t", bytes(2)) + columns(50) + typed(b"Z", b"I")
    DESCRIBED += [(C, asked), (S, answered)]

PEER = h2.Peer()
OPENED: Said = [(C, h2.opening()), (S, h2.settings())]
ASKED: Said = [(C, PEER.headers(1 + 2 * n, h2.post(f"/{n}", ("x-n", str(n))))) for n in range(500)]
BODY = (C, PEER.headers(2001, h2.post("/", ("content-type", "application/json"))))
LARGE = b"\x3f\xe1\xff\x03" + b"".join(b"\x40\x04%04d\x7f\xad\x01" % n + b"v" * 300 for n in range(190))
FILLED = [
    h2.frame(9 if at else 1, 1, LARGE[at : at + 16000], 4 * (at > 48000 - 1)) for at in range(0, len(LARGE), 16000)
]
PIECES = [(S, b"\x00\x64" + bytes(100))] * 1000
BEGUN = h2.frame(1, 1, b"\x82"), *[h2.frame(9, 1, b"\x0f\x2f\x00" * 60)] * 200
UPGRADED: Said = [
    (C, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
    (S, b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
]
DEFLATED = zlib.compressobj(0, zlib.DEFLATED, -15)
STORED = (DEFLATED.compress(random.Random(1).randbytes(40_000)) + DEFLATED.flush(zlib.Z_SYNC_FLUSH))[:-4]

GROWING: dict[str, tuple[str, Said]] = {
    "dns-queries": ("udp", [(C, named(number)) for number in range(1024)]),
    "dns-half-message": ("tcp", [(C, prefixed(named(1)) + b"\xff\xff"), *[(C, bytes(1000))] * 60]),
    "http-requests": ("tcp", [(C, b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number) for number in range(1000)]),
    "http-fields": ("tcp", [(C, POST + b"Content-Length: 9\r\n" + FIELDS)]),
    "http-chunks": ("tcp", [(C, POST + JSON), *[(C, b"1\r\ny\r\n" * 100)] * 100]),
    "http2-streams": ("tcp", [*OPENED, *ASKED]),
    "http2-bodies": ("tcp", [*OPENED, BODY, *[(C, h2.data(2001, b"12345678"))] * 3000]),
    "http2-table": ("tcp", [*OPENED, *((C, one) for one in FILLED)]),
    "http2-block": ("tcp", [*OPENED, *((C, one) for one in BEGUN)]),
    "websocket-pieces": ("tcp", [*UPGRADED, (S, b"\x01\x7e\x03\xe8" + bytes(1000)), *PIECES]),
    "websocket-window": ("tcp", [*UPGRADED, (S, b"\xc1\x7e" + len(STORED).to_bytes(2, "big") + STORED)]),
    "redis-waiting": ("tcp", [(C, b"*1\r\n$4\r\nPING\r\n" * 2000)]),
    "redis-arguments": ("tcp", [(C, b"*4000\r\n" + b"$9\r\nargument1\r\n" * 3999)]),
    "redis-lines": ("tcp", [(C, b"*1\r\n$1\r\nX\r\n"), (S, b"*9999\r\n" + b"$9\r\nargument1\r\n" * 2000)]),
    "redis-value": ("tcp", [(C, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$99999\r\n"), *[(C, b"x" * 1000)] * 60]),
    "ssh-packet": ("tcp", [(C, b"SSH-2.0-a\r\n\0\0\xfa\0\4"), *[(C, bytes(1000))] * 60]),
    "ssh-relayed-channels": (
        "tcp",
        [(C, RELAYED), (S, RELAYED), *[(C, opened(number)) for number in range(200)]],
    ),
    "ssh-relayed-output": (
        "tcp",
        [(C, RELAYED), (S, RELAYED), *[(S, said(94, recipient=0, data=b"output " * 100))] * 90],
    ),
    "postgres-copy": (
        "tcp",
        [
            *LOGIN,
            (C, typed(b"Q", b"copy x to stdout\0")),
            (S, typed(b"H", bytes(3))),
            *[(S, typed(b"d", b"hello " * 200))] * 50,
        ],
    ),
    "postgres-copy-in": (
        "tcp",
        [
            *LOGIN,
            (C, typed(b"Q", b"copy x from stdin\0")),
            (S, typed(b"G", bytes(3))),
            *[(C, typed(b"d", b"hello " * 200))] * 50,
        ],
    ),
    "postgres-described": ("tcp", [*LOGIN, *DESCRIBED]),
    "postgres-columns": ("tcp", [*LOGIN, (C, typed(b"Q", b"select\0")), (S, columns(1600))]),
    "mysql-prepared": ("tcp", [*MYSQL, *PREPARED]),
    "mysql-columns": ("tcp", [*MYSQL, (C, mysql.query("x")), (S, mysql.answer(mysql.lenenc(1600), *NAMES))]),
    "mysql-requests": ("tcp", [*MYSQL, *[(C, mysql.query("select 1") * 100)] * 20]),
    "mysql-file": (
        "tcp",
        [
            *MYSQL,
            (C, mysql.query("load")),
            (S, mysql.packet(1, b"\xfbname")),
            *[(C, mysql.packet(2, b"hello " * 200))] * 50,
        ],
    ),
    "mysql-long-packet": ("tcp", [*MYSQL, *[(C, b"\xff\xff\x0f\x00\x03" + bytes(4000))] * 20]),
    "postgres-parameters": ("tcp", [*LOGIN, *[(S, typed(b"S", b"n%d\0value\0" % n)) for n in range(3000)]]),
}  # fmt: skip


@pytest.mark.parametrize("name", GROWING)
def test_what_grows_is_counted(name: str) -> None:
    transport, said = GROWING[name]
    gc.collect()
    tracemalloc.start()
    kept = []
    for _ in range(COUNT):
        conversation = Conversation(transport)
        for direction, data in said:
            conversation.receive(direction, bytes(bytearray(data)), START_NS)
        kept.append(conversation)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = sum(conversation.held for conversation in kept)
    assert taken - COUNT * EMPTY > 20_000 * COUNT, "this does not grow"
    assert (taken - COUNT * EMPTY) / 1.5 < held
    assert held < taken * 2.5
