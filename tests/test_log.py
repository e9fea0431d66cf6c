"""Logs: JSON lines on stderr, nothing on stdout."""

import json
from collections.abc import Iterator

import pytest
import structlog

from appliance.log import configure


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_line_is_one_json_object_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info")
    structlog.get_logger().warning("it happened", reason="because", count=3)
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    said = json.loads(line)
    assert (said["event"], said["level"], said["reason"], said["count"]) == ("it happened", "warning", "because", 3)
    assert said["timestamp"].endswith("Z")


def test_lines_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    configure("warning")
    structlog.get_logger().info("it happened")
    assert capsys.readouterr().err == ""
