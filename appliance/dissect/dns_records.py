"""Names and records of DNS messages as text, in the presentation format of RFC 1035 section 5.1.

Names are without the final dot, the root is `.`; bytes of a label that are not printable ASCII show as `\\DDD`, dots
and backslashes in it as `\\.` and `\\\\`. Data of a type that is not known, or that does not fit its type, shows as
`\\# length hex` (RFC 3597) and counts as undecoded.

Compression pointers must point before the name they end (RFC 1035 section 4.1.4: "a prior occurrence"), so following
them ends. Each place of a name is read once and remembered, good or bad: time is in proportion to the message.
"""

import re
import struct
from base64 import b64encode
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from appliance.errors import MalformedInput

MAX_NAME = 255  # bytes of a name on the wire, and parts that it is put together from

_TYPES: Final = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    12: "PTR",
    13: "HINFO",
    15: "MX",
    16: "TXT",
    17: "RP",
    18: "AFSDB",
    24: "SIG",
    25: "KEY",
    28: "AAAA",
    29: "LOC",
    33: "SRV",
    35: "NAPTR",
    36: "KX",
    37: "CERT",
    39: "DNAME",
    41: "OPT",
    43: "DS",
    44: "SSHFP",
    45: "IPSECKEY",
    46: "RRSIG",
    47: "NSEC",
    48: "DNSKEY",
    50: "NSEC3",
    51: "NSEC3PARAM",
    52: "TLSA",
    53: "SMIMEA",
    59: "CDS",
    60: "CDNSKEY",
    61: "OPENPGPKEY",
    62: "CSYNC",
    63: "ZONEMD",
    64: "SVCB",
    65: "HTTPS",
    99: "SPF",
    108: "EUI48",
    109: "EUI64",
    249: "TKEY",
    250: "TSIG",
    251: "IXFR",
    252: "AXFR",
    255: "ANY",
    256: "URI",
    257: "CAA",
}
_CLASSES: Final = {1: "IN", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}
_PARAMETERS: Final = {
    0: "mandatory",
    1: "alpn",
    2: "no-default-alpn",
    3: "port",
    4: "ipv4hint",
    5: "ech",
    6: "ipv6hint",
    7: "dohpath",
}
_OPTIONS: Final = {3: "NSID", 8: "ECS", 9: "EXPIRE", 10: "COOKIE", 11: "KEEPALIVE", 12: "PADDING", 15: "EDE"}
_RECORD = struct.Struct("!HHIH")  # type, class, time to live, length of the data
_QUESTION = struct.Struct("!HH")
_ESCAPES: Final = {
    byte: chr(byte) if 0x21 <= byte <= 0x7E and byte not in b'."\\' else f"\\{byte:03d}" for byte in range(256)
} | {0x2E: "\\.", 0x5C: "\\\\", 0x22: '\\"'}
_QUOTED: Final = _ESCAPES | {0x2E: ".", 0x20: " "}
_PLAIN: Final = re.compile(rb"[a-zA-Z0-9_-]*")


class Question(NamedTuple):
    name: str
    labels: tuple[bytes, ...]
    kind: int
    class_: int


class Record(NamedTuple):
    name: str
    kind: int
    class_: int
    ttl: int
    at: int  # of its data
    end: int


def record_type(number: int) -> str:
    return _TYPES.get(number, f"TYPE{number}")


def record_class(number: int) -> str:
    return _CLASSES.get(number) or _CLASSES.get(number & 0x7FFF, f"CLASS{number}")  # mDNS uses the upper bit


def escaped(data: bytes, table: dict[int, str] = _ESCAPES) -> str:
    if _PLAIN.fullmatch(data):
        return data.decode("ascii")
    return "".join([table[byte] for byte in data])


