"""`python -m tests.bench.push ADDRESS PORT SECONDS FLOWS FILE LOG`: send a file's bytes as fast as they go.

Each 50 ms a line is written to LOG: the time, and of each flow the bytes that were acknowledged and the segments that
were sent again, as the kernel has them (TCP_INFO). So what is stuck at the end does not have to be waited for.
"""

import json
import os
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

PIECE = 2**20
EACH = 0.05
RETRANSMITTED, ACKNOWLEDGED = 100, 120  # offsets of tcpi_total_retrans (u32) and tcpi_bytes_acked (u64) in linux/tcp.h


def push(connection: socket.socket, path: Path) -> None:
    size, sent = path.stat().st_size, 0
    with path.open("rb") as file, suppress(OSError):
        while True:
            at = sent % size
            sent += os.sendfile(connection.fileno(), file.fileno(), at, min(PIECE, size - at))


def numbers(connection: socket.socket) -> tuple[int, int]:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
    return struct.unpack_from("<Q", info, ACKNOWLEDGED)[0], struct.unpack_from("<I", info, RETRANSMITTED)[0]


def main(address: str, port: str, seconds: str, flows: str, path: str, log: str) -> None:
    connections = [socket.create_connection((address, int(port))) for _ in range(int(flows))]
    for connection in connections:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # the end is the end
        threading.Thread(target=push, args=(connection, Path(path)), daemon=True).start()
    end = time.monotonic() + float(seconds)
    with Path(log).open("w") as lines:
        while (now := time.monotonic()) < end:
            lines.write(json.dumps([now, [numbers(connection) for connection in connections]]) + "\n")
            lines.flush()
            time.sleep(EACH)
    os._exit(0)  # threads may be waiting for a window


if __name__ == "__main__":
    main(*sys.argv[1:])
