"""Where frames begin in bytes that may begin anywhere: so many plausible headers in a row."""

import re
from collections.abc import Callable
from typing import NamedTuple

SizeAt = Callable[[bytes | bytearray, int], int]


class Found(NamedTuple):
    """Bytes before `start` are of no frame that can be found. `need`: with fewer bytes from there on look no more."""

    start: int
    frames: bool  # they begin at `start`
    need: int = 1


def resync(
    data: bytes | bytearray, opening: re.Pattern[bytes], width: int, size_at: SizeAt, chain: int, *, final: bool
) -> Found:
    """`size_at(data, place)`: bytes of the frame there; 0 if it can be none, -1 if its header is not whole.

    `opening`: what every header begins with, `width` bytes, for speed. `final`: nothing follows, so that frames may end
    with the data.
    """
    start = -1
    while (start := _next(data, opening, width, start + 1)) < len(data):
        place, size = start, 0
        for number in range(chain):
            if number and final and place == len(data):
                return Found(start, True)
            size = size_at(data, place) if place < len(data) else -1
            if size <= 0:
                break
            place += size
        else:
            return Found(start, True)
        if size < 0 and not final:
            return Found(start, False, max(place, len(data)) + 1 - start)
    return Found(len(data), False)


def _next(data: bytes | bytearray, opening: re.Pattern[bytes], width: int, start: int) -> int:
    """The first place from `start` on where a header may begin; its end may be missing."""
    found = opening.search(data, start)
    place = found.start() if found is not None else len(data)
    return min(place, max(start, len(data) - width + 1))
