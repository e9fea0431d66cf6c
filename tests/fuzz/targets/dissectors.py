"""Every dissector by itself, and the conversation that chooses among them: see `dialogue`."""

import functools
import json
import ssl
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from appliance.dissect.conversation import Conversation
from appliance.dissect.dns import Dns
from appliance.dissect.dns_tcp import DnsTcp
from appliance.dissect.http1 import Http1
from appliance.dissect.http2 import Http2
from appliance.dissect.mysql import Mysql
from appliance.dissect.mysql_frames import NAMES as MYSQL_COMMANDS
from appliance.dissect.postgres import Postgres
from appliance.dissect.postgres_frames import CLIENT_TYPES, SERVER_TYPES
from appliance.dissect.raw import Raw
from appliance.dissect.tls import Tls
from appliance.dissect.websocket import WebSocket
from appliance.model import Direction
from tests.dissect import http2_bytes as h2
from tests.dissect import mysql_bytes
from tests.dissect.handshakes import make_certificate, shake_hands
from tests.dissect.harness import C, Factory, Gap, S
from tests.fuzz import dialogue
from tests.fuzz.dialogue import MARK, Turn
from tests.fuzz.targets import Target

VECTORS: Final = Path(__file__).parents[2] / "vectors"

HTTP: Final[tuple[tuple[Turn, ...], ...]] = (
    ((C, b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\n\r\n"), (S, b"HTTP/1.1 204 No Content\r\n\r\n")),
    (
        (C, b"POST /token HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            b"Content-Length: 53\r\nAuthorization: Basic abc\r\n\r\n"
            b"grant_type=client_credentials&client_secret=form%20s1"),
        (S, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'2c\r\n{"access_token":"abc","token_type":"Bearer"}\r\n0\r\nX-Api-Key: t\r\n\r\n'),
    ),
    (
        (C, b"CONNECT b.example:443 HTTP/1.1\r\nProxy-Authorization: Bearer xyz\r\n\r\n"),
        (S, b"HTTP/1.1 200 Connection established\r\n\r\n"),
        (C, b"GET / HTTP/1.0\r\n\r\n"),
        (S, b"HTTP/1.0 200 OK\r\n\r\nuntil the end"),
        (S, None),
    ),
    (
        (C, b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
        (S, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x02hi"),
    ),
    (
        (C, b"GET /events HTTP/1.1\r\n\r\nHEAD / HTTP/1.1\r\n\r\n"),
        (S, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: one\n\ndata: two\n\n"),
        (S, Gap(100)),
        (S, b"data: three\n\nAuthorization: Bearer q\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ),
    (
        (C, b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (S, b"HTTP/1.1 100 Continue\r\n\r\n"),
        (C, b"4;x=y\r\nbody\r\n0\r\n\r\n"),
        (S, b"HTTP/1.1 201 Created\nContent-Encoding: gzip\nContent-Length: 3\n\n\x1f\x8b\x08"),
    ),
)  # fmt: skip
HTTP_WORDS: Final = (
    b"\r\n\r\n", b"\r\nContent-Length: ", b"\r\nTransfer-Encoding: chunked", b"\r\nAuthorization: Bearer ",
    b"\r\nContent-Type: application/json", b"\r\nContent-Type: text/event-stream", b"\r\nContent-Encoding: br",
    b"HTTP/1.1 200 OK", b"HTTP/1.1 101 ", b"GET / HTTP/1.1\r\n", b"CONNECT a:1 HTTP/1.1\r\n", b"\r\nUpgrade: tls",
    b"\r\nConnection: upgrade", b'"access_token":"', b"grant_type=", b"client_secret=", b"\r\nX-Api-Key: ",
    b"multipart/form-data; boundary=x",
)  # fmt: skip
TLS_WORDS: Final = (
    b"\x16\x03\x01\x00", b"\x15\x03\x03\x00\x02\x02\x28", b"\x14\x03\x03\x00\x01\x01", b"\x17\x03\x03\x00",
    b"\x01\x00\x00", b"\x02\x00\x00", b"\x0b\x00\x00", b"\x00\x2b\x00\x02\x03\x04", b"\x00\x10\x00\x05\x00\x03\x02h2",
)  # fmt: skip
POSTGRES_WORDS: Final = (
    *(bytes([kind]) + b"\x00\x00\x00\x04" for kind in sorted({*CLIENT_TYPES, *SERVER_TYPES})),
    b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"\x00\x00\x00\x09\x00\x03\x00\x00\x00", b"Z\x00\x00\x00\x05I",
    b"R\x00\x00\x00\x08\x00\x00\x00\x03", b"R\x00\x00\x00\x08\x00\x00\x00\x00", b"SCRAM-SHA-256\x00",
    b"PGCOPY\n\xff\r\n\x00",
)  # fmt: skip
DNS_WORDS: Final = (b"\xc0\x0c", b"\x00\x01\x00\x01", b"\x07example\x03org\x00", b"\x00\x00\x29\x10\x00", b"\x00\x40")


HTTP2_WORDS: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", b"\x01\x04\x00\x00\x00\x01",
    b"\x01\x05\x00\x00\x00\x03", b"\x00\x00\x00\x00\x01\x00\x00\x00\x01", b"\x09\x04\x00\x00\x00\x01",
    b"\x05\x04\x00\x00\x00\x01\x00\x00\x00\x02", b"\x00\x00\x04\x03\x00\x00\x00\x00\x01", b"\x82\x86\x84",
    b"\x40\x0dauthorization", b"\x3f\xe1\x1f", b"\xbe", b"application/grpc", b"\x00\x00\x00\x00\x02\x08\x01",
    b"\x07\x00\x00\x00\x00\x00",
)  # fmt: skip
WEBSOCKET_WORDS: Final = (
    b"\x81\x05hello", b"\x81\x85\x11\x22\x33\x44", b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00", b"\x01\x03", b"\x80\x03",
    b"\x88\x02\x03\xe8", b"\x89\x00", b"\x82\x7e\x01\x00", b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00",
)  # fmt: skip


def http2() -> Iterator[tuple[Turn, ...]]:
    kinds = ("text/event-stream", "application/json", "application/grpc", "text/plain")
    bodies = (b"data: one\n\ndata: two\n\n", b'{"access_token":"abc"}', b"\0\0\0\0\4\x0a\x02hi", b"hello")
    for number, (kind, body) in enumerate(zip(kinds, bodies, strict=True)):
        c, s = h2.Peer(huffman=bool(number & 1)), h2.Peer(huffman=not number & 1)
        ask = c.headers(1, h2.post("/a", ("content-type", kind), ("authorization", "Bearer abc")), pieces=1 + number)
        again = c.headers(3, [*h2.GET, ("authorization", "Bearer abc")], end=True)
        answer = s.headers(1, [(":status", "200"), ("content-type", kind)]) + h2.data(1, body, pad=number - 1)
        last = s.headers(1, [("grpc-status", "0")], end=True) + h2.reset(3, 8) + h2.goaway(3, 0)
        pushed = s.push(3, 2, h2.GET)
        yield (
            (C, h2.opening(frame=20000) + ask + h2.data(1, body, end=True)),
            (S, h2.settings(table=0) + answer),
            (C, again),
            (S, last + pushed),
        )
        yield ((C, h2.opening() + ask), (C, Gap(7)), (C, h2.data(1, body) + again), (S, answer), (S, Gap(3)), (S, last))


def websocket() -> Iterator[tuple[Turn, ...]]:
    hello = b"\x81\x85\x11\x22\x33\x44" + bytes(a ^ b for a, b in zip(b"hello", b"\x11\x22\x33\x44\x11", strict=True))
    deflated = b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00"
    yield ((C, hello), (S, b"\x01\x03Hel\x89\x02hi\x80\x02lo"), (C, b"\x88\x80\0\0\0\0"), (S, b"\x88\x05\x03\xe8bye"))
    yield (
        (S, deflated * 2 + b"\xc1\x05\xf2\x00\x11\x00\x00"),
        (C, Gap(3)),
        (C, hello * 3),
        (S, Gap(9)),
        (S, deflated * 3),
    )


MYSQL_WORDS: Final = (
    *(b"\x05\x00\x00\x00" + bytes([kind]) for kind in sorted(MYSQL_COMMANDS)),
    b"\x07\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00", b"\x05\x00\x00\x03\xfe\x00\x00\x02\x00", b"\x00\x00\x00\x02",
    b"\x05\x00\x00\x03\xfe\x00\x00\x0a\x00", b"\x03\x00\x00\x01\xff\x28\x04", b"\x01\x00\x00\x01\x01",
    b"\x02\x00\x00\x01\xfbf", b"\xff\xff\xff\x00", b"caching_sha2_password\x00", b"\x02\x00\x00\x02\x01\x04",
    b"\x0c\x3f\x00",
)  # fmt: skip


def mysql() -> Iterator[tuple[Turn, ...]]:
    yield tuple(mysql_bytes.DIALOGUE)
    made, row, eof = mysql_bytes.packet, mysql_bytes.row, mysql_bytes.eof
    modern = mysql_bytes.MODERN_BEGINNING
    kinds = [
        mysql_bytes.column(f"c{kind}", kind, charset=63, flags=32)
        for kind in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 16, 246, 252)
    ]
    values = (
        b"\1\2\0\3\0\0\0"
        + bytes(12)
        + b"\4\xea\7\1\2"
        + bytes(12)
        + b"\0\x08"
        + bytes(8)
        + b"\0\xea\7\1\1\3"
        + b"1.5\1x"
    )
    binary = mysql_bytes.answer(bytes([len(kinds)]), *kinds, eof(), mysql_bytes.binary_row(bytes(3), values), eof())
    yield (
        *modern,
        (C, mysql_bytes.execute(1)),
        (S, binary),
        (C, mysql_bytes.query("x")),
        (S, mysql_bytes.table(row("1"))),
    )
    many = mysql_bytes.table(*[row(str(number)) for number in range(40)], status=10)
    yield (
        *modern,
        (C, mysql_bytes.query("a")),
        (S, many),
        (S, Gap(9)),
        (S, many),
        (C, Gap(3)),
        (C, mysql_bytes.query("b")),
    )
    bulk = mysql_bytes.command(0xFA, b"\1\0\0\0\x80\0\x08\0" + b"\0" + bytes(8) + b"\1")
    yield (
        *mysql_bytes.BEGINNING,
        *mysql_bytes.DIALOGUE[5:7],
        (C, bulk),
        (C, mysql_bytes.command(0x18, b"\1\0\0\0\0\0long")),
    )
    yield (
        (S, mysql_bytes.greeting()),
        (C, mysql_bytes.ssl_request() + mysql_bytes.response(number=2)),
        (S, made(3, b"\1\4")),
    )
    yield (
        *modern,
        (C, mysql_bytes.command(0x12, bytes(10) + b"log.1")),
        (S, made(1, b"\0event") + made(2, b"\0more") + made(3, eof())),
    )


def tls() -> Iterator[tuple[Turn, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(Path(folder) / "both.pem")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for groups in ("", "secp384r1"):
                turns = shake_hands(certificate, version, groups=groups)
                yield tuple((direction, data[:2500]) for direction, data in turns if isinstance(data, bytes))


def postgres() -> Iterator[tuple[Turn, ...]]:
    for path in sorted((VECTORS / "postgres").glob("*.json")):
        turns = json.loads(path.read_text("utf-8"))["turns"][:40]
        yield tuple((Direction(whose), bytes.fromhex(data)[:1500]) for whose, data in turns)


def dns(*, stream: bool) -> Iterator[tuple[Turn, ...]]:
    for path in sorted((VECTORS / "dns").glob("*.json")):
        message = bytes.fromhex(json.loads(path.read_text("utf-8"))["message"])
        if stream:
            message = len(message).to_bytes(2, "big") + message
        yield ((S if message[2 + 2 * stream] & 0x80 else C, message),)


def echo() -> Iterator[tuple[Turn, ...]]:
    for request, reply in ((8, 0), (128, 129)):
        body = b"\0\0\0\1\0\2" + bytes(range(40))
        yield ((C, bytes([request, 0]) + body), (S, bytes([reply, 0]) + body), (S, bytes([reply, 0]) + body[:-1]))


def mixed() -> Iterator[tuple[Turn, ...]]:
    yield from HTTP
    yield from http2()
    yield from tls()
    yield from postgres()
    yield from mysql()
    yield from dns(stream=True)
    for turns in tls():
        yield ((C, b"\x00\x00\x00\x08\x04\xd2\x16\x2f"), (S, b"S"), *turns)
    yield ((C, b"plain words\n"), (S, "größer\n".encode()), (C, bytes(range(256))))


def _target(
    factory: Factory,
    seeds: Callable[[], Iterable[tuple[Turn, ...]]],
    words: tuple[bytes, ...],
    *,
    datagrams: bool = False,
    hints: bool = False,
    size: int = 4096,
) -> Target:
    return Target(
        functools.partial(dialogue.check, factory, datagrams=datagrams, hints=hints),
        lambda: [dialogue.encode(turns) for turns in seeds()],
        (MARK + b"\0", MARK + b"\1", MARK + b"\2\x10\0", MARK + b"\3\x10\0", MARK + b"\4", MARK + b"\5", *words),
        size,
    )


TARGETS: Final = {
    "conversation": _target(
        Conversation, mixed, HTTP_WORDS + HTTP2_WORDS + TLS_WORDS + POSTGRES_WORDS, hints=True, size=8192
    ),
    "datagrams": _target(lambda: Conversation("udp"), lambda: dns(stream=False), DNS_WORDS, datagrams=True),
    "icmp": _target(lambda: Conversation("icmp"), echo, (b"\x08\x00", b"\x80\x00"), datagrams=True, size=1024),
    "tls": _target(Tls, tls, TLS_WORDS),
    "http1": _target(Http1, lambda: HTTP, HTTP_WORDS),
    "http2": _target(Http2, http2, HTTP2_WORDS),
    "websocket": _target(WebSocket, websocket, WEBSOCKET_WORDS, size=2048),
    "mysql": _target(Mysql, mysql, MYSQL_WORDS, hints=True),
    "postgres": _target(Postgres, postgres, POSTGRES_WORDS, hints=True),
    "dns_tcp": _target(DnsTcp, lambda: dns(stream=True), DNS_WORDS, size=1024),
    "dns_udp": _target(Dns, lambda: dns(stream=False), DNS_WORDS, datagrams=True, size=1024),
    "raw": _target(Raw, lambda: [((C, b"plain words\n"), (S, bytes(range(256))))], (), size=1024),
}
