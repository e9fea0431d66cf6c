"""What one peer said and nobody took yet."""


class Inbox:
    """Protocols cut it into their messages."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> None:
        self._data += data

    def held(self) -> bytes:
        """Everything, which stays."""
        return bytes(self._data)

    def rest(self) -> bytes:
        """Everything that is left."""
        data = bytes(self._data)
        self._data.clear()
        return data

    def _take(self, size: int) -> bytes | None:
        """The first bytes, if there are so many."""
        if len(self._data) < size:
            return None
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken
