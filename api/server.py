"""HTTP/1.1 towards agents, who are not trusted: every connection is bounded in time, size and number.

uvicorn's protocol waits for ever for a request that does not come to its end, and takes as many connections as there
are file descriptors: one agent could keep the others from their leases.
"""

import asyncio
import json
import resource
from collections import Counter
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, ClassVar

import h11
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 15.0  # from a request's first byte, or the connection's start, to the request's last byte
PEER_CONNECTIONS = 64  # of one IPv4 address, or one /64 of IPv6, at one time
CONNECTIONS = 2048
MAX_BODY = 64 * 1024  # bytes; no route needs more
MAX_HEADERS = 32 * 1024
# TLS 1.2 with forward secrecy and authenticated encryption only; TLS 1.3 has no others.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class Protocol(H11Protocol):
    """uvicorn's, with limits."""

    peers: ClassVar[Counter[str]] = Counter()

    _peer: str = ""
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = host_of(self.client[0]) if self.client else ""
        self.peers[self._peer] += 1
        if self.peers[self._peer] > PEER_CONNECTIONS or self.peers.total() > CONNECTIONS:
            transport.abort()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self.peers[self._peer] -= 1
        if self.peers[self._peer] <= 0:
            del self.peers[self._peer]
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def send_400_response(self, msg: str) -> None:
        """In the one shape of errors."""
        body = json.dumps({"error": {"code": "malformed", "message": f"{msg.rstrip('.')}; send HTTP/1.1"}}).encode()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _look(self) -> None:
        """Is there a request that has begun and not ended?"""
        if self.conn.their_state is h11.SEND_BODY or (self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]):
            self._wait()
        else:
            self._stop_waiting()

    def _wait(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def host_of(address: str) -> str:
    """What one host cannot have many of: an IPv4 address, a /64 of IPv6."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or ip_network((parsed, 64), strict=False))
    return str(parsed)


class BodyLimit:
    """ASGI middleware: bodies of more than `MAX_BODY` bytes are answered 413, announced or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message: dict[str, Any] = dict(await receive())
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                raise HTTPException(413, f"request: its body is longer than {MAX_BODY} bytes")
            return message

        await self._app(scope, bounded if scope["type"] == "http" else receive, send)


def raise_file_limit() -> None:
    """Connections need file descriptors; the usual soft limit of 1024 is less than `CONNECTIONS`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CONNECTIONS if hard == resource.RLIM_INFINITY else min(4 * CONNECTIONS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
