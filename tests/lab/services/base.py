"""What a server of the lab is: a program on an upstream host of its own.

A new one is a subclass in a file of this package, added to `SERVICES` or `ON_DEMAND` in `__init__.py`: it gets a host,
names in DNS, a place in the rules of the appliance, and is started with the lab or when it is first asked for.
"""

import shutil
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from tests.lab.net import Host
from tests.lab.pki import Pki
from tests.lab.process import Process
from tests.lab.wait import until

DOMAIN = "lab.test"
START_SECONDS = 60.0  # a database that makes its files on a busy machine


@dataclass(frozen=True)
class Opening:
    """A port that agents may reach; 0 is any. `unbound`: without a lease too."""

    protocol: Literal["tcp", "udp", "any"]
    port: int
    unbound: bool = False


@dataclass(frozen=True)
class Site:
    """Where a service lives. `names` are all names of the lab with their IPv4 and IPv6 addresses."""

    host: Host
    folder: Path
    pki: Pki
    names: dict[str, tuple[str, str]]
    secrets: set[str] = field(default_factory=set)  # what must never be found at rest


class Service(ABC):
    """One server program. `number` is the last part of its host's addresses."""

    name: ClassVar[str]
    number: ClassVar[int]
    openings: ClassVar[Sequence[Opening]]
    aliases: ClassVar[Sequence[str]] = ()  # further names of the host
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, site: Site) -> None:
        self.site = site
        self.processes: list[Process] = []
        self.folder = site.folder / self.name
        self.folder.mkdir()

    @property
    def host(self) -> Host:
        return self.site.host

    @property
    def fqdn(self) -> str:
        return f"{self.name}.{DOMAIN}"

    @classmethod
    def names(cls) -> list[str]:
        """All names of its host."""
        return [f"{name}.{DOMAIN}" for name in (cls.name, *cls.aliases)]

    @property
    def addresses(self) -> tuple[str, str]:
        """IPv4, IPv6."""
        return self.host.nic.addresses

    @abstractmethod
    def start(self) -> None:
        """Start the programs. They need not be ready when this returns."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether clients are served by now."""

    def wait(self) -> None:
        """Until it is ready; raises with the program's output when it ends before."""

        def look() -> bool:
            self.check()
            return self.ready()

        until(look, f"{self.fqdn} is ready", START_SECONDS)

    def check(self) -> None:
        """Raise, with a program's output, if it is not running any more."""
        for process in self.processes:
            process.check()

    def certificate(self, user: str = "root") -> tuple[Path, Path]:
        """The server's certificate and key, signed by the lab's authority; the key is readable by `user` only."""
        made = self.site.pki.issue(self.fqdn, self.addresses, aliases=self.names()[1:])
        certificate, key = (Path(shutil.copy(path, self.folder)) for path in made)
        shutil.chown(key, user)
        key.chmod(0o600)
        return certificate, key

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop(self.stop_signal)

    def listening(self, *ports: int) -> bool:
        """Whether TCP connections to these ports of the host's own addresses are accepted."""

        def look() -> bool:
            for address in self.addresses:
                for port in ports:
                    try:
                        socket.create_connection((address, port), 2).close()
                    except OSError:
                        return False
            return True

        return self.host.call(look)
