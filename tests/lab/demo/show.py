"""Prints what was recorded. Captured text comes from agents and servers: it is made safe for the terminal first."""

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from appliance.replay.text import printable
from tests.lab.demo.verify import Check, Recorded

MAX_ROWS = 4  # of one result
MAX_WIDTH = 110


def safe(value: Any, style: str = "") -> Text:
    text = printable(str(value)).replace("\n", " ⏎ ").replace("\t", " │ ")
    return Text(text if len(text) <= MAX_WIDTH else text[: MAX_WIDTH - 1] + "…", style=style)


def heading(console: Console, title: str) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left", style="blue")


def who(identity: dict[str, Any]) -> str:
    return " ← ".join([*identity["act"], identity["subject"]]) if identity["subject"] else "(no lease)"


def sessions(console: Console, recorded: Recorded, names: dict[str, str]) -> None:
    """Who, from which host, to which server. `names`: of addresses."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("who", "run", "from", "to", "protocol", "bytes ↑", "bytes ↓", "coverage"):
        shown.add_column(column, justify="right" if column.startswith("bytes") else "left")
    for session in recorded.sessions:
        client, server = session["client"], session["server"]
        shown.add_row(
            safe(who(session["identity"])),
            safe(session["identity"]["run_id"]),
            safe(names.get(client["address"], client["address"])),
            safe(f"{names.get(server['address'], server['address'])}:{server['port']}"),
            safe(session["protocol"] or session["transport"]),
            f"{session['bytes']['client']:,}",
            f"{session['bytes']['server']:,}",
            safe(session["coverage"], "green" if session["coverage"] == "complete" else "yellow"),
        )
    console.print(shown)


def database(console: Console, recorded: Recorded) -> None:
    """Which SQL, and which rows came back."""
    for session in recorded.sessions:
        if session["protocol"] != "postgres":
            continue
        console.print(safe(f"{who(session['identity'])} at {session['server']['address']}", "bold"))
        for message in recorded.messages[session["session_id"]]:
            if message["kind"] == "query":
                console.print(Text("  → ", style="cyan").append_text(safe(message["text"])))
            elif message["kind"] == "rows":
                _rows(console, message["attrs"])
            elif message["kind"] in ("error", "copy"):
                console.print(Text("  ← ", style="red").append_text(safe(f"{message['kind']}: {message['text']}")))
            elif message["kind"] == "result":
                console.print(Text("  ← ", style="green").append_text(safe(message["text"], "dim")))


def _rows(console: Console, attrs: dict[str, Any]) -> None:
    shown = Table(box=None, pad_edge=False, header_style="green")
    for column in attrs["columns"]:
        shown.add_column(safe(column["name"]))
    for row in attrs["rows"][:MAX_ROWS]:
        shown.add_row(*(safe("NULL", "dim") if cell is None else safe(cell) for cell in row))
    console.print(Panel.fit(shown, border_style="dim"))
    if len(attrs["rows"]) > MAX_ROWS:
        console.print(Text(f"    … {len(attrs['rows']) - MAX_ROWS} more rows", style="dim"))


def web(console: Console, recorded: Recorded) -> None:
    """Which HTTP calls, and what they got."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("who", "method", "host", "target", "status", "type", "body bytes"):
        shown.add_column(column)
    for session in recorded.sessions:
        if session["protocol"] == "tls":
            attrs = session["attrs"]
            shown.add_row(
                safe(who(session["identity"])), "(TLS)", safe(attrs.get("sni", "")), safe(attrs.get("version", ""))
            )
        requests = {
            m["start"]: m["attrs"] for m in recorded.kinds(session, "request") if session["protocol"] == "http1"
        }
        for response in recorded.kinds(session, "response") if requests else ():
            request, answer = requests[response["reply_to"]], response["attrs"]
            shown.add_row(
                safe(who(session["identity"])),
                safe(request["method"]),
                safe(request["host"]),
                safe(request["target"]),
                safe(answer["status"]),
                safe(answer["content_type"]),
                f"{answer['body_bytes']:,}",
            )
    console.print(shown)


def step(console: Console, sessions: list[dict[str, Any]], recorded: Recorded) -> None:
    """What both sides said, in the words of the protocol."""
    for session in sessions:
        console.print(safe(f"{who(session['identity'])} at {session['server']['address']}", "bold"))
        for message in recorded.messages[session["session_id"]]:
            ours = message["direction"] == "client"
            arrow = Text("  → " if ours else "  ← ", style="cyan" if ours else "green")
            console.print(arrow.append_text(safe(message["text"] or message["kind"], "" if ours else "dim")))


def refusals(console: Console, recorded: Recorded) -> None:
    for event in reversed(recorded.refusals):
        console.print(Text("  ✋ ", style="yellow").append_text(safe(event["text"])))


def output(console: Console, command: str, text: str, lines: int = 48) -> None:
    """A command and what it printed, as it printed it (it makes its own output safe)."""
    console.print(Text(f"$ {command}", style="bold"))
    printed = text.rstrip("\n").split("\n")
    for line in printed[:lines]:
        console.print(Text(line.rstrip()), soft_wrap=True)
    if len(printed) > lines:
        console.print(Text(f"… {len(printed) - lines} more lines", style="dim"))


def checks(console: Console, found: list[Check]) -> None:
    for check in found:
        mark = Text("  ✔ ", style="green") if check.good else Text("  ✘ ", style="bold red")
        console.print(mark.append_text(safe(check.what, "")).append_text(safe(f"   {check.detail}", "dim")))
