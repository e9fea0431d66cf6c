"""Where the records of TLS end in the bytes of a peer (RFC 8446 §5.1, RFC 5246 §6.2.1)."""

from typing import Final

HEADER: Final = 5  # bytes: type, version, length


class Records:
    """`within`: the bytes so far end within a record."""

    __slots__ = ("_header", "_left")

    def __init__(self) -> None:
        self._header = b""  # of a record, cut
        self._left = 0  # bytes of a record that are to come

    def feed(self, data: bytes | memoryview) -> None:
        at, size = self._left, len(data)
        if self._header and size:
            data = self._header + data
            size, self._header = len(data), b""
        while at + HEADER <= size:
            at += HEADER + (data[at + 3] << 8 | data[at + 4])
        self._left = at - size if at > size else 0
        if at < size:
            self._header = bytes(data[at:])

    @property
    def within(self) -> bool:
        return bool(self._left or self._header)
