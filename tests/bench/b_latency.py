"""Latency of small requests: routed and recorded against routed only."""

from collections.abc import Callable, Sequence

from tests.bench import Figure
from tests.bench.ways import WAYS, Ways

TITLE = "latency of a request and its answer, 64 bytes each, recorded against routed only"
PORT = 9001
REQUESTS = 4000
ROUNDS = 10
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
REACH = {"p50": "added <= 10"}


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def run(say: Callable[[str], None]) -> list[Figure]:
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with Ways() as ways:
        ways.serve("echo", PORT)
        ways.record()
        for number in range(ROUNDS):
            for way, found in times.items():
                found += ways.ask("ask", way, PORT, REQUESTS, 0)["microseconds"]
            say(f"round {number + 1} of {ROUNDS}")
    for found in times.values():
        found.sort()
    return [
        Figure("b", name, "routed only", quantile(times["tap"], share), quantile(times["bare"], share), "µs", reach)
        for name, share in QUANTILES.items()
        for reach in [REACH.get(name, "")]
    ]
