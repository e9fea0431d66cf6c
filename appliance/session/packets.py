"""The few header fields that the record in the ring doesn't carry. Any bytes may come; None means "not that"."""

import struct
from typing import NamedTuple

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
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


def window_scale(packet: bytes | memoryview) -> int | None:
    """Window scale option of a SYN (RFC 7323 §2.2), at most 14; None if there is none."""
    where = network(packet)
    if where is None or where.protocol != TCP or where.start + 20 > len(packet):
        return None
    at = where.start + 20
    end = min(where.start + (packet[where.start + 12] >> 4) * 4, len(packet))
    while at < end:
        kind = packet[at]
        if kind == 0:
            return None
        if kind == 1:
            at += 1
            continue
        if at + 2 > end or packet[at + 1] < 2:
            return None
        if kind == 3 and packet[at + 1] == 3 and at + 3 <= end:
            return min(packet[at + 2], 14)
        at += packet[at + 1]
    return None


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
