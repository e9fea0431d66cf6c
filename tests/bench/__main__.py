"""`python -m tests.bench [case ...]`: run the cases, print a table, write `build/bench.json`.

Exit code 0 when every case ran, 1 when one broke, 2 for a case that does not exist. A figure out of reach is marked in
the table and in the file (`ok`), and does not change the exit code: it says something of the machine, too.
"""

import importlib
import json
import os
import pkgutil
import platform
import re
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tests.bench
from tests.bench import Figure
from tests.lab import leftovers

RESULT = Path(__file__).resolve().parents[2] / "build" / "bench.json"
CASE = re.compile(r"([a-z])_[a-z_]+")

console = Console(highlight=False, width=160 if not sys.stdout.isatty() else None)


def cases() -> dict[str, str]:
    """Module names by letter, in order."""
    names = sorted(module.name for module in pkgutil.iter_modules(tests.bench.__path__))
    return {found[1]: name for name in names if (found := CASE.fullmatch(name))}


def table(figures: Iterable[Figure]) -> Table:
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("case", "subject", "figure", "peer", "peer's", "unit", "ratio", "reach", ""):
        drawn.add_column(name, justify="right" if name in ("figure", "peer's", "ratio") else "left")
    for one in figures:
        ratio = "" if one.ratio is None else f"{one.ratio:.3g}"
        peer = "" if one.peer_figure is None else f"{one.peer_figure:,.4g}"
        verdict = {True: "[green]ok[/]", False: "[red]out of reach[/]", None: ""}[one.ok]
        drawn.add_row(one.case, one.subject, f"{one.figure:,.4g}", one.peer, peer, one.unit, ratio, one.reach, verdict)
    return drawn


def write(figures: Iterable[Figure], ran: set[str]) -> None:
    """Put the figures of the cases that ran into the file; those of other cases stay."""
    kept: list[dict[str, object]] = []
    if RESULT.exists():
        kept = [row for row in json.loads(RESULT.read_text()) if row["case"] not in ran]
    rows = sorted(kept + [figure.to_json() for figure in figures], key=lambda row: str(row["case"]))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def main(wanted: list[str]) -> int:
    known = cases()
    named = {name: letter for letter, name in known.items()} | {letter: letter for letter in known}
    if strange := [name for name in wanted if name not in named]:
        print(f"bench: no case {', '.join(strange)}; there are {', '.join(known.values())}", file=sys.stderr)
        return 2
    letters = sorted({named[name] for name in wanted}) or list(known)
    leftovers.sweep()
    console.print(f"{os.cpu_count()} cores, kernel {platform.release()}, Python {platform.python_version()}")
    figures: list[Figure] = []
    ran: set[str] = set()
    broken = []
    for letter in letters:
        case = importlib.import_module(f"tests.bench.{known[letter]}")
        console.print(f"[bold]({letter}) {case.TITLE}[/]")
        began = time.monotonic()

        def say(text: str, began: float = began) -> None:
            console.print(f"  {time.monotonic() - began:6.1f} s  {text}", style="dim")

        try:
            found = list(case.run(say))
        except Exception:
            traceback.print_exc()
            broken.append(letter)
            continue
        figures += found
        ran.add(letter)
        write(figures, ran)
    console.print(table(figures))
    console.print(f"written to {RESULT.relative_to(Path.cwd())}" if figures else "no figures", style="dim")
    if broken:
        print(f"bench: case {', '.join(broken)} broke; see above", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
