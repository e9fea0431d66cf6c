"""Where the bytes of a body lie in the stream: transfer codings and frames cut it up."""

from bisect import bisect_right


class Spans:
    """Positions in a body to offsets in the stream."""

    def __init__(self) -> None:
        self.length = 0
        self._places: list[int] = []
        self._offsets: list[int] = []

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        return 64 * len(self._places)

    def add(self, offset: int, length: int) -> None:
        if not self._places or offset != self._offsets[-1] + self.length - self._places[-1]:
            self._places.append(self.length)
            self._offsets.append(offset)
        self.length += length

    def ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        """The stream ranges of body positions `start` to `end`."""
        found: list[tuple[int, int]] = []
        entry = max(bisect_right(self._places, start) - 1, 0)
        while start < end:
            stop = self._places[entry + 1] if entry + 1 < len(self._places) else self.length
            step = min(stop, end) - start
            offset = self._offsets[entry] + start - self._places[entry]
            if step <= 0:
                break
            found.append((offset, offset + step))
            start += step
            entry += 1
        return found

    def after(self, place: int) -> "Spans":
        """Those behind position `place`, which becomes 0."""
        rest = Spans()
        for start, stop in self.ranges(place, self.length):
            rest.add(start, stop - start)
        return rest
