"""What every verb shares: its common options, and how it prints."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from appliance.replay.text import printable

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output, nothing else.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        readable=False,  # not asked beforehand: reading it says what is wrong, and the remedy
        help="Settings; default $VERBATIM_CONFIG or /etc/verbatim/verbatim.toml.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        readable=False,
        help="Folder of everything that the appliance keeps; works by itself, without services.",
    ),
]

WHOLE = frozenset({"session", "lease"})  # columns that people copy
PIPE_WIDTH = 4096  # columns when the output is no terminal: nothing is folded for a reader that is a program

console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
errors = Console(stderr=True, highlight=False, markup=False, emoji=False)


def emit(value: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print rows of captured or recorded values, made safe for the terminal; ids are never folded."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold", no_wrap=column in WHOLE)
    for row in rows:
        shown.add_row(*(Text(printable(str(value))) for value in row))
    if shown.row_count:
        show(shown)


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print name and value pairs."""
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in pairs:
        shown.add_row(name, Text(printable(str(value))))
    show(shown)


def show(table: Table) -> None:
    """Print it; on what is no terminal, no line has the blanks that make all of them as long as the longest."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.print(line.rstrip(), soft_wrap=True)
