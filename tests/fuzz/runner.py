"""Runs targets under libFuzzer, each in a process of its own, and reads what that says."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.fuzz import corpus
from tests.fuzz.targets import load

SLOW: Final = 25  # seconds that one input may take: instrumented code is several times slower
MEMORY: Final = 2048  # MiB of the process, and of one allocation half of it
GRACE: Final = 60  # seconds beyond its time after which the process is ended
_STATUS: Final = re.compile(r"#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)/(\S+).*exec/s: (\d+)")
_EXECUTED: Final = re.compile(r"stat::number_of_executed_units: (\d+)")
_RATE: Final = re.compile(r"stat::average_exec_per_sec: +(\d+)")
_NEW: Final = re.compile(r"stat::new_units_added: +(\d+)")


@dataclass
class Outcome:
    """What fuzzing one target came to. `covered`: edges of the appliance's code; `found`: inputs that failed."""

    target: str
    executions: int = 0
    rate: int = 0
    covered: int = 0
    inputs: int = 0
    new: int = 0
    found: list[Path] = field(default_factory=list)
    fault: str = ""  # why there is no result
    log: Path = Path()

    @property
    def failed(self) -> bool:
        return bool(self.found or self.fault)


def fuzz(
    target: str, seconds: int, *, build: Path = corpus.BUILD, engine: Sequence[str] = (), seed: int = 0
) -> Outcome:
    """Fuzz one target for `seconds` from its corpus, its vectors and what this machine found before.

    `engine`: the command in place of our own; `seed`: of libFuzzer's chance, 0 for another one each time.
    """
    home = build / target
    known, fresh, found = home / "known", home / "corpus", home / "found"
    for folder in (known, fresh, found):
        folder.mkdir(parents=True, exist_ok=True)
    loaded = load(target)
    seeds = [vector.data for vector in corpus.vectors(target)] or [b""]
    corpus.write_inputs(known, seeds if corpus.kept(target) else [*seeds, *loaded.seeds()])
    words = home / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in loaded.words))
    before = set(found.iterdir())
    command = [
        *(engine or (sys.executable, "-m", "tests.fuzz.engine")),
        target,
        f"-max_total_time={seconds}",
        f"-max_len={loaded.size}",
        f"-timeout={SLOW}",
        f"-rss_limit_mb={MEMORY}",
        f"-artifact_prefix={found}/",
        f"-seed={seed}",
        "-print_final_stats=1",
        "-use_value_profile=1",
        *([f"-dict={words}"] if loaded.words else []),
        str(fresh),
        str(known),
        *([str(corpus.CORPUS / target)] if corpus.kept(target) else []),
    ]
    log = home / "log"
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, cwd=corpus.HERE.parents[1])
        try:
            process.wait(seconds + GRACE + SLOW)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    outcome = read_log(target, log.read_text("utf-8", "replace"))
    outcome.log = log
    outcome.found = sorted(set(found.iterdir()) - before)
    if process.returncode and not outcome.found:
        outcome.fault = f"ended with {process.returncode}; see {log}"
    return outcome


def read_log(target: str, log: str) -> Outcome:
    """The figures in libFuzzer's output."""
    outcome = Outcome(target)
    for line in log.splitlines():
        if status := _STATUS.search(line):
            outcome.executions, outcome.covered = int(status[1]), int(status[2])
            outcome.inputs, outcome.rate = int(status[4]), int(status[6])
        for pattern, name in ((_EXECUTED, "executions"), (_RATE, "rate"), (_NEW, "new")):
            if figure := pattern.search(line):
                setattr(outcome, name, int(figure[1]))
    return outcome


def merge(target: str, into: Path, sources: Sequence[Path]) -> None:
    """The fewest inputs of `sources` that reach as much as all of them."""
    into.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.engine",
        target,
        "-set_cover_merge=1",
        f"-timeout={SLOW}",
        f"-max_len={1 << 20}",
    ]
    folders = [str(folder) for folder in (into, *sources) if folder.is_dir()]
    with (corpus.BUILD / target / "merge.log").open("w") as log:
        subprocess.run(
            [*command, *folders], stdout=log, stderr=subprocess.STDOUT, check=True, cwd=corpus.HERE.parents[1]
        )


def failure(check: Callable[[bytes], None], data: bytes) -> str:
    """What is wrong with an input: the exception's type and first line; "" if nothing is."""
    try:
        check(data)
    except AssertionError as error:
        return f"AssertionError: {str(error).partition(chr(10))[0][:200]}"
    except Exception as error:
        return type(error).__name__
    return ""


def shrink(check: Callable[[bytes], None], data: bytes) -> bytes:
    """A smaller input that fails in the same way: pieces are left out, ever smaller ones, then bytes become zero."""
    kind = failure(check, data).partition(":")[0]
    size = max(1, len(data) // 2)
    while True:
        at, smaller = 0, False
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            if failure(check, shorter).partition(":")[0] == kind:
                data, smaller = shorter, True
            else:
                at += size
        if size == 1 and not smaller:
            break
        size = size if smaller else max(1, size // 2)
    for at in range(len(data)):
        plainer = data[:at] + b"\0" + data[at + 1 :]
        if data[at] and failure(check, plainer).partition(":")[0] == kind:
            data = plainer
    return data


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)
