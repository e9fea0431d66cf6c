"""TLS up to the point where it becomes opaque (RFC 8446; RFC 5246 and older share the framing).

Messages: `client_hello`, `server_hello` (a HelloRetryRequest too, attrs.retry), `certificate` (TLS 1.2 and before),
`alert` (in the clear only); `handshake` and `record` for what is malformed or truncated otherwise. Each one's range is
its handshake message or alert body; where that was fragmented, the record headers in between lie in the range too.

Session attrs: sni, alpn_offered, alpn (chosen; hidden in TLS 1.3), versions_offered, version, cipher, ja4, ech, retry,
certificate (the server's), records (seen per direction), unframed (the record layer was lost or broken).

    phase of one direction    next record                                        goes to
    CLEAR                     handshake, alert                                   CLEAR
    CLEAR                     ServerHello of TLS 1.3, not a HelloRetryRequest    SEALED (the server's direction)
    CLEAR                     ChangeCipherSpec, TLS 1.2 or before negotiated     SEALED
    CLEAR                     ChangeCipherSpec, otherwise (RFC 8446 §D.4)        CLEAR, where only a hello may follow
    CLEAR                     application data; anything after a gap             SEALED
    CLEAR                     not a TLS record                                   SEALED; before any hello: successor raw
    SEALED                    any                                                SEALED, counted by its header
    SEALED                    not a TLS record                                   LOST: not even counted
"""

from enum import Enum
from typing import Any, Final

from appliance.dissect import Match, Output, Torn
from appliance.dissect.tls_hello import (
    Malformed,
    ja4,
    name_cipher,
    name_version,
    parse_certificate,
    parse_client_hello,
    parse_server_hello,
    text_of,
)
from appliance.model import Direction, Message

HEADER: Final = 5  # bytes of a record header
MAX_RECORD: Final = 2**14 + 2048  # RFC 5246 §6.2.3
MAX_HANDSHAKE: Final = 2**17  # bytes of one handshake message that are put together
MAX_ALERTS: Final = 16  # reported per direction

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23
_TYPES = frozenset((CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA, 24))  # 24: heartbeat, RFC 6520
CLIENT_HELLO, SERVER_HELLO, CERTIFICATE = 1, 2, 11
TLS13 = 0x0304
_FIRST = {  # handshake types that a direction can be picked up at
    Direction.CLIENT: frozenset((CLIENT_HELLO, CERTIFICATE, 16)),
    Direction.SERVER: frozenset((0, SERVER_HELLO, 4, CERTIFICATE, 12, 13, 14, 22)),
}
_KINDS = {CLIENT_HELLO: "client_hello", SERVER_HELLO: "server_hello", CERTIFICATE: "certificate"}

# IANA "TLS Alerts"
ALERTS = {
    0: "close_notify", 10: "unexpected_message", 20: "bad_record_mac", 22: "record_overflow", 40: "handshake_failure",
    42: "bad_certificate", 43: "unsupported_certificate", 44: "certificate_revoked", 45: "certificate_expired",
    46: "certificate_unknown", 47: "illegal_parameter", 48: "unknown_ca", 49: "access_denied", 50: "decode_error",
    51: "decrypt_error", 70: "protocol_version", 71: "insufficient_security", 80: "internal_error",
    86: "inappropriate_fallback", 90: "user_canceled", 109: "missing_extension", 110: "unsupported_extension",
    112: "unrecognized_name", 113: "bad_certificate_status_response", 115: "unknown_psk_identity",
    116: "certificate_required", 120: "no_application_protocol", 121: "ech_required",
}  # fmt: skip


class _Phase(Enum):
    CLEAR = 0
    SEALED = 1
    LOST = 2


