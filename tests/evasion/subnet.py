"""A subnet with two agents on one switch, a wire process on the gateway, and who attacks, works and answers there."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scapy.layers.l2 import Ether

from appliance.model import Identity
from appliance.wire.abi import Kind, Reason
from tests.lab.wait import until
from tests.wire.net import Net, Wire, inside, sh

RULED, UNRULED = "10.91.2.66", "fd91:2::66"  # the server's too; of its IPv6 addresses only one is ruled
THIEF, THIEF6 = "10.91.1.3", "fd91:1::3"
GATEWAY, GATEWAY6 = "10.91.1.1", "fd91:1::1"
FAR_GATEWAY, FAR_GATEWAY6 = "10.91.2.1", "fd91:2::1"
BOB = Identity(issuer="https://idp.example", subject="bob", client="agent")
EVE = Identity(issuer="https://idp.example", subject="eve", client="agent")
OPEN = "".join(
    f'[[rules]]\nto = "{to}"\nprotocol = "{protocol}"\n'
    for to in ("0.0.0.0/0", "fd91:2::2/128")
    for protocol in ("tcp", "udp", "icmp")
)


@dataclass
class Subnet(Net):
    """agent (.2) and thief (.3) – switch – agents0 [gateway] upstream0 – upstream."""

    @property
    def thief(self) -> str:
        return f"{self.prefix}-t"

    @property
    def switch(self) -> str:
        return f"{self.prefix}-s"

    def create(self) -> Self:
        for name in (self.thief, self.switch):
            sh("ip", "netns", "add", name)
            sh("ip", "link", "set", "lo", "up", netns=name)
            for knob in ("all.accept_dad=0", "default.accept_dad=0", "all.disable_ipv6=0", "default.disable_ipv6=0"):
                sh("sysctl", "-qw", f"net.ipv6.conf.{knob}", netns=name)
        sh("ip", "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0", netns=self.switch)
        sh("ip", "link", "set", "bridge", "up", netns=self.switch)
        super().create()
        sh("ip", "addr", "add", f"{RULED}/24", "dev", "eth0", netns=self.upstream)
        sh("ip", "-6", "addr", "add", f"{UNRULED}/64", "dev", "eth0", "nodad", netns=self.upstream)
        sh(
            "ip",
            "link",
            "add",
            "thief",
            "netns",
            self.switch,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.thief,
        )
        sh("ip", "link", "set", "thief", "master", "bridge", "up", netns=self.switch)
        self._address(self.thief, 3)
        return self

    def wire_up(self, host: str, name: str, number: int) -> None:
        if host != self.agent:
            super().wire_up(host, name, number)
            return
        for port, netns, link in (("gateway", self.gateway, name), ("agent", host, "eth0")):
            sh("ip", "link", "add", port, "netns", self.switch, "type", "veth", "peer", "name", link, "netns", netns)
            sh("ip", "link", "set", port, "master", "bridge", "up", netns=self.switch)
        sh("ip", "addr", "add", f"{GATEWAY}/24", "dev", name, netns=self.gateway)
        sh("ip", "-6", "addr", "add", f"{GATEWAY6}/64", "dev", name, "nodad", netns=self.gateway)
        sh("ip", "link", "set", name, "up", netns=self.gateway)
        self._address(host, 2)

    @staticmethod
    def _address(host: str, last: int) -> None:
        sh("ip", "addr", "add", f"10.91.1.{last}/24", "dev", "eth0", netns=host)
        sh("ip", "-6", "addr", "add", f"fd91:1::{last}/64", "dev", "eth0", "nodad", netns=host)
        sh("ip", "link", "set", "eth0", "up", netns=host)
        sh("ip", "route", "add", "default", "via", GATEWAY, netns=host)
        sh("ip", "-6", "route", "add", "default", "via", GATEWAY6, netns=host)

    def remove(self) -> None:
        super().remove()
        for name in (self.thief, self.switch):
            if Path("/run/netns", name).exists():
                sh("ip", "netns", "del", name)

    def mac(self, host: str, link: str = "eth0") -> str:
        return sh("ip", "-o", "link", "show", "dev", link, netns=host).split("link/ether ")[1].split()[0]

    def introduce(self, host: str) -> None:
        """Have the gateway know this host's link-layer addresses, as it does once the host has spoken to it."""

        def speak() -> None:
            for family, address in ((socket.AF_INET, GATEWAY), (socket.AF_INET6, GATEWAY6)):
                with socket.socket(family) as sock:
                    sock.settimeout(1)
                    sock.connect_ex((address, 8443))

        last = "2" if host == self.agent else "3"

        def known() -> bool:
            inside(host, speak)
            listed = sh("ip", "neigh", "show", "dev", "agents0", netns=self.gateway)
            return all(
                any(line.startswith(f"{address} ") and "lladdr" in line for line in listed.splitlines())
                for address in (f"10.91.1.{last}", f"fd91:1::{last}")
            )

        until(known, f"the gateway knows {host}")


