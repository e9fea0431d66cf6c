"""An IP packet as a record: the same header that the eBPF program writes (bpf/wire.h), filled from a capture file.

What differs from the wire: `time` is Unix time, `side` is CLIENT throughout (nobody knows yet who began), and there is
no flow, lease or interface. Fragments are recorded as they are, flagged, with the offset of their data in `header`; the
session stage puts them together. `payload` is the length that the packet had on the wire even if fewer bytes were
captured. Checksums are not looked at: captures hold packets that the sending machine's network card completes.
"""

import struct
from enum import StrEnum
from typing import Final

from appliance.ingest.link import NO_TAG
from appliance.wire.abi import ABI, RECORD_F_FRAGMENT, RECORD_F_GSO, RECORD_F_RELATED, RECORD_F_VLAN, Kind, Lane, Record

_IPV4: Final = struct.Struct(">BBHHHBBH4s4s")
_TCP: Final = struct.Struct(">HHIIBBH")
_UDP: Final = struct.Struct(">HHH")
_PACK: Final = Record.LAYOUT.pack
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
_PADDING: Final = tuple(bytes(-size % 8) for size in range(8))
_PACKET, _TAP = int(Kind.PACKET), int(Lane.TAP)
_ICMP, _TCP_PROTOCOL, _UDP_PROTOCOL, _ICMP6 = 1, 6, 17, 58
_HOP_BY_HOP, _FRAGMENT, _AUTHENTICATION = 0, 44, 51
_EXTENSIONS: Final = frozenset({_HOP_BY_HOP, 43, 60, 135, 139, 140})  # RFC 8200 §4, RFC 7045
_MAX_EXTENSIONS: Final = 16
_MAX_OPTIONS: Final = 16
_ECHO: Final = {_ICMP: (8, 0), _ICMP6: (128, 129)}  # request, reply
_ERRORS: Final = {_ICMP: frozenset({3, 11, 12}), _ICMP6: frozenset({1, 2, 3, 4})}


class Skip(StrEnum):
    """Why a packet of the capture is no record."""

    LINK = "link type not supported"
    NOT_IP = "not IP"
    SHORT = "too few bytes captured"
    MALFORMED = "malformed"


def record(frame: bytes, start: int, wire: int, time_ns: int, tag: int) -> bytes | Skip:
    """The record of the IP packet at `start` of `frame`, with the packet behind it, padded to 8 bytes.

    `wire`: length of the frame on the wire, in bytes; `tag`: of `Network`. Link-layer padding is left out.
    """
    if len(frame) <= start:
        return Skip.SHORT
    version = frame[start] >> 4
    flags = RECORD_F_VLAN if tag != NO_TAG else 0
    there = len(frame) - start
    if version == 4:
        if there < 20:
            return Skip.SHORT
        first, _, length, _, place, _, protocol, _, source, destination = _IPV4.unpack_from(frame, start)
        header = (first & 15) * 4
        if not length:  # a super-packet of the sending machine
            length = wire - start
            flags |= RECORD_F_GSO
        if header < 20 or length < header or length > wire - start:
            return Skip.MALFORMED
        source, destination, family = _MAPPED + source, _MAPPED + destination, 4
        if place & 0x3FFF:
            flags |= RECORD_F_FRAGMENT
    elif version == 6:
        if there < 40:
            return Skip.SHORT
        chain = _ipv6(frame, start, wire)
        if isinstance(chain, Skip):
            return chain
        protocol, header, length, more = chain
        flags |= more
        source, destination, family = frame[start + 8 : start + 24], frame[start + 24 : start + 40], 6
    else:
        return Skip.MALFORMED
    if there < header:
        return Skip.SHORT
    kept: int = min(there, length)  # without link-layer padding
    source_port = destination_port = seq = ack = window = tcp_flags = 0
    payload = length - header
    at = start + header
    room = kept - header  # bytes of the transport that were captured
    if flags & RECORD_F_FRAGMENT:
        pass
    elif protocol == _TCP_PROTOCOL:
        if payload < 20:
            return Skip.MALFORMED
        if room < 20:
            return Skip.SHORT
        source_port, destination_port, seq, ack, size, tcp_flags, window = _TCP.unpack_from(frame, at)
        size = (size >> 4) * 4
        if size < 20 or size > payload:
            return Skip.MALFORMED
        header += size
        payload -= size
    elif protocol == _UDP_PROTOCOL:
        if payload < 8:
            return Skip.MALFORMED
        if room < 8:
            return Skip.SHORT
        source_port, destination_port, size = _UDP.unpack_from(frame, at)
        if not size and payload > 0xFFFF:  # RFC 2675 §4
            size = payload
        if not 8 <= size <= payload:
            return Skip.MALFORMED
        header += 8
        payload = size - 8
    elif protocol == (_ICMP if family == 4 else _ICMP6):
        if payload < 8:
            return Skip.MALFORMED
        if room < 8:
            return Skip.SHORT
        header += 8
        payload -= 8
        about = _complaint(frame[at + 8 : at + room], family) if frame[at] in _ERRORS[protocol] else None
        if about is not None:
            flags |= RECORD_F_RELATED
            source, destination, protocol, source_port, destination_port = about
            payload = 0  # of that flow
        else:
            source_port, destination_port = _echo_ports(protocol, frame[at : at + 8])
    head: bytes = _PACK(
        ABI,
        _PACKET,
        _TAP,
        0,
        family,
        protocol,
        0,
        flags,
        0,
        kept,
        time_ns,
        0,
        0,
        0,
        source,
        destination,
        source_port,
        destination_port,
        seq,
        ack,
        window,
        tcp_flags,
        0,
        payload,
        0,
        0,
        header,
        tag if tag != NO_TAG else 0,
        0,
    )
    return head + frame[start : start + kept] + _PADDING[kept & 7]


