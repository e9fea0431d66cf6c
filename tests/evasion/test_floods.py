"""Eve floods: flows, ring space, refusal records. Bob, on her own subnet, goes on working, and all is accounted for."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from appliance.wire import bpf
from appliance.wire.abi import Kind, Reason
from tests.evasion.subnet import (
    BOB,
    EVE,
    OPEN,
    Honest,
    Server,
    Subnet,
    canonical,
    flood,
    grant,
    reason,
    recorded,
    refused,
)
from tests.lab.wait import until
from tests.wire.net import UPSTREAM, Wire, sh
from tests.wire.sniffer import Sniffer

SECONDS = 1.5  # of honest work in each measurement
SHARE = 0.15  # of the undisturbed rate that must be left on a machine whose processors the flood itself takes

# Raw frames at the speed of a Python loop, made beforehand. Arguments: kind, own and gateway's link-layer addresses.
FLOOD = """
import itertools, random, socket, struct, sys
kind, source, gateway = sys.argv[1], bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
def total(data):
    data += b"\\0" * (len(data) % 2)
    s = sum(struct.unpack(f"!{len(data)//2}H", data))
    while s >> 16: s = (s & 65535) + (s >> 16)
    return ~s & 65535
def v4(protocol, body, to="10.91.2.2"):
    a, b = socket.inet_aton("10.91.1.3"), socket.inet_aton(to)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0, a, b)
    return gateway + source_mac + b"\\x08\\0" + head[:10] + struct.pack("!H", total(head)) + head[12:] + body
def v6(protocol, body, source):
    b = socket.inet_pton(socket.AF_INET6, "fd91:2::2")
    head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + source + b
    return gateway + source_mac + b"\\x86\\xdd" + head + body
source_mac = source
def syn(port, to=81):
    return struct.pack("!HHIIBBHHH", port, to, 7, 0, 0x50, 2, 1000, 0, 0)
def udp(port, to, size):
    return struct.pack("!HHHH", port, to, 8 + size, 0) + bytes(size)
draw = random.Random(1)
prefix = socket.inet_pton(socket.AF_INET6, "fd91:1::")[:8]
if kind == "syn":
    frames = [v4(6, syn(port), "10.91.2.200") for port in range(1024, 61024)]  # nobody answers there
elif kind == "udp":
    frames = [v4(17, udp(port, 5001, 1400)) for port in range(30000, 30010)] * 100
elif kind == "udp-ports":
    frames = [v4(17, udp(port, 5000, 10)) for port in range(1024, 61024)]