class _Side:
    """One direction: the record in progress, and the handshake message in progress."""

    def __init__(self, offset: int) -> None:
        self.phase = _Phase.CLEAR
        self.received = offset
        self.record = bytearray()  # CLEAR: from a record's header on; SEALED: part of a header only
        self.record_ns = 0  # arrival of its first byte
        self.skip = 0  # SEALED: bytes left of the current record
        self.handshake = bytearray()
        self.places: list[tuple[int, int, int]] = []  # fragments of it: length, stream offset, time
        self.hello_only = False  # a ChangeCipherSpec passed, but TLS 1.3 may be spoken
        self.alerts = 0


class Tls:
    protocol = "tls"

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self._counts = {"client": 0, "server": 0}
        self._known: dict[str, Any] = {}
        self.opaque = False
        self.successor: str | None = None
        self._sides = {Direction.CLIENT: _Side(client_offset), Direction.SERVER: _Side(server_offset)}
        self._version = 0  # negotiated; 0: not known
        self._client_hello: int | None = None  # where the last one starts

    @property
    def attrs(self) -> dict[str, Any]:
        return {"records": self._counts.copy(), **self._known}

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        if not client:
            return _looks(server, Direction.SERVER)
        verdict = _looks(client, Direction.CLIENT)
        if verdict is Match.MORE and server and _looks(server, Direction.SERVER) is Match.YES:
            return Match.YES
        return verdict

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        side = self._sides[direction]
        side.received += len(data)
        if side.phase is _Phase.LOST:
            return []
        if side.phase is _Phase.SEALED:
            self._count(direction, data)
            return []
        if not side.record:
            side.record_ns = ts_ns
        side.record += data
        return self._records(direction, ts_ns)

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        side = self._sides[direction]
        out = self._unfinished(direction, ts_ns)
        side.received += length
        self._seal(direction)
        if length <= side.skip:
            side.skip -= length
        else:  # segments are often cut where records are: the next bytes may be a header, or prove that they are not
            side.skip = 0
            side.record.clear()
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        return self._unfinished(direction, ts_ns)

    def settled(self, direction: Direction) -> int:
        return self._sides[direction].received

    @property
    def held(self) -> int:
        return sum(len(side.record) + len(side.handshake) + 128 * len(side.places) for side in self._sides.values())

    def torn(self, direction: Direction) -> Torn:
        return Torn()

    def resume(self, direction: Direction, torn: Torn | None) -> None:
        """Behind another dissector of the same session what comes may be the middle of a record."""
        if torn is not None:
            self._seal(direction)

    def shed(self) -> Output:
        """All of it is bounded, and needed to find where the clear text ends."""
        return []

    def rest(self, direction: Direction) -> bytes:
        return bytes(self._sides[direction].record) if self._sides[direction].phase is _Phase.CLEAR else b""

    # -- record layer ----------------------------------------------------------------------------------------------

    def _records(self, direction: Direction, ts_ns: int) -> Output:
        """Every whole record in the clear; the rest of the buffer when the direction is sealed on the way."""
        side = self._sides[direction]
        out: Output = []
        place = 0
        buffer = side.record
        start = side.received - len(buffer)
        while side.phase is _Phase.CLEAR and self.successor is None and len(buffer) - place >= HEADER:
            length = int.from_bytes(buffer[place + 3 : place + HEADER])
            if not _is_header(buffer[place : place + HEADER]):
                at = start + place
                out.append(Message(direction, "record", side.record_ns, at, at + HEADER, flags=("malformed",)))
                if self._client_hello is None and not self._version:
                    self.successor = "raw"
                else:
                    self._seal(direction)
                break
            if buffer[place] == APPLICATION_DATA:
                self._seal(direction)
                break
            if len(buffer) - place < HEADER + length:
                break
            body = bytes(buffer[place + HEADER : place + HEADER + length])
            out += self._record(direction, buffer[place], body, start + place + HEADER, ts_ns)
            self._counts[direction.value] += 1
            place += HEADER + length
            side.record_ns = ts_ns
        del buffer[:place]
        if side.phase is not _Phase.CLEAR:
            left, side.record = bytes(buffer), bytearray()
            self._count(direction, left)
        return out

    def _record(self, direction: Direction, kind: int, body: bytes, start: int, ts_ns: int) -> Output:
        side = self._sides[direction]
        if kind == HANDSHAKE:
            hello = CLIENT_HELLO if direction is Direction.CLIENT else SERVER_HELLO
            if side.hello_only and not side.handshake and body[:1] != bytes([hello]):
                self._seal(direction)
                return []
            if body:
                side.handshake += body
                side.places.append((len(body), start, side.record_ns))
            return self._handshakes(direction, ts_ns)
        if kind == ALERT and len(body) == 2 and side.alerts < MAX_ALERTS:
            side.alerts += 1
            name = ALERTS.get(body[1], str(body[1]))
            level = {1: "warning", 2: "fatal"}.get(body[0], str(body[0]))
            attrs = {"level": level, "description": name}
            text = f"alert {level} {name}"
            return [Message(direction, "alert", side.record_ns, start, start + 2, text, attrs, end_ns=ts_ns)]
        if kind == CHANGE_CIPHER_SPEC:
            if 0 < self._version < TLS13:
                self._seal(direction)
            side.hello_only = True
        return []

    def _count(self, direction: Direction, data: bytes) -> None:
        """Walk the headers of sealed records; their bodies are skipped."""
        side = self._sides[direction]
        place, count = 0, 0
        while place < len(data):
            if side.skip:
                step = min(side.skip, len(data) - place)
                side.skip -= step
                place += step
                continue
            part = data[place : place + HEADER - len(side.record)]
            side.record += part
            place += len(part)
            if len(side.record) == HEADER:
                if not _is_header(side.record):
                    self._lost(direction)
                    break
                side.skip = int.from_bytes(side.record[3:])
                side.record.clear()
                count += 1
        self._counts[direction.value] += count

    def _seal(self, direction: Direction) -> None:
        side = self._sides[direction]
        self.opaque = True
        if side.phase is _Phase.CLEAR:
            side.phase = _Phase.SEALED
            side.handshake.clear()
            side.places.clear()

    def _lost(self, direction: Direction) -> None:
        side = self._sides[direction]
        side.phase = _Phase.LOST
        side.record.clear()
        self._known["unframed"] = True

    # -- handshake messages ----------------------------------------------------------------------------------------

    def _handshakes(self, direction: Direction, ts_ns: int) -> Output:
        side = self._sides[direction]
        out: Output = []
        place = 0
        while len(side.handshake) - place >= 4 and side.phase is _Phase.CLEAR:
            length = int.from_bytes(side.handshake[place + 1 : place + 4])
            if length > MAX_HANDSHAKE:
                first_ns, start, end = _consume(side.places, 4)
                out.append(Message(direction, "handshake", first_ns, start, end, flags=("malformed",), end_ns=ts_ns))
                self._seal(direction)
                return out
            if len(side.handshake) - place < 4 + length:
                break
            body = bytes(side.handshake[place + 4 : place + 4 + length])
            first_ns, start, end = _consume(side.places, 4 + length)
            out += self._handshake(direction, side.handshake[place], body, start, end, first_ns, ts_ns)
            place += 4 + length
        del side.handshake[:place]
        return out

    def _handshake(
        self, direction: Direction, kind: int, body: bytes, start: int, end: int, first_ns: int, ts_ns: int
    ) -> Output:
        known = {Direction.CLIENT: CLIENT_HELLO, Direction.SERVER: SERVER_HELLO}[direction]
        if kind not in (known, CERTIFICATE):
            return []
        try:
            if kind == CLIENT_HELLO:
                text, attrs = self._on_client_hello(body, start)
            elif kind == SERVER_HELLO:
                text, attrs = self._on_server_hello(body)
            else:
                attrs = parse_certificate(body)
                text = " ".join([attrs.get("subject", ""), *attrs.get("names", [])])
                if direction is Direction.SERVER and attrs:
                    self._known["certificate"] = attrs
        except Malformed:
            return [Message(direction, _KINDS[kind], first_ns, start, end, flags=("malformed",), end_ns=ts_ns)]
        reply = self._client_hello if direction is Direction.SERVER else None
        return [Message(direction, _KINDS[kind], first_ns, start, end, text, attrs, reply, end_ns=ts_ns)]

    def _on_client_hello(self, body: bytes, start: int) -> tuple[str, dict[str, Any]]:
        hello = parse_client_hello(body)
        self._client_hello = start
        versions = [name_version(number) for number in hello.versions or (hello.version,)]
        attrs: dict[str, Any] = {
            "sni": hello.sni,
            "alpn_offered": [text_of(name) for name in hello.alpn],
            "versions_offered": [name for name in versions if not name.startswith("0x")],
            "ja4": ja4(hello),
            "ech": hello.ech,
        }
        for name, value in attrs.items():
            self._known.setdefault(name, value)
        return " ".join(["ClientHello", hello.sni, *attrs["alpn_offered"], attrs["ja4"]]), attrs

    def _on_server_hello(self, body: bytes) -> tuple[str, dict[str, Any]]:
        hello = parse_server_hello(body)
        self._version = hello.version
        attrs: dict[str, Any] = {"version": name_version(hello.version), "cipher": name_cipher(hello.cipher)}
        if hello.alpn:
            attrs["alpn"] = hello.alpn
        if hello.retry:
            attrs["retry"] = True
        self._known.update(attrs)
        if hello.version >= TLS13 and not hello.retry:
            self._seal(Direction.SERVER)
        return f"ServerHello {attrs['version']} {attrs['cipher']} {hello.alpn}".rstrip(), attrs

    # -- what is not whole -----------------------------------------------------------------------------------------

    def _unfinished(self, direction: Direction, ts_ns: int) -> Output:
        """A record or handshake message that will not be completed."""
        side = self._sides[direction]
        if side.phase is not _Phase.CLEAR or not (side.record or side.handshake):
            return []
        end = side.received
        start = side.places[0][1] if side.places else end - len(side.record)
        first_ns = side.places[0][2] if side.places else side.record_ns
        opening = bytes(side.handshake[:1] or side.record[HEADER : HEADER + 1])
        kind = _KINDS.get(opening[0], "handshake") if opening else "record"
        side.record.clear()
        side.handshake.clear()
        side.places.clear()
        return [Message(direction, kind, first_ns, start, end, flags=("truncated",), end_ns=ts_ns)]


