"""The few header fields that the record in the ring doesn't carry. Any bytes may come; None means "not that"."""

import struct
from typing import NamedTuple

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
WELL_KNOWN = 1024  # the first port that is not
_HANDED_OUT = range(32768, 61000)  # ip_local_port_range(7)
# IPv6 extension headers with (next header, length in 8-byte units - 1): RFC 8200 §4, RFC 7045; AH counts in 4 bytes.
_OPTIONS = frozenset({0, 43, 60, 135, 139, 140})
_AUTHENTICATION = 51
_FRAGMENT = 44
_MAX_EXTENSIONS = 16


class Network(NamedTuple):
    """Where the transport begins in a packet, and what its IP header says of fragmentation (RFC 791, RFC 8200 §4.5)."""

    protocol: int
    start: int  # of the transport, or of this fragment of it
    end: int  # of the packet by its own length field (0 there: a super-packet, then its real length)
    identification: int
    offset: int  # of the fragment, bytes
    more: bool  # fragments follow


def network(packet: bytes | memoryview) -> Network | None:
    """Read the IP header and the extension headers up to the transport or a fragment's part of it."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        start = (packet[0] & 15) * 4
        length, identification, fragment = struct.unpack_from(">HHH", packet, 2)
        if start < 20 or start > len(packet):
            return None
        end = length if length >= start else len(packet)
        return Network(packet[9], start, end, identification, (fragment & 0x1FFF) * 8, bool(fragment & 0x2000))
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        (length,) = struct.unpack_from(">H", packet, 4)
        return _extensions(packet, length + 40 if length else len(packet))
    return None


def _extensions(packet: bytes | memoryview, end: int) -> Network | None:
    protocol, at, there = packet[6], 40, min(end, len(packet))
    for _ in range(_MAX_EXTENSIONS):
        if protocol == _FRAGMENT:
            if at + 8 > there:
                return None
            following, _, place, identification = struct.unpack_from(">BBHI", packet, at)
            if place & 0xFFF9:  # an atomic fragment (RFC 6946) is no fragment
                return Network(following, at + 8, end, identification, place & 0xFFF8, bool(place & 1))
            protocol, at = following, at + 8
        elif protocol in _OPTIONS or protocol == _AUTHENTICATION:
            if at + 8 > there:
                return None
            size = (packet[at + 1] + 2) * 4 if protocol == _AUTHENTICATION else (packet[at + 1] + 1) * 8
            protocol, at = packet[at], at + size
            if at > there:
                return None
        else:
            return Network(protocol, at, end, 0, 0, False)
    return None


class Options(NamedTuple):
    """What matters of a TCP header's options: RFC 7323, RFC 2018; `signed`: RFC 2385 (MD5) or RFC 5925 (AO)."""

    scale: int | None = None  # at most 14
    stamp: int | None = None
    selective: bool = False
    signed: bool = False
    broken: int = 0  # bytes from where the list is malformed


NO_OPTIONS = Options()
STAMP = b"\1\1\x08\x0a"  # how nearly everybody writes a time stamp


def options(packet: bytes | memoryview) -> Options:
    """Read the options of a TCP segment; a malformed list counts up to where it is."""
    where = network(packet)
    if where is None or where.protocol != TCP or where.start + 20 > len(packet):
        return NO_OPTIONS
    at = where.start + 20
    end = min(where.start + (packet[where.start + 12] >> 4) * 4, len(packet))
    scale = stamp = None
    selective = signed = False
    broken = 0
    while at < end:
        kind = packet[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        if at + 2 > end or packet[at + 1] < 2 or at + packet[at + 1] > end:
            broken = end - at
            break
        size = packet[at + 1]
        if kind == 3 and size == 3:
            scale = min(packet[at + 2], 14)
        elif kind == 8 and size == 10:
            (stamp,) = struct.unpack_from(">I", packet, at + 2)
        elif kind == 4 and size == 2:
            selective = True
        elif kind in (19, 29):
            signed = True
        at += size
    return Options(scale, stamp, selective, signed, broken)


def checksum_holds(packet: memoryview, start: int, *, lenient: bool = False) -> bool:
    """Whether a whole IP packet's TCP segment, which begins at `start`, has the right checksum (RFC 9293 §3.1).

    `lenient`: so does one that holds the sum of the pseudo-header only, which the sending machine's card completes.
    Sums of 16-bit words are remainders by 65535, and Python takes these of whole packets at once.
    """
    length = len(packet) - start
    if packet[0] >> 4 == 4:
        pseudo = int.from_bytes(packet[12:20], "big") + TCP + length
    else:
        pseudo = int.from_bytes(packet[8:40], "big") + TCP + length
    whole = int.from_bytes(packet[start:], "big") << (8 if length & 1 else 0)
    if (pseudo + whole) % 0xFFFF == 0:
        return True
    (there,) = struct.unpack_from(">H", packet, start + 16)
    return lenient and (pseudo - there) % 0xFFFF == 0


class Transport(NamedTuple):
    """What a record says of its packet's transport, read from the packet itself."""

    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    window: int
    payload: int  # index of the first payload byte


def transport(protocol: int, segment: bytes | memoryview) -> Transport | None:
    """Read the transport header of a whole (reassembled) IP payload."""
    if protocol == TCP:
        if len(segment) < 20:
            return None
        source, destination, seq, ack, length, flags, window = struct.unpack_from(">HHIIBBH", segment)
        start = (length >> 4) * 4
        return Transport(source, destination, seq, ack, flags, window, start) if 20 <= start <= len(segment) else None
    if protocol == UDP:
        if len(segment) < 8:
            return None
        source, destination = struct.unpack_from(">HH", segment)
        return Transport(source, destination, 0, 0, 0, 0, 8)
    return Transport(0, 0, 0, 0, 0, 0, 0)


def is_server(port: int, other: int) -> bool:
    """Which end of a connection is the server where nobody saw it begin: a guess, by the ports.

    Clients have ports of the range that systems hand out, services others, most of them low.
    """
    if min(port, other) < WELL_KNOWN or (port in _HANDED_OUT) == (other in _HANDED_OUT):
        return port < other
    return other in _HANDED_OUT
