"""Messages of PostgreSQL as a relay cuts, reads and writes them (PostgreSQL 18 documentation, 54.2 and 54.7).

Everything that a peer may send before a session is ready is short; what is longer ends the flow.
"""

import struct
from typing import Final, NamedTuple

from appliance.dissect import postgres_fields as fields
from appliance.dissect.postgres_frames import CANCEL, HEADER, HEADER_LAYOUT, MAX_STARTUP
from appliance.relay.database import MAX_WORDS
from appliance.relay.failure import Refusal
from appliance.relay.inbox import Inbox

REQUEST: Final = 8  # bytes of an SSLRequest, of a GSSENCRequest, and of every start-up packet's head
SSL_REQUEST: Final = struct.pack("!I", REQUEST) + fields.SSL
GSS_REQUEST: Final = struct.pack("!I", REQUEST) + fields.GSS
CANCEL_SIZES: Final = range(13, 12 + 256 + 1)  # bytes of a CancelRequest; the key has 4, or up to 256 since 3.2

OK, CLEARTEXT, MD5, SASL, SASL_CONTINUE, SASL_FINAL = 0, 3, 5, 10, 11, 12  # codes of authentication requests

VIOLATION: Final = "08P01"  # SQLSTATE protocol_violation (PostgreSQL documentation, appendix A)
CONNECTION: Final = "08006"  # connection_failure
REFUSED: Final = "08004"  # sqlserver_rejected_establishment_of_sqlconnection
AUTHORIZATION: Final = "28000"  # invalid_authorization_specification
PASSWORD: Final = "28P01"  # invalid_password  # noqa: S105
UNSUPPORTED: Final = "0A000"  # feature_not_supported


def violation(text: str) -> Refusal[str]:
    return Refusal("protocol", VIOLATION, text)


def before_tls() -> Refusal[str]:
    """What CVE-2021-23222 was about."""
    return Refusal("before-tls", VIOLATION, "bytes between a request for TLS and the handshake")


class Messages(Inbox):
    """What comes of the log-in. `most`: the largest length field of a message with a type."""

    __slots__ = ("_most",)

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def packet(self) -> bytes | None:
        """The next start-up packet, whole; None: not there yet. Raises `Refusal`."""
        if len(self._data) < REQUEST:
            return None
        length = int.from_bytes(self._data[:4])
        if not REQUEST <= length <= MAX_STARTUP:
            raise violation(f"what begins the connection is no start-up packet of PostgreSQL: {length} bytes long")
        return self._take(length)

    def message(self) -> bytes | None:
        """The next message with a type, whole; None: not there yet. Raises `Refusal`."""
        if len(self._data) < HEADER:
            return None
        _, length = HEADER_LAYOUT.unpack_from(self._data)
        if not 4 <= length <= self._most:
            raise violation(f"a message that is {length} bytes long; there may be {self._most} here")
        return self._take(1 + length)

    def missing(self, *, typed: bool) -> int:
        """Bytes to read until a message, or at first its head, is whole: so that none behind it is read with it."""
        held = len(self._data)
        if typed:
            size = HEADER if held < HEADER else 1 + HEADER_LAYOUT.unpack_from(self._data)[1]
        else:
            size = REQUEST if held < REQUEST else int.from_bytes(self._data[:4])
        return max(1, size - held)


class StartUp(NamedTuple):
    """A StartupMessage. Parameters as they came, in their order, no name twice."""

    version: int  # minor version of 3
    parameters: tuple[tuple[bytes, bytes], ...]

    def value(self, name: bytes) -> bytes:
        return dict(self.parameters).get(name, b"")

    def acting_as(self, user: str) -> "StartUp":
        """The same session for another user; its database is still the one that the agent meant."""
        database = self.value(b"database") or self.value(b"user")
        others = tuple(pair for pair in self.parameters if pair[0] not in (b"user", b"database"))
        return StartUp(self.version, ((b"user", user.encode()), (b"database", database), *others))

    def packet(self) -> bytes:
        body = b"".join(name + b"\0" + value + b"\0" for name, value in self.parameters) + b"\0"
        return struct.pack("!IHH", REQUEST + len(body), 3, self.version) + body


def start_up(packet: bytes) -> StartUp:
    """Read a StartupMessage. Raises `Refusal`."""
    major, minor = struct.unpack_from("!HH", packet, 4)
    if major != 3:
        raise Refusal("protocol", UNSUPPORTED, f"protocol version {major}.{minor} of PostgreSQL; 3.0 to 3.2 pass")
    try:
        parameters = tuple(fields.pairs(packet[REQUEST:]))
    except ValueError:
        raise violation("a StartupMessage that is not pairs of names and values with a NUL at its end") from None
    names = [name for name, _ in parameters]
    if b"" in names or len(set(names)) < len(names):
        raise violation("a StartupMessage with a parameter twice, or with one that has no name")
    found = StartUp(minor, parameters)
    if not found.value(b"user"):
        raise Refusal("protocol", AUTHORIZATION, "a StartupMessage without a user's name")
    return found


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


def authentication(code: int, rest: bytes = b"") -> bytes:
    return message(b"R", struct.pack("!I", code) + rest)


def authentication_code(request: bytes) -> int:
    """Of an authentication request. Raises `Refusal`."""
    if len(request) < HEADER + 4:
        raise violation("an authentication request of the server without its code")
    return int.from_bytes(request[HEADER : HEADER + 4])


def error(code: str, text: str, hint: str = "") -> bytes:
    """ErrorResponse (54.8) of the gateway, which ends the session."""
    said = {"S": "FATAL", "V": "FATAL", "C": code, "M": text[:MAX_WORDS], "H": hint and f"{hint}."}
    body = b"".join(key.encode() + _line(value) + b"\0" for key, value in said.items() if value)
    return message(b"E", body + b"\0")


def _line(text: str) -> bytes:
    return text.replace("\0", "").encode("utf-8", "replace")


def is_cancel(packet: bytes) -> bool:
    """Whether this start-up packet is a CancelRequest. Raises `Refusal` for one that cannot be."""
    if packet[4:8] != CANCEL:
        return False
    if len(packet) not in CANCEL_SIZES:
        raise violation(f"a CancelRequest of {len(packet)} bytes")
    return True
