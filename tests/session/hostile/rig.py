"""A hostile end, a gateway with the capture program, a real Linux socket at the other end.

    hostile (raw frames, no kernel of its own) ── agents │ gateway │ servers ── Linux (sockets), or the other way round

The hostile end has an address that no kernel answers for, so whatever it sends is what the case says, and nothing else.
Packets go through the capture program and are forwarded; the records go to the recorder's assembler, and what a Linux
process read from its socket is what the recording is compared with.
"""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from typing import NamedTuple, TypeVar

from appliance import config
from appliance.journal import RING, Frame, FrameKind
from appliance.model import Row
from appliance.session.assembler import Assembler
from appliance.wire import bpf, filters
from appliance.wire.ring import Ring
from tests.bpf.bench import Bench, Namespace
from tests.bpf.test_live import AGENT, AGENT6, SERVER, SERVER6, Network, attach
from tests.session.traffic import STREAM

T = TypeVar("T")
CLIENT, CLIENT6 = "10.7.1.66", "fd07:1::66"  # of the hostile ends
RAW_SERVER = "10.7.2.66"
BARRIER = 9  # UDP port
DEADLINE = 20.0
ETH_P_ALL, PACKET_IGNORE_OUTGOING, SOL_PACKET, SO_RCVBUFFORCE = 3, 23, 263, 33
SECOND = 1_000_000_000


class Reply(NamedTuple):
    """A TCP packet that a Linux end sent to a hostile one."""

    source: int  # ports
    port: int
    seq: int
    ack: int
    flags: int
    window: int
    data: bytes
    stamp: int  # its time stamp (RFC 7323), 0: none
    scale: int | None


class Raw:
    """A raw socket on the wire to the gateway."""

    def __init__(self, space: Namespace, *addresses: str) -> None:
        self.space = space
        self._own = {ip_address(address).packed for address in addresses}
        self.mac = space.ip("-o", "link", "show", "dev", "host").split("link/ether ")[1][:17]
        self.sender = space.run(lambda: self.open("host"))
        self.receiver = space.run(lambda: self.open("host", ETH_P_ALL))
        self.receiver.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        self.receiver.setblocking(False)

    @staticmethod
    def open(device: str, protocol: int = 0) -> socket.socket:
        """A raw socket on a device of the namespace that this runs in; without a protocol, for sending only."""
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        link.bind((device, protocol))
        return link

    def replies(self) -> list[Reply]:
        """What arrived since."""
        found: list[Reply] = []
        while True:
            try:
                frame = self.receiver.recv(1 << 16)
            except BlockingIOError:
                return found
            reply = parse(frame[14:]) if {frame[30:34], frame[38:54]} & self._own else None
            if reply is not None:
                found.append(reply)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


def parse(packet: bytes) -> Reply | None:
    """The TCP header of an IP packet; the port is the destination's."""
    version = packet[0] >> 4
    at = (packet[0] & 15) * 4 if version == 4 else 40
    if packet[9 if version == 4 else 6] != 6:
        return None
    end = struct.unpack_from(">H", packet, 2)[0] if version == 4 else struct.unpack_from(">H", packet, 4)[0] + 40
    source, port, seq, ack, size, flags, window = struct.unpack_from(">HHIIBBH", packet, at)
    start = at + (size >> 4) * 4
    stamp, scale = 0, None
    options = packet[at + 20 : start]
    while len(options) > 1 and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
            continue
        if options[0] == 8:
            (stamp,) = struct.unpack_from(">I", options, 2)
        elif options[0] == 3:
            scale = options[2]
        options = options[max(2, options[1]) :]
    return Reply(source, port, seq, ack, flags, window, packet[start:end], stamp, scale)


