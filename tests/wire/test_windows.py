"""Windows that were held open again: when, which, and through a wire process that stood still."""

import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP

from appliance.wire import abi, bpf
from appliance.wire.resets import Sender
from appliance.wire.windows import STEP, Reopener, reopening
from tests.lab.wait import until
from tests.wire.net import PROGRAM, UPSTREAM, UPSTREAM6, Net, Wire, inside, sh

LEVEL = 1000
STANDSTILL = 4.0  # seconds; without help a sender tries again at 0.2, 0.6, 1.4, 3, and then at 6.2
SOON = 1.0
OPEN = "".join(f'[[rules]]\nto = "{to}"\nunbound = true\n' for to in ("0.0.0.0/0", "::/0"))


def entry(port: int, ack: int = 1) -> tuple[bytes, bytes]:
    """Of map `held`: an acknowledgement to a port of this machine where nobody listens."""
    header = bytes(IP(src="127.0.0.2", dst="127.0.0.1") / TCP(sport=9, dport=port, ack=ack, window=9))
    key = abi.FlowKey(abi.pack_address("127.0.0.2"), abi.pack_address("127.0.0.1"), 9, port, 6, 4)
    return key.pack(), abi.Held(5, 7, len(header), 20, 0, header.ljust(120, b"\0")).pack()


@pytest.fixture
def held() -> Iterator[bpf.Map]:
    made = bpf.Map(bpf.create_map(bpf.HASH, abi.FlowKey.LAYOUT.size, abi.Held.LAYOUT.size, 4096, "held"))
    yield made
    os.close(made.fd)


@pytest.fixture
def pressure() -> Iterator[bpf.Map]:
    made = bpf.Map(bpf.create_map(bpf.ARRAY, 4, abi.Pressure.LAYOUT.size, 1, "pressure"))
    yield made
    os.close(made.fd)


@pytest.fixture
def sender() -> Iterator[Sender]:
    made = Sender()
    yield made
    made.close()


@pytest.fixture
def reopener(held: bpf.Map, pressure: bpf.Map, sender: Sender) -> Reopener:
    return Reopener(held, pressure, LEVEL, sender.send)


def tell(pressure: bpf.Map, count: int) -> None:
    pressure.update(bytes(4), abi.Pressure(0, 0, 0, 0, count).pack())


def test_they_open_when_the_ring_has_drained(held: bpf.Map, pressure: bpf.Map, reopener: Reopener) -> None:
    held.update(*entry(1))
    tell(pressure, 1)
    reopener.step(LEVEL)
    assert (reopener.reopened, len(list(held.items()))) == (0, 1)
    reopener.step(LEVEL - 1)
    assert (reopener.reopened, list(held.items())) == (1, [])
    reopener.step(0)
    assert reopener.reopened == 1


def test_many_are_opened_in_steps(held: bpf.Map, pressure: bpf.Map, reopener: Reopener) -> None:
    for port in range(1, STEP + 11):
        held.update(*entry(port))
    tell(pressure, STEP + 10)
    reopener.step(0)
    assert reopener.reopened == STEP
    reopener.step(LEVEL)
    assert reopener.reopened == STEP
    reopener.step(0)
    assert reopener.reopened == STEP + 10


def test_what_lies_there_when_the_process_starts_is_opened(
    held: bpf.Map, pressure: bpf.Map, reopener: Reopener
) -> None:
    held.update(*entry(1))
    tell(pressure, 1234)
    reopener.step(0)
    assert reopener.reopened == 1


def test_flags_urgency_and_numbers_are_those_of_a_bare_acknowledgement() -> None:
    key = abi.FlowKey(abi.pack_address("192.0.2.1"), abi.pack_address("10.0.0.1"), 80, 4000, 6, 4)
    sent = IP(src="192.0.2.1", dst="10.0.0.1", ttl=9) / TCP(sport=80, dport=4000, flags="PAUF", urgptr=3, seq=1, ack=77)
    header = bytes(sent)
    _, raw = reopening(key, abi.Held(500, 7, len(header), 20, 0, header.ljust(120, b"\0")))
    again = IP(raw)
    assert (again.ttl, again.len) == (8, 40)
    assert (again[TCP].flags, again[TCP].urgptr, again[TCP].window) == ("A", 0, 7)
    assert (again[TCP].seq, again[TCP].ack) == (500, 77)


# -- the whole of it -------------------------------------------------------------------------------------------------


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as net:
        yield net


SLOWLY = """
import sys
from pathlib import Path
from tests.bench.slow_writer import SlowWriter
from appliance import config
from appliance.wire import daemon
SlowWriter.rate = 60e6
daemon.Writer = SlowWriter
from appliance.wire.teardown import teardown
settings = config.load(Path(sys.argv[1]))
teardown(settings, stay_open=True) if sys.argv[2] == "teardown" else daemon.run(settings)
"""


class SlowWire(Wire):
    """Its journal takes 60 MB/s."""

    def command(self, function: str) -> list[str]:
        return [SLOWLY if word == PROGRAM else word for word in super().command(function)]


