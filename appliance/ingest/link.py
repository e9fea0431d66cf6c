"""Link layers: where the IP packet begins in a captured frame.

Link types as of https://www.tcpdump.org/linktypes.html: 1 Ethernet (with VLAN tags, IEEE 802.1Q and 802.1ad, and
LLC/SNAP), 113 and 276 Linux "cooked" captures, 101, 12, 14, 228 and 229 raw IP, 0 and 108 BSD loopback.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

_IPV4, _IPV6 = 0x0800, 0x86DD
_TAGS: Final = frozenset({0x8100, 0x88A8, 0x9100, 0x9200})
_MAX_TAGS: Final = 8
_SNAP: Final = b"\xaa\xaa\x03\x00\x00\x00"
_FAMILIES: Final = frozenset({2, 10, 24, 28, 30})  # AF_INET, and AF_INET6 of Linux, NetBSD, FreeBSD, macOS
NO_TAG: Final = -1


class Network(NamedTuple):
    """`start`: offset of the IP header. `tag`: control information of the outermost VLAN tag, or `NO_TAG`."""

    start: int
    tag: int


Parse = Callable[[bytes], Network | None]  # None: the frame carries no IP packet


def _typed(frame: bytes, at: int) -> Network | None:
    """Follow VLAN tags; `at` is the offset of the EtherType."""
    tag = NO_TAG
    for _ in range(_MAX_TAGS + 1):
        kind = int.from_bytes(frame[at : at + 2], "big")
        if kind in (_IPV4, _IPV6):
            return Network(at + 2, tag)
        if kind in _TAGS:
            if tag == NO_TAG:
                tag = int.from_bytes(frame[at + 2 : at + 4], "big")
            at += 4
        elif kind <= 1500 and frame[at + 2 : at + 8] == _SNAP:  # a length (IEEE 802.3), then RFC 1042
            at += 8
        else:
            return None
    return None


def _ethernet(frame: bytes) -> Network | None:
    if frame[12:14] == b"\x08\x00":
        return Network(14, NO_TAG)
    return _typed(frame, 12)


def _cooked(frame: bytes) -> Network | None:
    return _typed(frame, 14)


def _cooked2(frame: bytes) -> Network | None:
    kind = int.from_bytes(frame[:2], "big")
    if kind in (_IPV4, _IPV6):
        return Network(20, NO_TAG)
    if kind in _TAGS and len(frame) >= 24:
        inner = _typed(frame, 22)
        return inner and Network(inner.start, int.from_bytes(frame[20:22], "big"))
    return None


def _raw(frame: bytes) -> Network | None:
    return Network(0, NO_TAG)


def _loopback(frame: bytes) -> Network | None:
    """The address family is in the byte order of the capturing machine, or big-endian."""
    word = frame[:4]
    families = {int.from_bytes(word, "little"), int.from_bytes(word, "big")}
    return Network(4, NO_TAG) if families & _FAMILIES else None


LINKS: Final[dict[int, Parse]] = {
    0: _loopback,
    1: _ethernet,
    12: _raw,
    14: _raw,
    101: _raw,
    108: _loopback,
    113: _cooked,
    228: _raw,
    229: _raw,
    276: _cooked2,
}
