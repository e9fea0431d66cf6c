"""What TLS says in the clear: ClientHello, ServerHello and Certificate, as plain values.

Formats: RFC 8446 §4.1 and §4.2 (RFC 5246 §7.4 up to TLS 1.2), SNI RFC 6066 §3, ALPN RFC 7301, GREASE RFC 8701.
JA4 is FoxIO's TLS client fingerprint (technical_details/JA4.md of FoxIO-LLC/ja4, BSD 3-Clause).

Every function takes the body of one handshake message (without its 4-byte header) and raises `Malformed` on anything
that breaks the format.
"""

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

SERVER_NAME, SIGNATURE_ALGORITHMS, ALPN, SUPPORTED_VERSIONS, ECH = 0, 13, 16, 43, 0xFE0D
MAX_NAMES = 64  # names taken from one certificate, protocols taken from one ALPN offer

HELLO_RETRY = hashlib.sha256(b"HelloRetryRequest").digest()  # RFC 8446 §4.1.3

VERSIONS = {0x0300: "SSL 3.0", 0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
_JA4_VERSIONS = {0x0002: "s2", 0x0300: "s3", 0x0301: "10", 0x0302: "11", 0x0303: "12", 0x0304: "13"}

# IANA "TLS Cipher Suites": those in use; others are given by number.
CIPHERS = {
    0x000A: "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    0x002F: "TLS_RSA_WITH_AES_128_CBC_SHA",
    0x0033: "TLS_DHE_RSA_WITH_AES_128_CBC_SHA",
    0x0035: "TLS_RSA_WITH_AES_256_CBC_SHA",
    0x0039: "TLS_DHE_RSA_WITH_AES_256_CBC_SHA",
    0x003C: "TLS_RSA_WITH_AES_128_CBC_SHA256",
    0x003D: "TLS_RSA_WITH_AES_256_CBC_SHA256",
    0x009C: "TLS_RSA_WITH_AES_128_GCM_SHA256",
    0x009D: "TLS_RSA_WITH_AES_256_GCM_SHA384",
    0x009E: "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256",
    0x009F: "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384",
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    0x1304: "TLS_AES_128_CCM_SHA256",
    0x1305: "TLS_AES_128_CCM_8_SHA256",
    0xC009: "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    0xC00A: "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    0xC013: "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    0xC014: "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    0xC023: "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    0xC024: "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384",
    0xC027: "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    0xC028: "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384",
    0xC02B: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    0xC02C: "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    0xC02F: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    0xC030: "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    0xCCA8: "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    0xCCA9: "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    0xCCAA: "TLS_DHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
}


class Malformed(Exception):
    """A handshake message breaks its own lengths."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    version: int  # legacy_version
    ciphers: tuple[int, ...]
    extensions: tuple[int, ...]  # types, in order
    sni: str
    alpn: tuple[bytes, ...]
    versions: tuple[int, ...]  # supported_versions
    signatures: tuple[int, ...]

    @property
    def ech(self) -> bool:
        return ECH in self.extensions


@dataclass(frozen=True, slots=True)
class ServerHello:
    version: int  # negotiated: supported_versions, else legacy_version
    cipher: int
    alpn: str
    retry: bool


class _Cursor:
    """Reads big-endian numbers and length-prefixed vectors; past the end is `Malformed`."""

    __slots__ = ("data", "place")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def take(self, length: int) -> bytes:
        part = self.data[self.place : self.place + length]
        if len(part) != length:
            raise Malformed
        self.place += length
        return part

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width))

    def vector(self, width: int) -> "_Cursor":
        return _Cursor(self.take(self.number(width)))

    @property
    def left(self) -> int:
        return len(self.data) - self.place


def name_version(number: int) -> str:
    return VERSIONS.get(number, f"0x{number:04x}")


def name_cipher(number: int) -> str:
    return CIPHERS.get(number, f"0x{number:04x}")


def text_of(data: bytes) -> str:
    """Bytes that should be ASCII, as text that shows what is not."""
    return data.decode("ascii", "backslashreplace")


def is_grease(number: int) -> bool:
    return number & 0x0F0F == 0x0A0A and number >> 8 == number & 0xFF


def parse_client_hello(body: bytes) -> ClientHello:
    cursor = _Cursor(body)
    version = cursor.number(2)
    cursor.take(32)
    cursor.vector(1)
    ciphers = _numbers(cursor.vector(2).data)
    cursor.vector(1)
    extensions = _extensions(cursor)
    found = dict(reversed(extensions))  # the first of a doubled type
    sni = ""
    if found.get(SERVER_NAME):
        names = _Cursor(found[SERVER_NAME]).vector(2)
        if names.left and names.number(1) == 0:
            sni = text_of(names.vector(2).data)
    versions = _Cursor(found[SUPPORTED_VERSIONS]).vector(1).data if SUPPORTED_VERSIONS in found else b""
    signatures = _Cursor(found[SIGNATURE_ALGORITHMS]).vector(2).data if SIGNATURE_ALGORITHMS in found else b""
    return ClientHello(
        version,
        ciphers,
        tuple(kind for kind, _ in extensions),
        sni,
        _protocols(found.get(ALPN, b"")),
        _numbers(versions),
        _numbers(signatures),
    )


def parse_server_hello(body: bytes) -> ServerHello:
    cursor = _Cursor(body)
    version = cursor.number(2)
    random = cursor.take(32)
    cursor.vector(1)
    cipher = cursor.number(2)
    cursor.take(1)
    found = dict(reversed(_extensions(cursor)))
    if SUPPORTED_VERSIONS in found:
        version = _Cursor(found[SUPPORTED_VERSIONS]).number(2)
    alpn = _protocols(found.get(ALPN, b""))
    return ServerHello(version, cipher, text_of(alpn[0]) if alpn else "", random == HELLO_RETRY)


def parse_certificate(body: bytes) -> dict[str, Any]:
    """The leaf of a Certificate message (TLS 1.2 and before, RFC 5246 §7.4.2): JSON values; {} for an empty chain.

    A leaf that X.509 can't read has its SHA-256 only.
    """
    chain = _Cursor(body).vector(3)
    if not chain.left:
        return {}
    der = chain.vector(3).data
    count = 1
    while chain.left:
        chain.vector(3)
        count += 1
    said: dict[str, Any] = {"sha256": hashlib.sha256(der).hexdigest(), "chain": count}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said.update(_subject(der))
    except Exception:  # hostile DER: whatever the parser makes of it
        said["unreadable"] = True
    return said


def _subject(der: bytes) -> dict[str, Any]:
    certificate = x509.load_der_x509_certificate(der)
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    names: list[str] = []
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for general in alternative:
            if isinstance(general, x509.DNSName):
                names.append(general.value)
            elif isinstance(general, x509.IPAddress):
                names.append(str(general.value))
    except x509.ExtensionNotFound:
        pass
    return {
        "subject": certificate.subject.rfc4514_string(),
        "common_name": str(common[0].value) if common else "",
        "names": names[:MAX_NAMES],
        "issuer": certificate.issuer.rfc4514_string(),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }


def ja4(hello: ClientHello) -> str:
    """JA4 of a ClientHello over TCP."""
    ciphers = sorted(f"{number:04x}" for number in hello.ciphers if not is_grease(number))
    extensions = [number for number in hello.extensions if not is_grease(number)]
    hashed = sorted(f"{number:04x}" for number in extensions if number not in (SERVER_NAME, ALPN))
    signatures = [f"{number:04x}" for number in hello.signatures if not is_grease(number)]
    versions = [number for number in hello.versions if not is_grease(number)]
    version = _JA4_VERSIONS.get(max(versions) if versions else hello.version, "00")
    target = "d" if SERVER_NAME in extensions else "i"
    counts = f"{min(len(ciphers), 99):02}{min(len(extensions), 99):02}"
    tail = ",".join(hashed) + ("_" + ",".join(signatures) if signatures else "")
    return f"t{version}{target}{counts}{_ja4_alpn(hello.alpn)}_{_hash12(','.join(ciphers))}_" + (
        _hash12(tail) if hashed else "0" * 12
    )


def _ja4_alpn(offered: tuple[bytes, ...]) -> str:
    first = offered[0] if offered else b""
    if not first:
        return "00"
    ends = chr(first[0]) + chr(first[-1])
    return ends if ends.isascii() and ends.isalnum() else first.hex()[0] + first.hex()[-1]


def _hash12(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else "0" * 12


def _extensions(cursor: _Cursor) -> list[tuple[int, bytes]]:
    if not cursor.left:
        return []
    block = cursor.vector(2)
    found = []
    while block.left:
        kind = block.number(2)
        found.append((kind, block.vector(2).data))
    return found


def _protocols(extension: bytes) -> tuple[bytes, ...]:
    if not extension:
        return ()
    offered = _Cursor(extension).vector(2)
    found: list[bytes] = []
    while offered.left and len(found) < MAX_NAMES:
        found.append(offered.vector(1).data)
    return tuple(found)


def _numbers(data: bytes) -> tuple[int, ...]:
    if len(data) % 2:
        raise Malformed
    return tuple(int.from_bytes(data[place : place + 2]) for place in range(0, len(data), 2))
