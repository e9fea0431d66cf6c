"""Verbs for who operates the gateway: doctor and status."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from appliance import config
from appliance.cli.output import Config, Data, Json, console, emit
from appliance.config import Settings
from appliance.overview import Look, look, overview
from appliance.replay.text import printable
from appliance.status import check_readable

PUBLISHED = 1.5  # seconds in which a live process publishes again
POLL = 0.05
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "unknown": "magenta"}
STATES = {"ok": "green", "failing": "bold red", "silent": "bold red", "stopped": "yellow"}


def register(app: typer.Typer) -> None:
    for verb in (doctor, status):
        app.command()(verb)


def doctor(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what is not fine.")] = False,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Check this machine and the appliance: what is wrong, and the remedy. Changes nothing.

    Exit codes: 0 nothing fails; 1 something fails; 2 the settings are malformed; 3 something could not be judged.
    """
    from appliance.doctor import Level, examine, exit_code

    findings = examine(config.load(config_file, data=data), root=os.geteuid() == 0)
    shown = [finding for finding in findings if not quiet or finding.level is not Level.OK]
    if json:
        for finding in shown:
            emit(finding.to_json())
    elif not console.is_terminal:
        for finding in shown:
            name = f"{finding.check} {finding.about}".strip()
            console.print(printable(f"{finding.level.value:<7} {name}: {finding.sentence}"), soft_wrap=True)
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for finding in shown:
            level = finding.level.value
            name = f"{finding.check} {finding.about}".strip()
            table.add_row(Text(level, COLOURS[level]), printable(name), Text(printable(finding.sentence)))
        if shown:
            console.print(table)
    raise typer.Exit(exit_code({finding.level for finding in findings}))


def status(
    watch: Annotated[
        float | None,
        typer.Option("--watch", "-w", min=0.2, metavar="SECONDS", help="Again after so many seconds, until Ctrl-C."),
    ] = None,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Show what the appliance does now: rates, ring, refusals, journal, store, leases, faults.

    Exit codes: 0 every process works and nothing is wrong; 1 not so; 2 malformed settings; 3 not allowed to look.
    """
    settings = config.load(config_file, data=data)
    check_readable(settings.data)
    looks = _looks(settings, watch)
    said: dict[str, Any] = {}
    screen = Live(console=console, auto_refresh=False) if watch and console.is_terminal and not json else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if screen:
            screen.start()
        for said in looks:
            if json:
                emit(said)
            elif screen:
                screen.update(_screen(said), refresh=True)
            elif console.is_terminal:
                console.print(_screen(said))
            else:
                for line in lines(said):
                    console.print(printable(line))
            sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    finally:
        if screen:
            screen.stop()
    raise typer.Exit(0 if said and said["healthy"] else 1)


def _looks(settings: Settings, watch: float | None) -> Iterator[dict[str, Any]]:
    """One overview with rates; with `watch` one after the other."""
    embedded = not settings.store.url
    earlier = look(settings)
    later = _next(settings, earlier)
    yield overview(earlier, later, embedded=embedded)
    while watch:
        time.sleep(watch)
        earlier, later = later, _next(settings, later)
        yield overview(earlier, later, embedded=embedded)


def _next(settings: Settings, earlier: Look) -> Look:
    """A look in which every live process has published again, as far as they do in time: rates need two words."""
    deadline = time.monotonic() + PUBLISHED
    while True:
        later = look(settings)
        waiting = [name for name, before in earlier.said.items() if before.live and _same(before, later.said.get(name))]
        if not waiting or time.monotonic() > deadline:
            return later
        time.sleep(POLL)


def _same(before: Any, now: Any) -> bool:
    return now is not None and before.time == now.time


def lines(said: Mapping[str, Any]) -> Iterator[str]:
    """One line per process, for programs and logs: name, state, then what there is to say."""
    for name, process in said["processes"].items():
        words = [name, process["state"]]
        words += [f"{label} {shown}" for label, shown in FACTS[name](said) if shown != UNKNOWN]
        words += [f"FAULT {fault}: {text}" for fault, text in process["faults"].items()]
        words += [f"repaired {repair} {count}" for repair, count in process["repairs"].items()]
        yield ", ".join([" ".join(words[:2]), *words[2:]])


UNKNOWN = "-"


def _number(value: float | None, unit: str = "") -> str:
    return UNKNOWN if value is None else f"{value:,.0f}{unit}"


def _bytes(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _seconds(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f} s"


def _refusals(said: Mapping[str, Any]) -> str:
    if said["refusals"] is None:
        return UNKNOWN
    found = [
        f"{reason} {count['count']:,}" + (f" ({count['per_second']:,.1f}/s)" if count["per_second"] else "")
        for reason, count in said["refusals"].items()
        if count["count"]
    ]
    return ", ".join(found) or "none"


def _wire(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    recorded, ring, journal = said["recorded"], said["ring"], said["journal"]
    rate = recorded["bytes_per_second"]
    fill = UNKNOWN if ring["fill"] is None else f"{100 * ring['fill']:.1f} % of {_bytes(ring['bytes'])}"
    return [
        ("packets/s", _number(recorded["packets_per_second"])),
        ("bytes/s", _bytes(rate)),
        ("ring", fill),
        ("journal", _bytes(journal["bytes"])),
        ("room", _bytes(journal["room_bytes"])),
        ("leases", _number(said["leases"])),
        ("flows", _number(said["flows"])),
        ("refusals", _refusals(said)),
    ]


def _record(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    journal, store = said["journal"], said["store"]
    return [
        ("backlog", _bytes(journal["backlog_bytes"])),
        ("backlog in time", _seconds(journal["backlog_seconds"])),
        ("lag to store", _seconds(store["lag_seconds"])),
        ("rows/s", _number(store["rows_per_second"])),
        ("open sessions", _number(said["sessions_open"])),
        ("damaged parts of the journal", _damaged(journal["damaged_parts"], journal["damaged_bytes"])),
    ]


def _damaged(parts: int | None, size: int | None) -> str:
    return f"{parts} ({_bytes(size)})" if parts else UNKNOWN


def _store(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = said["store"]["rows"]
    return [
        ("messages", _number(None if rows is None else rows.get("messages", 0))),
        ("on disk", _bytes(said["store"]["bytes"])),
    ]


def _relay(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    relay = said["relay"]
    return [
        ("workers", _number(relay["workers"])),
        ("flows", _number(relay["flows"])),
        ("accepted", _number(relay["accepted"])),
        ("recorded", _bytes(relay["bytes"])),
    ]


def _api(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    return []


FACTS: dict[str, Callable[[Mapping[str, Any]], list[tuple[str, str]]]] = {
    "wire": _wire,
    "relay": _relay,
    "record": _record,
    "store": _store,
    "api": _api,
}


def _screen(said: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, process in said["processes"].items():
        state = process["state"]
        age = process["age_seconds"]
        table.add_row(name, Text(state, STATES[state]), "" if age is None else f"pid {process['pid']}, {age:.1f} s ago")
        for label, shown in FACTS[name](said):
            if shown != UNKNOWN:
                table.add_row("", label, printable(shown))
        for fault, text in process["faults"].items():
            table.add_row("", Text(fault, "bold red"), Text(printable(text), "red"))
        for repair, count in process["repairs"].items():
            table.add_row("", Text(repair, "yellow"), f"put back {count} times")
    table.add_row(said["time"], "", "")
    return table
