"""All tests, in lanes beside each other: most of the time of those that run whole systems is waiting.

`python -m tests.lanes [ARGUMENT OF PYTEST …]`. A lane is a pytest process of its own, which writes to
`build/test/LANE.log`. Meanwhile a line now and then says how far each one is; at the end come the logs one after the
other, the tests that failed, each lane's summary and the sum. Not 0: a test failed, a lane did not come to its end, or
a lane found no test.
"""

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "test"
NAMED = {
    "system": ("e2e", "lab", "vm"),
    "wire": ("wire", "bpf", "evasion", "doctor"),
    "records": ("api", "cli", "ingest", "record", "replay", "store"),
}  # folders
LANES = {
    **{name: [f"tests/{folder}" for folder in folders] for name, folders in NAMED.items()},
    "rest": ["tests", *(f"--ignore=tests/{folder}" for folders in NAMED.values() for folder in folders)],
}  # by name, what pytest is told; each needs a similar time
KINDS = ("passed", "failed", "skipped")
EVERY = 30.0  # seconds between two lines of progress
TEST = 300  # seconds after which a test has failed: others take the processors from it
GRACE = 120.0  # seconds that an interrupted lane has to remove what it made

_SUMMARY = re.compile(r"^=+ (?:\d+ [a-z]+,? ?)*(?:no tests ran )?in [\d.]+s.*=+$")
_COUNT = re.compile(r"(\d+) ([a-z]+)")
_COLLECTED = re.compile(r"^collected .*?(\d+) (?:items?|selected)$", re.MULTILINE)
_LETTERS = re.compile(r"^(?:\S+\.py )?([.FEsxX]+)(?: +\[.*\])?$", re.MULTILINE)
_KINDS = {"error": "failed", "errors": "failed", "xpassed": "failed", "xfailed": "skipped"}


@dataclass(frozen=True, slots=True)
class Report:
    """What a lane's log and exit code say."""

    summary: str  # pytest's last line; empty: it did not come to its end
    counts: Counter[str]  # of `KINDS`
    broken: tuple[str, ...]  # pytest's lines that name a test or a file that failed
    passed: bool


def report(log: str, code: int) -> Report:
    """`code`: pytest's. A lane without any test that ran has not passed."""
    lines = log.splitlines()
    summary = next((line.strip("= ") for line in reversed(lines) if _SUMMARY.match(line)), "")
    counts: Counter[str] = Counter()
    for number, kind in _COUNT.findall(summary.partition(" in ")[0]):
        counts[_KINDS.get(kind, kind)] += int(number)
    broken = tuple(dict.fromkeys(line for line in lines if line.startswith(("FAILED ", "ERROR "))))
    return Report(summary, counts, broken, code == 0 and counts["passed"] > 0 and not counts["failed"])


def total(reports: Sequence[Report]) -> str:
    """`N passed, N failed, N skipped`: a test whose set-up or clean-up failed has failed."""
    counts: Counter[str] = Counter()
    for each in reports:
        counts += each.counts
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)


def progress(log: str) -> str:
    """`120/700, 2 failed`: tests that are over, of those that will be run, from a log that is being written."""
    collected = _COLLECTED.search(log)
    if not collected:
        return "begins"
    letters = Counter("".join(_LETTERS.findall(log, collected.end())))
    failed = letters["F"] + letters["E"]
    return f"{letters.total()}/{collected[1]}{f', {failed} failed' if failed else ''}"


class Lane:
    """A pytest process over a part of the tests."""

    def __init__(self, name: str, arguments: Sequence[str], logs: Path, root: Path = ROOT) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        options = (f"cache_dir={logs / 'cache' / name}", "console_output_style=count", f"timeout={TEST}")
        own = [f"--override-ini={option}" for option in options]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *own, *arguments],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal reaches it once, by `interrupt`
            )

    def running(self) -> bool:
        return self._process.poll() is None

    def interrupt(self) -> None:
        """Let it clean up and end."""
        if self.running():
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        if self.running():
            self._process.kill()
            self._process.wait()

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def state(self) -> str:
        """How far it is, or how it ended."""
        if self.running():
            return f"{self.name} {progress(self.text())}"
        return f"{self.name} {'passed' if self.report().passed else 'FAILED'}"

    def report(self) -> Report:
        """Once it has ended."""
        return report(self.text(), self._process.wait())


def run(lanes: dict[str, list[str]], arguments: Sequence[str] = (), *, logs: Path = LOGS, root: Path = ROOT) -> int:
    """Run the lanes, each with `arguments` too, and tell. 0: all passed; 130: interrupted."""
    logs.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    running: list[Lane] = []
    try:
        running += [Lane(name, [*own, *arguments], logs, root) for name, own in lanes.items()]
        _watch(running, began)
    except KeyboardInterrupt:
        _say("interrupted: the lanes clean up")
        _end(running)
        return 130
    reports = [lane.report() for lane in running]
    for lane in running:
        _say(f"\n{f' lane {lane.name} ':#^100}\n{lane.text().rstrip()}")
    _say(f"\n{' all lanes ':#^100}")
    for each in reports:
        for line in each.broken:
            _say(line)
    for lane, each in zip(running, reports, strict=True):
        how = "" if each.passed else "FAILED: "
        _say(f"{lane.name}: {how}{each.summary or f'no summary; the last words are in {lane.log}'}")
    _say(f"{total(reports)} in {_clock(time.monotonic() - began)}")
    return 0 if all(each.passed for each in reports) else 1


def _watch(lanes: Sequence[Lane], began: float) -> None:
    """Until all have ended."""
    told = began
    alive = list(lanes)
    while alive:
        time.sleep(0.2)
        ended = [lane for lane in alive if not lane.running()]
        alive = [lane for lane in alive if lane not in ended]
        if ended or time.monotonic() - told >= EVERY:
            told = time.monotonic()
            _say(f"{_clock(told - began)}  {'   '.join(lane.state() for lane in lanes)}")


def _end(lanes: Sequence[Lane]) -> None:
    """End lanes before their time; a second interruption ends them at once."""
    try:
        for lane in lanes:
            lane.interrupt()
        end = time.monotonic() + GRACE
        while any(lane.running() for lane in lanes) and time.monotonic() < end:
            time.sleep(0.1)
    except KeyboardInterrupt:
        _say("interrupted again")
    finally:
        for lane in lanes:
            lane.kill()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _say(text: str) -> None:
    print(text, flush=True)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGINT, _interrupted)  # a shell that starts it in the background has it ignored
    sys.exit(run(LANES, sys.argv[1:]))
