import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedInput
from appliance.store import times

NOW = 1_763_880_000_000_000_000
DAY = 86_400 * times.SECOND


@given(st.integers(0, times.LAST_NS - 2 * DAY))
def test_what_is_written_is_read_back(ns: int) -> None:
    assert times.parse(times.rfc3339(ns), NOW) == ns


def test_form() -> None:
    assert times.rfc3339(NOW + 5) == "2025-11-23T06:40:00.000000005Z"


@pytest.mark.parametrize(
    ("text", "first", "length"),
    [
        ("now", NOW, 1),
        ("15m", NOW - 900 * times.SECOND, 1),
        ("2h", NOW - 7200 * times.SECOND, 1),
        ("7d", NOW - 7 * DAY, 1),
        ("999999999w", 0, 1),
        ("2025-11-23", NOW - 24_000 * times.SECOND, DAY),
        ("2025-11-23T06:40", NOW, 60 * times.SECOND),
        ("2025-11-23T06:40:00Z", NOW, times.SECOND),
        ("2025-11-23t06:40:00z", NOW, times.SECOND),
        ("2025-11-23 07:40:00+01:00", NOW, times.SECOND),
        ("2025-11-23T06:40:00.5Z", NOW + times.SECOND // 2, times.SECOND // 10),
        ("2025-11-23T06:40:00.000000001Z", NOW + 1, 1),
    ],
)
def test_spans(text: str, first: int, length: int) -> None:
    assert times.span(text, NOW) == (first, first + length - 1)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "15", "m", "-5m", "2025-13-01", "2025-11-23T25:00Z", "9999-01-01", "1969-12-31", "15x"]
)
def test_what_is_not_a_time_says_what_is(text: str) -> None:
    with pytest.raises(MalformedInput, match=r"is not a time; write 2026-11-23T08:00:00Z"):
        times.parse(text, NOW)


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_malformed(text: str) -> None:
    try:
        first, last = times.span(text, NOW)
    except MalformedInput:
        return
    assert 0 <= first <= last <= times.LAST_NS
