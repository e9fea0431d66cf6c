"""The fuzzer finds what is there to be found, and says how to see it again."""

from pathlib import Path

import pytest

from tests.fuzz import corpus
from tests.fuzz.__main__ import report
from tests.fuzz.broken import check
from tests.fuzz.runner import failure, fuzz, read_log, shrink

pytest.importorskip("atheris", reason="atheris has no build for this machine")


def test_a_failing_input_is_found_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = fuzz("tests.fuzz.broken:broken", 60, build=tmp_path, seed=7)
    assert outcome.failed
    (path,) = outcome.found
    assert failure(check, path.read_bytes()) == "AssertionError: TLS"
    assert outcome.executions > 0
    assert outcome.covered > 0, "the appliance's code is not instrumented"
    assert report([outcome]) == 1
    printed = capsys.readouterr().out
    assert f"python -m tests.fuzz repeat tests.fuzz.broken:broken {path}" in printed
    assert "1 FAILED" in printed


def test_a_sound_target_ends_in_time_and_keeps_what_is_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = fuzz("tests.fuzz.broken:sound", 2, build=tmp_path, seed=7)
    assert not outcome.failed, outcome.log.read_text()
    assert outcome.executions > 100
    assert outcome.new
    assert any((tmp_path / "tests.fuzz.broken:sound" / "corpus").iterdir())
    assert report([outcome]) == 0
    assert "python -m tests.fuzz keep" in capsys.readouterr().out


def test_an_engine_that_does_not_run_is_a_failure(tmp_path: Path) -> None:
    outcome = fuzz("tests.fuzz.broken:sound", 1, build=tmp_path, engine=("/bin/false",))
    assert outcome.fault
    assert report([outcome]) == 1


def test_failing_inputs_become_smaller() -> None:
    hello = b"\x16\x03\x01\x02\x00\x01" + b"the rest of it" * 3
    assert len(shrink(check, hello)) == 6


def test_figures_of_a_log() -> None:
    log = (
        "#512\tNEW    cov: 61 ft: 70 corp: 9/20b lim: 4 exec/s: 170 rss: 60Mb\n"
        "stat::number_of_executed_units: 1000\nstat::average_exec_per_sec:     333\nstat::new_units_added:          8\n"
    )
    read = read_log("x", log)
    assert (read.executions, read.rate, read.covered, read.inputs, read.new) == (1000, 333, 61, 9, 8)


def test_a_vector_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "VECTORS", tmp_path)
    corpus.write_vector("tls", "odd", "why it is odd", b"\x16\x03")
    assert corpus.vectors("tls") == [("odd", "why it is odd", b"\x16\x03")]
