"""Journal to store: how fast, on one core for recorder and store together, and in how much memory."""

import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.wire.abi import Record
from appliance.wire.records import RING_HEADER
from tests.bench import Figure, journals, relayed, storing

TITLE = "journal to store: bulk and messages, on one core with the store; memory; ten times the backlog and the table"
AMOUNTS = {"archive": 300 * 10**6, "bulk": 300 * 10**6, "postgres": 30_000, "http": 30_000}  # bytes; exchanges
TENFOLD = 10
REACH = {"archive": 150.0, "bulk": 150.0, "postgres": 25_000.0, "http": 25_000.0}
NAMES = {
    "archive": "bulk, compressed content",
    "bulk": "bulk, half of it text",
    "postgres": "PostgreSQL",
    "http": "HTTP",
}
UNITS = {"archive": "MB/s", "bulk": "MB/s", "postgres": "messages/s", "http": "messages/s"}
MEMORY = 600.0  # MiB
TSHARK = 20_000  # exchanges that the peer is given


@contextmanager
def folder() -> Iterator[Path]:
    """On the disk, where journals and stores lie; removed at the end."""
    made = Path(tempfile.mkdtemp(prefix="vb-bench-", dir="/var/tmp"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def work(said: dict[str, Any], kind: str) -> float:
    """MB of the journal, or messages."""
    return said["bytes"] / 1e6 if UNITS[kind] == "MB/s" else float(said["rows"].get("MessageRow", 0))


def capture(path: Path, exchanges: int, kind: str) -> int:
    """The packets of so many exchanges as a capture file (raw IP); its bytes."""
    size = 0
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 101))
        for now, one in journals.KINDS[kind](exchanges, 16):
            packet = one[RING_HEADER.size + Record.LAYOUT.size :]
            length = RING_HEADER.unpack_from(one)[0] - Record.LAYOUT.size
            file.write(struct.pack("<IIII", now // 10**9, now % 10**9 // 1000, length, length))
            file.write(packet[:length])
            size += 16 + length
    return size


def tshark(data: Path, kind: str) -> float | None:
    """How much tshark dissects of the same traffic in a second of one core; None where there is no tshark."""
    if shutil.which("tshark") is None:
        return None
    path = data / "peer.pcap"
    amount = AMOUNTS[kind] // 4 if UNITS[kind] == "MB/s" else TSHARK
    size = capture(path, amount, kind)
    before = os.times()
    command = ["taskset", "-c", "0", "tshark", "-n", "-r", str(path), "-T", "fields", "-e", "_ws.col.Info"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    path.unlink()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return size / 1e6 / spent if UNITS[kind] == "MB/s" else messages(kind, amount) / spent


def messages(kind: str, exchanges: int) -> int:
    """How many messages so many exchanges are: a query, its rows and its result; a request and its answer."""
    return exchanges * (3 if kind == "postgres" else 2)


def run(say: Callable[[str], None]) -> list[Figure]:
    figures: list[Figure] = []
    peaks: list[float] = []
    stores: list[float] = []
    rates: dict[str, float] = {}
    for kind, amount in AMOUNTS.items():
        with folder() as data:
            journals.write(data, kind, amount)
            alone = storing.record(data, kind, 0, "--nowhere")
        with folder() as data:
            journals.write(data, kind, amount)
            with storing.store(data, 0) as store:
                began, before = time.monotonic(), store.cpu_seconds
                said = storing.record(data, kind, 0)
                spent = store.cpu_seconds - before
                stores.append(store.peak_bytes / 2**20)
            peer = tshark(data, kind)
        unit = UNITS[kind]
        rates[kind] = work(said, kind) / said["seconds"]
        peaks += [one["peak_bytes"] / 2**20 for one in (alone, said)]
        say(
            f"{NAMES[kind]}: {rates[kind]:,.0f} {unit}; {time.monotonic() - began:.1f} s; "
            f"CPU: recorder {said['cpu_seconds']:.1f} s, store {spent:.1f} s"
        )
        reach = f"figure >= {REACH[kind]:.0f}"
        figures.append(Figure("e", f"{NAMES[kind]}; one core with the store", "", rates[kind], None, unit, reach))
        rate = work(alone, kind) / alone["cpu_seconds"]
        name = "" if peer is None else "tshark, per CPU second"
        figures.append(Figure("e", f"{NAMES[kind]}; recorder alone, per CPU second", name, rate, peer, unit))
        figures.append(relayed_alone(kind, amount, rate))
    figures += tenfold(say, rates, peaks, stores)
    figures.append(
        Figure("e", "recorder's peak memory, all of these", "", max(peaks), None, "MiB", f"figure < {MEMORY:.0f}")
    )
    figures.append(Figure("e", "store's peak memory, all of these", "", max(stores), None, "MiB"))
    return figures


def relayed_alone(kind: str, amount: int, wire: float) -> Figure:
    """The same traffic from a relay's journal: there is nothing to reassemble. `wire`: the rate of the wire's."""
    with folder() as data:
        relayed.write(data, kind, amount)
        alone = storing.record(data, relayed.NAME, 0, "--nowhere")
    rate = work(alone, kind) / alone["cpu_seconds"]
    name = f"{NAMES[kind]}; relayed, recorder alone, per CPU second"
    return Figure("e", name, "from the wire", rate, wire, UNITS[kind], "ratio >= 1.0")


def tenfold(
    say: Callable[[str], None], rates: dict[str, float], peaks: list[float], stores: list[float]
) -> list[Figure]:
    """The same with ten times the backlog, and once more into the tables that this has filled."""
    figures = []
    with folder() as data:
        for kind in ("archive", "postgres"):
            journals.write(data, kind, TENFOLD * AMOUNTS[kind])
            with storing.store(data, 0) as store:
                said = storing.record(data, kind, 0)
                stores.append(store.peak_bytes / 2**20)
            shutil.rmtree(data / "journal" / kind)
            rate = work(said, kind) / said["seconds"]
            peaks.append(said["peak_bytes"] / 2**20)
            say(f"{NAMES[kind]}: {rate:,.0f} {UNITS[kind]} with ten times the backlog")
            name = f"{NAMES[kind]}; ten times the backlog"
            figures.append(Figure("e", name, "the backlog above", rate, rates[kind], UNITS[kind]))
        journals.write(data, "http", AMOUNTS["http"])
        with storing.store(data, 0):
            said = storing.record(data, "http", 0)
        rate = work(said, "http") / said["seconds"]
        name = "HTTP; ten times the table"
        figures.append(Figure("e", name, "an empty table", rate, rates["http"], UNITS["http"]))
    return figures
