"""An observer that is none of ours: a packet socket on a host's own interface, and what of it is not on record.

It sees what arrives before the host's kernel looks at it: what it has and the journal has not, passed unrecorded.
A packet counts as recorded when the journal has one of the same addresses, ports, sequence number and payload. What a
router may change (hop limit, checksums, TCP's window and acknowledgement) is not compared.
"""

import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from appliance.wire.abi import Kind, Record
from tests.wire.net import inside

ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_STATISTICS, PACKET_IGNORE_OUTGOING = 263, 6, 23  # linux/if_packet.h
BUFFER = 128 * 2**20
TCP, UDP = 6, 17
RST = 0x04


@dataclass(frozen=True, slots=True)
class Seen:
    """One packet by what nobody may change on the way. `place`: sequence number, or what stands for it."""

    source: str
    destination: str
    protocol: int
    ports: tuple[int, int]
    place: int
    payload: bytes


def read(packet: bytes) -> Seen | None:
    """A packet from its IP header on; None: not IP, or a reset without data, which the gateway itself may send."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        header, protocol = (packet[0] & 15) * 4, packet[9]
        source, destination = packet[12:16], packet[16:20]
        length = struct.unpack_from("!H", packet, 2)[0] or len(packet)
    elif version == 6:
        header, protocol = 40, packet[6]
        source, destination = packet[8:24], packet[24:40]
        length = struct.unpack_from("!H", packet, 4)[0] + 40 if packet[4:6] != b"\0\0" else len(packet)
    else:
        return None
    body = packet[header:length]
    ports, place = (0, 0), 0
    if protocol == TCP and len(body) >= 20:
        ports = struct.unpack_from("!HH", body)
        place, flags = struct.unpack_from("!I", body, 4)[0], body[13]
        body = body[(body[12] >> 4) * 4 :]
        if flags & RST and not body:
            return None
    elif protocol == UDP and len(body) >= 8:
        ports, body = struct.unpack_from("!HH", body), body[8:]
    else:
        body = body[4:]  # ICMP: less type, code and checksum
    return Seen(str(ip_address(source)), str(ip_address(destination)), protocol, ports, place, body)


class Sniffer:
    """Context manager: keeps every IP packet that arrives at `interface` of a network namespace."""

    def __init__(self, netns: str, interface: str = "eth0") -> None:
        self.packets: list[bytes] = []
        self._socket = inside(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM))
        self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._socket.bind((interface, ETH_P_ALL))
        self._socket.settimeout(0.1)
        self._stopping = False
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping = True
        self._thread.join()
        _, lost = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self._socket.close()
        assert not lost, "the observer itself lost packets: the test proves nothing"

    def _listen(self) -> None:
        quiet = False
        while not (self._stopping and quiet):
            try:
                data, address = self._socket.recvfrom(1 << 20)
            except TimeoutError:
                quiet = True
                continue
            quiet = False
            if address[1] in (ETH_P_IP, ETH_P_IPV6):
                self.packets.append(data)

    def has(self, marker: bytes) -> bool:
        return any(marker in packet for packet in list(self.packets))

    def seen(self, sources: Iterable[str]) -> list[Seen]:
        """What came from these addresses."""
        wanted = frozenset(sources)
        return [one for packet in self.packets if (one := read(packet)) and one.source in wanted]


def unrecorded(seen: Iterable[Seen], records: Iterable[tuple[Record, bytes]]) -> list[Seen]:
    """What passed and is not on record, byte for byte."""
    known = {read(data) for record, data in records if record.kind == Kind.PACKET}
    return [one for one in seen if one not in known]
