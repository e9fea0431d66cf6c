"""HPACK (RFC 7541) for an observer: header blocks to fields, and where the credentials are on the wire.

A credential never enters the dynamic table, nor a cache: a masked value of the same length stands for it, so that
entries are evicted when the peers' are. On the wire its string is redacted whole, Huffman coded or not.

Where header blocks went unseen (`lose`), the newest entries are known again as they come: an index counts from the
newest. What an older index means is unknown then; a value whose name is unknown counts as a credential.

Bounds: `MAX_TABLE` for what of the dynamic table is remembered; `MAX_LIST` for what one block may decode to (RFC 9113
§6.5.2, §10.5.1), and `MAX_REPEATED` for what of that comes from the dynamic table. More is followed, not listed.
"""

from collections import deque
from functools import lru_cache
from typing import Final

import msgspec
from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from appliance.dissect.http_head import text_of
from appliance.dissect.http_secrets import SECRET_FIELDS, Range

MAX_TABLE: Final = 1 << 16  # bytes as of RFC 7541 §4.1
MAX_LIST: Final = 1 << 18  # likewise
MAX_REPEATED: Final = 1 << 14  # likewise
MAX_REMEMBERED: Final = 256  # bytes of a string that the cache may hold
DEFAULT_TABLE: Final = 4096
OVERHEAD: Final = 32  # bytes of an entry beside its name and value
UNKNOWN: Final = "?"  # name or value that only a block that was not seen can tell

_STATIC: Final = tuple(
    (name.decode(), value.decode(), len(name), len(value)) for name, value in HeaderTable.STATIC_TABLE
)
_Entry = tuple[str, str, int, int]  # name, value, and their lengths in bytes


class Malformed(Exception):
    """The block can't be read from here on."""


class Block(msgspec.Struct):
    """What a header block says. `secrets`: ranges of it. `unread`: where reading broke off, its length if nowhere."""

    fields: list[tuple[str, str]] = []
    secrets: list[Range] = []
    unread: int = 0
    unknown: bool = False  # some of it refers to blocks that were not seen
    truncated: bool = False  # more than is listed


class Decoder:
    """The state of one direction. `secrets`: names of fields that hold credentials, beside those that always do."""

    def __init__(self, secrets: frozenset[str] = frozenset()) -> None:
        self._secret_fields = SECRET_FIELDS | secrets
        self._entries: deque[_Entry] = deque()  # the newest first
        self.size = 0  # as of RFC 7541 §4.1
        self._limit = DEFAULT_TABLE
        self._complete = True  # no entry is missing

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        return self.size + 160 * len(self._entries)

    def lose(self) -> None:
        """A block was not seen, or not understood."""
        self._entries.clear()
        self.size = 0
        self._complete = False

    def decode(self, data: bytes) -> Block:
        block = Block()
        place, size, repeated = 0, 0, 0
        try:
            while place < len(data):
                block.unread = place
                first = data[place]
                if first & 0x80:
                    index, place = _integer(data, place, 0x7F)
                    entry = self._entry(index)
                    if entry is not None and index > len(_STATIC):
                        repeated += entry[2] + entry[3] + OVERHEAD
                elif first & 0xE0 == 0x20:
                    limit, place = _integer(data, place, 0x1F)
                    self._resize(limit)
                    continue
                else:
                    entry, place = self._literal(data, place, block)
                if entry is None:
                    block.unknown = True
                    continue
                size += entry[2] + entry[3] + OVERHEAD
                if size <= MAX_LIST and repeated <= MAX_REPEATED:
                    block.fields.append(entry[:2])
                else:
                    block.truncated = True
        except (Malformed, HPACKDecodingError):
            self.lose()
            return block
        block.unread = len(data)
        return block

    def _literal(self, data: bytes, place: int, block: Block) -> tuple[_Entry, int]:
        """RFC 7541 §6.2, indexed or not."""
        indexed = bool(data[place] & 0x40)
        index, place = _integer(data, place, 0x3F if indexed else 0x0F)
        if index:
            named = self._entry(index)
            name, name_length = (named[0], named[2]) if named is not None else (UNKNOWN, 0)
        else:
            huffman, start, place = _string(data, place)
            name, name_length = _text(data[start:place], huffman)
        huffman, start, place = _string(data, place)
        raw = data[start:place]
        plain = name.strip().lower()
        if name is UNKNOWN or plain in self._secret_fields:
            if raw:
                what = "authorization" if name is UNKNOWN or plain.endswith("authorization") else "api-key"
                block.secrets.append((start, place, what))
            value, length = _masked(decode_huffman(raw) if huffman else raw, schemed=plain.endswith("authorization"))
            block.unknown = block.unknown or name is UNKNOWN
        else:
            value, length = _text(raw, huffman)
        entry = (name, value, name_length, length)
        if indexed:
            self._add(entry)
        return entry, place

    def _entry(self, index: int) -> _Entry | None:
        """None: it was in a block that was not seen."""
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        place = index - len(_STATIC) - 1
        if 0 <= place < len(self._entries):
            return self._entries[place]
        if place < 0 or self._complete:
            raise Malformed
        return None

    def _add(self, entry: _Entry) -> None:
        self._entries.appendleft(entry)
        self.size += entry[2] + entry[3] + OVERHEAD
        self._evict(min(self._limit, MAX_TABLE))

    def _resize(self, limit: int) -> None:
        self._limit = limit
        self._evict(min(limit, MAX_TABLE))

    def _evict(self, limit: int) -> None:
        if self.size > limit < self._limit:
            self._complete = False  # the peers' table holds more than is remembered here
        while self.size > limit:
            entry = self._entries.pop()
            self.size -= entry[2] + entry[3] + OVERHEAD


def _integer(data: bytes, place: int, mask: int) -> tuple[int, int]:
    """RFC 7541 §5.1; of no more than 32 bits."""
    value = data[place] & mask
    place += 1
    if value < mask:
        return value, place
    for shift in range(0, 35, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 32:
                break
            return value, place
    raise Malformed


def _string(data: bytes, place: int) -> tuple[bool, int, int]:
    """RFC 7541 §5.2: whether it is Huffman coded, where it begins and ends."""
    if place >= len(data):
        raise Malformed
    huffman = data[place] >= 0x80
    length, start = _integer(data, place, 0x7F)
    if start + length > len(data):
        raise Malformed
    return huffman, start, start + length


def _read(raw: bytes, huffman: bool) -> tuple[str, int]:
    plain = decode_huffman(raw) if huffman else raw
    return text_of(plain), len(plain)


_remembered = lru_cache(4096)(_read)


def _text(raw: bytes, huffman: bool) -> tuple[str, int]:
    """A string that is no credential, and its length in bytes."""
    return _remembered(raw, huffman) if len(raw) <= MAX_REMEMBERED else _read(raw, huffman)


def _masked(value: bytes, *, schemed: bool) -> tuple[str, int]:
    """Asterisks; an authentication scheme before them stays."""
    scheme, space, _ = value.partition(b" ")
    kept = text_of(scheme + space) if schemed and space and scheme.isalnum() and len(scheme) <= 32 else ""
    return kept + "*" * (len(value) - len(kept)), len(value)
