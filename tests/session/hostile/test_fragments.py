"""IPv4 fragments that overlap: what a Linux host makes of them, and what the recorder does. The capture program refuses
fragments, so these go straight to the host, as they would in a capture file."""

import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from appliance.session.fragments import Fragments
from appliance.session.packets import network
from tests.bpf.test_live import SERVER
from tests.session.hostile.rig import DEADLINE, Rig, pinned

PORT, END = 7010, 7011
SOURCE = "10.7.2.77"
Part = tuple[int, str, int, bool]  # offset in 8 bytes, letter, length in 8 bytes, more fragments follow
CASES: dict[str, list[Part]] = {
    "in order": [(0, "a", 2, True), (2, "b", 2, False)],
    "the last first": [(2, "b", 2, False), (0, "a", 2, True)],
    "repeated with another content": [(0, "a", 2, True), (0, "x", 2, True), (2, "b", 2, False)],
    "a part repeated": [(0, "a", 3, True), (1, "x", 1, True), (3, "b", 1, False)],
    "over the left": [(2, "b", 2, False), (0, "a", 3, True)],
    "over the right": [(0, "a", 3, True), (2, "b", 2, False)],
    "covering": [(1, "b", 1, True), (0, "a", 3, True), (3, "c", 1, False)],
    "over the left, then all again": [(2, "b", 2, False), (0, "a", 3, True), (0, "c", 2, True), (2, "d", 2, False)],
    "beyond the end": [(2, "b", 2, False), (4, "x", 1, True), (0, "a", 2, True)],
}


@pytest.fixture
def host(rig: Rig) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Where datagrams arrive, and the wire to there."""

    def listen() -> socket.socket:
        end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        end.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK: the checksum of what is put together is not the point
        end.bind((SERVER, PORT))
        end.settimeout(DEADLINE)
        return end

    end, wire = rig.network.upstream.run(listen), rig.network.gateway.run(lambda: rig.upstream.open("servers"))
    with end, wire:
        yield end, wire


@pytest.mark.parametrize("name", CASES)
def test_what_a_host_puts_together(name: str, rig: Rig, host: tuple[socket.socket, socket.socket]) -> None:
    end, wire = host
    link = Ether(src=rig.macs["servers"], dst=rig.upstream.mac, type=0x0800)
    number = 100 + list(CASES).index(name)
    length = max(at + size for at, _, size, _ in CASES[name]) * 8
    packets = []
    for at, letter, size, more in CASES[name]:
        data = letter.encode() * 8 * size
        if at == 0:
            data = bytes(UDP(sport=9, dport=PORT, len=length, chksum=0))[:8] + data[8:]
        packets.append(bytes(IP(src=SOURCE, dst=SERVER, id=number, proto=17, frag=at, flags=int(more)) / data))
    last = bytes(IP(src=SOURCE, dst=SERVER, id=number + 50) / UDP(sport=9, dport=PORT) / b"end")

    def send() -> None:
        for packet in [*packets, last]:
            wire.send(bytes(link) + packet)

    pinned(send)
    got = list(iter(lambda: end.recv(1 << 16), b"end"))
    fragments, made = Fragments(), []
    for packet in packets:
        part = network(packet)
        assert part is not None
        whole = fragments.add(packet[12:16], packet[16:20], part, memoryview(packet), 0)
        if whole is not None:
            made.append(whole.data[8:])
    assert made == got
