"""SSH on the wire, up to the point where it becomes opaque (RFC 4253).

Messages: `banner` (the identification; attrs version, software, comments), `kexinit` (what one side offers; attrs the
lists by name, hassh), `host_key` (attrs type, fingerprint, bits), `newkeys`, `disconnect` (before it, attrs reason);
`malformed`.

Session attrs: client_version, server_version, hassh, hassh_server, kex, host_key_algorithm, cipher, mac, compression
(as they follow from both offers; cipher and mac are the client's), host_key, encrypted (bytes per direction), unframed.

    phase of one direction    next                                             goes to
    BANNER                    a line that begins with SSH-                      CLEAR
    BANNER                    another line of the server (RFC 4253 §4.2)        BANNER
    BANNER                    another line of the client, too many              SEALED; message `malformed`
    CLEAR                     a packet, not encrypted                           CLEAR
    CLEAR                     NEWKEYS; anything after a gap                     SEALED
    CLEAR                     not a packet                                      SEALED; message `malformed`
    SEALED                    any                                               SEALED, counted
"""

import struct
from enum import Enum
from typing import Any, Final

from appliance.dissect import Match, Output
from appliance.dissect.ssh_kex import (
    GEX_REPLY,
    KEX_REPLY,
    KEXINIT,
    NEWKEYS,
    hassh,
    negotiate,
    parse_host_key,
    parse_kexinit,
)
from appliance.dissect.ssh_messages import DISCONNECT, Reader, shown
from appliance.model import Direction, Message

HEADER: Final = 5  # bytes before a packet's payload
MAX_PACKET: Final = 65536  # bytes of one in the clear; RFC 4253 §6.1 asks for 35000
MAX_LINES: Final = 16384  # bytes before the end of the identification
MAX_SHOWN: Final = 256  # names of one list, and characters of an identification
_BEGINS: Final = (b"SSH-2.0-", b"SSH-1.")


class _Phase(Enum):
    BANNER = 0
    CLEAR = 1
    SEALED = 2


class _Side:
    """One direction: the line or packet in progress."""

    def __init__(self, offset: int) -> None:
        self.phase = _Phase.BANNER
        self.received = offset
        self.buffer = bytearray()
        self.ts_ns = 0
        self.need = 1
        self.lines = 0  # bytes of those before the identification
        self.sealed = 0  # bytes
        self.offer: dict[str, list[str]] | None = None
        self.offered: int | None = None  # where that began


