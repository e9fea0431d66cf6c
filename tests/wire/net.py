"""An agent's host, a gateway and an upstream host: three network namespaces, and the wire process between them."""

import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from appliance.journal import Damage, Frame, FrameKind, JournalKey, Reader
from appliance.wire.abi import Kind, Record, Side
from appliance.wire.control import SOCKET, Client
from appliance.wire.records import records
from tests.lab.wait import until

ROOT = Path(__file__).resolve().parents[2]
CLONE_NEWNET = 0x40000000
AGENT, AGENT6 = "10.91.1.2", "fd91:1::2"
UPSTREAM, UPSTREAM6 = "10.91.2.2", "fd91:2::2"
T = TypeVar("T")

PROGRAM = """
import sys
from pathlib import Path
from appliance import config
from appliance.wire import daemon
from appliance.wire.teardown import teardown
settings = config.load(Path(sys.argv[1]))
teardown(settings, stay_open=True) if sys.argv[2] == "teardown" else daemon.run(settings)
"""


def sh(*command: str, netns: str = "") -> str:
    within = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
    done = subprocess.run([*within, *command], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def inside(netns: str, function: Callable[[], T]) -> T:
    """Call `function` in a thread that lives in the namespace: its sockets stay there."""
    result: list[Any] = []

    def body() -> None:
        fd = os.open(f"/run/netns/{netns}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {netns}")
            result.append((True, function()))
        except BaseException as error:
            result.append((False, error))
        finally:
            os.close(fd)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    ok, value = result[0]
    if not ok:
        raise value
    return value  # type: ignore[no-any-return]


@dataclass
class Net:
    """Context manager: agent (10.91.1.2) – agents0 [gateway] upstream0 – upstream (10.91.2.2), IPv6 alike."""

    prefix: str = field(default_factory=lambda: f"vb-w{secrets.token_hex(3)}")

    @property
    def agent(self) -> str:
        return f"{self.prefix}-a"

    @property
    def gateway(self) -> str:
        return f"{self.prefix}-g"

    @property
    def upstream(self) -> str:
        return f"{self.prefix}-u"

    def __enter__(self) -> Self:
        try:
            return self.create()
        except BaseException:
            self.remove()
            raise

    def __exit__(self, *error: object) -> None:
        self.remove()

    def create(self) -> Self:
        for name in (self.agent, self.gateway, self.upstream):
            sh("ip", "netns", "add", name)
            sh("ip", "link", "set", "lo", "up", netns=name)
            for knob in ("all.accept_dad=0", "default.accept_dad=0", "all.disable_ipv6=0", "default.disable_ipv6=0"):
                sh("sysctl", "-qw", f"net.ipv6.conf.{knob}", netns=name)
        sh("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", netns=self.gateway)
        self.wire_up(self.agent, "agents0", 1)
        self.wire_up(self.upstream, "upstream0", 2)
        return self

    def wire_up(self, host: str, name: str, number: int) -> None:
        """(Re-)create the link between `host`'s eth0 and the gateway's `name`."""
        sh("ip", "link", "add", name, "netns", self.gateway, "type", "veth", "peer", "name", "eth0", "netns", host)
        for netns, link, last in ((self.gateway, name, 1), (host, "eth0", 2)):
            sh("ip", "addr", "add", f"10.91.{number}.{last}/24", "dev", link, netns=netns)
            sh("ip", "-6", "addr", "add", f"fd91:{number}::{last}/64", "dev", link, "nodad", netns=netns)
            sh("ip", "link", "set", link, "up", netns=netns)
        sh("ip", "route", "add", "default", "via", f"10.91.{number}.1", netns=host)
        sh("ip", "-6", "route", "add", "default", "via", f"fd91:{number}::1", netns=host)

    def remove(self) -> None:
        for name in (self.agent, self.gateway, self.upstream):
            if Path("/run/netns", name).exists():
                sh("ip", "netns", "del", name)

    def connect(self, port: int, address: str = UPSTREAM, timeout: float = 5.0) -> socket.socket:
        """A TCP connection from the agent's host."""
        return inside(self.agent, lambda: socket.create_connection((address, port), timeout))

    def listen(self, address: str = UPSTREAM) -> socket.socket:
        """A TCP listener on the upstream host, at any free port."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = inside(self.upstream, lambda: socket.create_server((address, 0), family=family))
        listener.settimeout(5.0)
        return listener


@dataclass
class Wire:
    """A wire process of `net`'s gateway. `rules`, `wire` and `journal`: TOML."""

    net: Net
    data: Path
    rules: str = '[[rules]]\nto = "0.0.0.0/0"\nprotocol = "tcp"\n[[rules]]\nto = "::/0"\nprotocol = "tcp"\n'
    wire: str = ""
    journal: str = ""
    bind: str = "bind_link = false\n"  # leases are given without traffic before: nobody knows a neighbour yet
    flows: int = 1024
    ring: int = 2**20  # bytes
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.data / "verbatim.toml"

    @property
    def bpffs(self) -> Path:
        return Path("/sys/fs/bpf") / self.net.prefix

    def command(self, function: str) -> list[str]:
        self.data.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            f'data = "{self.data}"\nnode = "gw"\n'
            f"[journal]\nmin_free_bytes = 1048576\n{self.journal or JOURNAL}"
            f'[wire]\nagents = ["agents0"]\nupstream = ["upstream0"]\nbpffs = "{self.bpffs}"\n'
            f"ring_bytes = {self.ring}\nmax_flows = {self.flows}\n{self.bind}{self.wire}\n{self.rules}"
        )
        enter = ["nsenter", f"--net=/run/netns/{self.net.gateway}"]
        return [*enter, sys.executable, "-c", PROGRAM, str(self.config), function]

    @property
    def client(self) -> Client:
        return Client(self.data / "run" / SOCKET)

    @property
    def log(self) -> Path:
        return self.data / "wire.log"

    def start(self) -> Self:
        command = self.command("run")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log)
        until(self.answers, "the wire process answers", 60)
        return self

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.client.status())
        except Exception:
            return False

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """End the process; its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(signum)
        code = self.process.wait(20)
        self.process = None
        return code

    def teardown(self) -> None:
        self.stop(signal.SIGKILL)
        done = subprocess.run(self.command("teardown"), cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def frames(self) -> list[Frame]:
        """All frames of the journal so far; a span that was written twice, once."""
        found: list[Frame] = []
        ring, end = "", 0
        with Reader(self.data / "journal" / "wire", JournalKey.load(self.data)) as reader:
            while (item := reader.read()) is not None:
                assert not isinstance(item, Damage), item
                if item.kind is FrameKind.OPEN and (opened := json.loads(item.payload)["ring"]) != ring:
                    ring, end = opened, 0  # positions are those of one ring
                if item.kind is FrameKind.SPAN and item.ring_end:
                    if item.ring_end <= end:
                        continue
                    end = item.ring_end
                found.append(item)
        return found

    def records(self) -> Iterator[tuple[Record, bytes]]:
        for frame in self.frames():
            if frame.kind is FrameKind.SPAN:
                for _, record, data in records(frame):
                    yield record, bytes(data)

    def events(self) -> list[str]:
        return [json.loads(frame.payload)["kind"] for frame in self.frames() if frame.kind is FrameKind.EVENT]

    def stream(self, port: int, side: Side) -> bytes:
        """TCP payload that `side` sent on the connection to `port`, in order, up to the first that is missing."""
        pieces: dict[int, bytes] = {}
        first = None
        for record, data in self.records():
            ports = {record.source_port, record.destination_port}
            if record.kind != Kind.PACKET or record.protocol != 6 or port not in ports or record.side != side:
                continue
            first = record.seq if first is None else first
            payload = data[record.header : record.header + record.payload]
            if payload and len(payload) > len(pieces.get((record.seq - first) & 0xFFFFFFFF, b"")):
                pieces[(record.seq - first) & 0xFFFFFFFF] = payload
        whole = bytearray()
        for at, payload in sorted(pieces.items()):
            start = at - 1  # the SYN has a number of its own
            if start > len(whole):
                break
            whole += payload[len(whole) - start :]
        return bytes(whole)


JOURNAL = "segment_bytes = 4194304\nmax_bytes = 67108864\n"
