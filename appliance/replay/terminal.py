"""A session as a conversation in text: who said what, and when."""

import calendar
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from appliance.replay.text import printable

ARROWS = {"client": "→", "server": "←"}
STYLES = {"client": "cyan", "server": "green"}
MAX_LINES = 40
IDLE_LIMIT = 2.0  # seconds: longer pauses are shortened to this, and said


@dataclass(frozen=True, slots=True)
class Turn:
    """One message as it is printed: seconds since the session's start, direction, kind, lines."""

    at: float
    direction: str
    kind: str
    text: str
    flags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"at": self.at, "direction": self.direction, "kind": self.kind, "text": self.text, "flags": self.flags}


def turns(messages: Iterable[dict[str, Any]], started_ns: int) -> Iterator[Turn]:
    """The turns of messages in their JSON form, in order of seq."""
    for message in messages:
        at = (parse_ns(message["time"]) - started_ns) / 1e9
        yield Turn(at, message["direction"], message["kind"], _text(message), tuple(message["flags"]))


def parse_ns(moment: str) -> int:
    """RFC 3339 in UTC with nanoseconds → Unix ns."""
    whole, _, fraction = moment.removesuffix("Z").partition(".")
    parsed = time.strptime(whole, "%Y-%m-%dT%H:%M:%S")
    return calendar.timegm(parsed) * 1_000_000_000 + int((fraction or "0").ljust(9, "0")[:9])


def play(console: Console, session: dict[str, Any], conversation: Iterable[Turn], pace: float) -> None:
    """Print the conversation. `pace` 1 is real time, 2 twice as fast, 0 at once."""
    console.print(heading(session), highlight=False)
    clock = 0.0
    for turn in conversation:
        if pace > 0 and turn.at > clock:
            time.sleep(min(turn.at - clock, IDLE_LIMIT) / pace)
        if turn.at - clock > IDLE_LIMIT:
            console.print(Text(f"            … {turn.at - clock:.1f} s", style="dim"))
        clock = max(clock, turn.at)
        show(console, turn)
    so_far, ended = (" so far", "not yet") if session["ending"] == "open" else ("", session["ending"])
    console.print(Text(f"ended: {ended} · coverage{so_far}: {session['coverage']}", style="dim"))


def show(console: Console, turn: Turn) -> None:
    """Print one turn."""
    console.print(_shown(turn), highlight=False, soft_wrap=True)


def heading(session: dict[str, Any]) -> Text:
    identity = session["identity"]
    who = identity["subject"] or "unbound"
    if identity["act"]:
        who = f"{' ← '.join(identity['act'])} for {who}"
    ends = f"{end(session['client'])} → {end(session['server'])}"
    line = (
        f"{session['session_id']}  {session['started']}\n{who}  {ends}  {session['protocol'] or session['transport']}"
    )
    return Text(printable(line), style="bold")


def end(end: dict[str, Any]) -> str:
    host = f"[{end['address']}]" if ":" in end["address"] else end["address"]
    return f"{host}:{end['port']}" if end["port"] else host


def _text(message: dict[str, Any]) -> str:
    return str(message["text"]) or f"({message['end'] - message['start']} bytes)"


def _shown(turn: Turn) -> Text:
    lines = printable(turn.text.rstrip("\n")).split("\n")
    more = len(lines) - MAX_LINES
    body = "\n             ".join(lines[:MAX_LINES])
    line = Text(f"{turn.at:10.6f} ", style="dim")
    line.append(f"{ARROWS[turn.direction]} {turn.kind:<9} ", style=STYLES[turn.direction])
    line.append(body)
    if more > 0:
        line.append(f"\n             … {more} more lines", style="dim")
    if turn.flags:
        line.append(f"  [{', '.join(turn.flags)}]", style="yellow")
    return line
