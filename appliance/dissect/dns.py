"""DNS over UDP and TCP (RFC 1035; AAAA RFC 3596, SRV RFC 2782, EDNS RFC 6891, SVCB and HTTPS RFC 9460).

Emits `query` and `response`, by the QR bit, each with attributes id, opcode, rcode, flags, questions, answers,
authority, additional, sizes and, where there is one, edns; a response answers the last query of the same id. Text: one
line a question or record. Flags: `malformed`, its records do not fit (what could be read is there; kind `malformed`:
not even the header); `truncated`, by its sender (TC), by the end or a gap of the stream, or at `MAX_TEXT`.

`Dns` is given one datagram at a time. `DnsTcp` reads messages behind a length of two bytes; after a gap that did not
end inside a message it takes the next bytes for a message's start if they can be one; if not, it reads no further
(`undissected`). Nothing is redacted. How much was said in names and records, see `dns_volume.py`.
"""

import struct
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from appliance.dissect import Match, Output
from appliance.dissect.dns_records import Reader, record_class, record_type
from appliance.dissect.dns_volume import Lookups, is_free, sizes_of
from appliance.errors import MalformedInput
from appliance.model import Direction, Message

HEADER = 12
MAX_QUERIES = 1024  # ids that wait for an answer, per session; the oldest is forgotten first
MAX_DETECTED = 4000  # bytes of a first message over TCP; a query is far shorter
MAX_TEXT = 1 << 20  # characters of the records of one message; compression makes small messages large
MAX_FIRST_RECORDS = 64  # in a query that is to be recognised

_HEAD = struct.Struct("!HHHHHH")
_OPCODES: Final = {0: "QUERY", 1: "IQUERY", 2: "STATUS", 4: "NOTIFY", 5: "UPDATE", 6: "DSO"}
_RCODES: Final = {
    0: "NOERROR",
    1: "FORMERR",
    2: "SERVFAIL",
    3: "NXDOMAIN",
    4: "NOTIMP",
    5: "REFUSED",
    6: "YXDOMAIN",
    7: "YXRRSET",
    8: "NXRRSET",
    9: "NOTAUTH",
    10: "NOTZONE",
    16: "BADVERS",
    17: "BADKEY",
    18: "BADTIME",
    23: "BADCOOKIE",
}
_FLAGS: Final = ((0x0400, "aa"), (0x0200, "tc"), (0x0100, "rd"), (0x0080, "ra"), (0x0020, "ad"), (0x0010, "cd"))
_SECTIONS: Final = ("answers", "authority", "additional")
_RESPONSE = 0x8000
_RESERVED = 0x0040
_OPT = 41


class Parsed(NamedTuple):
    number: int
    response: bool
    text: str
    attrs: dict[str, Any]
    flags: tuple[str, ...]
    used: int  # bytes of the message


def parse(data: bytes) -> Parsed:
    """One message. Raises `MalformedInput` if its header is not there; anything later that does not fit is a flag."""
    if len(data) < HEADER:
        raise MalformedInput("a DNS message shorter than its header")
    number, bits, *counts = _HEAD.unpack_from(data)
    reader = Reader(data, HEADER)
    opcode, code = bits >> 11 & 15, bits & 15
    questions: list[dict[str, str]] = []
    attrs: dict[str, Any] = {
        "id": number,
        "opcode": _OPCODES.get(opcode, str(opcode)),
        "rcode": _RCODES.get(code, str(code)),
        "flags": [name for bit, name in _FLAGS if bits & bit],
        "questions": questions,
        **{section: [] for section in _SECTIONS},
    }
    lines: list[str] = []
    flags = ["truncated"] if bits & 0x0200 else []
    room = MAX_TEXT
    volume = [0, 0]  # bytes of records, and of those that hold anything
    try:
        for _ in range(counts[0]):
            questions.append(reader.question())
            room -= len(questions[-1]["name"])
            if room < 0:
                break
        for section, count in zip(_SECTIONS, counts[1:], strict=True):
            for _ in range(count):
                room -= _record(reader, code, section, attrs, volume)
                if room < 0:
                    break
        if room < 0:
            flags.append("truncated")
        elif reader.at < len(data):
            raise MalformedInput("bytes behind a DNS message")
    except MalformedInput:
        flags.append("malformed")
    if reader.undecoded:
        flags.append("undecoded")
    attrs["sizes"] = sizes_of(questions, *volume)
    lines += [f"{one['name']} {one['class']} {one['type']}" for one in questions]
    for section in _SECTIONS:
        lines += [f"{one['name']} {one['ttl']} {one['type']} {one['data']}" for one in attrs[section]]
    if bits & _RESPONSE and attrs["rcode"] != "NOERROR":
        lines.append(attrs["rcode"])
    return Parsed(number, bool(bits & _RESPONSE), "\n".join(lines), attrs, tuple(flags), reader.at)


