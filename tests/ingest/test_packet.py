"""Packets made by scapy, and any bytes at all."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Jumbo,
    PadN,
    TCPerror,
)
from scapy.layers.l2 import GRE
from scapy.packet import Raw

from appliance.ingest.link import NO_TAG
from appliance.ingest.packet import Skip, record
from appliance.session.packets import network, transport
from appliance.wire.abi import (
    RECORD_F_FRAGMENT,
    RECORD_F_GSO,
    RECORD_F_RELATED,
    RECORD_F_VLAN,
    Kind,
    Lane,
    Record,
    unpack_address,
)
from tests.vectors.pcap import make

A4, B4, A6, B6 = "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"


def parse(data: bytes, wire: int | None = None, start: int = 0, tag: int = NO_TAG) -> tuple[Record, bytes] | Skip:
    packed = record(data, start, len(data) if wire is None else wire, 5, tag)
    if isinstance(packed, Skip):
        return packed
    head = Record.unpack(packed)
    assert len(packed) % 8 == 0
    behind = packed[Record.LAYOUT.size :]
    assert 0 <= len(behind) - head.length < 8
    assert not any(behind[head.length :])
    return head, behind[: head.length]


def good(packet: Any) -> Record:
    """The record of a scapy packet; all of the packet must be in it."""
    data = bytes(packet)
    found = parse(data)
    assert not isinstance(found, Skip), found
    head, kept = found
    assert kept == data
    return head


def flow(head: Record) -> tuple[str, int, str, int, int]:
    return (
        unpack_address(head.source),
        head.source_port,
        unpack_address(head.destination),
        head.destination_port,
        head.protocol,
    )


def test_tcp() -> None:
    options = [("MSS", 1460), ("WScale", 7), ("Timestamp", (1, 2))]
    segment = TCP(sport=40000, dport=443, seq=2**32 - 1, ack=7, flags="SAE", window=512, options=options)
    head = good(IP(src=A4, dst=B4) / segment / b"data")
    assert (head.version, head.kind, head.lane, head.side, head.family) == (1, Kind.PACKET, Lane.TAP, 0, 4)
    assert (head.time, head.lease, head.flow, head.count, head.ifindex, head.reason) == (5, 0, 0, 0, 0, 0)
    assert flow(head) == (A4, 40000, B4, 443, 6)
    assert (head.seq, head.ack, head.window, head.tcp_flags) == (2**32 - 1, 7, 512, 0x52)
    assert (head.payload, head.header, head.flags) == (4, 20 + 40, 0)


def test_udp_in_ipv6_behind_every_extension() -> None:
    headers = (
        IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(8))])
        / IPv6ExtHdrDestOpt()
        / IPv6ExtHdrRouting(addresses=[B6])
        / IPv6ExtHdrFragment(offset=0, m=0)
    )
    packet = IPv6(src=A6, dst=B6) / headers / UDP(sport=5353, dport=53) / b"question"
    head = good(packet)
    assert flow(head) == (A6, 5353, B6, 53, 17)
    assert (head.payload, head.header) == (8, len(bytes(packet)) - 8)


def test_authentication_header_is_stepped_over() -> None:
    ah = b"\x06\x04" + bytes(22)  # 24 bytes: (4 + 2) * 4
    head = good(Raw(make.ipv6(ah + make.SEGMENTS[1], 51)))
    assert (head.protocol, head.source_port, head.header, head.payload) == (6, 40000, 40 + 24 + 20, 5)


def test_udp_length_cuts_what_lies_behind() -> None:
    data = bytes(IP(src=A4, dst=B4) / UDP(sport=1, dport=2, len=12) / b"fourMORE")
    head = good(Raw(data))
    assert (head.payload, head.length) == (4, len(data))


@pytest.mark.parametrize("length", [7, 20, 1])
def test_udp_length_that_lies(length: int) -> None:
    assert parse(bytes(IP(src=A4, dst=B4) / UDP(len=length) / b"four")) is Skip.MALFORMED


def test_echo_identifier_is_the_clients_port() -> None:
    assert flow(good(IP(src=A4, dst=B4) / ICMP(type=8, id=77, seq=1) / b"ping")) == (A4, 77, B4, 0, 1)
    assert flow(good(IP(src=B4, dst=A4) / ICMP(type=0, id=77, seq=1) / b"ping")) == (B4, 0, A4, 77, 1)
    assert flow(good(IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(id=78))) == (A6, 78, B6, 0, 58)
    head = good(IPv6(src=B6, dst=A6) / ICMPv6EchoReply(id=78, data=b"pong"))
    assert (flow(head), head.payload, head.header) == ((B6, 0, A6, 78, 58), 4, 48)


def test_other_icmp_has_no_ports() -> None:
    head = good(IPv6(src=A6, dst=B6) / ICMPv6ND_NS(tgt=B6))
    assert flow(head) == (A6, 0, B6, 0, 58)
    assert not head.flags


def test_icmp_error_belongs_to_the_flow_that_it_is_about() -> None:
    """As if the flow's other side had sent it, whoever did."""
    about = IPerror(src=A4, dst=B4) / UDPerror(sport=4000, dport=53)
    head = good(IP(src="198.51.100.1", dst=A4) / ICMP(type=3, code=3) / about)
    assert flow(head) == (B4, 53, A4, 4000, 17)
    assert (head.flags, head.payload, head.header) == (RECORD_F_RELATED, 0, 28)
    about6 = IPv6(src=A6, dst=B6, nh=6) / TCPerror(sport=4000, dport=80)
    head = good(IPv6(src="2001:db8::99", dst=A6) / ICMPv6PacketTooBig(mtu=1280) / about6)
    assert (flow(head), head.flags) == ((B6, 80, A6, 4000, 6), RECORD_F_RELATED)
    echo = IP(src=A4, dst=B4) / ICMP(type=8, id=9)
    assert flow(good(IP(src=B4, dst=A4) / ICMP(type=11) / echo)) == (B4, 0, A4, 9, 1)


