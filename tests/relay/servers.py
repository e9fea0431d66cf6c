"""Servers for relays to talk to, each connection in a thread; and the certificates they show."""

import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.lab.pki import Pki

Serve = Callable[[socket.socket], None]


class Server:
    """Calls `serve` with each connection, within TLS where a context is given. `failures`: what went wrong in it."""

    def __init__(self, serve: Serve, tls: ssl.SSLContext | None = None) -> None:
        self._serve = serve
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self.accepted = 0
        self.failures: list[Exception] = []
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._accepting = threading.Thread(target=self._accept)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            thread = threading.Thread(target=self._one, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _one(self, sock: socket.socket) -> None:
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
            self._open.add(sock)
            self._serve(sock)
        except (OSError, ssl.SSLError) as error:
            self.failures.append(error)
        finally:
            self._open.discard(sock)
            sock.close()

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # its thread still has its TLS, and hears of the end
            except OSError:
                continue
        self._accepting.join(10)
        for thread in self._threads:
            thread.join(10)


def echo(sock: socket.socket) -> None:
    """Until the peer ends its direction; then end the other."""
    while data := sock.recv(65536):
        sock.sendall(data)
    end(sock)


def end(sock: socket.socket) -> None:
    """Half-close: the closing alert of TLS first."""
    if isinstance(sock, ssl.SSLSocket):
        try:
            sock.unwrap()
        except (OSError, ssl.SSLError):
            return
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return


def read_all(sock: socket.socket) -> bytes:
    found = bytearray()
    while data := sock.recv(65536):
        found += data
    return bytes(found)


def server_context(
    pki: Pki, name: str, *addresses: str, alpn: tuple[str, ...] = (), days: tuple[int, int] = (-1, 7)
) -> ssl.SSLContext:
    certificate, key = pki.issue(name, addresses, days=days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def client_context(ca: Path, *, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context
