"""DNS messages, and DNS over UDP (RFC 1035; AAAA RFC 3596, SRV RFC 2782, EDNS RFC 6891, SVCB and HTTPS RFC 9460).

Emits `query` and `response`, by the QR bit, each with attributes id, opcode, rcode, flags, questions, answers,
authority, additional, sizes and, where there is one, edns; a response answers the last query of the same id. Text: one
line a question or record. Flags: `malformed`, its records do not fit (what could be read is there; kind `malformed`:
not even the header); `truncated`, by its sender (TC), by the end or a gap of the stream, or at `MAX_TEXT`.

Nothing is redacted. How much was said in names and records, see `dns_volume.py`; over TCP, see `dns_tcp.py`.
"""

import struct
from collections import Counter
from typing import Any, Final, NamedTuple

from appliance.dissect import Match, Output
from appliance.dissect.datagrams import Datagrams
from appliance.dissect.dns_records import Reader, record_class, record_type
from appliance.dissect.dns_volume import Labels, Lookups, is_free, sizes_of
from appliance.errors import MalformedInput
from appliance.model import Direction, Message

HEADER = 12
MAX_QUERIES = 1024  # ids that wait for an answer, per session; the oldest is forgotten first
MAX_TEXT = 1 << 20  # characters of the records of one message; compression makes small messages large
MAX_FIRST_RECORDS = 64  # in a query that is to be recognised
_QUERY = 192  # bytes in memory of an id that waits, about

_HEAD = struct.Struct("!HHHHHH")
OPCODES: Final = {0: "QUERY", 1: "IQUERY", 2: "STATUS", 4: "NOTIFY", 5: "UPDATE", 6: "DSO"}
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
RESERVED = 0x0040
_OPT = 41


class Parsed(NamedTuple):
    number: int
    response: bool
    text: str
    attrs: dict[str, Any]
    flags: tuple[str, ...]
    asked: Counter[Labels]  # names of the questions


def parse(data: bytes) -> Parsed:
    """One message. Raises `MalformedInput` if its header is not there; anything later that does not fit is a flag."""
    if len(data) < HEADER:
        raise MalformedInput("a DNS message shorter than its header")
    number, bits, *counts = _HEAD.unpack_from(data)
    reader = Reader(data, HEADER)
    opcode, code = bits >> 11 & 15, bits & 15
    questions: list[dict[str, str]] = []
    asked: Counter[Labels] = Counter()
    attrs: dict[str, Any] = {
        "id": number,
        "opcode": OPCODES.get(opcode, str(opcode)),
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
            name, labels, kind, class_ = reader.question()
            questions.append({"name": name, "type": record_type(kind), "class": record_class(class_)})
            asked[labels] += 1
            room -= len(name)
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
    attrs["sizes"] = sizes_of(asked, *volume)
    lines += [f"{one['name']} {one['class']} {one['type']}" for one in questions]
    for section in _SECTIONS:
        lines += [f"{one['name']} {one['ttl']} {one['type']} {one['data']}" for one in attrs[section]]
    if bits & _RESPONSE and attrs["rcode"] != "NOERROR":
        lines.append(attrs["rcode"])
    return Parsed(number, bool(bits & _RESPONSE), "\n".join(lines), attrs, tuple(flags), asked)


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


def plausible(data: bytes, response: bool, whole: bool) -> Match:
    """Whether a message, or its beginning (not `whole`), is a query, or a response, that DNS software would send."""
    if len(data) >= 4:
        bits = int.from_bytes(data[2:4], "big")
        opcode = bits >> 11 & 15
        if bits & RESERVED or opcode not in OPCODES or bool(bits & _RESPONSE) is not response:
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


class Exchange:
    """Messages of one session: which answers which, and their sums."""

    def __init__(self) -> None:
        self._lookups = Lookups()
        self._queries: dict[tuple[Direction, int], int] = {}  # who asked, id: start of the query

    @property
    def attrs(self) -> dict[str, Any]:
        return self._lookups.to_attrs()

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        return self._lookups.held + _QUERY * len(self._queries)

    def forget(self) -> None:
        """Responses to what was asked so far have no `reply_to`."""
        self._queries.clear()

    def message(
        self, direction: Direction, data: bytes, start: int, end: int, ts_ns: int, end_ns: int, *flags: str
    ) -> Message:
        """What one DNS message says, which lies at [start, end) of the stream. `flags`: what the stream did to it."""
        try:
            parsed = parse(data)
        except MalformedInput:
            return Message(direction, "malformed", ts_ns, start, end, flags=flags or ("malformed",), end_ns=end_ns)
        self._lookups.add(parsed.response, len(data), parsed.attrs, parsed.asked)
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


class Dns(Datagrams):
    protocol = "dns"

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        super().__init__(client_offset, server_offset)
        self._exchange = Exchange()

    @property
    def attrs(self) -> dict[str, Any]:
        return self._exchange.attrs

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        if client:
            return plausible(client, response=False, whole=True)
        return plausible(server, response=True, whole=True) if server else Match.MORE

    @property
    def held(self) -> int:
        return self._exchange.held

    def shed(self) -> Output:
        self._exchange.forget()
        return []

    def _message(self, direction: Direction, data: bytes, start: int, ts_ns: int) -> Message:
        return self._exchange.message(direction, data, start, start + len(data), ts_ns, ts_ns)
