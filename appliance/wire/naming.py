"""A DNS answer as far as rules about hosts need it: which name was asked for, and the addresses that it has (RFC 1035).

Aliases are followed within the message, from the name that was asked for on. Messages are written by whoever answers:
every walk is bounded, and what is not understood is no answer.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

HEADER = struct.Struct("!HHHHHH")  # section 4.1.1
RECORD = struct.Struct("!HHIH")  # section 4.1.3, behind the name
A, CNAME, AAAA, INTERNET = 1, 5, 28, 1  # types (sections 3.2.2; RFC 3596), class
RESPONSE, OPCODE, RCODE = 0x8000, 0x7800, 0x000F
MAX_RECORDS = 64
MAX_HOPS = 32  # pointers and labels of one name
MAX_NAME = 255  # bytes, section 3.1
MAX_TTL = 2**31 - 1  # RFC 2181 section 8

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Answer:
    """`name`: that was asked for, in lower case, without the last dot. `addresses`: each with its seconds to live,
    the shortest of the records that lead to it."""

    name: str
    addresses: tuple[tuple[Address, int], ...]


def read_answer(message: bytes) -> Answer | None:
    """None: no answer with addresses, or not to be understood. A truncated one says what it says."""
    try:
        return _read(message)
    except (struct.error, IndexError, UnicodeDecodeError):
        return None


def _read(message: bytes) -> Answer | None:
    _, flags, questions, answers, _, _ = HEADER.unpack_from(message)
    if not flags & RESPONSE or flags & (OPCODE | RCODE) or questions != 1:
        return None
    name, at = _name(message, HEADER.size)
    at += 4
    aliases: dict[str, tuple[str, int]] = {}
    found: dict[str, list[tuple[Address, int]]] = {}
    for _ in range(min(answers, MAX_RECORDS)):
        if at >= len(message):
            break  # cut off
        owner, at = _name(message, at)
        kind, class_, ttl, length = RECORD.unpack_from(message, at)
        at += RECORD.size
        data, start, at = message[at : at + length], at, at + length
        if len(data) < length:
            break
        ttl = 0 if ttl > MAX_TTL else ttl
        if class_ != INTERNET:
            continue
        if kind == CNAME:
            aliases[owner] = _name(message, start)[0], ttl
        elif kind == A and length == 4:
            found.setdefault(owner, []).append((IPv4Address(data), ttl))
        elif kind == AAAA and length == 16:
            found.setdefault(owner, []).append((IPv6Address(data), ttl))
    owner, least = name, MAX_TTL
    for _ in range(len(aliases)):
        if owner not in aliases:
            break
        owner, ttl = aliases[owner]
        least = min(least, ttl)
    addresses = tuple((address, min(ttl, least)) for address, ttl in found.get(owner, ()))
    return Answer(name, addresses) if addresses else None


def _name(message: bytes, at: int) -> tuple[str, int]:
    """A name and where it ends. Raises `IndexError` for one that does not, or is too long; `UnicodeDecodeError`."""
    labels: list[str] = []
    end, total = 0, 0
    for _ in range(2 * MAX_HOPS):
        length = message[at]
        if length >= 0xC0:  # section 4.1.4
            end = end or at + 2
            at = (length & 0x3F) << 8 | message[at + 1]
            continue
        at += 1
        if not length:
            return ".".join(labels).lower(), end or at
        total += length + 1
        if length > 63 or total > MAX_NAME or at + length > len(message):
            raise IndexError
        labels.append(message[at : at + length].decode("ascii"))
        at += length
    raise IndexError