def _record(reader: Reader, code: int, section: str, attrs: dict[str, Any], volume: list[int]) -> int:
    """Add the next record to `attrs` and its size to `volume`; returns the characters it has."""
    record = reader.record()
    volume[0] += record.end - record.at
    if is_free(record_type(record.kind)):
        volume[1] += record.end - record.at
    if record.kind == _OPT and section == "additional" and "edns" not in attrs:
        extended = code | record.ttl >> 24 << 4
        attrs["rcode"] = _RCODES.get(extended, str(extended))
        attrs["edns"] = {
            "version": record.ttl >> 16 & 255,
            "size": record.class_,
            "do": bool(record.ttl & 0x8000),
            "options": reader.options(record),
        }
        return 2 * (record.end - record.at)
    shown: dict[str, Any] = {
        "name": record.name,
        "type": record_type(record.kind),
        "class": record_class(record.class_),
        "ttl": record.ttl,
        "data": reader.data(record),
    }
    attrs[section].append(shown)
    return len(record.name) + len(shown["data"])


def _plausible(data: bytes, response: bool, whole: bool) -> Match:
    """Whether a message is a query, or a response, that DNS software would send."""
    if len(data) >= 4:
        bits = int.from_bytes(data[2:4], "big")
        opcode = bits >> 11 & 15
        if bits & _RESERVED or opcode not in _OPCODES or bool(bits & _RESPONSE) is not response:
            return Match.NO
        if not response and bits & 0x048F:  # aa, ra, rcode: a response's
            return Match.NO
    if len(data) < HEADER:
        return Match.NO if whole else Match.MORE
    _, _, questions, answers, authority, additional = _HEAD.unpack_from(data)
    if questions != 1 or (not response and answers and opcode not in (4, 5)):
        return Match.NO
    if not response and answers + authority + additional > MAX_FIRST_RECORDS:
        return Match.NO
    if not whole:
        return Match.MORE
    parsed = parse(data)
    asked = parsed.attrs["questions"]
    usual = len(asked) == 1 and not asked[0]["class"].startswith("CLASS")
    return Match.YES if usual and "malformed" not in parsed.flags else Match.NO


class Dns:
    """Datagrams."""

    protocol = "dns"
    opaque = False
    successor: str | None = None

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self._lookups = Lookups()
        self._received = {Direction.CLIENT: client_offset, Direction.SERVER: server_offset}
        self._queries: dict[tuple[Direction, int], int] = {}  # who asked, id: start of the query

    @property
    def attrs(self) -> dict[str, Any]:
        return self._lookups.to_attrs()

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        if client:
            return _plausible(client, response=False, whole=True)
        return _plausible(server, response=True, whole=True) if server else Match.MORE

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        start = self._received[direction]
        self._received[direction] += len(data)
        return [self._message(direction, data, start, start + len(data), ts_ns, ts_ns)] if data else []

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        self._received[direction] += length
        return []

    def close(self, direction: Direction, ts_ns: int) -> Output:
        return []

    def settled(self, direction: Direction) -> int:
        return self._received[direction]

    def _message(
        self, direction: Direction, data: bytes, start: int, end: int, ts_ns: int, end_ns: int, *flags: str
    ) -> Message:
        try:
            parsed = parse(data)
        except MalformedInput:
            return Message(direction, "malformed", ts_ns, start, end, flags=flags or ("malformed",), end_ns=end_ns)
        self._lookups.add(parsed.response, len(data), parsed.attrs)
        reply_to = None
        if parsed.response:
            reply_to = self._queries.get((direction.other, parsed.number))
        else:
            self._queries.pop((direction, parsed.number), None)
            self._queries[direction, parsed.number] = start
            if len(self._queries) > MAX_QUERIES:
                del self._queries[next(iter(self._queries))]
        kind = "response" if parsed.response else "query"
        said = parsed.flags
        if flags:  # cut by the stream: that its end does not fit is no fault of its own
            said = (*flags, *(flag for flag in said if flag != "malformed" and flag not in flags))
        return Message(direction, kind, ts_ns, start, end, parsed.text, parsed.attrs, reply_to, said, end_ns)


