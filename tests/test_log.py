"""Logs: JSON lines on stderr, nothing on stdout."""

import json
import logging
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


def test_every_line_names_its_process_or_the_one_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "wire")
    structlog.get_logger().info("wire-started")
    structlog.get_logger().error("process-died", process="record")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["process"] for line in lines] == ["wire", "record"]


def test_what_libraries_say_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "api")
    try:
        raise ValueError("odd")
    except ValueError:
        logging.getLogger("some.library").exception("it failed for %s", "a reason")
    logging.getLogger("some.library").info("not told")
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["event"], said["library"], said["text"]) == (
        "library-message",
        "some.library",
        "it failed for a reason",
    )
    assert "ValueError: odd" in said["exception"]
