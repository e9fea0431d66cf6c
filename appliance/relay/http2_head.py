"""Request heads of HTTP/2 (RFC 9113 §8): read strictly, and written anew without any state of compression.

Header blocks that the gateway writes have literals only, which refer to nothing (RFC 7541 §6.2.2): they may stand
between others' blocks, and one may be left out, without anybody's dynamic table going wrong.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman

from appliance.relay.http_head import Ambiguous, Malformed
from appliance.relay.http_target import authority

Fields = Sequence[tuple[bytes, bytes]]

_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_BREAK: Final = re.compile(rb"[\0\r\n]")
_PATH: Final = re.compile(rb"/[!\"$-~]*")
_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_OF_CONNECTION: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"proxy-authorization")
)
_LENGTH: Final = re.compile(rb"\d{1,18}")
_LITERAL, _NEVER_INDEXED = b"\x00", b"\x10"
_HUFFMAN: Final = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


@dataclass(frozen=True, slots=True)
class Head:
    """`length`: the Content-Length, None where none is given."""

    fields: Fields
    host: str = ""
    length: int | None = None
    grpc: bool = False

    def values(self, name: bytes) -> list[bytes]:
        return [value for given, value in self.fields if given == name]


def read_request(fields: Fields) -> Head:
    """Raises `Malformed`."""
    pseudo, regular = {}, False
    for name, value in fields:
        if name.startswith(b":"):
            if regular or name in pseudo or name not in _PSEUDO:
                raise Ambiguous("pseudo-field", "a pseudo-field that is unknown, repeated, or behind others")
            pseudo[name] = value
        else:
            regular = True
        _check(name, value)
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if method == b"CONNECT" and b":protocol" not in pseudo:
        raise Ambiguous("target", "CONNECT to a server that is no proxy")
    if b":protocol" in pseudo and method != b"CONNECT":
        raise Ambiguous("pseudo-field", "another protocol without CONNECT")
    if not _NAME.fullmatch(method.lower()) or pseudo.get(b":scheme") not in (b"http", b"https"):
        raise Ambiguous("pseudo-field", "a method or scheme that is none")
    if not _PATH.fullmatch(path) and not (path == b"*" and method == b"OPTIONS"):
        raise Ambiguous("target", "a path that is none")
    hosts = [value for name, value in fields if name == b"host"]
    named = [pseudo[b":authority"]] if b":authority" in pseudo else []
    given = {authority(value, "authority") for value in hosts + named}
    if len(given) != 1 or len(hosts) > 1:
        raise Ambiguous("authority", "several names of the server, or none")
    lengths = [value for name, value in fields if name == b"content-length"]
    kind = next((value for name, value in fields if name == b"content-type"), b"")
    ((host, _),) = given
    return Head(fields, host, _length(lengths), kind.startswith(b"application/grpc"))


def check_trailers(fields: Fields) -> None:
    """Raises `Malformed`."""
    for name, value in fields:
        if name.startswith(b":") or name in (b"host", b"content-length", b"authorization"):
            raise Ambiguous("trailer", "a field that decides, behind the body")
        _check(name, value)


def _length(lengths: list[bytes]) -> int | None:
    if not lengths:
        return None
    if len(lengths) > 1:
        raise Ambiguous("cl-conflict", "several Content-Length values")
    if not _LENGTH.fullmatch(lengths[0]):
        raise Ambiguous("cl-invalid", "a Content-Length that is no number")
    return int(lengths[0])


def _check(name: bytes, value: bytes) -> None:
    if _BREAK.search(value) or _BREAK.search(name):
        raise Ambiguous("line-break", "a line break or NUL within a field")
    if not _NAME.fullmatch(name.removeprefix(b":")):
        raise Ambiguous("field-name", "a field's name that is none")
    if name in _OF_CONNECTION or (name == b"te" and value != b"trailers"):
        raise Ambiguous("connection-field", "a field of the connection, which HTTP/2 has not")
    if value != value.strip(b" \t"):
        raise Malformed("a blank around a field's value")


def encode(fields: Iterable[tuple[bytes, bytes]], secrets: frozenset[bytes] = frozenset()) -> bytes:
    """A header block. Fields named by `secrets` are not to be indexed by anybody, ever (RFC 7541 §7.1.3)."""
    parts = []
    for name, value in fields:
        parts.append(_NEVER_INDEXED if name in secrets else _LITERAL)
        parts += [_integer(len(name)), name, _integer(len(value)), value]
    return b"".join(parts)


def _integer(value: int) -> bytes:
    """RFC 7541 §5.1, with a prefix of 7 bits that says: not Huffman coded."""
    if value < 0x7F:
        return bytes((value,))
    out, value = bytearray(b"\x7f"), value - 0x7F
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def masked(block: bytes, start: int, end: int) -> bytes:
    """What stands on record for the string `block[start:end]`, of the same length: asterisks, or, where it is Huffman
    coded, what decodes to as many characters, so that dynamic tables stay as they are. Raises `Malformed`."""
    size = end - start
    if not _coded(block, start, size):
        return b"*" * size
    count = len(decode_huffman(block[start:end]))
    wide = min(count, max(0, (8 * size - 5 * count) // 3))  # "*" takes 8 bits, "0" takes 5, "<" takes 15
    left = 8 * size - 5 * count - 3 * wide
    wider = min(wide, left // 7) if left > 7 else 0
    said = bytes(_HUFFMAN.encode(b"<" * wider + b"*" * (wide - wider) + b"0" * (count - wide)))
    if len(said) != size:
        raise Malformed("a credential of characters that no credential has")
    return said


def _coded(block: bytes, start: int, size: int) -> bool:
    """Is the string before which a length stands Huffman coded (RFC 7541 §5.2)?"""
    if size < 0x7F and block[start - 1] & 0x7F == size:
        return bool(block[start - 1] & 0x80)
    for back in range(2, 8):
        if block[start - back] & 0x7F == 0x7F and _rest(block[start - back + 1 : start]) == size - 0x7F:
            return bool(block[start - back] & 0x80)
    return False


def _rest(data: bytes) -> int:
    """The bytes of an integer behind its prefix; -1: they are none."""
    if not data or data[-1] & 0x80 or any(not byte & 0x80 for byte in data[:-1]):
        return -1
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data))
