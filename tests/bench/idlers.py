"""`python -m tests.bench.idlers ADDRESS PORT COUNT`: clients whose TLS connections stay open and say nothing for long.

Each line of standard input is a path: every connection asks for it, and the line comes back when all have their answer.
"""

import resource
import socket
import ssl
import sys

TIMEOUT = 30.0


def opened(address: str, port: int, count: int) -> list[ssl.SSLSocket]:
    """Connections, each with a handshake of its own. What certificate the server has is another test's matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return [context.wrap_socket(socket.create_connection((address, port), TIMEOUT)) for _ in range(count)]


def ask(connection: ssl.SSLSocket, path: str, into: memoryview) -> None:
    """One request by HTTP/1.1, and all of its answer."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: origin\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError(f"the connection ended within the answer to {path}")
        head += more
    head, _, body = head.partition(b"\r\n\r\n")
    (length,) = [int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")]
    left = length - len(body)
    while left > 0:
        left -= connection.recv_into(into)


def main(address: str, port: int, count: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connections, into = opened(address, port, count), memoryview(bytearray(2**18))
    for line in sys.stdin:
        for connection in connections:
            ask(connection, line.strip(), into)
        print(line.strip(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
