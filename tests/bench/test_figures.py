"""The benches' own arithmetic: what is in reach, what the file says, which bytes a recording holds."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.bench import Figure, __main__
from tests.bench.coverage import SYN, Stream, expected


@pytest.mark.parametrize(
    ("figure", "peer", "reach", "ok"),
    [
        (75.0, 100.0, "ratio >= 0.75", True),
        (74.0, 100.0, "ratio >= 0.75", False),
        (60.0, 50.0, "added <= 10", True),
        (61.0, 50.0, "added <= 10", False),
        (0.0, None, "figure == 0", True),
        (1.0, None, "figure == 0", False),
        (1.0, None, "ratio >= 0.5", False),
        (1.0, 2.0, "", None),
    ],
)
def test_a_figure_is_within_reach_or_not(figure: float, peer: float | None, reach: str, ok: bool | None) -> None:
    assert Figure("a", "subject", "peer", figure, peer, "1/s", reach).ok is ok


def test_a_reach_that_cannot_be_judged_is_an_error() -> None:
    with pytest.raises(ValueError, match="write it as"):
        Figure("a", "subject", "peer", 1.0, 1.0, "1/s", "about 0.5")


def test_the_file_keeps_cases_that_did_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "RESULT", tmp_path / "build" / "bench.json")
    __main__.write([Figure("b", "old", "", 1.0, None, "s"), Figure("a", "kept", "", 2.0, None, "s")], {"a", "b"})
    __main__.write([Figure("b", "new", "peer", 3.0, 6.0, "s", "ratio < 1")], {"b"})
    rows = json.loads(__main__.RESULT.read_text())
    assert [(row["case"], row["subject"], row["ratio"], row["ok"]) for row in rows] == [
        ("a", "kept", None, None),
        ("b", "new", 0.5, True),
    ]


def test_an_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["nonsense"]) == 2
    assert "no case nonsense; there are a_bulk" in capsys.readouterr().err


def test_a_stream_is_put_together_and_its_holes_are_counted() -> None:
    data = os.urandom(1000)
    stream = Stream()
    start = 2**32 - 300  # the sequence numbers wrap
    stream.add((SYN, start - 1, b""))
    for begin, end in ((100, 200), (0, 100), (0, 50), (150, 400), (500, 1000)):
        stream.add((0, (start + begin) % 2**32, data[begin:end]))
    assert (stream.contiguous, stream.seen()) == (400, 900)
    assert stream.sha256 == hashlib.sha256(data[:400]).hexdigest()
    stream.add((0, (start + 400) % 2**32, data[400:600]))
    assert (stream.contiguous, stream.seen()) == (1000, 1000)
    assert stream.sha256 == hashlib.sha256(data).hexdigest()


def test_the_expected_digest_is_that_of_repeated_content(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(b"0123456789")
    assert expected(path, 25) == hashlib.sha256(b"0123456789" * 2 + b"01234").hexdigest()
