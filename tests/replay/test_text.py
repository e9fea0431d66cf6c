"""Captured text cannot drive a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.replay.text import printable


@pytest.mark.parametrize(
    ("captured", "shown"),
    [
        ("plain", "plain"),
        ("two\r\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\x9b31m", "\\x9b31m"),
        ("over\rwritten", "over\\x0dwritten"),
        ("a\u202eb", "a\\u202eb"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("Grüße 東京 🙂", "Grüße 東京 🙂"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("nul\x00", "nul\\x00"),
    ],
)
def test_control_characters_become_visible(captured: str, shown: str) -> None:
    assert printable(captured) == shown


@given(st.text())
def test_nothing_unprintable_is_left(captured: str) -> None:
    assert all(character.isprintable() or character in "\n\t" for character in printable(captured))
