"""New connections, each with a request and an answer: recorded against routed only."""

import statistics
from collections.abc import Callable

from tests.bench import Figure
from tests.bench.ways import WAYS, Ways

TITLE = "new connections, one after the other, recorded against routed only"
PORT = 9002
SECONDS = 3
ROUNDS = 5


def run(say: Callable[[str], None]) -> list[Figure]:
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with Ways() as ways:
        ways.client.sysctl({"net/ipv4/tcp_tw_reuse": 1})
        ways.serve("greet", PORT)
        ways.record()
        for number in range(ROUNDS):
            for way, found in rates.items():
                said = ways.ask("connect", way, PORT, SECONDS)
                found.append(said["connections"] / said["seconds"])
            say(f"round {number + 1} of {ROUNDS}: {rates['bare'][-1]:,.0f} and {rates['tap'][-1]:,.0f} connections/s")
        refused = ways.wire_values()["refusals"]
        say(f"refused packets: {refused or 'none'}")
    bare, tap = (statistics.median(rates[way]) for way in WAYS)
    return [Figure("d", "connections", "routed only", tap, bare, "1/s", "ratio >= 0.85")]
