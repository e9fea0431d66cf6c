"""Times as people write them (RFC 3339, a day, how long ago) and as the store keeps them: nanoseconds since 1970."""

import re
from datetime import UTC, datetime, timedelta

from appliance.errors import MalformedInput

SECOND = 10**9
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LAST_NS = 2**63 - 1

_RELATIVE = re.compile(r"(\d{1,9})([smhdw])")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOMENT = re.compile(r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}(?::\d{2})?)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d{2}:\d{2})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(ns: int) -> str:
    """`2026-11-23T08:00:00.123456789Z`."""
    whole, rest = divmod(ns, SECOND)
    return f"{_EPOCH + timedelta(seconds=whole):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def parse(text: str, now_ns: int) -> int:
    """The first nanosecond of what `text` names. Raises `MalformedInput` that says what is accepted."""
    return span(text, now_ns)[0]


def span(text: str, now_ns: int) -> tuple[int, int]:
    """First and last nanosecond of what `text` names: a day, a minute, a second, or one moment.

    `15m` (s, m, h, d, w) is that long before `now_ns`; `now` is now. A time without an offset is UTC.
    """
    text = text.strip()
    if text == "now":
        return now_ns, now_ns
    if relative := _RELATIVE.fullmatch(text):
        ago = max(0, now_ns - int(relative[1]) * UNITS[relative[2]] * SECOND)
        return ago, ago
    try:
        if _DAY.fullmatch(text):
            first = _ns(datetime.fromisoformat(text).replace(tzinfo=UTC))
            return first, first + 86400 * SECOND - 1
        if moment_match := _MOMENT.fullmatch(text):
            day, clock, fraction, offset = moment_match.groups()
            moment = datetime.fromisoformat(f"{day}T{clock}{(offset or 'Z').upper().replace('Z', '+00:00')}")
            length = 60 * SECOND if len(clock) == 5 else 10 ** (9 - len(fraction or ""))
            first = _ns(moment) + int((fraction or "0").ljust(9, "0"))
            return first, first + length - 1
    except (ValueError, OverflowError):
        pass
    raise MalformedInput(
        f"{text[:40]!r} is not a time; write 2026-11-23T08:00:00Z, a day such as 2026-11-23, now, "
        "or how long ago: 30s, 15m, 2h, 7d, 1w"
    )


def _ns(moment: datetime) -> int:
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    if not 0 <= seconds * SECOND < LAST_NS - 86400 * SECOND:
        raise ValueError("outside of 1970 to 2262")
    return seconds * SECOND
