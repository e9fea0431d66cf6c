"""PostgreSQL by pgbench's select-only script: through the recording gateway against one that only routes."""

import re
import statistics
from collections.abc import Callable
from pathlib import Path

from tests.bench import Figure
from tests.bench.peers import pinned
from tests.bench.ways import WAYS, Ways
from tests.lab.net import Host
from tests.lab.services.postgres import BIN
from tests.lab.wait import until

TITLE = "pgbench -S, 8 clients, recorded against routed only"
SECONDS = 4
ROUNDS = 5
CLIENTS = 8


def serve(host: Host, folder: Path, core: int | None = None) -> None:
    """A PostgreSQL server with pgbench's tables on all addresses of `host`; held to one core, if one is given."""
    folder.mkdir()
    host.run(["chown", "postgres:postgres", folder])
    data = folder / "data"
    host.run([BIN / "initdb", "-D", data, "--no-sync", "--auth=trust", "--locale=C.UTF-8"], user="postgres", timeout=60)
    with (data / "pg_hba.conf").open("a") as file:
        file.write("host all all 0.0.0.0/0 trust\n")
    options = [
        part
        for option in ("listen_addresses=*", f"unix_socket_directories={folder}", "fsync=off", "autovacuum=off")
        for part in ("-c", option)
    ]
    command: list[str | Path] = [BIN / "postgres", "-D", data, *options]
    host.popen(command if core is None else pinned(command, core), user="postgres")
    ready: list[str | Path] = ["pg_isready", "-q", "-h", folder]
    until(lambda: host.run(ready, check=False).code == 0, "PostgreSQL answers", 60)
    host.run(["pgbench", "-i", "-q", "-s", "1", "-h", folder, "postgres"], user="postgres", timeout=60)


def rate(host: Host, address: str) -> float:
    """Transactions per second."""
    arguments = ["-S", "-n", "-c", str(CLIENTS), "-T", str(SECONDS), "-h", address, "-U", "postgres", "postgres"]
    said = host.run(["pgbench", *arguments], timeout=60).output
    found = re.search(r"tps = ([0-9.]+)", said)
    assert found, said
    return float(found[1])


def run(say: Callable[[str], None]) -> list[Figure]:
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with Ways() as ways:
        serve(ways.server, ways.folder / "postgres")
        ways.record()
        rate(ways.client, ways.ways["bare"].address)
        for number in range(ROUNDS):
            for way, found in rates.items():
                found.append(rate(ways.client, ways.ways[way].address))
            say(f"round {number + 1} of {ROUNDS}: {rates['bare'][-1]:,.0f} and {rates['tap'][-1]:,.0f} tps")
    bare, tap = (statistics.median(rates[way]) for way in WAYS)
    return [Figure("c", "transactions", "routed only", tap, bare, "1/s", "ratio >= 0.95")]