class Reader:
    """Reads one message from `at` on."""

    def __init__(self, data: bytes, at: int) -> None:
        self.at = at
        self.undecoded = False
        self._data = data
        self._names: dict[int, tuple[tuple[bytes, ...], int]] = {}  # place: labels, bytes on the wire
        self._shown: dict[tuple[bytes, ...], str] = {}  # pointers may name one thousands of times
        self._escaped: dict[bytes, str] = {}
        self._bad: set[int] = set()  # places whose names have no end

    def question(self) -> Question:
        labels, at = self._labels(self.at)
        kind, class_ = self._unpack(_QUESTION, at)
        self.at = at + _QUESTION.size
        return Question(self._presented(labels), labels, kind, class_)

    def record(self) -> Record:
        name, at = self.name(self.at)
        kind, class_, ttl, length = self._unpack(_RECORD, at)
        at += _RECORD.size
        if at + length > len(self._data):
            raise MalformedInput("a record longer than its message")
        self.at = at + length
        return Record(name, kind, class_, ttl, at, at + length)

    def name(self, at: int) -> tuple[str, int]:
        """The name at `at`, and the place behind it."""
        labels, behind = self._labels(at)
        return self._presented(labels), behind

    def _presented(self, labels: tuple[bytes, ...]) -> str:
        shown = self._shown.get(labels)
        if shown is None:
            known = self._escaped
            known |= {label: escaped(label) for label in labels if label not in known}
            shown = self._shown[labels] = ".".join([known[label] for label in labels]) or "."
        return shown

    def _labels(self, at: int) -> tuple[tuple[bytes, ...], int]:
        found: list[tuple[int, bytes | None, int]] = []  # place, label (None: a pointer), its bytes in the name
        try:
            (labels, size), behind = self._walk(at, found)
            for place, label, length in reversed(found):
                labels, size = ((label, *labels), size + length) if label is not None else (labels, size)
                if size > MAX_NAME:
                    raise MalformedInput("a name longer than 255 bytes")
                self._names[place] = labels, size
        except MalformedInput:
            self._bad.update(place for place, _, _ in found)
            raise
        return labels, behind

    def _walk(self, at: int, found: list[tuple[int, bytes | None, int]]) -> tuple[tuple[tuple[bytes, ...], int], int]:
        """Collect what the name at `at` is made of, up to its end or a known tail: that tail, the place behind."""
        data = self._data
        behind: int | None = None
        place = lowest = at
        while len(found) < MAX_NAME:
            if behind is not None and place in self._names:
                return self._names[place], behind
            if place in self._bad or place >= len(data):
                raise MalformedInput("a name beyond its message, or without an end")
            length = data[place]
            if length == 0:
                return ((), 1), place + 1 if behind is None else behind
            if length < 64:
                label = data[place + 1 : place + 1 + length]
                if len(label) < length:
                    raise MalformedInput("a label beyond its message")
                found.append((place, label, length + 1))
                place += 1 + length
                continue
            if length < 192 or place + 2 > len(data):
                raise MalformedInput("a label of an unknown kind")
            found.append((place, None, 0))
            behind = place + 2 if behind is None else behind
            place = (length & 63) << 8 | data[place + 1]
            if place >= lowest:
                raise MalformedInput("a compression pointer that does not point back")
            lowest = place
        raise MalformedInput("a name of too many parts")

    def data(self, record: Record) -> str:
        """The record's data in presentation format."""
        reader = _DATA.get(record.kind)
        if reader is not None:
            try:
                return reader(self, record)
            except (MalformedInput, ValueError, IndexError, struct.error):
                pass
        elif record.at == record.end:
            return ""
        self.undecoded = True
        raw = self._data[record.at : record.end]
        return f"\\# {len(raw)} {raw.hex()}".rstrip()

    def options(self, record: Record) -> list[dict[str, str]]:
        """Options of an EDNS record."""
        found = []
        at = record.at
        while at < record.end:
            code, length = self._unpack(_QUESTION, at)
            at += 4
            if at + length > record.end:
                raise MalformedInput("an option longer than its record")
            found.append({"option": _OPTIONS.get(code, str(code)), "data": self._data[at : at + length].hex()})
            at += length
        return found

    def _unpack(self, layout: struct.Struct, at: int) -> tuple[int, ...]:
        if at + layout.size > len(self._data):
            raise MalformedInput("a DNS message that ends early")
        return layout.unpack_from(self._data, at)

    def _raw(self, record: Record) -> bytes:
        return self._data[record.at : record.end]

    # -- data of the known types ------------------------------------------------------------------------------------

    def _ipv4(self, record: Record) -> str:
        return str(IPv4Address(self._raw(record)))

    def _ipv6(self, record: Record) -> str:
        return str(IPv6Address(self._raw(record)))

    def _one_name(self, record: Record) -> str:
        return self._last_name(record, record.at)

    def _last_name(self, record: Record, at: int) -> str:
        name, behind = self.name(at)
        if behind != record.end:
            raise MalformedInput("a name that does not fill its record")
        return name

    def _mx(self, record: Record) -> str:
        (preference,) = struct.unpack_from("!H", self._raw(record))
        return f"{preference} {self._last_name(record, record.at + 2)}"

    def _srv(self, record: Record) -> str:
        priority, weight, port = struct.unpack_from("!HHH", self._raw(record))
        return f"{priority} {weight} {port} {self._last_name(record, record.at + 6)}"

    def _soa(self, record: Record) -> str:
        primary, at = self.name(record.at)
        mailbox, at = self.name(at)
        numbers = struct.unpack("!5I", self._data[at : record.end])
        return " ".join([primary, mailbox, *map(str, numbers)])

    def _strings(self, record: Record) -> str:
        raw = self._raw(record)
        parts = []
        at = 0
        while at < len(raw):
            end = at + 1 + raw[at]
            if end > len(raw):
                raise MalformedInput("a string longer than its record")
            parts.append(f'"{escaped(raw[at + 1 : end], _QUOTED)}"')
            at = end
        return " ".join(parts)

    def _caa(self, record: Record) -> str:
        raw = self._raw(record)
        end = 2 + raw[1]
        return f'{raw[0]} {escaped(raw[2:end])} "{escaped(raw[end:], _QUOTED)}"'

    def _uri(self, record: Record) -> str:
        raw = self._raw(record)
        priority, weight = struct.unpack_from("!HH", raw)
        return f'{priority} {weight} "{escaped(raw[4:], _QUOTED)}"'

    def _ds(self, record: Record) -> str:
        raw = self._raw(record)
        tag, algorithm, digest = struct.unpack_from("!HBB", raw)
        return f"{tag} {algorithm} {digest} {raw[4:].hex()}"

    def _tlsa(self, record: Record) -> str:
        raw = self._raw(record)
        return f"{raw[0]} {raw[1]} {raw[2]} {raw[3:].hex()}"

    def _sshfp(self, record: Record) -> str:
        raw = self._raw(record)
        return f"{raw[0]} {raw[1]} {raw[2:].hex()}"

    def _dnskey(self, record: Record) -> str:
        raw = self._raw(record)
        flags, protocol, algorithm = struct.unpack_from("!HBB", raw)
        return f"{flags} {protocol} {algorithm} {b64encode(raw[4:]).decode()}"

    def _rrsig(self, record: Record) -> str:
        covered, algorithm, labels, ttl, expires, made, tag = struct.unpack_from("!HBBIIIH", self._raw(record))
        signer, at = self.name(record.at + 18)
        if at > record.end:
            raise MalformedInput("a name longer than its record")
        signature = b64encode(self._data[at : record.end]).decode()
        return f"{record_type(covered)} {algorithm} {labels} {ttl} {expires} {made} {tag} {signer} {signature}"

    def _service(self, record: Record) -> str:
        (priority,) = struct.unpack_from("!H", self._raw(record))
        target, at = self.name(record.at + 2)
        parts = [str(priority), target]
        while at < record.end:
            key, length = self._unpack(_QUESTION, at)
            at += 4
            if at + length > record.end:
                raise MalformedInput("a parameter longer than its record")
            parts.append(_parameter(key, self._data[at : at + length]))
            at += length
        if at != record.end:
            raise MalformedInput("a name longer than its record")
        return " ".join(parts)


