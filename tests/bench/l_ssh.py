"""SSH through the relay, which terminates it on both sides, against direct: a file by scp, and keys in a terminal.

OpenSSH's client and server share one core; the relay has another to itself. Agents log in with the server's password.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.bench import Figure
from tests.bench.load import MIB
from tests.bench.peers import Place, pinned
from tests.bench.stand import ENDS, Stand, Subject, compared, in_turns
from tests.lab.net import PYTHON
from tests.lab.services.ssh import USER, Ssh
from tests.relay.sshd import Sshd

TITLE = "SSH through the relay against direct: scp, and the echo of keys"
SIZE = 1024  # MiB
KEYS = 400
ROUNDS = 3
DIRECT, RELAY = "direct", "relay"
OPTIONS = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]


def run(say: Callable[[str], None]) -> list[Figure]:
    with Stand() as stand:
        sshd = stand.host.call(Sshd)

        def serve() -> None:
            os.sched_setaffinity(0, {ENDS})  # of this thread, which the server inherits
            sshd.__enter__()

        stand.host.call(serve)
        try:
            server = Place(*sshd.address)
            rule = {"application": "ssh", "mode": "mediate"}
            several = [Subject(DIRECT, server), stand.relay(RELAY, server, rule)]
            environment = Ssh.by_password(stand.host, sshd.password)
            return [*copied(stand, several, environment, say), *typed(stand, several, environment, say)]
        finally:
            sshd.__exit__()


def copied(
    stand: Stand, several: Sequence[Subject], environment: Mapping[str, str], say: Callable[[str], None]
) -> list[Figure]:
    content = stand.folder / "content"
    with content.open("wb") as file:
        for _ in range(SIZE):
            file.write(os.urandom(MIB))

    def copy(one: Subject) -> tuple[float, float]:
        to = f"{USER}@{one.place.address}:copy"
        command: list[str | Path] = ["scp", "-q", *OPTIONS, "-P", str(one.place.port), content, to]
        began = time.monotonic()
        stand.host.run(pinned(command, ENDS), env=environment, timeout=300)
        return SIZE, time.monotonic() - began

    found = in_turns(several, copy, rounds=ROUNDS, unit="MiB", say=say)
    return compared("l", f"scp of {SIZE} MiB", found, RELAY, DIRECT, "MiB")


def typed(
    stand: Stand, several: Sequence[Subject], environment: Mapping[str, str], say: Callable[[str], None]
) -> list[Figure]:
    """Median and 99th percentile of the time from a key to its echo, of all rounds."""
    took: dict[str, list[float]] = {one.name: [] for one in several}
    for _ in range(ROUNDS):
        for one in several:
            to = ["-p", str(one.place.port), f"{USER}@{one.place.address}"]
            command: list[str | Path] = [PYTHON, "-m", "tests.bench.keystrokes", str(KEYS), "ssh", "-tt", *OPTIONS, *to]
            took[one.name] += json.loads(stand.host.run(pinned(command, ENDS), env=environment, timeout=120).output)
    percentiles = {name: statistics.quantiles(found, n=100) for name, found in took.items()}
    for name, found in percentiles.items():
        say(f"{name}: a key is echoed in {found[49] * 1e3:.2f} ms (median), {found[98] * 1e3:.2f} ms (p99)")
    relay, direct = percentiles[RELAY], percentiles[DIRECT]
    return [
        Figure("l", f"echo of a key, {what}, relay", DIRECT, relay[index] * 1e3, direct[index] * 1e3, "ms")
        for what, index in (("median", 49), ("p99", 98))
    ]
