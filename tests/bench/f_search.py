"""Search in 1, 5 and 10 million messages: how long people wait, and how much disk a captured byte takes."""

import json
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from appliance.config import load
from appliance.store.client import Store, open_store
from appliance.store.search import search
from tests.bench import Figure, journals, storing
from tests.bench.e_record import folder

TITLE = "search in 1, 5 and 10 million messages: latency of selective queries, stored bytes per captured byte"
EXCHANGES = 20_000  # of each kind in the traffic that is recorded; the rest are copies of it
FLOWS = 400
STEPS = {1: 10, 5: 49, 10: 97}  # millions of messages: copies
ASKED = 15  # times that each kind of query is asked, each time for something else
REACH_MS = 500
ACCOUNT = re.compile(r"aid = (\d+)")


def base(data: Path) -> int:
    """Record the traffic; its captured bytes."""
    captured = sum(journals.write(data, kind, EXCHANGES, FLOWS) for kind in ("postgres", "http"))
    with storing.store(data):
        for kind in ("postgres", "http"):
            storing.record(data, kind)
    shutil.rmtree(data / "journal")
    return captured


def copied(data: Path, copies: int) -> tuple[int, int]:
    """So many copies of the first messages: messages and bytes on the disk then."""
    command = [sys.executable, "-m", "tests.bench.corpus", str(data), str(copies)]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return said["messages"], said["bytes"]


def questions(store: Store, draw: random.Random) -> dict[str, Callable[[], str]]:
    """Makers of queries. Each matches a handful of messages."""
    sample = store.select(
        "SELECT search_text, fields['target'] AS target, session_id, seq FROM messages "
        "WHERE kind IN ('query', 'request') AND seq BETWEEN 20 AND 22 LIMIT 3000"
    )
    accounts = [found[1] for row in sample if (found := ACCOUNT.search(row["search_text"]))]
    orders = [row["target"].rsplit("/", 1) for row in sample if row["target"]]
    return {
        "a number": lambda: draw.choice(accounts),
        "a phrase of SQL": lambda: f'"aid = {draw.choice(accounts)}"',
        "a path": lambda: 'path:"{}/{}"'.format(*draw.choice(orders)),
        "two words": lambda: f"{draw.choice(orders)[1]} AND customer",
        "a word of one session": lambda: f"session:{draw.choice(sample)['session_id']} AND warehouse",
        "an address and words": lambda: f"client_address:10.{draw.randrange(90)}.0.{draw.randrange(1, 250)} AND greta",
    }


def wildcards(makers: dict[str, Callable[[], str]]) -> Callable[[], str]:
    """Makes queries for the start of a word, which the index answers by looking through all words that it knows."""
    return lambda: f"{makers['a number']()[:-1]}*"


def asked(store: Store, make: Callable[[], str]) -> list[float]:
    """Milliseconds of each of `ASKED` queries."""
    took = []
    for _ in range(ASKED):
        query = make()
        began = time.monotonic()
        search(store, query)
        took.append(1000 * (time.monotonic() - began))
    return took


def quantile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def scanned(store: Store, word: str) -> float:
    """Milliseconds that a plain scan of the same table takes."""
    began = time.monotonic()
    store.select(
        "SELECT session_id, seq FROM messages WHERE search_text LIKE {like:String} ORDER BY ts DESC LIMIT 100",
        {"like": f"%{word}%"},
    )
    return 1000 * (time.monotonic() - began)


def measure(store: Store, millions: int, say: Callable[[str], None]) -> list[Figure]:
    draw = random.Random(millions)
    times: list[float] = []
    makers = questions(store, draw)
    for name, make in makers.items():
        took = asked(store, make)
        say(f"{millions} million, {name}: p50 {quantile(took, 0.5):.0f} ms, p95 {quantile(took, 0.95):.0f} ms")
        times += took
    starts = asked(store, wildcards(makers))
    number = makers["a number"]
    scan = quantile([scanned(store, number()) for _ in range(3)], 0.5)
    peer = "LIKE over the same table"
    reach = f"figure < {REACH_MS}" if millions == max(STEPS) else ""
    return [
        Figure("f", f"{millions} million messages, p50", peer, quantile(times, 0.5), scan, "ms"),
        Figure("f", f"{millions} million messages, p95", peer, quantile(times, 0.95), scan, "ms", reach),
        Figure("f", f"{millions} million messages, p50 of wildcards", peer, quantile(starts, 0.5), scan, "ms"),
    ]


def run(say: Callable[[str], None]) -> list[Figure]:
    figures: list[Figure] = []
    with folder() as data:
        captured = base(data)
        _, taken = copied(data, 1)
        figures.append(Figure("f", "stored per captured byte, index included", "", taken / captured, None, "B/B"))
        for millions, copies in STEPS.items():
            count, size = copied(data, copies)
            say(f"{count:,} messages, {size / count:.0f} bytes each on the disk")
            with storing.store(data) as store, open_store(load(None, data=data), "reader", embed=False) as reader:
                figures += measure(reader, millions, say)
                peak = store.peak_bytes / 2**20
        figures.append(Figure("f", f"store's peak memory at {max(STEPS)} million", "", peak, None, "MiB"))
    return figures