def _parameter(key: int, raw: bytes) -> str:
    """A SvcParam (RFC 9460 section 7)."""
    name = _PARAMETERS.get(key, f"key{key}")
    if not raw:
        return name
    if key == 0:
        keys = struct.unpack(f"!{len(raw) // 2}H", raw)
        shown = ",".join(_PARAMETERS.get(one, f"key{one}") for one in keys)
    elif key == 1:
        protocols = []
        at = 0
        while at < len(raw):
            protocols.append(escaped(raw[at + 1 : at + 1 + raw[at]]))
            at += 1 + raw[at]
        shown = ",".join(protocols)
    elif key == 3:
        shown = str(int.from_bytes(raw, "big"))
    elif key == 4:
        shown = ",".join(str(IPv4Address(raw[at : at + 4])) for at in range(0, len(raw), 4))
    elif key == 5:
        shown = b64encode(raw).decode()
    elif key == 6:
        shown = ",".join(str(IPv6Address(raw[at : at + 16])) for at in range(0, len(raw), 16))
    else:
        shown = f'"{escaped(raw, _QUOTED)}"'
    return f"{name}={shown}"


_DATA: Final[dict[int, Callable[[Reader, Record], str]]] = {
    1: Reader._ipv4,
    2: Reader._one_name,
    5: Reader._one_name,
    6: Reader._soa,
    12: Reader._one_name,
    13: Reader._strings,
    15: Reader._mx,
    16: Reader._strings,
    28: Reader._ipv6,
    33: Reader._srv,
    39: Reader._one_name,
    43: Reader._ds,
    44: Reader._sshfp,
    46: Reader._rrsig,
    48: Reader._dnskey,
    52: Reader._tlsa,
    59: Reader._ds,
    60: Reader._dnskey,
    64: Reader._service,
    65: Reader._service,
    99: Reader._strings,
    256: Reader._uri,
    257: Reader._caa,
}