def test_icmp_error_about_nothing_known_stays_itself() -> None:
    head = good(IP(src=B4, dst=A4) / ICMP(type=3, code=1) / Raw(b"\x45\x00"))
    assert (flow(head), head.flags, head.payload) == ((B4, 0, A4, 0, 1), 0, 2)


def test_other_protocols_are_recorded_by_number() -> None:
    head = good(IP(src=A4, dst=B4) / GRE() / IP(src="10.0.0.1", dst="10.0.0.2") / TCP())
    assert flow(head) == (A4, 0, B4, 0, 47)
    assert (head.header, head.payload) == (20, 4 + 40)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_fragments_are_recorded_as_they_are(place: str) -> None:
    flags, offset = {"first": ("MF", 0), "middle": ("MF", 3), "last": (0, 6)}[place]
    head = good(IP(src=A4, dst=B4, id=9, flags=flags, frag=offset, proto=6) / Raw(b"x" * 24))
    assert (head.flags, head.protocol, head.header, head.payload) == (RECORD_F_FRAGMENT, 6, 20, 24)
    assert (head.source_port, head.destination_port, head.seq) == (0, 0, 0)
    part = IPv6ExtHdrFragment(offset=offset, m=int(flags == "MF"), id=3, nh=17)
    head = good(IPv6(src=A6, dst=B6) / IPv6ExtHdrDestOpt() / part / Raw(b"x" * 24))
    assert (head.flags, head.protocol, head.header, head.payload) == (RECORD_F_FRAGMENT, 17, 56, 24)


def test_padding_is_left_out_and_the_tag_kept() -> None:
    data = make.MACS + bytes.fromhex("81002064 0800") + make.PACKETS4[0] + b"\xee" * 9
    found = parse(data, start=18, tag=0x2064)
    assert not isinstance(found, Skip)
    assert found[1] == make.PACKETS4[0]
    assert (found[0].flags, found[0].vlan) == (RECORD_F_VLAN, 0x2064)


