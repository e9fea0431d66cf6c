"""Captured text, made safe for a terminal: whoever wrote the bytes must not drive the reader's screen."""

import unicodedata

KEPT = frozenset("\n\t")


def printable(text: str) -> str:
    """`text` with control, format and private characters as visible escapes; line feeds and tabs stay.

    Keeps ANSI sequences, cursor movement, right-to-left overrides and the like from taking effect.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text.replace("\r\n", "\n"))


def _shown(character: str) -> str:
    if character in KEPT or (
        character.isprintable() and unicodedata.category(character) not in ("Cf", "Co", "Zl", "Zp")
    ):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
