"""What verbs print where no terminal is."""

import pytest

from appliance.cli import output


def test_lines_end_where_their_text_ends(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("kind", "text"), [("a", "short"), ("b", "much longer " * 30)])
    output.facts((("one", "x"), ("two", "y" * 300)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["kind  text", "a     short", "b     " + ("much longer " * 30).rstrip()]
    assert lines[3:] == ["one  x", "two  " + "y" * 300]
