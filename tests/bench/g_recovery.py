"""Recovery: how long it takes until flows have their speed back, after the journal stood still."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import Figure
from tests.bench.slow import SINK, Passed, Slow, refused
from tests.bench.ways import Ways, memory_folder

TITLE = "time until full speed is back, after the reader of the ring stood still"
RATE = 300e6  # of the journal, so that full speed is a known figure
STOPS = (1, 5, 30)  # seconds
FLOWS = (1, 4)
BEFORE = 2.0  # seconds at full speed
AFTER = 3.0
PATIENCE = 26.0  # seconds for the peer, whose next try may come as late as its last one took
SPEED = 0.9  # of the speed of before is full speed,
OVER = 0.25  # over so many seconds
CONTENT = 64 * 2**20


def recovery(passed: Passed, full: float, resumed: float) -> float | None:
    """Seconds from `resumed` to the begin of the first stretch at full speed; None: there was none."""
    last = passed.lines[-1][0] - OVER
    begins = (begin for begin, _ in passed.lines if resumed <= begin <= last)
    return next((begin - resumed for begin in begins if passed.rate(begin, begin + OVER) >= SPEED * full), None)


def measure(slow: Slow, flows: int, stop: int, after: float, content: Path) -> tuple[float, int]:
    """Seconds until full speed, and packets for which the ring had no room."""
    before = refused(slow.ways)
    with slow.pushing(flows, BEFORE + stop + after, content) as running:
        time.sleep(BEFORE)
        stopped = time.monotonic()
        with slow.standstill():
            time.sleep(stop)
        resumed = time.monotonic()
        passed = running.result()
    found = recovery(passed, passed.rate(stopped - BEFORE / 2, stopped), resumed)
    slow.ways.settle()
    return after if found is None else found, refused(slow.ways) - before


def run(say: Callable[[str], None]) -> list[Figure]:
    figures = []
    with memory_folder() as folder, Ways() as ways:
        content = folder / "content"
        content.write_bytes(os.urandom(CONTENT))
        ways.serve("sink", SINK)
        for flows in FLOWS:
            for stop in STOPS:
                found = {}
                for name, clamp, after in (("with", None, AFTER), ("without", 0.0, min(PATIENCE, AFTER + stop))):
                    slow = Slow(ways, RATE, clamp)
                    found[name], lost = measure(slow, flows, stop, after, content)
                    slow.end()
                    took = f"{found[name]:.2f} s of {after:.0f}, {lost} packets refused"
                    say(f"{flows} flows, {stop} s, {name} lower windows: {took}")
                subject = f"flows: {flows}, stopped for {stop} s"
                figures.append(
                    Figure("g", subject, "refusing only", found["with"], found["without"], "s", "figure < 2")
                )
    return figures