def grant(wire: Wire, net: Subnet, host: str, identity: Identity, seconds: float = 600) -> None:
    """Leases for both addresses of a host."""
    net.introduce(host)
    last = "2" if host == net.agent else "3"
    for address in (f"10.91.1.{last}", f"fd91:1::{last}"):
        wire.client.grant(address, identity, time.time_ns() + int(seconds * 1e9))


def refused(wire: Wire) -> dict[str, int]:
    """Packets refused so far, by reason."""
    said: dict[str, int] = wire.client.status()["refusals"]
    return said


def reason(name: Reason) -> str:
    return name.name.lower().replace("_", "-")


class Cable:
    """Puts frames on a host's wire, as its owner likes them."""

    def __init__(self, net: Subnet, host: str) -> None:
        self.mac = net.mac(host)
        self.gateway = net.mac(net.gateway, "agents0")
        self._socket = inside(host, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        self._socket.bind(("eth0", 0))

    def send(self, packet: Any, *, source: str = "") -> None:
        """An IP packet to the gateway, from the host's own link-layer address or another one; or a whole frame."""
        if not isinstance(packet, (bytes, Ether)):
            packet = Ether(dst=self.gateway, src=source or self.mac) / packet
        self._socket.send(bytes(packet))

    def close(self) -> None:
        self._socket.close()


def canonical(packet: bytes) -> bytes:
    """An IP packet less what forwarding changes: hop limit and header checksum."""
    kept = bytearray(packet)
    if kept[0] >> 4 == 4:
        kept[8] = kept[10] = kept[11] = 0
        return bytes(kept[: int.from_bytes(kept[2:4], "big")])
    kept[7] = 0
    return bytes(kept[: 40 + int.from_bytes(kept[4:6], "big")])


def recorded(wire: Wire) -> set[bytes]:
    """Every packet that the journal has, `canonical`."""
    return {canonical(data) for record, data in wire.records() if record.kind == Kind.PACKET}


def flood(host: str, script: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """A program of its own that floods, so that the test's own threads are not held up by it."""
    command = ["nsenter", f"--net=/run/netns/{host}", "/usr/bin/python3", "-c", script, *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


@dataclass
class Honest:
    """An agent at work: short connections, each one request and its answer. Counts those that went well."""

    net: Subnet
    address: str
    port: int
    done: int = 0
    failed: list[str] = field(default_factory=list)

    def once(self) -> None:
        try:
            with self.net.connect(self.port, self.address, timeout=10) as sock:
                sock.sendall(b"question")
                if sock.recv(100) == b"answer":
                    self.done += 1
                else:
                    self.failed.append("no answer")
        except OSError as error:
            self.failed.append(str(error))

    def work(self, until: Callable[[], bool]) -> float:
        """Transactions in a second, until it is time."""
        before, begun = self.done, time.monotonic()
        while not until():
            self.once()
        return (self.done - before) / (time.monotonic() - begun)


class Server:
    """Context manager: answers questions on the upstream host, on any free port of an address."""

    def __init__(self, net: Subnet, address: str) -> None:
        self._listener = net.listen(address)
        self._listener.listen(512)
        self._listener.settimeout(0.1)
        self.port: int = self._listener.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                continue
            with accepted:
                accepted.settimeout(5)
                try:
                    if accepted.recv(100):
                        accepted.sendall(b"answer")
                except OSError:
                    continue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()