class Ssh:
    """One connection."""

    protocol = "ssh"
    successor: str | None = None

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self.opaque = False
        self._known: dict[str, Any] = {}
        self._sides = {Direction.CLIENT: _Side(client_offset), Direction.SERVER: _Side(server_offset)}

    @property
    def attrs(self) -> dict[str, Any]:
        return {**self._known, "encrypted": {whose.value: side.sealed for whose, side in self._sides.items()}}

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        """Either side's identification: a server may say something else before."""
        verdicts = {_looks(client), _looks(server)}
        if Match.YES in verdicts:
            return Match.YES
        if not client:
            return _looks(server) if server else Match.NO
        return _looks(client)

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        side = self._sides[direction]
        side.received += len(data)
        out: Output = []
        if side.phase is _Phase.SEALED:
            side.sealed += len(data)
            return out
        if not side.buffer:
            side.ts_ns = ts_ns
        side.buffer += data
        if side.phase is _Phase.BANNER:
            if b"\n" not in data and side.lines + len(side.buffer) < MAX_LINES:
                return out
            self._lines(direction, side, ts_ns, out)
        if side.phase is _Phase.CLEAR and len(side.buffer) >= side.need:
            self._packets(direction, side, ts_ns, out)
        self._count_sealed(side)
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        out = self.close(direction, ts_ns)
        side = self._sides[direction]
        side.received += length
        self._seal(side)
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        side = self._sides[direction]
        if not side.buffer:
            return []
        start, kind = side.received - len(side.buffer), "banner" if side.phase is _Phase.BANNER else "malformed"
        side.buffer.clear()
        return [Message(direction, kind, side.ts_ns, start, side.received, flags=("truncated",), end_ns=ts_ns)]

    def settled(self, direction: Direction) -> int:
        return self._sides[direction].received

    @property
    def held(self) -> int:
        offers = sum(20 * len(names) for side in self._sides.values() for names in (side.offer or {}).values())
        return sum(len(side.buffer) for side in self._sides.values()) + 3 * offers

    def shed(self) -> Output:
        """All of it is bounded, and needed to find where the clear text ends."""
        return []

    # -- lines and packets -----------------------------------------------------------------------------------------

    def _lines(self, direction: Direction, side: _Side, ts_ns: int, out: Output) -> None:
        while side.phase is _Phase.BANNER:
            end = side.buffer.find(b"\n")
            start = side.received - len(side.buffer)
            if end < 0 and side.lines + len(side.buffer) < MAX_LINES:
                return
            line = bytes(side.buffer[: end + 1])
            if line.startswith(b"SSH-"):
                side.phase, side.need = _Phase.CLEAR, HEADER
                out.append(self._banner(direction, side, line, start, ts_ns))
            elif end < 0 or direction is Direction.CLIENT or side.lines + end >= MAX_LINES:
                self._malformed(direction, side, start, ts_ns, out)
                return
            side.lines += len(line)
            del side.buffer[: end + 1]
            side.ts_ns = ts_ns

    def _banner(self, direction: Direction, side: _Side, line: bytes, start: int, ts_ns: int) -> Message:
        text = shown(line.rstrip(b"\r\n"))[:MAX_SHOWN]
        name, _, comments = text.partition(" ")
        _, version, software = [*name.split("-", 2), "", ""][:3]
        self._known[f"{direction.value}_version"] = text
        attrs = {"version": version, "software": software, "comments": comments}
        if not version.startswith(("2.", "1.99")):
            side.phase = _Phase.SEALED  # version 1 has other packets
        return Message(direction, "banner", side.ts_ns, start, start + len(line), text, attrs, end_ns=ts_ns)

    def _packets(self, direction: Direction, side: _Side, ts_ns: int, out: Output) -> None:
        data = bytes(side.buffer)
        base = side.received - len(data)
        at, size = 0, len(data)
        side.need = HEADER
        while size - at >= HEADER and side.phase is _Phase.CLEAR:
            length, padding = struct.unpack_from("!IB", data, at)
            if not 4 <= padding < length <= MAX_PACKET:
                self._malformed(direction, side, base + at, ts_ns, out)
                break
            end = at + 4 + length
            if end > size:
                side.need = end - at
                break
            payload = data[at + HEADER : end - padding]
            message = self._packet(direction, side, payload, base + at, base + end, ts_ns)
            if message is not None:
                out.append(message)
            at = end
            side.ts_ns = ts_ns
        side.buffer = bytearray(data[at:])

    def _packet(
        self, direction: Direction, side: _Side, payload: bytes, start: int, end: int, ts_ns: int
    ) -> Message | None:
        number = payload[0] if payload else 0
        times = side.ts_ns, ts_ns
        try:
            if number == KEXINIT:
                return self._kexinit(direction, side, payload, start, end, times)
            if number == self._reply_number() and direction is Direction.SERVER:
                host_key = parse_host_key(payload)
                self._known["host_key"] = host_key
                text = f"{host_key['type']} {host_key['fingerprint']}"
                return Message(direction, "host_key", times[0], start, end, text, host_key, end_ns=ts_ns)
            if number == DISCONNECT:
                reader = Reader(payload, 1)
                attrs = {"reason": reader.uint32()}
                text = reader.text()[:1024]
                return Message(direction, "disconnect", times[0], start, end, text, attrs, end_ns=ts_ns)
        except ValueError:
            attrs = {"number": number}
            return Message(direction, "malformed", times[0], start, end, "", attrs, None, ("malformed",), ts_ns)
        if number == NEWKEYS:
            self._seal(side)
            return Message(direction, "newkeys", times[0], start, end, "NEWKEYS", end_ns=ts_ns)
        return None

    def _reply_number(self) -> int:
        """The number of the message that holds the host key: that of a group exchange is another."""
        return GEX_REPLY if self._known.get("kex", "").startswith("diffie-hellman-group-exchange") else KEX_REPLY

    def _kexinit(
        self, direction: Direction, side: _Side, payload: bytes, start: int, end: int, times: tuple[int, int]
    ) -> Message:
        server = direction is Direction.SERVER
        offer = parse_kexinit(payload)
        side.offer, side.offered = offer, start
        fingerprint = hassh(offer, server=server)
        self._known.setdefault("hassh_server" if server else "hassh", fingerprint)
        other = self._sides[direction.other]
        if other.offer is not None:
            client, answer = (other.offer, offer) if server else (offer, other.offer)
            chosen = negotiate(client, answer)
            self._known |= {
                "kex": chosen["kex"], "host_key_algorithm": chosen["host_key"], "cipher": chosen["encryption_client"],
                "mac": chosen["mac_client"], "compression": chosen["compression_client"],
            }  # fmt: skip
        lists = {name: names[:MAX_SHOWN] for name, names in offer.items() if names}
        flags = ("truncated",) if any(len(names) > MAX_SHOWN for names in offer.values()) else ()
        text = "\n".join([f"KEXINIT {fingerprint}", *(f"{name}: {','.join(names)}" for name, names in lists.items())])
        attrs = {**lists, "hassh": fingerprint}
        return Message(direction, "kexinit", times[0], start, end, text, attrs, other.offered, flags, times[1])

    @staticmethod
    def _count_sealed(side: _Side) -> None:
        """What came behind the end of the clear text."""
        if side.phase is _Phase.SEALED:
            side.sealed += len(side.buffer)
            side.buffer.clear()

    def _malformed(self, direction: Direction, side: _Side, at: int, ts_ns: int, out: Output) -> None:
        out.append(Message(direction, "malformed", side.ts_ns, at, at + 1, flags=("malformed",), end_ns=ts_ns))
        self._known["unframed"] = True
        self._seal(side)

    def _seal(self, side: _Side) -> None:
        side.phase = _Phase.SEALED
        self.opaque = True


def _looks(data: bytes) -> Match:
    if data.startswith(_BEGINS):
        return Match.YES
    return Match.MORE if data and any(begin.startswith(data) for begin in _BEGINS) else Match.NO
