"""Both ends of the traffic that relays are measured with: nginx, and generators that are written in C and cost little.

Where a generator shares its core with the server it asks, look at the CPU time of what is between them, too:
`peers.cpu_seconds`.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.peers import Place, pinned
from tests.lab import nginx
from tests.lab.net import Host
from tests.lab.process import Process
from tests.lab.wait import until

MIB = 2**20
SMALL = b"ok " * 33 + b"\n"  # what GET /small answers
GRACE = 30.0  # seconds that a generator may take besides those it was told

HTTP = """
    sendfile on;
    keepalive_requests 100000000;
    server {{
        listen {listen} ssl http2;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        root {folder}/files;
    }}
"""
UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
LATENCIES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Served:
    """What a generator of requests got."""

    requests_per_second: float
    bytes_per_second: float
    median: float  # seconds of a request; 0.0: not told
    failed: int


def origin(
    host: Host, folder: Path, listen: Place, certificate: Path, key: Path, core: int, *, bulk: int = 64 * MIB
) -> Process:
    """nginx with TLS: GET /small answers `SMALL`, GET /bulk `bulk` bytes; HTTP/2 for those who ask by ALPN."""
    files = folder / "files"
    files.mkdir(parents=True)
    (files / "small").write_bytes(SMALL)
    with (files / "bulk").open("wb") as file:
        file.truncate(bulk)
    http = HTTP.format(folder=folder, listen=listen, certificate=certificate, key=key)
    process = host.popen(pinned(nginx.command(folder, http, connections=8192), core))
    shown: list[str | Path] = ["ss", "-Hltn", f"sport = :{listen.port}"]

    def listens() -> bool:
        process.check()
        return bool(host.run(shown).output)

    until(listens, f"nginx listens at {listen}")
    return process


def wrk(host: Host, url: str, *, seconds: int, connections: int, core: int) -> Served:
    """Requests by HTTP/1.1 on connections that stay open. wrk does not verify certificates."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "--latency", url]
    said = host.run(pinned(command, core), timeout=seconds + GRACE).output
    rate, volume = _one(r"Requests/sec:\s+([\d.]+)", said), _found(r"Transfer/sec:\s+([\d.]+)([KMGT]?)B", said)
    median = _found(r"50%\s+([\d.]+)(us|ms|s)", said)
    broken = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    failed = int(broken[1]) if broken else 0
    failed += sum(int(number) for number in sockets.groups()) if sockets else 0
    return Served(rate, float(volume[1]) * UNITS[volume[2]], float(median[1]) * LATENCIES[median[2]], failed)


def h2load(host: Host, url: str, *, seconds: int, connections: int, streams: int, core: int) -> Served:
    """Requests by HTTP/2, `streams` at a time on each connection."""
    command = [
        "h2load",
        f"--duration={seconds}",
        f"--clients={connections}",
        f"--max-concurrent-streams={streams}",
        url,
    ]
    said = host.run(pinned(command, core), timeout=seconds + GRACE).output
    told = _found(r"finished in [\d.]+\w+, ([\d.]+) req/s, ([\d.]+)([KMGT]?)B/s", said)
    failed = _one(r"(\d+) failed", said)
    return Served(float(told[1]), float(told[2]) * UNITS[told[3]], 0.0, int(failed))


def pgbench(
    host: Host, place: Place, *, user: str, database: str, seconds: int, clients: int, core: int, env: Mapping[str, str]
) -> float:
    """Transactions per second of pgbench's select-only script. The password and the kind of TLS are in `env`."""
    command = ["pgbench", "-S", "-n", "-c", str(clients), "-T", str(seconds), "-U", user]
    command += ["-h", place.address, "-p", str(place.port), database]
    said = host.run(pinned(command, core), env=env, timeout=seconds + GRACE).output
    return _one(r"tps = ([\d.]+)", said)


def redis_benchmark(
    host: Host, place: Place, *, requests: int, clients: int, core: int, options: Sequence[str], env: Mapping[str, str]
) -> dict[str, float]:
    """Requests per second by command, SET and GET. `options`: such as --tls, --cacert FILE, -P 16."""
    command = ["redis-benchmark", "-h", place.address, "-p", str(place.port), "-t", "set,get", "--csv"]
    command += ["-n", str(requests), "-c", str(clients), *options]
    said = host.run(pinned(command, core), env=env, timeout=300).output
    rows = csv.DictReader(io.StringIO(said[said.index('"test"') :]))
    return {row["test"]: float(row["rps"]) for row in rows}


def _found(pattern: str, said: str) -> "re.Match[str]":
    found = re.search(pattern, said)
    assert found, f"no {pattern!r} in: {said}"
    return found


def _one(pattern: str, said: str) -> float:
    return float(_found(pattern, said)[1])
