"""An agent that never stops: TCP and datagrams of both families through the gateway, allowed ones and others."""

import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from itertools import count
from typing import Self

from tests.wire.net import UPSTREAM, UPSTREAM6, Net, inside

OPEN, CLOSED = 7000, 7001  # ports: the rules open the first one only
RULES = "".join(
    f'[[rules]]\nto = "{to}"\nprotocol = "tcp"\n[[rules]]\nto = "{to}"\nprotocol = "udp"\nport = {OPEN}\n'
    for to in ("0.0.0.0/0", "::/0")
)
PAUSE = 0.001  # seconds between two rounds of datagrams


class Storm:
    """Context manager. `got`: datagrams that arrived upstream, by port; `last`: when the last one did.

    `stream`: what arrived by the TCP connection; `sent`: what the agent gave to it.
    """

    def __init__(self, net: Net) -> None:
        self._net = net
        self._stopping = threading.Event()
        self._flooding = False
        self.got: Counter[int] = Counter()
        self.last: dict[int, float] = {}  # time.monotonic()
        self.stream = bytearray()
        self.sent = bytearray()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for address in (UPSTREAM, UPSTREAM6):
            for port in (OPEN, CLOSED):
                self._start(self._hear, self._datagrams(self._net.upstream, (address, port)), port)
            self._start(self._talk, self._datagrams(self._net.agent, None, address), address)
        listener = self._net.listen()
        self.port = listener.getsockname()[1]
        agent = self._net.connect(self.port)
        upstream, _ = listener.accept()
        self._sockets += [listener, agent, upstream]
        agent.setblocking(False)
        upstream.settimeout(0.1)
        self._start(self._send, agent)
        self._start(self._receive, upstream)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _start(self, target: object, *arguments: object) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))  # type: ignore[arg-type]
        self._threads[-1].start()

    def _datagrams(self, host: str, bound: tuple[str, int] | None, to: str = "") -> socket.socket:
        def make() -> socket.socket:
            family = socket.AF_INET6 if ":" in (bound[0] if bound else to) else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM)
            if bound:
                sock.bind(bound)
            sock.settimeout(0.1)
            return sock

        self._sockets.append(inside(host, make))
        return self._sockets[-1]

    def _talk(self, sock: socket.socket, address: str) -> None:
        for number in count():
            for port in (OPEN, CLOSED):
                with suppress(OSError):  # refused, as it should be
                    sock.sendto(b"datagram %d to %d" % (number, port), (address, port))
            if self._stopping.wait(PAUSE):
                return

    def _hear(self, sock: socket.socket, port: int) -> None:
        while not self._stopping.is_set():
            with suppress(OSError):
                sock.recv(2048)
                self.got[port] += 1
                self.last[port] = time.monotonic()

    def _send(self, sock: socket.socket) -> None:
        for number in count():
            data = (b"line %d\n" % number) * (8000 if self._flooding else 20)
            with suppress(OSError):
                self.sent += data[: sock.send(data)]
            if self._stopping.wait(PAUSE):
                return

    def flood(self) -> None:
        """From now on as much as TCP takes."""
        self._flooding = True

    def _receive(self, sock: socket.socket) -> None:
        while not self._stopping.is_set():
            with suppress(OSError):
                self.stream += sock.recv(1 << 20)

    def arrived(self) -> int:
        """Allowed datagrams and stream bytes so far; rises while the gateway forwards."""
        return self.got[OPEN] + len(self.stream)

    def rage(self, seconds: float) -> None:
        """Let it go on for a while."""
        self._stopping.wait(seconds)

    def passes(self, seconds: float) -> bool:
        """Whether more arrives within the time."""
        before, end = self.arrived(), time.monotonic() + seconds
        while time.monotonic() < end:
            if self.arrived() > before:
                return True
            self._stopping.wait(0.01)
        return False