def _is_header(header: bytes | bytearray) -> bool:
    return header[0] in _TYPES and header[1] == 3 and header[2] <= 4 and int.from_bytes(header[3:5]) <= MAX_RECORD


def _looks(data: bytes, direction: Direction) -> Match:
    """A record header, and the start of a body that fits its type. An SSL 2.0 hello does not."""
    if (data and data[0] not in _TYPES) or data[1:2] not in (b"", b"\x03") or data[2:3] > b"\x04":
        return Match.NO
    if len(data) < HEADER + 1:
        return Match.MORE
    length, first = int.from_bytes(data[3:HEADER]), data[HEADER]
    fits = {
        HANDSHAKE: first in _FIRST[direction],
        ALERT: length == 2 and first in (1, 2),
        CHANGE_CIPHER_SPEC: length == 1 and first == 1,
        APPLICATION_DATA: data[2] == 3,
    }
    return Match.YES if 0 < length <= MAX_RECORD and fits.get(data[0], False) else Match.NO


def _consume(places: list[tuple[int, int, int]], length: int) -> tuple[int, int, int]:
    """Take `length` handshake bytes off the fragments: arrival of the first, stream offset of the first, and end."""
    first_ns, start, end, used = places[0][2], places[0][1], 0, 0
    while length:
        size, offset, ts_ns = places[used]
        step = min(size, length)
        length -= step
        end = offset + step
        if step < size:
            places[used] = (size - step, end, ts_ns)
        else:
            used += 1
    del places[:used]
    return first_ns, start, end
