"""New connections, each with a request and an answer: recorded against routed only.

Of several clients at once, so that the processors set the rate; and of one alone, whose every connection waits for the
wake-ups of both ends, and whose rate is therefore one of latency.
"""

import statistics
from collections.abc import Callable

from tests.bench import Figure
from tests.bench.ways import WAYS, Ways

TITLE = "new connections, recorded against routed only"
PORT = 9002
SECONDS = 3
ROUNDS = 5
CLIENTS = {8: "ratio >= 0.85", 1: ""}  # with what is to be reached


def run(say: Callable[[str], None]) -> list[Figure]:
    figures = []
    with Ways() as ways:
        ways.client.sysctl({"net/ipv4/tcp_tw_reuse": 1})
        ways.serve("greet", PORT)
        ways.record()
        for clients, reach in CLIENTS.items():
            rates: dict[str, list[float]] = {way: [] for way in WAYS}
            for number in range(ROUNDS):
                for way, found in rates.items():
                    said = ways.ask("connect", way, PORT, SECONDS, clients)
                    found.append(said["connections"] / said["seconds"])
                done = f"{rates['bare'][-1]:,.0f} and {rates['tap'][-1]:,.0f} connections/s"
                say(f"clients: {clients}, round {number + 1} of {ROUNDS}: {done}")
            bare, tap = (statistics.median(rates[way]) for way in WAYS)
            figures.append(Figure("d", f"connections, clients: {clients}", "routed only", tap, bare, "1/s", reach))
        refused = ways.wire_values()["refusals"]
        say(f"refused packets: {refused or 'none'}")
    return figures
