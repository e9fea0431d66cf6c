"""Makes the capture vectors: `python -m tests.vectors.pcap.make`.

Bytes are written by hand, so that no library's idea of the formats is tested against itself. Every `ok_` file holds the
same two packets, a SYN and its first data, `hello`, at 1,700,000,000.123456789 s (as exact as the file can say) and one
second later. `why` of each case tells what differs.
"""

import struct
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TIMES = (1_700_000_000_123_456_789, 1_700_000_001_123_456_789)
CLIENT4, SERVER4 = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
CLIENT6, SERVER6 = bytes.fromhex("fd00" + 27 * "0" + "1"), bytes.fromhex("fd00" + 27 * "0" + "2")
MACS = bytes.fromhex("020000000002020000000001")
ETHERNET, NULL, RAW, LOOP, SLL, IPV4, IPV6, SLL2 = 1, 0, 101, 108, 113, 228, 229, 276


def tcp(seq: int, flags: int, data: bytes) -> bytes:
    options = b"\x02\x04\x05\xb4" if flags & 2 else b""
    size = 20 + len(options)
    return struct.pack(">HHIIBBHHH", 40000, 5432, seq, 0, size // 4 << 4, flags, 64240, 0, 0) + options + data


SEGMENTS = (tcp(1000, 0x02, b""), tcp(1001, 0x18, b"hello"))


def ipv4(payload: bytes, protocol: int = 6, length: int | None = None, place: int = 0, options: bytes = b"") -> bytes:
    size = 20 + len(options)
    total = size + len(payload) if length is None else length
    head = struct.pack(">BBHHHBBH", 0x40 | size // 4, 0, total, 7, place, 64, protocol, 0)
    return head + CLIENT4 + SERVER4 + options + payload


def ipv6(payload: bytes, protocol: int = 6, length: int | None = None) -> bytes:
    return (
        struct.pack(">IHBB", 6 << 28, len(payload) if length is None else length, protocol, 64)
        + CLIENT6
        + SERVER6
        + payload
    )


PACKETS4 = tuple(ipv4(segment) for segment in SEGMENTS)
PACKETS6 = tuple(ipv6(segment) for segment in SEGMENTS)
FRAMES = tuple(MACS + b"\x08\x00" + packet for packet in PACKETS4)


def pcap(
    frames: tuple[bytes, ...], link: int = ETHERNET, order: str = "<", magic: int = 0xA1B23C4D, cut: int = 2**18
) -> bytes:
    unit = 1 if magic == 0xA1B23C4D else 1000
    parts = [struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, cut, link)]
    for frame, time in zip(frames, TIMES, strict=False):
        there = frame[:cut]
        parts.append(
            struct.pack(order + "IIII", time // 10**9, time % 10**9 // unit, len(there), len(frame))
            + (b"\x02\0\0\0\0\x08\0\0" if magic == 0xA1B2CD34 else b"")
            + there
        )
    return b"".join(parts)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str = "<", major: int = 1) -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, major, 0, -1), order)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def interface(link: int = ETHERNET, options: bytes = b"", order: str = "<", snap: int = 2**18) -> bytes:
    end = option(0, b"", order) if options else b""
    return block(1, struct.pack(order + "HHI", link, 0, snap) + options + end, order)


def enhanced(frame: bytes, ticks: int, number: int = 0, order: str = "<", wire: int | None = None) -> bytes:
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), wire or len(frame))
    return block(
        6, head + frame + bytes(-len(frame) % 4) + option(1, b"a comment", order) + option(0, b"", order), order
    )


def obsolete(frame: bytes, ticks: int) -> bytes:
    return block(2, struct.pack("<HHIIII", 0, 0, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame)) + frame)


def simple(frame: bytes) -> bytes:
    return block(3, struct.pack("<I", len(frame)) + frame)


