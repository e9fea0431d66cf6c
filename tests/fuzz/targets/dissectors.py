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
from appliance.dissect.postgres import Postgres
from appliance.dissect.postgres_frames import CLIENT_TYPES, SERVER_TYPES
from appliance.dissect.raw import Raw
from appliance.dissect.tls import Tls
from appliance.model import Direction
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
    yield from tls()
    yield from postgres()
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
    "conversation": _target(Conversation, mixed, HTTP_WORDS + TLS_WORDS + POSTGRES_WORDS, hints=True, size=8192),
    "datagrams": _target(lambda: Conversation("udp"), lambda: dns(stream=False), DNS_WORDS, datagrams=True),
    "icmp": _target(lambda: Conversation("icmp"), echo, (b"\x08\x00", b"\x80\x00"), datagrams=True, size=1024),
    "tls": _target(Tls, tls, TLS_WORDS),
    "http1": _target(Http1, lambda: HTTP, HTTP_WORDS),
    "postgres": _target(Postgres, postgres, POSTGRES_WORDS, hints=True),
    "dns_tcp": _target(DnsTcp, lambda: dns(stream=True), DNS_WORDS, size=1024),
    "dns_udp": _target(Dns, lambda: dns(stream=False), DNS_WORDS, datagrams=True, size=1024),
    "raw": _target(Raw, lambda: [((C, b"plain words\n"), (S, bytes(range(256))))], (), size=1024),
}
