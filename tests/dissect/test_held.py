"""What dissectors say they hold is about what it takes, whatever a peer makes grow: the bound on memory needs it."""

import gc
import struct
import tracemalloc

import pytest

from appliance.dissect.conversation import Conversation
from appliance.model import Direction
from tests.dissect.harness import START_NS, C, S

EMPTY = 6000  # bytes of a conversation and a dissector without anything, about
COUNT = 10
Said = list[tuple[Direction, bytes]]


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
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
FIELDS = b"".join(b"X%d: 1\r\n" % number for number in range(3000)) + b"\r\n"
JSON = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
DESCRIBED: Said = []
for at in range(100):
    asked = typed(b"P", b"s%d\0select\0\0\0" % at) + typed(b"D", b"Ss%d\0" % at) + typed(b"S", b"")
    answered = typed(b"1", b"") + typed(b"t", bytes(2)) + columns(50) + typed(b"Z", b"I")
    DESCRIBED += [(C, asked), (S, answered)]

GROWING: dict[str, tuple[str, Said]] = {
    "dns-queries": ("udp", [(C, named(number)) for number in range(1024)]),
    "dns-half-message": ("tcp", [(C, prefixed(named(1)) + b"\xff\xff"), *[(C, bytes(1000))] * 60]),
    "http-requests": ("tcp", [(C, b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number) for number in range(1000)]),
    "http-fields": ("tcp", [(C, POST + b"Content-Length: 9\r\n" + FIELDS)]),
    "http-chunks": ("tcp", [(C, POST + JSON), *[(C, b"1\r\ny\r\n" * 100)] * 100]),
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
