"""The listeners of a worker: who is accepted, and when nobody is.

A listener that is ready and not served is ready again at once. So where nothing can be accepted (no descriptor or
memory is left, or the journal takes nothing and every flow would only add to what waits) all listeners rest for a
moment, and connections wait in the kernel's queues.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

import structlog

from appliance.errors import Unavailable
from appliance.relay.dial import transparent

BACKLOG: Final = 4096
ACCEPTED: Final = 64  # connections taken in one turn
PAUSE: Final = 0.1  # seconds of rest
FILES: Final = 256  # descriptors of a worker that are not of flows: journal, maps, status, names, keys
FILES_EACH: Final = 2  # of a flow
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = structlog.get_logger()
Address = tuple[str, int]
Take = Callable[[socket.socket, Address, bool], None]  # the socket, its peer, whether it came to the explicit proxy


class Accepting:
    """Gives connections to `take`, while `willing` says so. `exhausted`: why the last try gave none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Take, willing: Callable[[], bool]) -> None:
        self._loop = loop
        self._take = take
        self._willing = willing
        self._listeners: list[tuple[socket.socket, bool]] = []
        self._resting = False
        self.exhausted = ""

    def add(self, sock: socket.socket, *, proxied: bool) -> None:
        self._listeners.append((sock, proxied))
        self._loop.add_reader(sock.fileno(), self._accept, sock, proxied)

    @property
    def port(self) -> int:
        """That of the first listener."""
        return int(self._listeners[0][0].getsockname()[1])

    def _accept(self, listener: socket.socket, proxied: bool) -> None:
        for _ in range(ACCEPTED):
            if self._resting or not self._willing():
                self._rest()
                return
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):  # nobody left, or gone again
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._run_short(error)
                return
            self.exhausted = ""
            try:
                self._take(sock, (str(peer[0]).partition("%")[0], int(peer[1])), proxied)
            except Exception:  # of one connection, not of those that come after it
                log.exception("flow-failed")
                sock.close()

    def _run_short(self, error: OSError) -> None:
        if not self.exhausted:
            log.error("accept-failed", reason=error.strerror)
        self.exhausted = str(error.strerror)
        self._rest()

    def _rest(self) -> None:
        if not self._resting:
            self._resting = True
            for sock, _ in self._listeners:
                self._loop.remove_reader(sock.fileno())
            self._loop.call_later(PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._resting = False
        for sock, proxied in self._listeners:
            self._loop.add_reader(sock.fileno(), self._accept, sock, proxied)

    def close(self) -> None:
        for sock, _ in self._listeners:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._listeners = []


def flows_of(files: int) -> int:
    """How many flows so many descriptors are enough for."""
    return max(0, files - FILES) // FILES_EACH


def files_for(flows: int) -> int:
    """How many descriptors so many flows need."""
    return FILES + FILES_EACH * flows


def listener(
    family: socket.AddressFamily, host: str, port: int, *, steered: bool = False, shared: bool = False
) -> socket.socket:
    """`steered`: takes connections to addresses that are not this machine's; `shared`: other processes have one there
    too. Raises `Unavailable`."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if steered:
            transparent(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Unavailable(
            f"{host} port {port}: {error.strerror}; choose another address, and run it as root"
        ) from error
    return sock
