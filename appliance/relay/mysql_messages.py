"""Packets of MySQL's log-in as a relay cuts, reads and writes them ("Connection Phase Packets" of the MySQL source code
documentation; MariaDB Knowledge Base, "Connecting").

Everything that a peer may send before a session is ready is short; what is longer ends the flow.
"""

import struct
from typing import Final, NamedTuple, Self

from appliance.dissect import mysql_fields as fields
from appliance.dissect import mysql_session as session
from appliance.dissect.mysql_frames import FULL, HEADER, WORD
from appliance.dissect.mysql_half import SSL_REQUEST
from appliance.dissect.mysql_types import lenenc
from appliance.relay.database import MAX_WORDS
from appliance.relay.failure import Refusal
from appliance.relay.inbox import Inbox

MAX_PACKET: Final = fields.MAX_RESPONSE
SCRAMBLE: Final = 20  # bytes

MULTI_COMMANDS: Final = 1 << 33  # MariaDB's COM_MULTI: several commands in one packet
_UNKNOWN: Final = 1 << 28 | 1 << 29  # several factors, and what may come after them
WITHHELD: Final = session.COMPRESS | session.ZSTD | MULTI_COMMANDS | _UNKNOWN
NEEDED: Final = session.PROTOCOL_41 | session.SECURE_CONNECTION
# What matters for log-in alone: a client and a server may differ in it behind a relay.
LOGIN_ONLY: Final = (
    session.SSL | session.SECURE_CONNECTION | session.PLUGIN_AUTH | session.PLUGIN_AUTH_LENENC | session.CONNECT_ATTRS
    | session.CONNECT_WITH_DB | 1 << 30 | 1 << 31
)  # fmt: skip

NATIVE: Final = "mysql_native_password"
CLEAR: Final = "mysql_clear_password"

Code = tuple[int, str]  # error number and SQLSTATE (MySQL Server Error Message Reference)
DENIED: Final = (1045, "28000")  # ER_ACCESS_DENIED_ERROR
HANDSHAKE: Final = (1043, "08S01")  # ER_HANDSHAKE_ERROR
INSECURE: Final = (3159, "HY000")  # ER_SECURE_TRANSPORT_REQUIRED
UNREACHABLE: Final = (1105, "HY000")  # ER_UNKNOWN_ERROR
UNSUPPORTED: Final = (1235, "42000")  # ER_NOT_SUPPORTED_YET
FORBIDDEN: Final = (1227, "42000")  # ER_SPECIFIC_ACCESS_DENIED_ERROR

CODES: Final[dict[str, Code]] = {  # for reasons that are not the protocol's; UNREACHABLE for the others
    "time-out": (1159, "08S01"),  # ER_NET_READ_INTERRUPTED
    "idle": (4031, "HY000"),  # ER_CLIENT_INTERACTION_TIMEOUT
    "too-many-connections": (1040, "08004"),  # ER_CON_COUNT_ERROR
    "lease-ended": (1053, "08S01"),  # ER_SERVER_SHUTDOWN
    "shutdown": (1053, "08S01"),
    "journal-full": (1021, "HY000"),  # ER_DISK_FULL
    "refused-by-rule": DENIED,
    "token-refused": DENIED,
    "cleartext-token": INSECURE,
    "secret": DENIED,
    "login-refused": DENIED,
}
ABOUT_CREDENTIALS: Final = frozenset({1045, 1698, 1820, 1862, 3118, 3955, 4151})  # the password, or its account

_CAPABILITIES: Final = struct.Struct("<IIB19sI")


def violation(text: str) -> Refusal[Code]:
    return Refusal("protocol", HANDSHAKE, text)


def before_tls() -> Refusal[Code]:
    return Refusal("before-tls", HANDSHAKE, "bytes between a request for TLS and the handshake")


def packet(number: int, body: bytes) -> bytes:
    return WORD.pack(len(body) | (number & 0xFF) << 24) + body


def number_of(whole: bytes) -> int:
    return whole[3]


def error(number: int, code: Code, text: str, hint: str = "", *, greeted: bool = True) -> bytes:
    """ERR_Packet of the gateway. `greeted`: it is not in the place of a greeting, where no SQLSTATE is read."""
    said = f"{text[:MAX_WORDS]}{'. ' if hint else ''}{hint}".replace("\0", "")
    state = b"#" + code[1].encode() if greeted else b""
    return packet(number, b"\xff" + struct.pack("<H", code[0]) + state + said.encode("utf-8", "replace"))


def hidden(data: bytes, start: int) -> tuple[tuple[int, int, str], ...]:
    """All from there on may be a password: kept by length only."""
    return ((start, len(data), "password"),) if len(data) > start else ()


def switch(number: int, plugin: str, data: bytes = b"") -> bytes:
    """AuthSwitchRequest: log in by another method."""
    return packet(number, b"\xfe" + plugin.encode() + b"\0" + data)


class Packets(Inbox):
    """What comes of the log-in."""

    __slots__ = ()

    def packet(self) -> bytes | None:
        """The next packet, whole and with its header; None: not there yet. Raises `Refusal`."""
        if len(self._data) < HEADER:
            return None
        length = WORD.unpack_from(self._data)[0] & FULL
        if length > MAX_PACKET:
            raise violation(f"a packet of {length} bytes during the log-in; there may be {MAX_PACKET}")
        return self._take(HEADER + length)

    def missing(self) -> int:
        """Bytes to read until a packet, or at first its header, is whole: so that none behind it is read with it."""
        held = len(self._data)
        size = HEADER if held < HEADER else HEADER + (WORD.unpack_from(self._data)[0] & FULL)
        return max(1, size - held)


