"""Attached to real interfaces: agent — gateway — upstream, with the interlock's essence, and real TCP through it."""

import random
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from appliance import config
from appliance.wire import abi, bpf, filters
from tests.bpf.bench import AGENT_MAC, PEER_MAC, Bench, Namespace, Recorded
from tests.lab.wait import until

AGENT, SERVER = "10.7.1.2", "10.7.2.2"
AGENT6, SERVER6 = "fd07:1::2", "fd07:2::2"
DEADLINE = 20.0
INTERLOCK = f"""table inet interlock {{
    chain forward {{
        type filter hook forward priority 0; policy drop
        meta mark {abi.MARK_RECORDED:#x} accept
    }}
    chain answer {{
        type filter hook prerouting priority raw
        meta mark {abi.MARK_REFUSED:#x} meta l4proto tcp reject with tcp reset
    }}
}}"""


@dataclass
class Network:
    """Three network namespaces; the gateway's two interfaces carry the program."""

    agent: Namespace = field(default_factory=Namespace)
    gateway: Namespace = field(default_factory=Namespace)
    upstream: Namespace = field(default_factory=Namespace)

    def __post_init__(self) -> None:
        for name, host, network in (("agents", self.agent, 1), ("servers", self.upstream, 2)):
            mac = ["address", AGENT_MAC] if network == 1 else []
            peer = ["peer", "name", "host", "netns", str(host.thread_id)]
            self.gateway.ip("link", "add", name, *mac, "type", "veth", *peer)
            for space, device, last in ((self.gateway, name, 1), (host, "host", 2)):
                space.ip("address", "add", f"10.7.{network}.{last}/24", "dev", device)
                space.ip("address", "add", f"fd07:{network}::{last}/64", "dev", device, "nodad")
                space.ip("link", "set", device, "up")
            host.ip("route", "add", "default", "via", f"10.7.{network}.1")
            host.ip("route", "add", "default", "via", f"fd07:{network}::1")
        self.gateway.run(self._forward)

    @staticmethod
    def _forward() -> None:
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            (Path("/proc/sys/net") / name).write_text("1")
        subprocess.run(["nft", "-f", "-"], input=INTERLOCK, text=True, check=True)

    def close(self) -> None:
        for space in (self.agent, self.gateway, self.upstream):
            space.close()


def attach(ours: filters.Filter, ifindex: int) -> None:
    with IPRoute() as netlink:
        filters.attach(ours, ifindex, netlink)


def detach(ifindex: int) -> None:
    with IPRoute() as netlink:
        filters.detach(ifindex, netlink)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


@pytest.fixture
def live(network: Network) -> Iterator[Bench]:
    settings = config.Wire(ring_bytes=2**24)
    bench = Bench(network.gateway, network.gateway.index("agents"), network.gateway.index("servers"), settings)
    for address in (AGENT, AGENT6):
        bench.lease(address)
    for to in ("10.7.2.0/24", "fd07:2::/64"):
        bench.rule(to)
    for address in ("10.7.1.1", "10.7.2.1", "fd07:1::1", "fd07:2::1"):
        bench.local(address)
    ours = filters.Filter(filters.ARRIVAL, bench.fd, bpf.program_id(bench.fd))
    for ifindex in (bench.agent, bench.upstream):
        network.gateway.run(lambda ifindex=ifindex: attach(ours, ifindex))  # type: ignore[misc]
    yield bench
    for ifindex in (bench.agent, bench.upstream):
        network.gateway.run(lambda ifindex=ifindex: detach(ifindex))  # type: ignore[misc]
    bench.close()


def _stream(records: list[Recorded], side: int, isn: int) -> bytes:
    """The bytes of one side, by sequence number."""
    whole = bytearray()
    for record in sorted(
        (record for record in records if record.kind is abi.Kind.PACKET and record.header.side == side),
        key=lambda record: (record.header.seq - isn - 1) % 2**32,
    ):
        at = (record.header.seq - isn - 1) % 2**32
        if record.header.payload:
            assert at <= len(whole), "bytes are missing"
            body = record.data[record.header.header :]
            assert len(body) == record.header.payload
            whole[at : at + len(body)] = body
    return bytes(whole)


def send(end: socket.socket, data: bytes) -> None:
    end.sendall(data)
    end.shutdown(socket.SHUT_WR)


def receive(end: socket.socket) -> bytes:
    return b"".join(iter(lambda: end.recv(2**20), b""))