NANO, BINARY = option(9, b"\x09"), option(9, b"\xa0")  # 10^-9; 2^-32
MICRO_TICKS = tuple(time // 1000 for time in TIMES)
SECRETS = block(0x0A, struct.pack("<II", 0x544C534B, 8) + b"CLIENT_R")


def _two_interfaces() -> bytes:
    return (
        section()
        + interface(RAW)
        + interface(ETHERNET, NANO)
        + enhanced(PACKETS4[0], MICRO_TICKS[0], 0)
        + SECRETS
        + enhanced(FRAMES[1], TIMES[1], 1)
    )


def _two_sections() -> bytes:
    """Each section has its own byte order and its own interface 0."""
    big = ">"
    return (
        section()
        + interface(RAW, NANO)
        + enhanced(PACKETS4[0], TIMES[0])
        + section(big)
        + interface(ETHERNET, option(9, b"\x09", big), big)
        + enhanced(FRAMES[1], TIMES[1], 0, big)
    )


def _binary_ticks() -> bytes:
    ticks = [time * 2**32 // 10**9 for time in TIMES]
    return section() + interface(ETHERNET, BINARY) + b"".join(map(enhanced, FRAMES, ticks))


def _offset_times() -> bytes:
    offset = option(14, struct.pack("<q", 1_700_000_000))
    ticks = [time - 1_700_000_000 * 10**9 for time in TIMES]
    return section() + interface(ETHERNET, NANO + offset) + b"".join(map(enhanced, FRAMES, ticks))


def _drops() -> bytes:
    def statistics(dropped: int) -> bytes:
        options = option(5, struct.pack("<Q", dropped)) + option(0, b"")
        return block(5, struct.pack("<III", 0, 0, 0) + options)

    packets = [enhanced(frame, time) for frame, time in zip(FRAMES, TIMES, strict=True)]
    return section() + interface(ETHERNET, NANO) + packets[0] + statistics(3) + packets[1] + statistics(5)


def _fragments() -> bytes:
    """The data segment in two fragments, the second one first."""
    segment = SEGMENTS[1]
    parts = ipv4(segment[24:], place=3), ipv4(segment[:24], place=0x2000)
    frames = (PACKETS4[0], *parts)
    ticks = (TIMES[0], TIMES[1], TIMES[1])
    return section() + interface(RAW, NANO) + b"".join(map(enhanced, frames, ticks))


def _noise() -> bytes:
    """Nothing here is worth a record."""
    frames = (
        MACS + b"\x08\x06" + bytes(28),  # ARP
        MACS + b"\x08\x00" + b"\x45\x00",  # an IP header cut short
        MACS + b"\x08\x00" + ipv4(SEGMENTS[0], length=1000),  # longer than the wire
        MACS + b"\x08\x00" + b"\x65" + PACKETS4[0][1:],  # neither version
        MACS + b"\x08\x00" + ipv4(b"\0" * 20),  # a TCP header length of 0
    )
    return section() + interface(ETHERNET, NANO) + b"".join(enhanced(frame, TIMES[0]) for frame in frames)


VLAN = MACS + bytes.fromhex("88a80064 8100 0007") + b"\x08\x00"
SLL_HEAD = bytes.fromhex("0000 0001 0006 020000000001 0000")
SLL2_HEAD = bytes.fromhex("0000 00000002 0001 00 06 020000000001 0000")
SNAP = MACS + b"\x00\x40" + bytes.fromhex("aaaa03 000000 0800")
HOP_BY_HOP = b"\x3c\x00" + b"\x01\x04" + bytes(4)  # padded; destination options next
DESTINATION = b"\x06\x00" + b"\x01\x04" + bytes(4)


def _prefixed(prefix: bytes, packets: tuple[bytes, ...] = PACKETS4) -> tuple[bytes, ...]:
    return tuple(prefix + packet for packet in packets)


@dataclass(frozen=True)
class Case:
    data: bytes
    why: str
    unit: int = 1  # ns that a time in the file counts in


CASES = {
    "ok_nano.pcap": Case(pcap(FRAMES), "nanoseconds, little-endian"),
    "ok_micro.pcap": Case(pcap(FRAMES, magic=0xA1B2C3D4), "microseconds, little-endian", 1000),
    "ok_micro_big_endian.pcap": Case(pcap(FRAMES, order=">", magic=0xA1B2C3D4), "microseconds, big-endian", 1000),
    "ok_nano_big_endian.pcap": Case(pcap(FRAMES, order=">"), "nanoseconds, big-endian"),
    "ok_modified.pcap": Case(pcap(FRAMES, magic=0xA1B2CD34), "Kuznetzov's longer record headers", 1000),
    "ok_vlan_stack.pcap": Case(pcap(_prefixed(VLAN)), "802.1ad tag 100, 802.1Q tag 7"),
    "ok_snap.pcap": Case(pcap(_prefixed(SNAP)), "IEEE 802.3 with LLC and SNAP"),
    "ok_padded.pcap": Case(pcap(tuple(frame + b"\xee" * 20 for frame in FRAMES)), "Ethernet padding behind the packet"),
    "ok_sll.pcap": Case(pcap(_prefixed(SLL_HEAD + b"\x08\x00"), SLL), "Linux cooked"),
    "ok_sll2.pcap": Case(pcap(_prefixed(b"\x08\x00" + SLL2_HEAD), SLL2), "Linux cooked, version 2"),
    "ok_null.pcap": Case(pcap(_prefixed(b"\x02\0\0\0"), NULL), "BSD loopback, little-endian family"),
    "ok_loop.pcap": Case(pcap(_prefixed(b"\0\0\0\x02"), LOOP), "OpenBSD loopback"),
    "ok_null_ipv6.pcap": Case(pcap(_prefixed(b"\x1e\0\0\0", PACKETS6), NULL), "BSD loopback, macOS's number of IPv6"),
    "ok_raw.pcap": Case(pcap(PACKETS4, RAW), "raw IP"),
    "ok_raw_ipv4.pcap": Case(pcap(PACKETS4, IPV4), "raw IPv4"),
    "ok_raw_ipv6.pcap": Case(pcap(PACKETS6, IPV6), "raw IPv6"),
    "ok_ip_options.pcap": Case(
        pcap(tuple(ipv4(segment, options=b"\x01" * 8) for segment in SEGMENTS), RAW), "IPv4 options"
    ),
    "ok_ipv6_extensions.pcap": Case(
        pcap(tuple(ipv6(HOP_BY_HOP + DESTINATION + segment, 0) for segment in SEGMENTS), RAW), "IPv6 extension headers"
    ),
    "ok_atomic_fragment.pcap": Case(
        pcap(tuple(ipv6(b"\x06\0\0\0\0\0\0\x09" + segment, 44) for segment in SEGMENTS), RAW), "RFC 6946"
    ),
    "ok_length_zero.pcap": Case(pcap(tuple(ipv4(segment, length=0) for segment in SEGMENTS), RAW), "a super-packet"),
    "ok_pcapng.pcapng": Case(section() + interface() + b"".join(map(enhanced, FRAMES, MICRO_TICKS)), "defaults", 1000),
    "ok_two_interfaces.pcapng": Case(_two_interfaces(), "link types and time units differ; TLS secrets between", 1000),
    "ok_two_sections.pcapng": Case(_two_sections(), "byte orders differ"),
    "ok_binary_ticks.pcapng": Case(_binary_ticks(), "times count in units of 2^-32 s"),
    "ok_offset_times.pcapng": Case(_offset_times(), "times count from if_tsoffset"),
    "ok_obsolete_blocks.pcapng": Case(
        section() + interface() + b"".join(map(obsolete, FRAMES, MICRO_TICKS)), "packet blocks", 1000
    ),
    "ok_drops.pcapng": Case(_drops(), "statistics: 3, then 5 packets dropped in all"),
    "simple_blocks.pcapng": Case(section() + interface() + b"".join(map(simple, FRAMES)), "packets without times"),
    "snapped.pcap": Case(pcap(FRAMES, cut=56), "54 bytes of headers and 2 of the data"),
    "fragments.pcapng": Case(_fragments(), "the data segment in two fragments, in the wrong order"),
    "noise.pcapng": Case(_noise(), "ARP and four kinds of malformed packets"),
    "truncated_packet.pcap": Case(pcap(FRAMES)[:-3], "ends within the last packet"),
    "truncated_header.pcap": Case(pcap(FRAMES)[: 24 + 16 + len(FRAMES[0]) + 5], "ends within a record header"),
    "truncated_block.pcapng": Case(
        (section() + interface(ETHERNET, NANO) + b"".join(map(enhanced, FRAMES, TIMES)))[:-27], "ends within the data"
    ),
    "absurd_length.pcap": Case(
        pcap(FRAMES) + struct.pack("<IIII", 0, 0, 2**31, 2**31) + bytes(64), "a record of 2 GiB behind the two"
    ),
    "bad_block_end.pcapng": Case(
        section() + interface(ETHERNET, NANO) + enhanced(FRAMES[0], TIMES[0])[:-4] + b"\xff\xff\0\0", "lengths disagree"
    ),
    "unknown_interface.pcapng": Case(
        section() + interface(ETHERNET, NANO) + enhanced(FRAMES[0], TIMES[0], 5) + enhanced(FRAMES[1], TIMES[1]),
        "the first packet names interface 5 of 1",
    ),
    "wireless.pcap": Case(pcap(FRAMES, 105), "IEEE 802.11, which is not supported"),
    "no_packets.pcap": Case(pcap(()), "a capture of nothing"),
}


def make(into: Path) -> None:
    for name, case in CASES.items():
        (into / name).write_bytes(case.data)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
