"""Each peer and each generator of load works once, as the cases use them."""

import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import c_pgbench, load, peers
from tests.bench.load import SMALL
from tests.bench.peers import MITMDUMP, Bridge, Place
from tests.lab import leftovers
from tests.lab.net import Host
from tests.lab.pki import Pki
from tests.lab.wait import until

HERE = "127.0.0.1"
NAME = "origin.lab.test"
CORE = 0


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host by itself."""
    prefix = f"vb-{secrets.token_hex(3)}"
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-"))
    folder.chmod(0o755)
    leftovers.claim(prefix, folder)
    host = Host(prefix, "peers", folder / "host")
    try:
        host.create()
        yield host
    finally:
        for process in host.started:
            process.stop(signal.SIGKILL)
        leftovers.remove(prefix)


@pytest.fixture(scope="module")
def bridge(host: Host) -> Bridge:
    """In front of nginx."""
    pki = Pki(host.folder / "pki")
    certificate, key = pki.issue(NAME, (HERE,))
    place = Place(HERE, 8000)
    load.origin(host, host.folder / "origin", place, certificate, key, CORE)
    return Bridge(Place(HERE, 0), certificate, key, place, NAME, pki.certificate)


def _asked(host: Host, bridge: Bridge, *options: str) -> "tuple[bytes, str]":
    to = ["--resolve", f"{NAME}:{bridge.listen.port}:{HERE}", "--cacert", str(bridge.authority)]
    url = f"https://{NAME}:{bridge.listen.port}/small"
    done = host.run(["curl", "-sS", *to, *options, "-w", "%{stderr}%{http_version}", url])
    return done.stdout, done.errors


def test_haproxy(host: Host, bridge: Bridge) -> None:
    used = replace(bridge, listen=Place(HERE, 8001))
    process = peers.haproxy(host, host.folder / "haproxy", used, CORE)
    assert _asked(host, used) == (SMALL, "1.1")
    served = load.wrk(host, f"https://{used.listen}/small", seconds=1, connections=2, core=1)
    assert served.requests_per_second > 100
    assert served.failed == 0
    assert 0 < served.median < 1
    assert _of_the_program(process.pid, "haproxy")
    assert peers.cpu_seconds(process.pid) > 0
    process.stop()


def test_haproxy_verifies(host: Host, bridge: Bridge) -> None:
    other = Pki(host.folder / "other")
    used = replace(bridge, listen=Place(HERE, 8002), authority=other.certificate)
    process = peers.haproxy(host, host.folder / "distrustful", used, CORE)
    with pytest.raises(RuntimeError, match="curl"):
        _asked(host, replace(used, authority=bridge.authority))
    process.stop()


@pytest.mark.skipif(not MITMDUMP.exists(), reason="mitmproxy is for benches only; '.ci/peers' installs it")
def test_mitmproxy(host: Host, bridge: Bridge) -> None:
    used = replace(bridge, listen=Place(HERE, 8003))
    process = peers.mitmproxy(host, host.folder / "mitmproxy", used, CORE)
    assert _asked(host, used, "--http1.1") == (SMALL, "1.1")
    served = load.wrk(host, f"https://{used.listen}/small", seconds=1, connections=2, core=1)
    assert served.failed == 0
    process.stop()


def test_h2load_and_bulk(host: Host, bridge: Bridge) -> None:
    served = load.h2load(host, f"https://{bridge.upstream}/small", seconds=1, connections=2, streams=4, core=1)
    assert served.requests_per_second > 100
    assert served.failed == 0
    bulk = load.wrk(host, f"https://{bridge.upstream}/bulk", seconds=1, connections=1, core=1)
    assert bulk.bytes_per_second > load.MIB


def test_pgbouncer(host: Host) -> None:
    c_pgbench.serve(host, host.folder / "postgres")
    listen = Place(HERE, 6432)
    peers.pgbouncer(
        host, host.folder / "pgbouncer", listen, Place(HERE, 5432), "postgres", {"postgres": "just-here"}, CORE
    )
    wrong = host.run(["psql", "-h", HERE, "-p", "6432", "-U", "postgres", "-c", "SELECT 1"], env={}, check=False)
    assert wrong.code == 2
    env = {"PGPASSWORD": "just-here"}
    measured = {"user": "postgres", "database": "postgres"}
    rate = load.pgbench(host, listen, **measured, seconds=1, clients=2, core=1, env=env)
    assert rate > 10


def test_redis_benchmark(host: Host) -> None:
    server = host.popen(["redis-server", "--port", "6379", "--bind", HERE, "--save", ""])
    until(lambda: host.run(["redis-cli", "-h", HERE, "ping"], check=False).output == "PONG\n", "Redis answers")
    rates = load.redis_benchmark(host, Place(HERE, 6379), requests=500, clients=2, core=1, options=(), env={})
    assert set(rates) == {"SET", "GET"}
    assert all(rate > 10 for rate in rates.values())
    server.stop()


def _of_the_program(pid: int, name: str) -> bool:
    """Whether the process is the program itself, and held to one core."""
    held = subprocess.run(["taskset", "-cp", str(pid)], capture_output=True, text=True, check=True).stdout
    return Path(f"/proc/{pid}/comm").read_text().strip() == name and held.rstrip().endswith(f": {CORE}")
