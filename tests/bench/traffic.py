"""`python -m tests.bench.traffic ROLE …`: both ends of the traffic that the cases measure.

Servers (`sink`, `echo`, `greet`) serve until they are ended; clients print one JSON object. Bytes go by sendfile(2) and
are dropped in the kernel (MSG_TRUNC), so that the ends cost as little as they can.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

PIECE = 2**20
MESSAGE = 64  # bytes of a request, and of its answer


def listen(port: int, serve: Callable[[socket.socket], None]) -> None:
    """Serve each connection in a thread of its own."""
    with socket.create_server(("", port), backlog=4096) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


def sink(connection: socket.socket) -> None:
    """Take everything, then say how much it was."""
    taken, room = 0, bytearray(PIECE)
    with connection:
        while got := connection.recv_into(room, PIECE, socket.MSG_TRUNC):
            taken += got
        connection.sendall(taken.to_bytes(8, "big"))


def echo(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, suppress(ConnectionError):
        while data := connection.recv(PIECE):
            connection.sendall(data)


def greet(port: int) -> None:
    """Answer one request on each connection and close it first, so that the client's ports are free at once."""
    with socket.create_server(("", port), backlog=4096) as server:
        while True:
            connection, _ = server.accept()
            with connection, suppress(ConnectionError):
                connection.sendall(connection.recv(MESSAGE))


def send(address: str, port: int, seconds: float, flows: int, path: Path) -> dict[str, object]:
    """Send the file's bytes again and again over `flows` connections; what arrived, and until when."""
    counts = [0] * flows
    begun = time.monotonic()

    def one(number: int) -> None:
        size = path.stat().st_size
        with socket.create_connection((address, port)) as connection, path.open("rb") as file:
            while time.monotonic() - begun < seconds:
                at = counts[number] % size
                counts[number] += os.sendfile(connection.fileno(), file.fileno(), at, min(PIECE, size - at))
            connection.shutdown(socket.SHUT_WR)
            arrived = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
        if arrived != counts[number]:
            raise ValueError(f"flow {number}: {counts[number]} bytes sent, {arrived} arrived")

    with ThreadPoolExecutor(flows) as pool:
        for done in [pool.submit(one, number) for number in range(flows)]:
            done.result()
    return {"bytes": counts, "seconds": time.monotonic() - begun}


def ask(address: str, port: int, count: int, pause: float = 0.0) -> dict[str, object]:
    """Requests one after the other; the time of each in microseconds, sorted. `pause`: seconds between two."""
    times = []
    with socket.create_connection((address, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = bytes(MESSAGE)
        for _ in range(count):
            begun = time.perf_counter_ns()
            connection.sendall(request)
            connection.recv(MESSAGE, socket.MSG_WAITALL)
            times.append((time.perf_counter_ns() - begun) / 1000)
            if pause:
                time.sleep(pause)
    return {"microseconds": sorted(times)}


def connect(address: str, port: int, seconds: float, clients: int) -> dict[str, object]:
    """New connections of so many clients, each of them one after the other."""
    begun = time.monotonic()
    with ProcessPoolExecutor(clients) as pool:
        done = sum(pool.map(connect_again, *zip(*[(address, port, seconds)] * clients, strict=True)))
    return {"connections": done, "seconds": time.monotonic() - begun}


def connect_again(address: str, port: int, seconds: float) -> int:
    """Connections one after the other, each with one request and its answer; how many."""
    begun, done = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        with socket.create_connection((address, port)) as connection:
            connection.sendall(bytes(MESSAGE))
            while connection.recv(MESSAGE):
                pass
        done += 1
    return done


def main(role: str, *arguments: str) -> None:
    match role, arguments:
        case "sink", (port,):
            listen(int(port), sink)
        case "echo", (port,):
            listen(int(port), echo)
        case "greet", (port,):
            greet(int(port))
        case "send", (address, port, seconds, flows, path):
            print(json.dumps(send(address, int(port), float(seconds), int(flows), Path(path))))
        case "ask", (address, port, count, pause):
            print(json.dumps(ask(address, int(port), int(count), float(pause))))
        case "connect", (address, port, seconds, clients):
            print(json.dumps(connect(address, int(port), float(seconds), int(clients))))
        case _:
            sys.exit(str(__doc__))


if __name__ == "__main__":
    main(*sys.argv[1:])
