"""Pages cut by key, not by count, so that rows which arrive meanwhile neither repeat nor hide others."""

import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import MalformedInput
from appliance.store import times

Json = dict[str, Any]
When = str | int | None  # RFC 3339, a day, how long ago ("15m"), nanoseconds since 1970, or no bound


@dataclass(frozen=True, slots=True)
class Page:
    """Some results in order, and the cursor for those after them; None: there are no more."""

    items: list[Json]
    cursor: str | None


def size(limit: int, most: int) -> int:
    if not 1 <= limit <= most:
        raise MalformedInput(f"limit {limit} is not within 1 to {most}; correct it")
    return limit


def bounds(since: When, until: When, now_ns: int | None = None) -> tuple[int, int]:
    """[since, until) in nanoseconds."""
    now = time.time_ns() if now_ns is None else now_ns
    low = _moment(since, now, 0)
    high = _moment(until, now, times.LAST_NS)
    if not 0 <= low <= times.LAST_NS or not 0 <= high <= times.LAST_NS:
        raise MalformedInput("time range lies outside of 1970 to 2262; correct it")
    return low, high


def _moment(when: When, now_ns: int, otherwise: int) -> int:
    match when:
        case None:
            return otherwise
        case str():
            return times.parse(when, now_ns)
    return when


def after(found: Sequence[Json], limit: int, key: Callable[[Json], list[int | str]]) -> str | None:
    """The cursor behind the first `limit` rows, if `found` has more."""
    if len(found) <= limit:
        return None
    return base64.urlsafe_b64encode(json.dumps(key(found[limit - 1])).encode()).decode().rstrip("=")


def key(cursor: str, *kinds: type) -> list[Any]:
    """The key that `after` wrote into a cursor, each part checked to be of its kind (int, str, or UUID)."""
    try:
        parts = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if not isinstance(parts, list) or len(parts) != len(kinds):
            raise ValueError("wrong number of parts")
        for part, kind in zip(parts, kinds, strict=True):
            if type(part) is not (int if kind is int else str):
                raise ValueError("wrong kind of part")
            if isinstance(part, int) and not 0 <= part < 2**63:
                raise ValueError("number out of range")
        return [part if kind in (int, str) else kind(part) for part, kind in zip(parts, kinds, strict=True)]
    except (ValueError, RecursionError):
        raise MalformedInput("cursor is not one that this store gave out; start again without it") from None
