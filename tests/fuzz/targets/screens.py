"""Captured text on a terminal.

    flags (1 byte), length of the kind, then text in UTF-8, or, by a flag, Latin-1

What holds: on a terminal nothing but rich's own colours is an escape sequence; elsewhere there is none at all; and no
character comes through that moves, hides or reverses what is printed. Tables of captured values likewise.
"""

import io
import re
import unicodedata
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from appliance.replay.terminal import Turn, play, show
from appliance.replay.text import printable
from tests.fuzz.script import Script
from tests.fuzz.targets import Target

COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
HARMFUL: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})


def shown(text: str, kind: str, *, terminal: bool) -> str:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, color_system="truecolor" if terminal else None, width=80)
    show(console, Turn(1.5, "client", "data", text, ("truncated",)))
    session: dict[str, Any] = {
        "session_id": "0", "started": "now", "protocol": kind, "transport": "tcp", "ending": "fin",
        "coverage": "complete", "client": {"address": "::1", "port": 1}, "server": {"address": "::2", "port": 2},
        "identity": {"subject": kind, "act": [kind]},
    }  # fmt: skip
    play(console, session, [Turn(0.1, "server", "data", text)], 0)
    table = Table(box=None)
    table.add_column("text", overflow="fold")
    table.add_row(Text(printable(text)))
    console.print(table)
    return written.getvalue()


def check(data: bytes) -> None:
    script = Script(data)
    flags, named = script.byte(), script.piece(32)
    coding = "latin-1" if flags & 1 else "utf-8"
    text, kind = script.rest().decode(coding, "replace"), named.decode(coding, "replace")
    for terminal in (False, True):
        found = shown(text, kind, terminal=terminal)
        if terminal:
            found = COLOUR.sub("", found)
        for character in found:
            harmful = unicodedata.category(character) in HARMFUL and character not in "\n\t"
            assert not harmful, f"U+{ord(character):04X} reaches the {'terminal' if terminal else 'file'}"
    assert printable(printable(text)) == printable(text), "escaped twice"


def seeds() -> list[bytes]:
    texts = (
        "plain", "\x1b[2J\x1b]0;title\x07", "a\rb", "\u202ereversed\u2066", "\x9b31m", "tab\there\r\nline",
        "\ue000\u2028\u200b", "[bold red]markup[/]", ":smile: https://a.example", "e\u0301" * 10, "\x08\x7f\x00",
        "\U000e0041\ufeff", "x" * 200, "\n" * 60,
    )  # fmt: skip
    return [bytes([flag, 2]) + b"\x1b[" + text.encode() for text in texts for flag in (0, 1)]


TARGETS: Final = {"terminal": Target(check, seeds, (b"\x1b[", b"\x1b]", b"\xc2\x9b", b"\xe2\x80\xae", b"\r\n"), 512)}
