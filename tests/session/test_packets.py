import struct

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from appliance.session.packets import Network, Options, Transport, checksum_holds, network, options, transport
from tests.session.traffic import SYN, Peer, ip4

V6 = struct.pack(">IHBB", 6 << 28, 0, 0, 64) + bytes(32)


def ip6(following: int, rest: bytes) -> bytes:
    return V6[:4] + struct.pack(">HB", len(rest), following) + V6[7:] + rest


def tcp(options: bytes) -> bytes:
    return struct.pack(">HHIIBBHHH", 1, 2, 3, 4, (5 + len(options) // 4) << 4, SYN, 5, 0, 0) + options


def test_ipv4() -> None:
    assert network(ip4(6, "1.2.3.4", "5.6.7.8", b"abc", 0x2001, 9)) == Network(6, 20, 23, 9, 8, True)
    assert network(b"\x45" + bytes(10)) is None
    assert network(b"\x41" + bytes(30)) is None


def test_a_super_packet_has_length_0() -> None:
    packet = bytearray(ip4(6, "1.2.3.4", "5.6.7.8", bytes(100)))
    packet[2:4] = b"\0\0"
    found = network(bytes(packet))
    assert found is not None
    assert found.end == 120


def test_ipv6_extension_headers() -> None:
    options = bytes([60, 0]) + bytes(6)
    more = bytes([6, 1]) + bytes(14)
    assert network(ip6(0, options + more + b"tcp")) == Network(6, 64, 67, 0, 0, False)
    fragment = struct.pack(">BBHI", 17, 0, 8 | 1, 77)
    assert network(ip6(44, fragment + b"data")) == Network(17, 48, 52, 77, 8, True)
    atomic = struct.pack(">BBHI", 17, 0, 0, 77)
    assert network(ip6(44, atomic + b"data")) == Network(17, 48, 52, 0, 0, False)
    authentication = bytes([6, 4]) + bytes(22)
    assert network(ip6(51, authentication + b"tcp")) == Network(6, 64, 67, 0, 0, False)
    assert network(ip6(0, b"\0\0\0")) is None
    assert network(ip6(0, (bytes([0, 0]) + bytes(6)) * 20)) is None


def test_options() -> None:
    def of(listed: bytes) -> Options:
        return options(ip4(6, "1.2.3.4", "5.6.7.8", tcp(listed)))

    assert of(b"\2\4\5\xb4\1\3\3\7") == Options(scale=7)
    assert options(ip6(6, tcp(b"\1\3\3\xff"))) == Options(scale=14)
    assert of(b"\1\1\4\2\1\1\x08\x0a\0\0\1\2\0\0\0\0") == Options(stamp=258, selective=True)
    assert of(b"\x13\x12" + bytes(16) + b"\1\1") == Options(signed=True)
    assert of(b"\2\4\5\xb4") == of(b"\0\3\3\7") == Options()
    assert of(b"\3\3\7\5\0\3\7\0") == Options(scale=7, broken=5)
    assert of(b"\1\1\3\4") == Options(broken=2)
    assert options(ip4(17, "1.2.3.4", "5.6.7.8", bytes(40))) == Options()


@given(st.binary(max_size=80), st.integers(0, 7))
def test_checksums(data: bytes, bit: int) -> None:
    for made in (IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")):
        packet = bytearray(bytes(made / TCP(sport=1, dport=2) / data))
        start = len(packet) - 20 - len(data)
        assert checksum_holds(memoryview(packet), start)
        packet[-1] ^= 1 << bit
        assert not checksum_holds(memoryview(packet), start, lenient=True)


def test_a_checksum_that_a_network_card_completes() -> None:
    packet = bytearray(bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=2) / b"abc"))
    whole = 0x0A000001 + 0x0A000002 + 6 + 23
    packet[36:38] = (whole % 0xFFFF).to_bytes(2, "big")
    assert not checksum_holds(memoryview(packet), 20)
    assert checksum_holds(memoryview(packet), 20, lenient=True)


def test_transport() -> None:
    assert transport(6, tcp(b"") + b"x") == Transport(1, 2, 3, 4, SYN, 5, 20)
    assert transport(17, struct.pack(">HHHH", 53, 4000, 9, 0) + b"x") == Transport(53, 4000, 0, 0, 0, 0, 8)
    assert transport(1, b"") == Transport(0, 0, 0, 0, 0, 0, 0)
    assert transport(6, bytes(19)) is None
    assert transport(6, bytes(20)) is None
    assert transport(17, bytes(7)) is None


@given(st.binary(max_size=120))
def test_any_bytes(data: bytes) -> None:
    for version in (b"\x45", b"\x60", b""):
        network(version + data)
        options(version + data)
        transport(6, data)
    assert Peer().handshake()