def _ipv6(frame: bytes, start: int, wire: int) -> tuple[int, int, int, int] | Skip:
    """Protocol, bytes before the transport, length of the packet, flags (RFC 8200 §4, RFC 2675 for longer packets)."""
    length = int.from_bytes(frame[start + 4 : start + 6], "big") + 40
    protocol, header, flags = frame[start + 6], 40, 0
    if length == 40 and protocol != 59:  # 59: no next header
        length = _jumbo_length(frame, start + 40) if protocol == _HOP_BY_HOP else 0
        if not length:
            length = wire - start
        flags = RECORD_F_GSO
    if length > wire - start:
        return Skip.MALFORMED
    for _ in range(_MAX_EXTENSIONS):
        at = start + header
        if protocol == _FRAGMENT:
            if header + 8 > length:
                return Skip.MALFORMED
            if at + 8 > len(frame):
                return Skip.SHORT
            protocol, header = frame[at], header + 8
            if frame[at + 2] or frame[at + 3] & 0xF9:  # an atomic one (RFC 6946) is no fragment
                return protocol, header, length, flags | RECORD_F_FRAGMENT
        elif protocol in _EXTENSIONS or protocol == _AUTHENTICATION:
            if at + 8 > len(frame):
                return Skip.SHORT
            size = (frame[at + 1] + 2) * 4 if protocol == _AUTHENTICATION else (frame[at + 1] + 1) * 8
            protocol, header = frame[at], header + size
            if header > length:
                return Skip.MALFORMED
        else:
            return protocol, header, length, flags
    return Skip.MALFORMED


def _jumbo_length(frame: bytes, at: int) -> int:
    """Length of the whole packet by its jumbo payload option (RFC 2675 §2); 0: there is none."""
    end = min(len(frame), at + (int.from_bytes(frame[at + 1 : at + 2], "big") + 1) * 8)
    at += 2
    for _ in range(_MAX_OPTIONS):
        if at + 2 > end:
            return 0
        if frame[at] == 0:  # Pad1
            at += 1
            continue
        if frame[at] == 0xC2 and frame[at + 1] == 4 and at + 6 <= end:
            return int.from_bytes(frame[at + 2 : at + 6], "big") + 40
        at += 2 + frame[at + 1]
    return 0


def _echo_ports(protocol: int, icmp: bytes) -> tuple[int, int]:
    """An echo's identifier is the client's port, the server's is 0."""
    request, reply = _ECHO[protocol]
    identifier = int.from_bytes(icmp[4:6], "big")
    return identifier if icmp[0] == request else 0, identifier if icmp[0] == reply else 0


def _complaint(inner: bytes, family: int) -> tuple[bytes, bytes, int, int, int] | None:
    """Source, destination, protocol and ports of the flow that an ICMP error is about, as its answering side sends."""
    if family == 4:
        if len(inner) < 20 or inner[0] >> 4 != 4 or int.from_bytes(inner[6:8], "big") & 0x1FFF:
            return None
        at, protocol = (inner[0] & 15) * 4, inner[9]
        source, destination = _MAPPED + inner[12:16], _MAPPED + inner[16:20]
    else:
        if len(inner) < 40 or inner[0] >> 4 != 6:
            return None
        at, protocol = 40, inner[6]
        source, destination = inner[8:24], inner[24:40]
    begun = inner[at : at + 8]
    if len(begun) < 8:
        return None
    if protocol in (_TCP_PROTOCOL, _UDP_PROTOCOL):
        ports = int.from_bytes(begun[:2], "big"), int.from_bytes(begun[2:4], "big")
    elif protocol == (_ICMP if family == 4 else _ICMP6) and begun[0] in _ECHO[protocol]:
        ports = _echo_ports(protocol, begun)
    else:
        return None
    return destination, source, protocol, ports[1], ports[0]
