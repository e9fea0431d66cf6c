"""Bulk goodput: routed and recorded against routed only, and what packet recorders lose of the same traffic."""

import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path

from tests.bench import Figure
from tests.bench.coverage import Stream, capture_segments, expected, journal_segments
from tests.bench.ways import Ways, memory_folder
from tests.lab.process import Process
from tests.lab.wait import until

TITLE = "bulk goodput through the gateway, recorded against routed only; bytes that recorders miss"
PORT = 9000
SECONDS = 3.0
ROUNDS = 3
CONTENT = 64 * 2**20
RECORDERS = {
    "tcpdump": ["tcpdump", "-q", "-n", "-i", "inside", "-w"],
    "dumpcap": ["dumpcap", "-q", "-P", "-i", "inside", "-w"],
}


def send(ways: Ways, way: str, content: Path, flows: int = 1, seconds: float = SECONDS) -> tuple[list[int], float]:
    """Bytes of each flow, and Gbit/s in all."""
    said = ways.ask("send", way, PORT, seconds, flows, content)
    return said["bytes"], sum(said["bytes"]) * 8 / said["seconds"] / 1e9


def missed(stream: Stream, sent: int) -> float:
    return float(sent - stream.seen())


def run(say: Callable[[str], None]) -> list[Figure]:
    with memory_folder() as folder, Ways() as ways:
        content = folder / "content"
        content.write_bytes(os.urandom(CONTENT))
        ways.serve("sink", PORT)
        ways.record()
        say("a first transfer makes the journal's segments")
        for _ in range(2):
            send(ways, "tap", content, seconds=2 * SECONDS)
            ways.recycle()
        rates: dict[str, list[float]] = {"bare": [], "tap": []}
        lost = 0.0
        for number in range(ROUNDS):
            for way, found in rates.items():
                sent, rate = send(ways, way, content)
                found.append(rate)
                say(f"round {number + 1}: {way} {rate:.2f} Gbit/s")
            ways.settle()
            stream = Stream()
            for segment in journal_segments(ways.spans(), PORT):
                stream.add(segment)
            lost += missed(stream, sent[0])
            if stream.sha256 != expected(content, sent[0]):
                lost += sent[0] - stream.contiguous or 1
            ways.recycle()
        refusals = sum(ways.wire_values()["refusals"].values())
        say(f"refused packets, sent again by TCP: {refusals}")
        bare, tap = (statistics.median(found) for found in rates.values())
        figures = [
            Figure("a", "recorded, one flow", "routed only", tap, bare, "Gbit/s", "ratio >= 0.75"),
            Figure("a", "bytes missing from the rebuilt stream", "", lost, None, "B", "figure == 0"),
        ]
        return figures + peers(ways, content, folder, say)


def listen(ways: Ways, name: str, command: list[str]) -> Process:
    """A packet recorder on the gateway that only routes, when it takes packets."""
    gateway = ways.ways["bare"].gateway
    process = gateway.popen(command)
    until(lambda: gateway.run(["ss", "-Hl0"]).output.strip(), f"{name} listens")
    return process


def peers(ways: Ways, content: Path, folder: Path, say: Callable[[str], None]) -> list[Figure]:
    """What tcpdump and dumpcap miss of the same transfer, which nothing slows down for them."""
    figures = []
    for name, command in RECORDERS.items():
        path = folder / f"{name}.pcap"
        process = listen(ways, name, [*command, str(path)])
        sent, rate = send(ways, "bare", content)
        process.stop(signal.SIGINT)
        stream = Stream()
        for segment in capture_segments(path, PORT):
            stream.add(segment)
        path.unlink()
        gone = missed(stream, sent[0])
        say(f"{name}: {rate:.2f} Gbit/s went by, {gone / sent[0]:.1%} of the bytes are missing")
        figures.append(Figure("a", f"bytes that {name} -w misses", "bytes sent", gone, float(sent[0]), "B"))
    return figures
