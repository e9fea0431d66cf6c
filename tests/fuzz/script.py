"""Fuzzer's bytes as decisions: small numbers and pieces, from front to back, zeros behind the end."""


class Script:
    """Reads `data` once. Every value has a meaning, so no mutation is wasted."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def number(self, size: int) -> int:
        """Little-endian, `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def below(self, limit: int) -> int:
        """Less than `limit`, which is at most 65536."""
        return (self.byte() if limit <= 256 else self.number(2)) % limit

    def flag(self) -> bool:
        return bool(self.byte() & 1)

    def take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        self._at += size
        return part

    def piece(self, limit: int = 255) -> bytes:
        """A length, and as many bytes of what is left."""
        return self.take(self.below(limit + 1))

    def rest(self) -> bytes:
        return self.take(len(self._data))