class DnsTcp(Dns):
    """A stream of messages, each behind its length."""

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        super().__init__(client_offset, server_offset)
        self._streams = {direction: _Stream() for direction in Direction}

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        response = not client
        data = server if response else client
        if len(data) < 2:
            return Match.MORE
        length = int.from_bytes(data[:2], "big")
        if not HEADER + 5 <= length <= MAX_DETECTED:
            return Match.NO
        return _plausible(data[2 : 2 + length], response, whole=len(data) >= 2 + length)

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        stream = self._streams[direction]
        offset = self._received[direction]
        self._received[direction] += len(data)
        if stream.ignored:
            return []
        out: Output = []
        if stream.skip:
            passed = min(stream.skip, len(data))
            out += self._passed(direction, passed, offset, ts_ns)
            data = data[passed:]
            offset += passed
            if not data:
                return out
        if not stream.buffer:
            stream.ts_ns = ts_ns
        base = offset - len(stream.buffer)
        stream.buffer += data
        if len(stream.buffer) < stream.need:
            return out
        ready = bytes(stream.buffer)
        if stream.unsure and not _resumes(ready):
            self._streams[direction] = _Stream(ignored=True)
            end = base + stream.need  # what was looked at, however much came with it
            return [*out, Message(direction, "undissected", ts_ns, base, end, flags=("undecoded",))]
        stream.unsure = False
        at = 0
        while len(ready) - at >= 2:
            end = at + 2 + int.from_bytes(ready[at : at + 2], "big")
            if end > len(ready):
                break
            out.append(self._message(direction, ready[at + 2 : end], base + at, base + end, stream.ts_ns, ts_ns))
            stream.ts_ns = ts_ns
            at = end
        stream.buffer = bytearray(ready[at:])
        stream.need = 2 + int.from_bytes(stream.buffer[:2], "big") if len(stream.buffer) >= 2 else 2
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        stream = self._streams[direction]
        offset = self._received[direction]
        self._received[direction] += length
        if stream.ignored:
            return []
        out: Output = []
        start = offset - len(stream.buffer)
        if len(stream.buffer) >= 2 and not stream.unsure:
            stream.start, stream.head = start, bytes(stream.buffer[2:])
            stream.skip = stream.need - len(stream.buffer)
        elif stream.buffer:
            out.append(Message(direction, "malformed", stream.ts_ns, start, offset, flags=("truncated",), end_ns=ts_ns))
        stream.buffer.clear()
        inside = min(stream.skip, length)
        if inside:
            out += self._passed(direction, inside, offset, ts_ns)
        if inside < length:
            stream.unsure, stream.need = True, 6
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        stream = self._streams[direction]
        end = self._received[direction]
        self._streams[direction] = _Stream(ignored=True)
        if stream.skip:
            return [self._message(direction, stream.head, stream.start, end, stream.ts_ns, ts_ns, "truncated")]
        if stream.buffer:
            data, start = bytes(stream.buffer[2:]), end - len(stream.buffer)
            return [self._message(direction, data, start, end, stream.ts_ns, ts_ns, "truncated")]
        return []

    def _passed(self, direction: Direction, size: int, offset: int, ts_ns: int) -> Output:
        """`size` bytes from `offset` on belong to a message that a gap cut."""
        stream = self._streams[direction]
        stream.skip -= size
        if stream.skip:
            return []
        head, stream.head, stream.need = stream.head, b"", 2
        return [self._message(direction, head, stream.start, offset + size, stream.ts_ns, ts_ns, "truncated")]


@dataclass(slots=True)
class _Stream:
    """One direction of a TCP connection."""

    buffer: bytearray = field(default_factory=bytearray)  # an unfinished message, its length first
    need: int = 2  # bytes of the buffer with which there is something to do
    ts_ns: int = 0  # arrival of the first byte of the message at hand
    skip: int = 0  # bytes that still belong to a message that a gap cut
    head: bytes = b""  # what came of it before the gap
    start: int = 0
    unsure: bool = False  # behind a gap: the next byte may not be a message's first
    ignored: bool = False


def _resumes(data: bytes) -> bool:
    """Whether a message can begin here, by its length and the first 4 bytes behind that."""
    bits = int.from_bytes(data[4:6], "big")
    usual = not bits & _RESERVED and bits >> 11 & 15 in _OPCODES
    return usual and int.from_bytes(data[:2], "big") >= HEADER
