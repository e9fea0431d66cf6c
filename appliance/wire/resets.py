"""Resets for connections whose lease ended, so that both ends learn it at once.

The program refuses the packets of such a connection from then on, and whoever sends one is answered with a reset. Who
waits for the other side sends nothing, and would wait for ever. So both ends are told, each in the name of the other.

A receiver takes a reset whose sequence number is exactly the next that it expects; to another one within its window it
answers with an acknowledgement (RFC 5961 section 3.2), which the program refuses, and the interlock's reset fits. What
of a side's bytes has arrived is not known for certain: it is tried with those that were acknowledged, and with all.
"""

import socket
import struct
from ipaddress import IPv6Address

from appliance.wire.abi import SIDE_F_ACKED, SIDE_F_SEEN, Flow, FlowKey, Lane, SideState

RST_ACK = 0x14
TCP = 6
HOPS = 64
SEGMENT = struct.Struct("!HHIIBBHHH")  # RFC 9293 section 3.1, without options
HEADER4 = struct.Struct("!BBHHHBBH4s4s")  # RFC 791; the kernel fills identification and checksum in (raw(7))
HEADER6 = struct.Struct("!IHBB16s16s")  # RFC 8200

Packet = tuple[str, bytes]  # destination, and the packet from its IP header on


def resets(key: FlowKey, flow: Flow) -> list[Packet]:
    """What is to be sent to both ends of a TCP connection; nothing for other flows.

    The server of a relayed flow never heard of it: its other end is the relay, which looks at the leases itself.
    """
    if key.protocol != TCP:
        return []
    client = key.source, key.source_port, flow.client
    server = key.destination, key.destination_port, flow.server
    both = ((client, server),) if flow.lane == Lane.RELAY else ((client, server), (server, client))
    return [packet for ends in both for packet in _to(*ends, v4=key.family == 4)]


End = tuple[bytes, int, SideState]


def _to(receiver: End, sender: End, *, v4: bool) -> list[Packet]:
    target, target_port, heard = receiver
    source, source_port, said = sender
    numbers = {said.next if said.flags & SIDE_F_SEEN else 0}
    if said.flags & SIDE_F_ACKED:
        numbers.add(said.acked)
    if v4:
        source, target = source[12:], target[12:]
        pseudo = source + target + struct.pack("!HH", TCP, SEGMENT.size)
        header = HEADER4.pack(0x45, 0, HEADER4.size + SEGMENT.size, 0, 0, HOPS, TCP, 0, source, target)
        address = socket.inet_ntop(socket.AF_INET, target)
    else:
        pseudo = source + target + struct.pack("!II", SEGMENT.size, TCP)
        header = HEADER6.pack(6 << 28, SEGMENT.size, TCP, HOPS, source, target)
        address = str(IPv6Address(target))
    packets = []
    for number in sorted(numbers):
        fields = [source_port, target_port, number, heard.next, SEGMENT.size // 4 << 4, RST_ACK, 0, 0, 0]
        fields[7] = checksum(pseudo + SEGMENT.pack(*fields))
        packets.append((address, header + SEGMENT.pack(*fields)))
    return packets


def checksum(data: bytes) -> int:
    """RFC 1071; `data` has an even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Sender:
    """Sends packets as they are, from this network namespace. They bear the address of somebody else: needs root."""

    def __init__(self) -> None:
        self._sockets = {
            4: socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW),
            6: socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW),
        }

    def send(self, packet: Packet) -> bool:
        """False: it could not be sent, no route leads there any more."""
        address, data = packet
        try:
            self._sockets[data[0] >> 4].sendto(data, (address, 0))
        except OSError:
            return False
        return True

    def reset(self, key: FlowKey, flow: Flow) -> None:
        """Tell both ends. Where no route leads any more, nobody is told: the flow's packets are refused anyway."""
        for packet in resets(key, flow):
            self.send(packet)

    def close(self) -> None:
        for each in self._sockets.values():
            each.close()
