"""Connections that failed behind bytes that were read: libuv tells of a fault once, and watches the socket no more."""

import asyncio
from typing import Final, Protocol
from weakref import WeakKeyDictionary

LOOK: Final = 0.02  # seconds until what was read is looked behind


class Connection(Protocol):
    def find_reset(self) -> None:
        """Has it failed behind the bytes that were read?"""


class Resets:
    """Has the connections of a loop look, all together and a little later, as it takes a system call for each."""

    _of: Final = WeakKeyDictionary[asyncio.AbstractEventLoop, "Resets"]()

    def __init__(self) -> None:
        self._connections: set[Connection] = set()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "Resets":
        return cls._of.setdefault(loop, cls())

    def look_behind(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        if not self._connections:
            loop.call_later(LOOK, self._look)
        self._connections.add(connection)

    def _look(self) -> None:
        connections, self._connections = self._connections, set()
        for connection in connections:
            connection.find_reset()