@pytest.mark.parametrize("kept", range(40, 45))
def test_snapped_packet_keeps_its_length(kept: int) -> None:
    data = make.PACKETS4[1]
    found = parse(data[:kept], wire=len(data))
    assert not isinstance(found, Skip)
    head, there = found
    assert there == data[:kept]
    assert (head.payload, head.header, head.length) == (5, 40, kept)


def test_snapped_within_tcp_options_is_still_useful() -> None:
    data = make.PACKETS4[0]
    found = parse(data[:40], wire=len(data))
    assert not isinstance(found, Skip)
    assert (found[0].seq, found[0].header, found[0].payload, found[0].length) == (1000, 44, 0, 40)


@pytest.mark.parametrize("kept", [0, 1, 19, 20, 39])
def test_too_short(kept: int) -> None:
    assert parse(make.PACKETS4[1][:kept], wire=45) is Skip.SHORT


@pytest.mark.parametrize(
    "packet",
    [
        make.ipv4(make.SEGMENTS[1], length=19),
        make.ipv4(make.SEGMENTS[1], length=46),
        make.ipv4(make.SEGMENTS[1][:19]),
        b"\x44" + make.PACKETS4[1][1:],
        b"\x75" + make.PACKETS4[1][1:],
        make.ipv4(b"\0" * 12 + b"\xf0" + b"\0" * 20),
        make.ipv6(make.SEGMENTS[1], length=100),
        make.ipv6(b"\x06\xff" + bytes(40), 0),
        make.ipv6(b"\0\0" * 4 * 20, 0),
        make.ipv6(b"\x06\0\0", 44),
        make.ipv4(bytes(4), 1),
    ],
)
def test_malformed(packet: bytes) -> None:
    assert parse(packet) is Skip.MALFORMED


def test_length_of_zero_means_what_was_captured() -> None:
    big = make.tcp(1, 0x10, bytes(70_000))
    for packet in (make.ipv4(big, length=0), make.ipv6(big, length=0)):
        head = good(Raw(packet))
        assert (head.payload, head.flags) == (70_000, RECORD_F_GSO)


def test_jumbograms() -> None:
    big = make.tcp(1, 0x10, bytes(70_000))
    options = IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=8 + len(big))], nh=6)
    packet = bytes(IPv6(src=A6, dst=B6, plen=0) / options) + big
    found = parse(packet + b"padding")
    assert not isinstance(found, Skip)
    assert (found[0].payload, found[0].flags, found[1]) == (70_000, RECORD_F_GSO, packet)
    datagram = bytes.fromhex("0bb8 0035 0000 0000") + bytes(70_000)  # UDP length 0
    options = IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=8 + len(datagram))], nh=17)
    assert good(Raw(bytes(IPv6(src=A6, dst=B6, plen=0) / options) + datagram)).payload == 70_000


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 20), st.integers(0, 200))
def test_any_bytes(data: bytes, start: int, more: int) -> None:
    parse(data, wire=len(data) + more, start=start)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_agrees_with_the_session_stage(seed: int, six: bool) -> None:
    """Both read the same header; damaged packets too. What the session stage derives must be what the record says."""
    noise = random.Random(seed)
    data = bytearray((make.PACKETS6 if six else make.PACKETS4)[1])
    for _ in range(noise.randrange(3)):
        data[noise.randrange(len(data))] = noise.randrange(256)
    found = parse(bytes(data))
    if isinstance(found, Skip) or found[0].flags & (RECORD_F_FRAGMENT | RECORD_F_RELATED):
        return
    head, kept = found
    where = network(kept)
    assert where is not None
    assert where.protocol == head.protocol
    if head.protocol == 6:
        parts = transport(6, kept[where.start : where.end])
        assert parts is not None
        assert (parts.seq, parts.source_port, parts.flags) == (head.seq, head.source_port, head.tcp_flags)
        assert where.start + parts.payload == head.header
        assert where.end - head.header == head.payload