class Greeting(NamedTuple):
    """HandshakeV10: its body, and where the parts are that a relay changes."""

    body: bytes
    capabilities: int
    plugin: str
    number_at: int  # where the connection's number begins, behind the version's NUL

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Raises `Refusal`."""
        try:
            said = fields.greeting(body)
            _, at = fields.nul(body, 1)
        except (ValueError, IndexError, struct.error):
            raise violation("the server does not begin with a greeting of MySQL's protocol 10") from None
        if said.capabilities & NEEDED != NEEDED or len(body) < at + 31 + 12:
            raise Refusal("protocol", UNSUPPORTED, "the server is older than MySQL 4.1: its log-in is not supported")
        return cls(body, said.capabilities, said.plugin, at)

    @property
    def scramble(self) -> bytes:
        """The random bytes that a password is proven with."""
        return (
            self.body[self.number_at + 4 : self.number_at + 12] + self.body[self.number_at + 31 : self.number_at + 43]
        )

    def offered(self, *, own: bool) -> int:
        """The capabilities that an agent is offered. `own`: the gateway logs in."""
        offered = self.capabilities & ~WITHHELD
        return offered | session.SSL | session.PLUGIN_AUTH if own else offered

    def told(self, said: int, *, own: bool, tls: bool) -> int:
        """What the server is told of the capabilities that an agent said it has. `tls`: with the server."""
        server = self.capabilities & ~WITHHELD
        flags = said & (server | session.MYSQL) & ~session.SSL | (session.SSL if tls else 0)
        return flags | NEEDED | (server & session.PLUGIN_AUTH) if own else flags

    def offering(self, capabilities: int, scramble: bytes = b"", plugin: str = "") -> bytes:
        """The same greeting with other capabilities; with a scramble of the gateway's own where one is given."""
        at = self.number_at
        body = bytearray(self.body)
        body[at + 13 : at + 15] = (capabilities & 0xFFFF).to_bytes(2, "little")
        body[at + 18 : at + 20] = (capabilities >> 16 & 0xFFFF).to_bytes(2, "little")
        if not capabilities & session.MYSQL:
            body[at + 27 : at + 31] = (capabilities >> 32).to_bytes(4, "little")
        if scramble:
            body[at + 4 : at + 12] = scramble[:8]
            body[at + 20] = SCRAMBLE + 1
            body[at + 31 :] = scramble[8:] + b"\0" + plugin.encode() + b"\0"
        return bytes(body)


class Response(NamedTuple):
    """HandshakeResponse41. What is not the gateway's business stays as it came."""

    capabilities: int
    fixed: bytes  # 32 bytes: capabilities, largest packet, collation, zeros
    user: bytes
    answer: bytes  # to the server's scramble
    place: tuple[int, int]  # of that, in the body
    database: bytes
    plugin: str
    attributes: bytes  # with their length before them

    def saying(self, capabilities: int, user: bytes, answer: bytes, plugin: str) -> bytes:
        """The body of the same for a server. `answer` has at most 250 bytes."""
        body = fixed(self.fixed, capabilities) + user + b"\0" + bytes((len(answer),)) + answer
        if capabilities & session.CONNECT_WITH_DB:
            body += self.database + b"\0"
        if capabilities & session.PLUGIN_AUTH:
            body += plugin.encode() + b"\0"
        if capabilities & session.CONNECT_ATTRS:
            body += self.attributes or b"\0"
        return body


def fixed(said: bytes, capabilities: int) -> bytes:
    """The first 32 bytes of a client's packet, and all of an SSLRequest, with other capabilities."""
    _, largest, collation, zeros, more = _CAPABILITIES.unpack_from(said)
    if not capabilities & session.MYSQL:
        more = capabilities >> 32
    return _CAPABILITIES.pack(capabilities & 0xFFFFFFFF, largest, collation, zeros, more)


def capabilities_of(body: bytes) -> int:
    """Of a client's first packet. Raises `Refusal`."""
    if len(body) < SSL_REQUEST or not int.from_bytes(body[:2], "little") & session.PROTOCOL_41:
        raise Refusal("protocol", UNSUPPORTED, "a client of a time before MySQL 4.1, or not one of MySQL")
    return fields.capabilities(body)


def response(body: bytes) -> Response:
    """Read a handshake response. Raises `Refusal`."""
    try:
        return _response(body, capabilities_of(body))
    except (ValueError, IndexError, struct.error):
        raise violation("a handshake response that does not fit its layout") from None


def _response(body: bytes, flags: int) -> Response:
    user, at = fields.nul(body, SSL_REQUEST)
    if flags & session.PLUGIN_AUTH_LENENC:
        size, begin = lenenc(body, at)
    elif flags & session.SECURE_CONNECTION:
        size, begin = body[at], at + 1
    else:
        raise ValueError("an answer without its length")
    end = begin + size
    if end > len(body):
        raise ValueError("an answer that is longer than its packet")
    at = end
    database = plugin = attributes = b""
    if flags & session.CONNECT_WITH_DB:
        database, at = fields.until_nul(body, at)
    if flags & session.PLUGIN_AUTH:
        plugin, at = fields.until_nul(body, at)
    if flags & session.CONNECT_ATTRS and at < len(body):
        size, behind = lenenc(body, at)
        if behind + size > len(body):
            raise ValueError("attributes that are longer than their packet")
        attributes = body[at : behind + size]
    name = plugin.decode("ascii", "replace")
    return Response(flags, body[:SSL_REQUEST], user, body[begin:end], (begin, end), database, name, attributes)
