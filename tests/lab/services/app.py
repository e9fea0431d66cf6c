"""A small web application behind nginx, and a UDP echo on port 443 for clients that would rather speak QUIC.

POST /app/echo            the request's body, as it came
GET  /app/chunks?n=N      N lines, each in a chunk of its own (RFC 9112 section 7.1)
GET  /app/slow            a first line at once, the second when the client's side ends: a response that stays open
"""

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

MAX_CHUNKS = 100_000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self._head(200, self.headers.get("Content-Type", "application/octet-stream"), len(body))
        self.wfile.write(body)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/app/chunks":
            self._head(200, "text/plain", None)
            for n in range(min(int(parse_qs(url.query).get("n", ["10"])[0]), MAX_CHUNKS)):
                self._chunk(f"chunk {n}\n".encode())
            self._chunk(b"")
        elif url.path == "/app/slow":
            self._head(200, "text/plain", None)
            self._chunk(b"first line\n")
            self.rfile.read(1)
        else:
            self._head(404, "text/plain", 0)

    def _head(self, status: int, content_type: str, length: int | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header(*(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))))
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: nginx and the recorder know."""


def echo(address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((address, 443))
        while True:
            data, sender = datagrams.recvfrom(2048)
            datagrams.sendto(data, sender)


if __name__ == "__main__":
    for own in sys.argv[2:]:
        threading.Thread(target=echo, args=(own,), daemon=True).start()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