def retransmitted(net: Net) -> int:
    said = inside(net.agent, lambda: Path("/proc/thread-self/net/snmp").read_text())
    names, values = (line.split() for line in said.splitlines() if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["RetransSegs"])


def push(connection: socket.socket, until: float) -> None:
    piece = bytes(2**18)
    with connection, suppress(OSError):  # it waits no longer than that for a window
        while (left := until - time.monotonic()) > 0:
            connection.settimeout(left)
            connection.send(piece)


def sink(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection, suppress(OSError):
        while connection.recv(2**18, socket.MSG_TRUNC):
            pass


def overload(net: Net, folder: Path, clamp: float) -> tuple[int, int]:
    """Four flows that could fill a much faster journal, for a while: packets refused, and segments sent again."""
    journal = "segment_bytes = 67108864\nmax_bytes = 2147483648\n"
    wire = SlowWire(net, folder, OPEN, wire=f"clamp = {clamp}\n", journal=journal, ring=2**24)
    wire.start()
    before = retransmitted(net)
    try:
        with net.listen() as listener, ThreadPoolExecutor(8) as pool:
            takers = [pool.submit(sink, listener) for _ in range(4)]
            clients = [net.connect(listener.getsockname()[1]) for _ in range(4)]
            end = time.monotonic() + 2.0
            givers = [pool.submit(push, client, end) for client in clients]
            for each in (*givers, *takers):
                each.result()
        counts = wire.client.status()["refusals"]
    finally:
        wire.teardown()
    return sum(counts.get(name, 0) for name in ("ring-full", "ring-share")), retransmitted(net) - before


def test_lower_windows_take_the_place_of_refusals(net: Net, tmp_path: Path) -> None:
    refused, again = overload(net, tmp_path / "without", 0.0)
    assert refused > 100, "the journal is fast enough: the test lost its point"
    fewer, less = overload(net, tmp_path / "with", 0.25)
    assert fewer * 20 <= refused
    assert less * 5 <= again


class Sink:
    """Takes what comes, and knows how much and what it was."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.taken = 0
        self.hash = hashlib.sha256()
        self.done = threading.Event()
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while data := connection.recv(2**18):
                self.taken += len(data)
                self.hash.update(data)
        self.done.set()


def _stands(sink: Sink) -> bool:
    """On a busy machine the ring fills late."""
    before = sink.taken
    time.sleep(1.0)
    return sink.taken == before


@pytest.mark.parametrize("server", [UPSTREAM, UPSTREAM6], ids=["v4", "v6"])
def test_a_flow_goes_on_at_once_when_the_reader_does(net: Net, tmp_path: Path, server: str) -> None:
    """Nothing is refused while it stands still: so nobody waits for a retransmission that comes ever later."""
    journal = "segment_bytes = 67108864\nmax_bytes = 2147483648\n"
    wire = Wire(net, tmp_path, OPEN, journal=journal, ring=2**24)
    for name in ("agents0", "upstream0"):  # so that the peers verify what cards would complete and nobody look at
        sh("ethtool", "-K", name, "tx", "off", netns=net.gateway)
    wire.start()
    pieces = [os.urandom(2**18) for _ in range(4)]
    sent = hashlib.sha256()
    going = threading.Event()
    going.set()

    def send(connection: socket.socket) -> None:
        at = 0
        while going.is_set():
            connection.sendall(pieces[at % 4])
            sent.update(pieces[at % 4])
            at += 1
        connection.shutdown(socket.SHUT_WR)

    try:
        with net.listen(server) as listener:
            sink = Sink(listener)
            client = net.connect(listener.getsockname()[1], server)
            client.settimeout(60)
            sender = threading.Thread(target=send, args=(client,))
            sender.start()
            until(lambda: sink.taken > 20 * 2**20, "the flow is under way", 30)
            assert wire.process is not None
            wire.process.send_signal(signal.SIGSTOP)
            time.sleep(STANDSTILL)  # it is time that is tried here
            until(lambda: _stands(sink), "the flow stands still", 30)
            stuck, begun = sink.taken, time.monotonic()
            wire.process.send_signal(signal.SIGCONT)
            until(lambda: sink.taken > stuck + 8 * 2**20, "it goes on", 30)
            took = time.monotonic() - begun
            going.clear()
            sender.join(30)
            assert sink.done.wait(30)
            client.close()
        status = wire.client.status()
    finally:
        wire.teardown()
    assert sink.hash.digest() == sent.digest()
    assert status["others"]["held"] >= 1
    assert status["reopened"] >= 1
    assert status["refusals"].get("ring-full", 0) + status["refusals"].get("ring-share", 0) == 0
    assert took < SOON


def test_a_hash_is_taken_whole(held: bpf.Map) -> None:
    entries = dict(entry(port) for port in range(1, 2001))
    for key, value in entries.items():
        held.update(key, value)
    assert dict(held.take()) == entries
    assert held.take() == []
