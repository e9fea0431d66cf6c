"""What a person could read of a terminal's bytes: control sequences taken out, corrections made.

Control sequences: ECMA-48 §5.4 (CSI), §5.6 (control strings: OSC, DCS and others), ECMA-35 §13 (escape sequences).
"""

import re
from typing import Final

from appliance.dissect.raw import printable

_SEQUENCE: Final = re.compile(
    r"\x1b(?:\[[0-?]*+[ -/]*+[@-~]?|[\]PX^_][^\x07\x1b\x9c]*+(?:\x07|\x1b\\|\x9c)?|[ -/]*+[0-~]?)"
    r"|\x9b[0-?]*+[ -/]*+[@-~]?"
)
_CONTROL: Final = re.compile("[\x00-\x07\x0b-\x1f\x7f-\x9f]")
_LINE_END: Final = re.compile("\r+\n?")
_ERASE: Final = re.compile("[\x08\x7f]")


def readable(data: bytes) -> str:
    """As text: UTF-8 without control sequences, erased characters left out; of other bytes the printable runs."""
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") > 2 + len(text) // 32 or text.count("\0") > len(text) // 8:
        return printable(data)
    if text.isascii() and text.isprintable():
        return text
    text = _LINE_END.sub("\n", _SEQUENCE.sub("", text))
    if _ERASE.search(text):
        text = _erased(text)
    return _CONTROL.sub("", text)


def _erased(text: str) -> str:
    kept: list[str] = []
    for char in text:
        if char not in "\x08\x7f":
            kept.append(char)
        elif kept and kept[-1] != "\n":
            kept.pop()
    return "".join(kept)
