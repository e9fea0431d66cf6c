"""The lanes that `make test` runs: what they find together, and that none is lost."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import lanes
from tests.lab.wait import until

PASSES = "def test_passes():\n    pass\n"
FAILS = "def test_fails():\n    assert not 'a reason'\n"
SKIPS = "import pytest\n\n@pytest.mark.skip('not here')\ndef test_skips():\n    pass\n"
BREAKS = "import pytest\n\n@pytest.fixture\ndef broken():\n    raise OSError\n\ndef test_breaks(broken):\n    pass\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project of its own."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -ra\n")
    return tmp_path


def ran(root: Path, files: dict[str, str], *arguments: str) -> int:
    """Each file in a lane of its own."""
    for name, text in files.items():
        (root / f"test_{name}.py").write_text(text)
    return lanes.run({name: [f"test_{name}.py"] for name in files}, arguments, logs=root / "logs", root=root)


def last(text: str, number: int) -> list[str]:
    return [re.sub(r"[\d.]+s$|\d+:\d\d$", "T", line) for line in text.splitlines()[-number:]]


def test_lanes_that_pass(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(root, {"one": PASSES + PASSES.replace("passes", "too"), "two": PASSES + SKIPS}) == 0
    out = capsys.readouterr().out
    assert last(out, 3) == ["one: 2 passed in T", "two: 1 passed, 1 skipped in T", "3 passed, 0 failed, 1 skipped in T"]
    assert out.index("lane one") < out.index("lane two"), "one log after the other"
    assert {path.name for path in (root / "logs").glob("*.log")} == {"one.log", "two.log"}


def test_a_lane_that_fails(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(root, {"one": PASSES, "two": FAILS + PASSES, "three": BREAKS + PASSES}) == 1
    assert last(capsys.readouterr().out, 6) == [
        "FAILED test_two.py::test_fails - AssertionError: assert not 'a reason'",
        "ERROR test_three.py::test_breaks - OSError",
        "one: 1 passed in T",
        "two: FAILED: 1 failed, 1 passed in T",
        "three: FAILED: 1 passed, 1 error in T",
        "3 passed, 2 failed, 0 skipped in T",
    ]


def test_a_lane_that_cannot_be_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(root, {"one": "import missing_module\n", "two": PASSES}) == 1
    out = last(capsys.readouterr().out, 4)
    assert out[0].startswith("ERROR test_one.py")
    assert out[3] == "1 passed, 1 failed, 0 skipped in T"


def test_a_lane_without_tests_fails(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(root, {"one": PASSES, "two": ""}) == 1
    assert last(capsys.readouterr().out, 2)[0] == "two: FAILED: no tests ran in T"


def test_a_lane_that_dies_fails(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dies = "import os\n\ndef test_dies():\n    os._exit(0)\n"
    assert ran(root, {"one": PASSES, "two": PASSES + dies}) == 1
    told = last(capsys.readouterr().out, 2)
    assert told[0] == f"two: FAILED: no summary; the last words are in {root}/logs/two.log"
    assert told[1] == "1 passed, 0 failed, 0 skipped in T"


def test_arguments_go_to_every_lane(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = PASSES + PASSES.replace("passes", "other")
    assert ran(root, {"one": two, "two": two}, "-k", "other") == 0
    assert last(capsys.readouterr().out, 1) == ["2 passed, 0 failed, 0 skipped in T"]


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("=== test session starts ===\n", "begins"),
        ("collected 9 items\n\ntests/test_a.py ..", "2/9"),
        ("collected 9 items / 4 deselected / 5 selected\n\ntests/test_a.py ..    [ 2/5]\ntests/test_b.py s", "3/5"),
        ("collected 9 items\n\ntests/test_a.py .F..\n.E..    [8/9]\n\n=== FAILURES ===\nE   no", "8/9, 2 failed"),
    ],
)
def test_how_far_a_lane_is(log: str, told: str) -> None:
    assert lanes.progress(log) == told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_all_lanes_after_they_cleaned_up(root: Path, number: signal.Signals) -> None:
    (root / "test_long.py").write_text(
        "import os, pathlib, select, pytest\n\n"
        "@pytest.fixture\ndef made():\n"
        "    pid = pathlib.Path(f'{os.getpid()}.pid')\n    pid.touch()\n"
        "    yield\n    pid.rename(f'{os.getpid()}.gone')\n\n"
        "def test_long(made):\n    select.select([], [], [])\n"
    )
    program = (
        "import pathlib, signal, sys\nfrom tests import lanes\n"
        "for each in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(each, lanes._interrupted)\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "sys.exit(lanes.run({'a': ['test_long.py'], 'b': ['test_long.py']}, logs=root / 'logs', root=root))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(root)], cwd=lanes.ROOT, stdout=subprocess.PIPE)
    try:
        until(lambda: len(list(root.glob("*.pid"))) == 2, "both are under way", 60)
        pids = [int(path.stem) for path in root.glob("*.pid")]
        process.send_signal(number)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
    assert sorted(int(path.stem) for path in root.glob("*.gone")) == sorted(pids), "fixtures have ended"
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_every_test_is_in_one_lane() -> None:
    """Folders that come to be are in the last lane; those that are named exist."""
    *named, (tests, *rest) = lanes.LANES.values()
    folders = [folder for lane in named for folder in lane]
    assert tests == "tests"
    assert sorted(rest) == sorted(f"--ignore={folder}" for folder in folders)
    assert len(set(folders)) == len(folders)
    assert [folder for folder in folders if not (lanes.ROOT / folder).is_dir()] == []
