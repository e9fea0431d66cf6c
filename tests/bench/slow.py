"""A gateway whose journal is slow or stands still, and what goes through it all the same."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.ways import Ways
from tests.lab.net import PYTHON
from tests.lab.wait import until

SINK, ECHO = 9000, 9001
CALM = 2.0  # seconds for the last run's connections to be gone

Line = tuple[float, list[tuple[int, int]]]  # a time, and of each flow bytes acknowledged and segments sent again


@dataclass(frozen=True)
class Passed:
    """What `push` said of a run: its lines, in order."""

    lines: Sequence[Line]

    @classmethod
    def of(cls, log: Path) -> "Passed":
        return cls([json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")])

    def rate(self, begin: float, end: float) -> float:
        """Bytes per second, of all flows together, between two times."""
        within = [line for line in self.lines if begin <= line[0] <= end]
        if len(within) < 2:
            return 0.0
        (first, before), (last, after) = within[0], within[-1]
        return (sum(flow[0] for flow in after) - sum(flow[0] for flow in before)) / (last - first)

    @property
    def retransmitted(self) -> int:
        return sum(flow[1] for flow in self.lines[-1][1])


def refused(ways: Ways) -> int:
    """Packets for which the ring had no room, so far."""
    counts = ways.wire_values()["refusals"]
    return int(counts.get("ring-full", 0) + counts.get("ring-share", 0))


class Slow:
    """`ways` with a journal that takes `rate` bytes per second. `clamp` as in the settings; 0: refusing only."""

    def __init__(self, ways: Ways, rate: float, clamp: float | None = None) -> None:
        self.ways = ways
        self._stop = ways.folder / "stop"
        wire = ways.settings()["wire"] | ({} if clamp is None else {"clamp": clamp})
        ways.record({"wire": wire}, ("tests.bench.slow_writer", rate, self._stop))

    def end(self) -> None:
        """Wait until nothing comes any more, and stop recording."""
        time.sleep(CALM)
        self.ways.recycle()
        self.ways.stop_recording()

    @contextmanager
    def pushing(self, flows: int, seconds: float, content: Path) -> Iterator["Future[Passed]"]:
        """Flows that push from client to server meanwhile."""
        log = self.ways.folder / "push.log"
        log.unlink(missing_ok=True)
        address = self.ways.ways["tap"].address
        command = [PYTHON, "-m", "tests.bench.push", address, SINK, seconds, flows, content, log]

        def push() -> Passed:
            self.ways.client.run([str(word) for word in command], timeout=seconds + 30)
            return Passed.of(log)

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(push)
            until(lambda: running.done() or (log.exists() and log.read_text()), "the flows run", 30)
            yield running
            running.result()

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """The journal takes nothing meanwhile."""
        self._stop.touch()
        try:
            yield
        finally:
            self._stop.unlink()
