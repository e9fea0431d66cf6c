"""Back-pressure: what gets through when the journal is the bottleneck, and what a small flow feels of it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import Figure
from tests.bench.b_latency import quantile
from tests.bench.slow import ECHO, SINK, Slow, refused
from tests.bench.ways import Ways, memory_folder

TITLE = "goodput and latency of small requests while the journal is the bottleneck"
RATES = (100, 300)  # MB/s
FLOWS = (1, 4, 32)
SECONDS = 6.0
BEGIN = 1.0  # seconds until the flows have found their pace
PAUSE = 0.002
REQUESTS = 1200  # at least 2.4 s
CONTENT = 64 * 2**20


@dataclass(frozen=True)
class Result:
    goodput: float  # MB/s
    p99: float  # ms
    retransmitted: int
    refused: int


def measure(slow: Slow, flows: int, content: Path) -> Result:
    ways = slow.ways
    before = refused(ways)
    with slow.pushing(flows, SECONDS, content) as running:
        times = ways.ask("ask", "tap", ECHO, REQUESTS, PAUSE)["microseconds"]
        passed = running.result()
    begun, ended = passed.lines[0][0], passed.lines[-1][0]
    ways.settle()
    return Result(
        passed.rate(begun + BEGIN, ended) / 1e6,
        quantile(times, 0.99) / 1000,
        passed.retransmitted,
        refused(ways) - before,
    )


def run(say: Callable[[str], None]) -> list[Figure]:
    figures = []
    with memory_folder() as folder, Ways() as ways:
        content = folder / "content"
        content.write_bytes(os.urandom(CONTENT))
        ways.serve("sink", SINK)
        ways.serve("echo", ECHO)
        for rate in RATES:
            for flows in FLOWS:
                found = {}
                for name, clamp in (("with", None), ("without", 0.0)):
                    slow = Slow(ways, rate * 1e6, clamp)
                    found[name] = measure(slow, flows, content)
                    slow.end()
                    say(f"{flows} flows at {rate} MB/s, {name} lower windows: {found[name]}")
                figures += compared(f"{flows} at {rate} MB/s", rate, found["with"], found["without"])
    return figures


def compared(name: str, rate: int, ours: Result, other: Result) -> list[Figure]:
    peer = "refusing only"
    return [
        Figure("h", f"flows: {name}: goodput", "the writer's rate", ours.goodput, float(rate), "MB/s", "ratio >= 0.8"),
        Figure("h", f"flows: {name}: goodput", peer, ours.goodput, other.goodput, "MB/s"),
        Figure("h", f"flows: {name}: small requests' p99", peer, ours.p99, other.p99, "ms", "figure < 50"),
        Figure("h", f"flows: {name}: segments sent again", peer, ours.retransmitted, other.retransmitted, "segments"),
    ]