class Rig:
    """`drain` after packets; `rows` has what the recorder made of them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        network = self.network = Network()
        self._stack.callback(network.close)
        agents, servers = network.gateway.index("agents"), network.gateway.index("servers")
        self.bench = Bench(network.gateway, agents, servers, config.Wire(ring_bytes=2**24))
        self._stack.callback(self.bench.close)
        for address in (AGENT, AGENT6, CLIENT, CLIENT6):
            self.bench.lease(address, seconds=86_400)
        for to in ("10.7.2.0/24", "fd07:2::/64"):
            self.bench.rule(to)
        for address in ("10.7.1.1", "10.7.2.1", "fd07:1::1", "fd07:2::1"):
            self.bench.local(address)
        self._attach()
        self.agent, self.upstream = Raw(network.agent, CLIENT, CLIENT6), Raw(network.upstream, RAW_SERVER)
        self._stack.callback(self.agent.close)
        self._stack.callback(self.upstream.close)
        for device, raw, addresses in (
            ("agents", self.agent, (CLIENT, CLIENT6, AGENT, AGENT6)),
            ("servers", self.upstream, (RAW_SERVER, SERVER, SERVER6)),
        ):
            for address in addresses:  # known beforehand: nothing waits for an answer, and is late then
                network.gateway.ip("neigh", "replace", address, "lladdr", raw.mac, "dev", device, "nud", "permanent")
        self.macs = {
            device: network.gateway.ip("-o", "link", "show", "dev", device).split("link/ether ")[1][:17]
            for device in ("agents", "servers")
        }
        for raw, device, number in ((self.agent, "agents", 1), (self.upstream, "servers", 2)):
            for address in (f"10.7.{number}.1", f"fd07:{number}::1"):
                mac = self.macs[device]
                raw.space.ip("neigh", "replace", address, "lladdr", mac, "dev", "host", "nud", "permanent")
        self.ring = Ring(self.bench.maps["ring"], 2**24)
        self._stack.callback(self.ring.close)
        self._barriers = [
            network.upstream.run(lambda: self._udp(SERVER)),
            network.agent.run(lambda: self._udp(AGENT)),
        ]
        for end in self._barriers:
            self._stack.callback(end.close)
        self._barriers[1].sendto(b"opens the flow", (RAW_SERVER, BARRIER))
        self._count = 0
        self.begin()

    def _attach(self) -> None:
        ours = filters.Filter(filters.ARRIVAL, self.bench.fd, bpf.program_id(self.bench.fd))
        for ifindex in (self.bench.agent, self.bench.upstream):
            self.network.gateway.run(lambda ifindex=ifindex: attach(ours, ifindex))  # type: ignore[misc]

    @staticmethod
    def _udp(address: str) -> socket.socket:
        end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        end.bind((address, BARRIER))
        end.settimeout(DEADLINE)
        return end

    def close(self) -> None:
        self._stack.close()

    def barrier(self, hostile_server: bool = False) -> None:
        """Wait until everything that was sent has been through all three network stacks, in order."""
        from scapy.layers.inet import IP, UDP
        from scapy.layers.l2 import Ether

        self._count += 1
        word = b"%d" % self._count
        raw, device, source, target = (
            (self.upstream, "servers", RAW_SERVER, AGENT) if hostile_server else (self.agent, "agents", CLIENT, SERVER)
        )
        packet = IP(src=source, dst=target) / UDP(sport=BARRIER, dport=BARRIER) / word
        raw.sender.send(bytes(Ether(dst=self.macs[device], src=raw.mac) / packet))
        while self._barriers[hostile_server].recv(100) != word:
            pass

    # -- what the recorder makes of it -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Forget what came before: a new recorder."""
        self.drop()
        self._assembler = Assembler(STREAM, config.Record(), "gw")
        self._number = 0
        self.rows: list[Row] = []
        self._clock(0)

    def _feed(self, kind: FrameKind, payload: bytes, start: int = 0, end: int = 0) -> None:
        self._number += 1
        self.rows += self._assembler.feed(Frame(self._number, kind, time.time_ns(), payload, start, end, RING))

    def _clock(self, ahead: int) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + ahead
        self._feed(FrameKind.CLOCK, struct.pack("<QQ", now, time.time_ns() + ahead))

    def _spans(self) -> Iterator[tuple[bytes, int, int]]:
        while (end := self.ring.committed(self.ring.position)) > self.ring.position:
            start = self.ring.position
            yield bytes(self.ring.span(start, end)), start, end
            self.ring.advance(end)

    def drain(self) -> None:
        """Give the assembler what was recorded since."""
        for span, start, end in self._spans():
            self._feed(FrameKind.SPAN, span, start, end)

    def drop(self) -> None:
        for _ in self._spans():
            pass

    def pass_time(self, seconds: float) -> None:
        """Recorded time goes on without packets."""
        self.drain()
        self._clock(round(seconds * SECOND))


def pinned(function: Callable[[], T]) -> T:
    """Run on one CPU: frames that one thread sends there arrive in their order."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        return function()
    finally:
        os.sched_setaffinity(0, before)
