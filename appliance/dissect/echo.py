"""ICMP and ICMPv6 echo (RFC 792, RFC 4443 section 4): datagrams from the ICMP type on.

Emits `request` and `reply` with attributes id, sequence, bytes (of payload), and of a reply `changed`: its payload is
not its request's, as no host answers; absent when the request was not seen. Other messages: `icmp`, with type and code.
Text: what is readable of the payload. Nothing is redacted.

The session has, under `echo`, raw data for findings, no verdict: requests, replies, payload bytes either way, the
longest payload, how many replies were changed, how many different payload lengths there were (up to `MAX_LENGTHS`), and
the entropy of all payload bytes in bits per byte: a ping's filling has few, a tunnel's has many.
"""

from collections import Counter, OrderedDict
from hashlib import blake2b
from typing import Any, Final

from appliance.dissect import Match
from appliance.dissect.datagrams import Datagrams
from appliance.dissect.raw import printable
from appliance.dissect.volume import entropy
from appliance.model import Direction, Message

HEADER = 8
MAX_WAITING = 64  # requests that wait for their reply
MAX_LENGTHS = 64
_ENTRY = 64  # bytes in memory of an entry of a table, about
_KINDS: Final = {8: "request", 128: "request", 0: "reply", 129: "reply"}


class Echo(Datagrams):
    protocol = "echo"

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        super().__init__(client_offset, server_offset)
        self._waiting: OrderedDict[tuple[Direction, int, int], bytes] = OrderedDict()  # who, id, sequence: digest
        self._counts: Counter[str] = Counter()
        self._bytes = {Direction.CLIENT: 0, Direction.SERVER: 0}
        self._longest = 0
        self._lengths: set[int] = set()
        self._values: Counter[int] = Counter()

    @property
    def attrs(self) -> dict[str, Any]:
        return {
            "echo": {
                "requests": self._counts["request"],
                "replies": self._counts["reply"],
                "client_bytes": self._bytes[Direction.CLIENT],
                "server_bytes": self._bytes[Direction.SERVER],
                "longest": self._longest,
                "changed": self._counts["changed"],
                "lengths": len(self._lengths),
                "entropy": entropy(self._values),
            }
        }

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        first = client or server
        if not first:
            return Match.MORE
        return Match.YES if len(first) >= HEADER and first[0] in _KINDS and not first[1] else Match.NO

    @property
    def held(self) -> int:
        return _ENTRY * (len(self._waiting) + len(self._lengths) + len(self._values))

    def _message(self, direction: Direction, data: bytes, start: int, ts_ns: int) -> Message:
        end = start + len(data)
        kind = _KINDS.get(data[0]) if len(data) >= HEADER and not data[1] else None
        if kind is None:
            attrs = {"type": data[0], "code": data[1] if len(data) > 1 else 0, "bytes": max(0, len(data) - HEADER)}
            return Message(direction, "icmp", ts_ns, start, end, printable(data[HEADER:]), attrs, end_ns=ts_ns)
        payload = data[HEADER:]
        number, sequence = int.from_bytes(data[4:6], "big"), int.from_bytes(data[6:8], "big")
        attrs = {"id": number, "sequence": sequence, "bytes": len(payload)}
        digest = blake2b(payload, digest_size=8).digest()
        if kind == "request":
            self._waiting[direction, number, sequence] = digest
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popitem(last=False)
        elif (asked := self._waiting.pop((direction.other, number, sequence), None)) is not None:
            attrs["changed"] = asked != digest
            self._counts["changed"] += asked != digest
        self._counts[kind] += 1
        self._bytes[direction] += len(payload)
        self._longest = max(self._longest, len(payload))
        if len(self._lengths) < MAX_LENGTHS:
            self._lengths.add(len(payload))
        self._values.update(payload)
        return Message(direction, kind, ts_ns, start, end, printable(payload), attrs, end_ns=ts_ns)
