"""Sessions as a pcapng file that packet tools read as the same streams.

The packets are made from the recorded streams, with the recorded times, addresses and ports: a handshake, the bytes,
an end as it was recorded. Segmentation is ours, checksums are right, a gap of the recording is a gap of the sequence
numbers, and redacted bytes are asterisks. A comment on the first packet of each session names session and identity.
pcapng: draft-ietf-opsawg-pcapng, written with dpkt; link type RAW (101), nanosecond time stamps.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from ipaddress import ip_address
from typing import Any, BinaryIO, TypeAlias

from dpkt import ip, ip6, pcapng, tcp, udp

from appliance.model import ChunkRow, Direction

LINKTYPE_RAW = 101
SEGMENT = 16 * 1024  # payload bytes per packet
SNAPLEN = 256 * 1024
WINDOW = 65535
SCALE_OPTION = b"\x03\x03\x07\x00"  # window scale 7, padded

Packet: TypeAlias = Any  # dpkt.ip.IP or dpkt.ip6.IP6; dpkt has no types


def write_header(file: BinaryIO) -> None:
    """Section header and the one interface."""
    application = pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_SHB_USERAPPL, data=b"verbatim")
    resolution = pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_IF_TSRESOL, data=b"\x09")
    end = pcapng.PcapngOptionLE()
    file.write(bytes(pcapng.SectionHeaderBlockLE(opts=[application, end])))
    file.write(
        bytes(pcapng.InterfaceDescriptionBlockLE(linktype=LINKTYPE_RAW, snaplen=SNAPLEN, opts=[resolution, end]))
    )


def write_session(
    file: BinaryIO, session: dict[str, Any], started_ns: int, ended_ns: int, chunks: Iterable[ChunkRow]
) -> int:
    """Append one session: `session` is its JSON form, `chunks` its bytes in time order. Returns the packets written."""
    count = 0
    for ts_ns, packet in packets(session, started_ns, ended_ns, chunks):
        options = []
        if count == 0:
            options = [
                pcapng.PcapngOptionLE(code=pcapng.PCAPNG_OPT_COMMENT, text=_comment(session)),
                pcapng.PcapngOptionLE(),
            ]
        raw = bytes(packet)
        block = pcapng.EnhancedPacketBlockLE(
            ts_high=ts_ns >> 32,
            ts_low=ts_ns & 0xFFFFFFFF,
            caplen=len(raw),
            pkt_len=len(raw),
            pkt_data=raw,
            opts=options,
        )
        file.write(bytes(block))
        count += 1
    return count


def packets(
    session: dict[str, Any], started_ns: int, ended_ns: int, chunks: Iterable[ChunkRow]
) -> Iterator[tuple[int, Packet]]:
    """Time and packet, in order."""
    wire = Wire(
        session["client"]["address"], session["client"]["port"], session["server"]["address"], session["server"]["port"]
    )
    stream = (chunk for chunk in chunks if chunk.copy == 0)
    if session["transport"] == "tcp":
        wire.patient = "late" in session["findings"]
        yield from _tcp(wire, session["ending"], started_ns, ended_ns, stream)
    elif session["transport"] == "udp":
        for chunk in stream:
            yield chunk.ts_ns, wire.udp(chunk.direction, chunk.data)
    else:
        for chunk in stream:
            yield chunk.ts_ns, wire.carried(chunk.direction, session["transport"], chunk.data)


def _tcp(
    wire: "Wire", ending: str, started_ns: int, ended_ns: int, chunks: Iterable[ChunkRow]
) -> Iterator[tuple[int, Packet]]:
    client, server = Direction.CLIENT, Direction.SERVER
    yield started_ns, wire.tcp(client, tcp.TH_SYN)
    yield started_ns, wire.tcp(server, tcp.TH_SYN | tcp.TH_ACK)
    wire.started = True
    yield started_ns, wire.tcp(client, tcp.TH_ACK)
    for chunk in chunks:
        for begin in range(0, len(chunk.data), SEGMENT):
            part = chunk.data[begin : begin + SEGMENT]
            at = chunk.offset + begin
            yield chunk.ts_ns, wire.tcp(chunk.direction, tcp.TH_ACK | tcp.TH_PUSH, part, at)
            wire.took(chunk.direction, at, at + len(part))
            yield chunk.ts_ns, wire.tcp(chunk.direction.other, tcp.TH_ACK)
    wire.patient = False
    if ending == "rst":
        yield ended_ns, wire.tcp(server, tcp.TH_RST | tcp.TH_ACK)
    elif ending == "fin":
        yield ended_ns, wire.tcp(client, tcp.TH_FIN | tcp.TH_ACK)
        wire.sent[client] += 1
        yield ended_ns, wire.tcp(server, tcp.TH_FIN | tcp.TH_ACK)
        wire.sent[server] += 1
        yield ended_ns, wire.tcp(client, tcp.TH_ACK)


@dataclass(slots=True)
class Wire:
    """Makes the packets of one session; `sent`: how far each side has come in its stream.

    `patient`: some bytes come late, so what lies behind a hole is not acknowledged: packet tools would give it up.
    """

    client_address: str
    client_port: int
    server_address: str
    server_port: int
    started: bool = False
    patient: bool = False
    sent: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    whole_to: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    behind: dict[Direction, list[tuple[int, int]]] = field(default_factory=lambda: {one: [] for one in Direction})

    def tcp(self, direction: Direction, flags: int, data: bytes = b"", at: int | None = None) -> Packet:
        """A segment; `at`: the offset of its first byte, None: behind what its side has sent."""
        source, destination = self._ports(direction)
        syn = bool(flags & tcp.TH_SYN)
        segment = tcp.TCP(
            sport=source,
            dport=destination,
            seq=0 if syn else self._next(direction) if at is None else (1 + at) & 0xFFFFFFFF,
            ack=self._acked(direction.other) if self.started else int(bool(flags & tcp.TH_ACK)),
            flags=flags,
            win=WINDOW,
            opts=SCALE_OPTION if syn else b"",
            data=data,
        )
        segment.off = (20 + len(segment.opts)) // 4
        return self._packet(direction, ip.IP_PROTO_TCP, segment)

    def udp(self, direction: Direction, data: bytes) -> Packet:
        source, destination = self._ports(direction)
        return self._packet(
            direction, ip.IP_PROTO_UDP, udp.UDP(sport=source, dport=destination, ulen=8 + len(data), data=data)
        )

    def carried(self, direction: Direction, transport: str, data: bytes) -> Packet:
        """An ICMP message, or what IP carried of a protocol that has only a number; both were recorded whole."""
        if transport != "icmp":
            return self._packet(direction, int(transport), data)
        six = ":" in self.client_address
        return self._packet(direction, ip.IP_PROTO_ICMP6 if six else ip.IP_PROTO_ICMP, data)

    def took(self, direction: Direction, start: int, end: int) -> None:
        """These bytes were sent."""
        self.sent[direction] = max(self.sent[direction], end)
        if self.patient:
            behind = self.behind[direction]
            heappush(behind, (start, end))
            while behind and behind[0][0] <= self.whole_to[direction]:
                self.whole_to[direction] = max(self.whole_to[direction], heappop(behind)[1])

    def _acked(self, direction: Direction) -> int:
        return (1 + self.whole_to[direction]) & 0xFFFFFFFF if self.patient else self._next(direction)

    def _next(self, direction: Direction) -> int:
        return (1 + self.sent[direction]) & 0xFFFFFFFF

    def _ports(self, direction: Direction) -> tuple[int, int]:
        ports = self.client_port, self.server_port
        return ports if direction is Direction.CLIENT else ports[::-1]

    def _packet(self, direction: Direction, protocol: int, data: Any) -> Packet:
        ends = ip_address(self.client_address).packed, ip_address(self.server_address).packed
        source, destination = ends if direction is Direction.CLIENT else ends[::-1]
        if len(source) == 4:
            packet = ip.IP(src=source, dst=destination, p=protocol, ttl=64, data=data)
            packet.len = len(packet)
            return packet
        return ip6.IP6(src=source, dst=destination, nxt=protocol, hlim=64, plen=len(data), data=data)


def _comment(session: dict[str, Any]) -> str:
    identity = session["identity"]
    who = " ".join(f"{name}={identity[name]}" for name in ("subject", "client", "issuer", "run_id") if identity[name])
    return f"verbatim session {session['session_id']} {who or 'unbound'} coverage={session['coverage']}"
