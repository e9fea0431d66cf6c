"""Two ways from a client to a server, alike but for what their gateways do.

    client ── 10.30.1.0/24 ── bare ── 10.30.11.0/24 ── server
           └─ 10.30.2.0/24 ── tap ─── 10.30.12.0/24 ─┘

`bare` only routes. On `tap` runs `verbatim wire`, with a journal whose segments were used before, as on a machine that
runs for a while. Both exist at the same time, so that their figures can be taken in turns.
"""

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance import status
from appliance.journal import Cursor, FrameKind, JournalKey, Reader, release
from tests.lab import leftovers
from tests.lab.appliance import mount_bpffs, toml
from tests.lab.net import PYTHON, Host, Nic, connect, ip
from tests.lab.process import Process
from tests.lab.wait import until

GIB = 2**30
WAYS = ("bare", "tap")


def nic(name: str, network: int, number: int) -> Nic:
    return Nic(name, IPv4Interface(f"10.30.{network}.{number}/24"), IPv6Interface(f"fd30:0:0:{network}::{number}/64"))


@dataclass(frozen=True)
class Way:
    """`address`: the server's, by which the client's packets take this way."""

    name: str
    gateway: Host
    address: str
    inside: str  # the gateway's interface towards the client


class Ways:
    """Context manager: client, two gateways and a server in namespaces of their own."""

    def __init__(self, journal_bytes: int = 6 * GIB) -> None:
        self.prefix = f"vb-{secrets.token_hex(3)}"
        self.folder = Path()
        self.journal_bytes = journal_bytes
        self._hosts: list[Host] = []
        self._wire: Process | None = None

    def __enter__(self) -> Self:
        leftovers.sweep()
        mount_bpffs()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self.folder.chmod(0o755)
        leftovers.claim(self.prefix, self.folder)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for host in self._hosts:
            for process in host.started:
                process.stop()
        leftovers.remove(self.prefix)

    def _host(self, name: str) -> Host:
        host = Host(self.prefix, name, self.folder / name)
        host.create()
        self._hosts.append(host)
        return host

    def _build(self) -> None:
        self.client, self.server = self._host("client"), self._host("server")
        self.ways: dict[str, Way] = {}
        for number, name in enumerate(WAYS, 1):
            gateway = self._host(name)
            gateway.sysctl({"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1})
            connect(self.client, nic(name, number, 2), gateway, nic("inside", number, 1))
            connect(gateway, nic("outside", 10 + number, 1), self.server, nic(name, 10 + number, 2))
            ip(
                f"route add 10.30.{10 + number}.0/24 via 10.30.{number}.1",
                f"route add fd30:0:0:{10 + number}::/64 via inet6 fd30:0:0:{number}::1",
                netns=self.client.netns,
            )
            ip(
                f"route add 10.30.{number}.0/24 via 10.30.{10 + number}.1",
                f"route add fd30:0:0:{number}::/64 via inet6 fd30:0:0:{10 + number}::1",
                netns=self.server.netns,
            )
            self.ways[name] = Way(name, gateway, f"10.30.{10 + number}.2", "inside")

    # -- traffic -----------------------------------------------------------------------------------------------------

    def serve(self, role: str, port: int) -> None:
        """Start a server of `traffic`."""
        self.server.popen([PYTHON, "-m", "tests.bench.traffic", role, str(port)])
        until(lambda: self.server.run(["ss", "-Hltn", f"sport = :{port}"]).output, f"port {port} is open")

    def ask(self, role: str, way: str, port: int, *arguments: object, timeout: float = 120.0) -> Any:
        """What a client of `traffic` says of the server, reached by one of the ways."""
        to = [self.ways[way].address, str(port), *(str(argument) for argument in arguments)]
        return json.loads(self.client.run([PYTHON, "-m", "tests.bench.traffic", role, *to], timeout=timeout).output)

    # -- recording ---------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def settings(self) -> dict[str, Any]:
        return {
            "data": str(self.data),
            "wire": {
                "agents": ["inside"],
                "upstream": ["outside"],
                "bpffs": str(leftovers.BPFFS / self.prefix),
            },
            "journal": {"max_bytes": self.journal_bytes, "min_free_bytes": GIB},
            "rules": [{"to": "10.30.12.0/24", "unbound": True}, {"to": "fd30:0:0:12::/64", "unbound": True}],
        }

    def record(self, changes: dict[str, Any] | None = None, program: Sequence[object] = ("appliance", "wire")) -> None:
        """Start `verbatim wire` on the gateway `tap`, or a program like it; it records when this returns."""
        path = self.folder / "verbatim.toml"
        path.write_text("\n".join(toml(self.settings() | (changes or {}))) + "\n")
        command = [str(PYTHON), "-m", *(str(word) for word in program), "--config", str(path)]
        process = self._wire = self.ways["tap"].gateway.popen(command)

        def is_up() -> bool:
            process.check()
            said = status.read(self.data).get("wire")
            return said is not None and said.live

        until(is_up, "verbatim wire is up", 60)

    def stop_recording(self) -> None:
        """End the process that `record` started."""
        assert self._wire is not None
        self._wire.stop()

    def wire_values(self) -> dict[str, Any]:
        """What `verbatim wire` says of itself."""
        return status.read(self.data)["wire"].values

    def settle(self) -> None:
        """Wait until the journal has everything that was forwarded."""
        until(lambda: self.wire_values()["ring"]["fill"] == 0, "the ring is empty", 60, 0.2)
        time.sleep(1.1)  # its next report is about what came before

    def recycle(self) -> None:
        """Say that the journal is read, as the recorder does: its segments are used again."""
        self.settle()
        with self.reader() as reader:
            while reader.read() is not None:
                pass
            release(self.data / "journal" / "wire", reader.cursor)

    def reader(self) -> Reader:
        folder = self.data / "journal" / "wire"
        released = (folder / "released").exists()
        words = (folder / "released").read_text().split() if released else []
        cursor = Cursor(*(int(word) for word in words)) if words else None
        return Reader(folder, JournalKey.load_or_create(self.data), cursor)

    def spans(self) -> Iterator[Any]:
        """The SPAN frames that were written since the last `recycle`."""
        with self.reader() as reader:
            while (frame := reader.read()) is not None:
                if getattr(frame, "kind", None) is FrameKind.SPAN:
                    yield frame


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory, for what must not wait for a disk."""
    folder = Path(tempfile.mkdtemp(prefix="vb-bench-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
