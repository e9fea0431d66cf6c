"""What the kernel knows of a TCP socket: struct tcp_info (linux/tcp.h), and what waits in it to be acknowledged."""

import fcntl
import socket
import struct
import termios
from typing import Final

_BYTES_ACKED: Final = 120  # offsets in struct tcp_info
_BYTES_RECEIVED: Final = 128
_BYTES: Final = 136


def counts(sock: socket.socket, read: int) -> dict[str, int] | None:
    """Bytes that came from the peer, and that it acknowledged (SYN and FIN among these). `read`: bytes taken from it.

    The kernel counts the peer's FIN as a byte that came. It is told from bytes by what was read and waits to be read:
    the state does not say it of a connection that was reset, before or behind the FIN.
    """
    try:
        said = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        (unread,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
    except (OSError, ValueError):
        return None
    if len(said) < _BYTES:
        return None
    (acked,) = struct.unpack_from("=Q", said, _BYTES_ACKED)
    (received,) = struct.unpack_from("=Q", said, _BYTES_RECEIVED)
    fin = received - read - unread == 1
    return {"received": received - fin, "acked": acked}


def unacknowledged(sock: socket.socket) -> int:
    """Bytes given to the socket that the peer has not acknowledged yet (tcp(7), SIOCOUTQ)."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, ValueError):
        return 0