@pytest.mark.parametrize(("family", "server"), [(socket.AF_INET, SERVER), (socket.AF_INET6, SERVER6)], ids=["v4", "v6"])
def test_every_byte_of_a_transfer_is_recorded(network: Network, live: Bench, family: int, server: str) -> None:
    """Both directions at full speed with super-packets: what the peers got is what the records say."""
    upload, download = random.Random(1).randbytes(8 * 2**20), random.Random(2).randbytes(16 * 2**20)
    listener = network.upstream.run(lambda: socket.create_server((server, 0), family=family))
    connecting = network.agent.run(lambda: socket.socket(family, socket.SOCK_STREAM))
    with listener, connecting as client, ThreadPoolExecutor(4) as pool:
        client.settimeout(DEADLINE)
        listener.settimeout(DEADLINE)
        client.connect((server, listener.getsockname()[1]))
        accepted, _ = listener.accept()
        with accepted:
            work = [pool.submit(send, client, upload), pool.submit(send, accepted, download)]
            got = [pool.submit(receive, accepted), pool.submit(receive, client)]
            records: list[Recorded] = []
            while not (all(job.done() for job in work) and all(job.done() for job in got)):
                records += live.ring.drain()
            assert (got[0].result(), got[1].result()) == (upload, download)
    until(lambda: live.flow().end != abi.FlowEnd.LIVE, "the flow to end")
    records += live.ring.drain()
    flow = live.flow()
    assert flow.end == abi.FlowEnd.FIN
    assert _stream(records, 0, flow.client.isn) == upload
    assert _stream(records, 1, flow.server.isn) == download
    assert max(record.header.gso_segs for record in records) > 10, "no super-packets: the test lost its point"
    assert (flow.client.acked - flow.client.isn) % 2**32 == len(upload) + 2  # SYN, FIN
    assert (flow.server.acked - flow.server.isn) % 2**32 == len(download) + 2
    packets = [record for record in records if record.kind is abi.Kind.PACKET]
    counters = live.counters()
    assert counters["packets"] == len(packets) == flow.client.packets + flow.server.packets
    assert not any(
        record.header.flags & abi.RECORD_F_UNVERIFIED for record in packets
    )  # the senders' cards complete it
    assert counters["bytes"] == sum(record.header.length for record in packets)
    (last,) = (abi.Flow.unpack(record.data) for record in records if record.kind is abi.Kind.FLOW_END)
    assert (last.client, last.server.bytes) == (flow.client, flow.server.bytes)


def test_big_tcp_super_packets_are_recorded_whole(network: Network, live: Bench) -> None:
    """Longer than 64 KiB: IPv6 with a jumbo payload option or a payload length of 0."""
    for space, device in (
        (network.agent, "host"),
        (network.upstream, "host"),
        (network.gateway, "agents"),
        (network.gateway, "servers"),
    ):
        space.ip("link", "set", device, "gso_max_size", "262144", "gro_max_size", "262144")
    data = random.Random(3).randbytes(8 * 2**20)
    listener = network.upstream.run(lambda: socket.create_server((SERVER6, 0), family=socket.AF_INET6))
    client = network.agent.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
    records: list[Recorded] = []
    with listener, client, ThreadPoolExecutor(2) as pool:
        client.settimeout(DEADLINE)
        client.connect((SERVER6, listener.getsockname()[1]))
        accepted, _ = listener.accept()
        with accepted:
            receiving = pool.submit(receive, accepted)
            pool.submit(send, client, data)
            while not receiving.done():
                records += live.ring.drain()
    assert receiving.result() == data
    until(lambda: live.flow().end != abi.FlowEnd.LIVE, "the flow to end")
    records += live.ring.drain()
    assert _stream(records, 0, live.flow().client.isn) == data
    assert max(record.header.length for record in records) > 65575, "no packet beyond 64 KiB: the test lost its point"


def test_no_filter_no_forward(network: Network, live: Bench) -> None:
    """The program gone: the interlock lets nothing through, in either direction."""
    network.gateway.run(lambda: detach(live.agent))
    client = network.agent.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    server = network.upstream.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with client, server:
        server.bind((SERVER, 5353))
        server.settimeout(0.3)
        client.sendto(b"unrecorded", (SERVER, 5353))
        with pytest.raises(TimeoutError):
            server.recv(100)


def test_a_refused_connection_is_reset_at_once(network: Network, live: Bench) -> None:
    live.revoke(AGENT)
    client = network.agent.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    with client:
        client.settimeout(DEADLINE)
        with pytest.raises(ConnectionRefusedError):
            client.connect((SERVER, 80))
    (record,) = live.ring.drain()
    assert abi.Reason(record.header.reason) is abi.Reason.NO_LEASE


def _raw(network: Network, frame: bytes) -> None:
    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind(("host", 0))
            link.send(frame)

    network.agent.run(send)


@pytest.mark.parametrize("tags", [1, 2])
def test_the_tag_that_the_kernel_took_off_is_recorded(network: Network, live: Bench, tags: int) -> None:
    packet = IP(src=AGENT, dst=SERVER) / UDP(sport=5, dport=53) / b"tagged"
    inner = packet if tags == 1 else Dot1Q(vlan=0) / packet
    _raw(network, bytes(Ether(dst=AGENT_MAC, src=PEER_MAC) / Dot1Q(vlan=0, prio=5) / inner))
    until(lambda: live.counters().get("packets", 0) >= 1, "a packet to be counted")
    record, *_ = live.ring.drain()  # the server may complain that nobody listens
    assert (record.header.flags, record.header.vlan & 0xEFFF) == (abi.RECORD_F_VLAN, 5 << 13)
    assert record.data == bytes(packet)


def test_frames_too_short_for_their_header_are_dropped(network: Network, live: Bench) -> None:
    for length in range(20):
        _raw(network, bytes(Ether(dst=AGENT_MAC, src=PEER_MAC, type=0x0800)) + b"\x45" * length)
    until(lambda: live.counters().get("malformed") == 20, "all to be counted")
