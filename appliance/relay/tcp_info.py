"""What the kernel knows of a TCP socket: struct tcp_info (linux/tcp.h), and what waits in it to be acknowledged."""

import fcntl
import socket
import struct
import termios
from typing import Final

_BYTES_ACKED: Final = 120  # offsets in struct tcp_info
_BYTES_RECEIVED: Final = 128
_BYTES: Final = 136
_CLOSED: Final = 7  # states (include/net/tcp_states.h): all was said, or reset
_AFTER_FIN: Final = frozenset({6, 8, 9, 11})  # TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING: the peer's FIN is counted


def counts(sock: socket.socket, *, reset: bool) -> dict[str, int] | None:
    """Bytes that came from the peer, and that it acknowledged (SYN and FIN among these). `reset`: the peer did so."""
    try:
        said = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return None
    if len(said) < _BYTES:
        return None
    (acked,) = struct.unpack_from("=Q", said, _BYTES_ACKED)
    (received,) = struct.unpack_from("=Q", said, _BYTES_RECEIVED)
    fin = said[0] in _AFTER_FIN or (said[0] == _CLOSED and not reset)
    return {"received": received - fin, "acked": acked}


def unacknowledged(sock: socket.socket) -> int:
    """Bytes given to the socket that the peer has not acknowledged yet (tcp(7), SIOCOUTQ)."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, ValueError):
        return 0
