"""Protobuf without its schema (https://protobuf.dev/programming-guides/encoding/): field numbers and values to read.

    1: "text"          printable UTF-8
    2: 150             a varint, as unsigned
    3 { 1: 1 }         a message within, on lines of its own
    4: <00ff>          other bytes, in hexadecimal, cut at MAX_HEX
    5: 0x3ff0000000000000 = 1.0     64 and 32 bits: as they are, and as a floating point number

What kind of thing a length-delimited field is the encoding does not tell: the first of text, message, bytes that fits.
"""

import math
import re
import struct
from typing import Final

MAX_DEPTH: Final = 12
MAX_FIELDS: Final = 4096  # of one message, those within it and attempts that failed counted
MAX_TEXT: Final = 1 << 17  # characters
MAX_HEX: Final = 64  # bytes

_VARINT, _I64, _LEN, _START, _END, _I32 = range(6)
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_LINES: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class _Unfit(Exception):
    """These bytes are no message; or there are too many of them."""


def readable(data: bytes) -> str:
    """The fields, one a line; where the bytes are no message to their end, those up to there and `...`."""
    lines: list[str] = []
    reader = _Reader()
    try:
        reader.message(data, 0, lines)
    except _Unfit:
        lines.append("...")
    text = "\n".join(lines)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 4] + "\n..."


class _Reader:
    def __init__(self) -> None:
        self._fields = 0
        self._size = 0

    def message(self, data: bytes, depth: int, lines: list[str]) -> None:
        indent = "  " * depth
        groups: list[int] = []
        place = 0
        while place < len(data):
            self._fields += 1
            if self._fields > MAX_FIELDS or self._size > MAX_TEXT:
                raise _Unfit
            key, place = _varint(data, place)
            number, kind = key >> 3, key & 7
            if not 0 < number < 1 << 29:
                raise _Unfit
            if kind == _START:
                if depth + len(groups) >= MAX_DEPTH:
                    raise _Unfit
                groups.append(number)
                lines.append(f"{indent}{number} (")
                continue
            if kind == _END:
                if not groups or groups.pop() != number:
                    raise _Unfit
                lines.append(f"{indent})")
                continue
            before = len(lines)
            place = self._field(data, place, kind, f"{indent}{number}", depth, lines)
            self._size += sum(len(line) for line in lines[before:]) if kind == _LEN else len(lines[-1])
        if groups:
            raise _Unfit

    def _field(self, data: bytes, place: int, kind: int, opening: str, depth: int, lines: list[str]) -> int:
        if kind == _VARINT:
            value, place = _varint(data, place)
            lines.append(f"{opening}: {value}")
            return place
        if kind in (_I64, _I32):
            size, form = (8, "<d") if kind == _I64 else (4, "<f")
            if place + size > len(data):
                raise _Unfit
            part = data[place : place + size]
            number = struct.unpack(form, part)[0]
            shown = f" = {number!r}" if math.isfinite(number) else ""
            lines.append(f"{opening}: 0x{part[::-1].hex()}{shown}")
            return place + size
        if kind != _LEN:
            raise _Unfit
        length, place = _varint(data, place)
        if place + length > len(data):
            raise _Unfit
        self._delimited(data[place : place + length], opening, depth, lines)
        return place + length

    def _delimited(self, part: bytes, opening: str, depth: int, lines: list[str]) -> None:
        text = _text(part)
        if text is not None and not _CONTROL.search(text):
            lines.append(f'{opening}: "{text}"')
            return
        if depth < MAX_DEPTH:
            inner: list[str] = []
            try:
                self.message(part, depth + 1, inner)
            except _Unfit:
                if self._fields > MAX_FIELDS:
                    raise
            else:
                lines.append(f"{opening} {{")
                lines += inner
                lines.append("  " * depth + "}")
                return
        if text is not None and not _CONTROL_IN_LINES.search(text):
            lines.append(f'{opening}: "{text}"')
            return
        more = "..." if len(part) > MAX_HEX else ""
        lines.append(f"{opening}: <{part[:MAX_HEX].hex()}{more}>")


def _text(part: bytes) -> str | None:
    try:
        return part.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for number, byte in enumerate(data[place : place + 10]):
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return value & (1 << 64) - 1, place + number + 1
    raise _Unfit
