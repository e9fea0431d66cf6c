import struct

from hypothesis import given
from hypothesis import strategies as st

from appliance.session.packets import Network, Transport, network, transport, window_scale
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


def test_window_scale() -> None:
    assert window_scale(ip4(6, "1.2.3.4", "5.6.7.8", tcp(b"\2\4\5\xb4\1\3\3\7"))) == 7
    assert window_scale(ip6(6, tcp(b"\1\3\3\xff"))) == 14
    assert window_scale(ip4(6, "1.2.3.4", "5.6.7.8", tcp(b"\2\4\5\xb4"))) is None
    assert window_scale(ip4(6, "1.2.3.4", "5.6.7.8", tcp(b"\0\3\3\7"))) is None
    assert window_scale(ip4(6, "1.2.3.4", "5.6.7.8", tcp(b"\5\0\3\7"))) is None
    assert window_scale(ip4(17, "1.2.3.4", "5.6.7.8", bytes(40))) is None


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
        window_scale(version + data)
        transport(6, data)
    assert Peer().handshake()
