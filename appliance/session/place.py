"""Where in the ring's life the record stands: positions name records, so repetitions and losses show."""

from typing import Any


class Place:
    """`ring` names the ring, `end` is the position up to which it was read, None while nothing is known."""

    __slots__ = ("end", "ring")

    def __init__(self) -> None:
        self.ring = ""
        self.end: int | None = None

    def span(self, start: int, end: int) -> tuple[int | None, int | None]:
        """A span of these positions comes. The first byte of it that is new, None if none is: it was written again
        after a crash. And, if records before it were lost, from which position on.
        """
        seen = self.end
        if seen is None:
            self.end = end
            return 0, None
        if end <= seen:
            return None, None
        self.end = end
        return max(0, seen - start), seen if start > seen else None

    def opened(self, ring: str, said: dict[str, Any]) -> dict[str, Any] | None:
        """The wire process goes on with this ring: what of the former one may be lost, None if nothing is.

        `after` and `until` say which one was drained, and to where, before this one took over; `position`, up to where
        this one was drained.
        """
        lost: dict[str, Any] | None = None
        if self.ring and ring != self.ring:
            if said.get("after") != self.ring or said.get("until") != self.end:
                lost = {"ring": self.ring, "from": self.end, "new_ring": ring}
            self.end = None
        position = said.get("position")
        if isinstance(position, int):
            if self.end is not None and position > self.end:  # the tail of the journal is gone
                lost = {"from": self.end, "to": position}
            if self.end is None or lost is not None:
                self.end = position
        self.ring = ring
        return lost
