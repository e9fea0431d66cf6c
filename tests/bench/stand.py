"""Where relays are measured: all on the loopback of one host, what is measured on one core, both ends on another.

The relay's journal is on the disk. `verbatim record` does not run: it would take the core of somebody, and what it
takes is another case (`e_record`). Full segments are given back for reuse, as it does when it has read them, so that
they are written anew, as on a gateway that runs for a while.
"""

import secrets
import statistics
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.journal import Cursor, release
from tests.bench import Figure
from tests.bench.peers import Place, cpu_seconds, pinned
from tests.lab import leftovers
from tests.lab.appliance import toml
from tests.lab.net import PYTHON, Host
from tests.lab.pki import Pki
from tests.lab.process import Process
from tests.lab.wait import until

HERE = "127.0.0.1"
SUBJECT, ENDS = 0, 1  # cores: of the relay or its peer, and of client and server together
NAME = "origin.lab.test"
KEPT = 3  # newest segments that are not given back
EVERY = 0.25  # seconds
GIB = 2**30


@dataclass(frozen=True)
class Subject:
    """What stands between client and server at `place`; `process` None: nothing does, this is the server."""

    name: str
    place: Place
    process: Process | None = None


@dataclass(slots=True)
class Turns:
    """What was found of one subject: work per second, and per second of its CPU time (none: nothing is between)."""

    rates: list[float] = field(default_factory=list)
    per_cpu: list[float] = field(default_factory=list)
    busy: float = 0.0  # of its core, in the last turn

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def by_cpu(self) -> float:
        return statistics.median(self.per_cpu)


class Stand:
    """Context manager. `pki` signs what servers show; `server_pair` are such a certificate and its key."""

    def __init__(self) -> None:
        self.prefix = f"vb-{secrets.token_hex(3)}"
        self._streams: list[Path] = []
        self._ended = threading.Event()
        self._giving = threading.Thread(target=self._give_back, daemon=True)

    def __enter__(self) -> Self:
        leftovers.sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self.folder.chmod(0o755)
        leftovers.claim(self.prefix, self.folder)
        self.host = Host(self.prefix, "stand", self.folder / "host")
        try:
            self.host.create()
            self.pki = Pki(self.folder / "pki")
            self.server_pair = self.pki.issue(NAME, (HERE,))
        except BaseException:
            leftovers.remove(self.prefix)
            raise
        self._giving.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._giving.join()
        for process in self.host.started:
            process.stop()
        leftovers.remove(self.prefix)

    def relay(self, name: str, server: Place, rule: Mapping[str, Any]) -> Subject:
        """A relay in front of `server`, whose `rule` has flows treated so."""
        folder = self.folder / name
        folder.mkdir()
        settings = {
            "data": str(folder / "data"),
            "log_level": "warning",
            "journal": {"max_bytes": 8 * GIB, "min_free_bytes": GIB},
            "relay": {"max_connections_per_lease": 8192},
            "rules": [{"to": "127.0.0.0/8", "protocol": "tcp", "lane": "relay", "relay": dict(rule)}],
        }
        config, told = folder / "verbatim.toml", folder / "port"
        config.write_text("\n".join(toml(settings)) + "\n")
        command: list[str | Path] = [PYTHON, "-m", "tests.bench.relaying", config, server.address, str(server.port)]
        process = self.host.popen(pinned([*command, told], SUBJECT))

        def listens() -> bool:
            process.check()
            return told.exists()

        until(listens, f"the relay {name} listens", 30)
        self._streams.append(folder / "data" / "journal" / "relay-0")
        return Subject(name, Place(HERE, int(told.read_text())), process)

    def _give_back(self) -> None:
        while not self._ended.wait(EVERY):
            for folder in list(self._streams):
                segments = sorted(int(path.stem, 16) for path in folder.glob("*.seg"))
                if len(segments) > 2 * KEPT:
                    with suppress(FileNotFoundError):
                        release(folder, Cursor(segments[-KEPT], 0, 1))


def in_turns(
    subjects: Sequence[Subject],
    work: Callable[[Subject], tuple[float, float]],
    *,
    rounds: int,
    unit: str,
    say: Callable[[str], None],
) -> dict[str, Turns]:
    """What each subject did, by name. `work` has one do some, and tells how much it was, in `unit`, and the seconds.

    A round before those that count warms everything up, and makes the journal's segments.
    """
    found = {one.name: Turns() for one in subjects}
    for number in range(rounds + 1):
        for one in subjects:
            before = cpu_seconds(one.process.pid) if one.process else 0.0
            amount, seconds = work(one)
            used = cpu_seconds(one.process.pid) - before if one.process else 0.0
            if number:
                turns = found[one.name]
                turns.rates.append(amount / seconds)
                if used:
                    turns.per_cpu.append(amount / used)
                    turns.busy = used / seconds
        if number:
            told = (
                f"{name} {turns.rates[-1]:,.0f}" + (f" ({turns.busy:.0%} of its core)" if turns.per_cpu else "")
                for name, turns in found.items()
            )
            say(f"round {number} of {rounds}, {unit}/s: {', '.join(told)}")
    return found


def compared(
    case: str, what: str, found: Mapping[str, Turns], mine: str, peer: str, unit: str, reach: str = ""
) -> list[Figure]:
    """Work per second of both, which is to be in `reach`; and per second of CPU time: where the ends of the traffic are
    the limit, it tells how much more each could do."""
    own, other = found[mine], found[peer]
    figures = [Figure(case, f"{what}, {mine}", peer, own.rate, other.rate, f"{unit}/s", reach)]
    if other.per_cpu:
        subject = f"{what}, {mine}, of CPU time"
        figures.append(Figure(case, subject, peer, own.by_cpu, other.by_cpu, f"{unit}/CPU s"))
    return figures