elif kind == "sources":
    frames = [v6(6, syn(1024), prefix + draw.randbytes(8)) for _ in range(20000)]
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("eth0", 0))
for frame in itertools.cycle(frames):
    try:
        sock.send(frame)
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def running(net: Subnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    wire = Wire(net, tmp_path_factory.mktemp("floods"), rules=OPEN, bind="", flows=65536)
    wire.wire = "unanswered_idle = 6\ndatagram_idle = 3\n"
    wire.journal = "segment_bytes = 67108864\nmax_bytes = 2147483648\n"
    try:
        yield wire.start()
    finally:
        wire.teardown()


@pytest.fixture
def wire(net: Subnet, running: Wire) -> Iterator[Wire]:
    """Bob and Eve have leases."""
    grant(running, net, net.agent, BOB)
    grant(running, net, net.thief, EVE)
    yield running
    for lease in running.client.list():
        running.client.revoke(lease.id)


@pytest.fixture
def honest(net: Subnet, wire: Wire) -> Iterator[Honest]:
    with Server(net, UPSTREAM) as server:
        yield Honest(net, UPSTREAM, server.port)


def lasting(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def attack(net: Subnet, kind: str) -> "subprocess.Popen[bytes]":
    macs = (net.mac(net.thief).replace(":", ""), net.mac(net.gateway, "agents0").replace(":", ""))
    return flood(net.thief, FLOOD, kind, *macs)


def rates(net: Subnet, wire: Wire, honest: Honest, kind: str, sign: Callable[[], bool]) -> tuple[float, float]:
    """Honest transactions in a second, before and during the flood, which has begun when `sign` says so."""
    calm = honest.work(lasting(SECONDS))
    flooding = attack(net, kind)
    try:
        until(sign, "the flood shows")
        disturbed = honest.work(lasting(SECONDS))
    finally:
        flooding.send_signal(signal.SIGKILL)
        flooding.wait()
    print(f"{kind}: {calm:.0f} transactions a second, {disturbed:.0f} during the flood; {refused(wire)}")
    return calm, disturbed


@pytest.mark.parametrize("kind", ["syn", "udp-ports"])
def test_a_flood_of_new_flows_leaves_room_for_others(net: Subnet, wire: Wire, honest: Honest, kind: str) -> None:
    before = refused(wire).get("flow-share", 0)
    calm, disturbed = rates(net, wire, honest, kind, lambda: refused(wire).get("flow-share", 0) > before + 100)
    assert honest.failed == []
    assert disturbed > SHARE * calm
    assert refused(wire).get("flows-full", 0) == 0
    if kind == "syn":
        until(lambda: wire.client.status()["flows"] > 10000, "they are seen", 30)
        until(lambda: wire.client.status()["flows"] < 100, "half-open flows are given up soon", 30)


def test_a_flood_of_data_leaves_the_ring_to_others(net: Subnet, wire: Wire, honest: Honest) -> None:
    """The reader is held, so that the ring fills: Eve has her share, and Bob's small transactions still pass."""
    assert wire.process is not None
    shared = _counted(wire, Reason.RING_SHARE)
    honest.once()
    flooding = attack(net, "udp")
    try:
        wire.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: _counted(wire, Reason.RING_SHARE) > shared, "Eve has her share")
            end = time.monotonic() + 10
            while time.monotonic() < end and honest.done < 40:
                honest.once()
        finally:
            wire.process.send_signal(signal.SIGCONT)
    finally:
        flooding.send_signal(signal.SIGKILL)
        flooding.wait()
    print(f"{honest.done} transactions into a ring that nobody reads; {refused(wire)}")
    assert honest.failed == []
    assert honest.done >= 40


def _counted(wire: Wire, why: Reason) -> int:
    """From the kernel itself: the wire process stands still."""
    fd = bpf.get(wire.bpffs / "counters")
    assert fd is not None
    try:
        values = bpf.Map(fd).lookup_percpu(why.to_bytes(4, "little"))
    finally:
        os.close(fd)
    return sum(int.from_bytes(value, "little") for value in values)


def test_made_up_sources_leave_few_records_and_are_all_counted(net: Subnet, wire: Wire, honest: Honest) -> None:
    """20,000 addresses of Eve's /64 without leases, each refused: told of a few, counted in all."""
    wanted = reason(Reason.NO_LEASE)
    before, began = refused(wire).get(wanted, 0), time.monotonic()
    calm, disturbed = rates(net, wire, honest, "sources", lambda: refused(wire).get(wanted, 0) > before + 100)
    seconds = time.monotonic() - began
    assert honest.failed == []
    assert disturbed > SHARE * calm
    total = refused(wire)[wanted] - before
    assert total > 5000, "the flood was none"
    until(lambda: wire.client.status()["ring"]["fill"] == 0, "the journal has them")
    told = [record for record, _ in wire.records() if record.kind == Kind.REFUSAL and record.reason == Reason.NO_LEASE]
    assert len(told) <= 200 * (seconds + 1)
    until(lambda: "refusals-untold" in wire.events(), "what no record tells of is told together", 30)
    counted = sum(record.count for record in told)
    assert counted < total, "the limit was not reached: the test lost its point"
    neighbours = sh("ip", "-6", "neigh", "show", "dev", "agents0", netns=net.gateway).splitlines()
    assert len(neighbours) < 1000, "answers to made-up sources fill the neighbour table"


def test_what_passed_in_all_these_floods_is_recorded(net: Subnet, wire: Wire) -> None:
    with Sniffer(net.upstream) as tap:
        flooding = attack(net, "udp-ports")
        try:
            until(lambda: len(tap.packets) > 500, "packets pass")
        finally:
            flooding.send_signal(signal.SIGKILL)
            flooding.wait()
    until(lambda: wire.client.status()["ring"]["fill"] == 0, "the journal has them")
    known = recorded(wire)
    passed = [canonical(packet) for packet in tap.packets if packet[0] >> 4 == 4 and packet[9] == 17]
    assert [packet.hex() for packet in passed if packet not in known] == []
