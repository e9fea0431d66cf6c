"""Verbs over records: ingest, sessions, messages, stream, search, events, audit, replay, export."""

import base64
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from appliance import config
from appliance.cli.output import Config, Data, Json, console, emit, errors, table
from appliance.config import Settings
from appliance.errors import MalformedInput, Refused
from appliance.model import Direction
from appliance.replay import pcapng, terminal
from appliance.replay.text import printable
from appliance.store import query, whole
from appliance.store.client import Store, open_store

PAGE = 500  # messages fetched at a time
LISTED = query.MAX_LIMIT // 2  # sessions and events fetched at a time: each page costs a look at all of them
SHOWN = 100  # rows printed unless --limit says more
KEPT = ("store", "journal", "state", "run", "keys")  # one of these is in every data folder

Session = Annotated[str, typer.Argument(metavar="SESSION", help="Session id, as 'verbatim sessions' prints it.")]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help=f"At most so many; without: {SHOWN}, all with --json."),
]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="RFC 3339, or 15m, 2h, 7d ago.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="RFC 3339, or 15m, 2h, 7d ago.")]


def register(app: typer.Typer) -> None:
    for verb in (ingest, sessions, messages, stream, search, events, audit, replay, export):
        app.command()(verb)


def ingest(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A pcap or pcapng capture.")],
    identity: Annotated[
        str | None,
        typer.Option(
            metavar="CLAIMS", help="Who these sessions belong to: subject=…,issuer=…,client=…,run_id=… or JSON."
        ),
    ] = None,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Turn a capture file into sessions, by the same path as live traffic. Ingesting it again adds nothing."""
    from appliance import ingest as capture

    settings = config.load(config_file, data=data)
    who = capture.parse_identity(identity) if identity is not None else None
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=errors,
        disable=json,
    )
    with bar:
        task = bar.add_task(printable(file.name), total=None)
        summary = capture.ingest(
            file, settings, identity=who, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if json:
        emit(summary.to_json())
    else:
        console.print(printable(summary.sentence()))


def sessions(
    protocol: Annotated[str, typer.Option(help="For example postgres, http1, tls, dns, raw.")] = "",
    subject: Annotated[str, typer.Option(help="Who the session belongs to.")] = "",
    run: Annotated[str, typer.Option("--run-id", help="The agent's task.")] = "",
    address: Annotated[str, typer.Option(help="Client's or server's address.")] = "",
    coverage: Annotated[str, typer.Option(help="complete, opaque, partial, one-sided; open: goes on.")] = "",
    finding: Annotated[str, typer.Option(help="For example gap or overlap.")] = "",
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """List sessions, newest first."""
    filters = query.SessionFilter(
        protocol=protocol,
        subject=subject,
        run_id=run,
        address=address,
        coverage=coverage,
        finding=finding,
        since=since,
        until=until,
    )
    with _reader(config_file, data) as store:
        rows = _pages(lambda size, cursor: query.sessions(store, filters, size, cursor), limit, json)
        if json:
            _emit_all(rows)
            return
        found = list(rows)
    columns = ("session", "started", "who", "from", "to", "protocol", "bytes ↑ ↓", "coverage", "findings")
    table(columns, (_row(session) for session in found))
    _more(len(found), limit, "sessions")


def messages(session: Session, config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Print the messages of a session: queries and rows, requests and responses."""
    with _reader(config_file, data) as store:
        found = _find(store, session)
        for message in _messages(store, UUID(found["session_id"])):
            if json:
                emit(message)
            else:
                turn = next(terminal.turns([message], terminal.parse_ns(found["started"])))
                terminal.show(console, turn)


def stream(
    session: Session,
    direction: Annotated[Direction, typer.Option(help="Whose bytes.")],
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Write exactly the bytes that one side sent to standard output. Gaps are told on standard error.

    Exit code 1 when the store has fewer bytes than were recorded: what it has is written all the same.
    """
    with _reader(config_file, data) as store:
        found = _find(store, session)
        lost = whole.missing(store, found, (direction,))
        hole = "are missing" if lost else "were not recorded"
        expected = 0
        for offset, piece in query.stream(store, UUID(found["session_id"]), direction):
            if offset > expected:
                errors.print(f"verbatim: bytes {expected} to {offset} {hole}", soft_wrap=True)
            expected = offset + len(piece)
            if json:
                emit({"offset": offset, "base64": base64.b64encode(piece).decode("ascii")})
            else:
                sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    if lost:
        raise whole.damage(found, lost)


def search(
    terms: Annotated[str, typer.Argument(metavar="QUERY", help='Words, "phrases", field:value, AND, OR, NOT, ranges.')],
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Search what was said, newest first: verbatim search 'protocol:postgres AND customers'."""
    with _reader(config_file, data) as store:
        rows = _pages(lambda size, cursor: query.search(store, terms, since, until, size, cursor), limit, json, PAGE)
        if json:
            _emit_all(rows)
            return
        hits = list(rows)
    columns = ("time", "session", "who", "protocol", "kind", "found")
    table(columns, (_hit(hit) for hit in hits))
    _more(len(hits), limit, "messages")


def events(
    kind: Annotated[str, typer.Option(help="For example lease-granted, or lease: all that begin so.")] = "",
    address: Annotated[str, typer.Option(help="The agent's.")] = "",
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """List what happened outside of sessions: refusals, leases, restarts, gaps."""
    with _reader(config_file, data) as store:
        rows = _pages(lambda size, cursor: query.events(store, kind, address, since, until, size, cursor), limit, json)
        if json:
            _emit_all(rows)
            return
        found = list(rows)
    table(("time", "kind", "address", "what"), ((e["time"][:23], e["kind"], e["address"], e["text"]) for e in found))
    _more(len(found), limit, "events")


def audit(
    actor: Annotated[str, typer.Option(help="Subject and issuer, as the list shows them.")] = "",
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """List who searched and read what through the API, newest first."""
    with _reader(config_file, data) as store:
        rows = _pages(lambda size, cursor: query.audit(store, actor, since, until, size, cursor), limit, json)
        if json:
            _emit_all(rows)
            return
        found = list(rows)
    table(("time", "actor", "action", "what"), ((a["time"][:23], a["actor"], a["action"], a["object"]) for a in found))
    _more(len(found), limit, "audit records")


def replay(
    session: Session,
    pace: Annotated[float, typer.Option(min=0, help="1: as it happened; 2: twice as fast; 0: at once.")] = 0.0,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Print a session as a conversation with its timing."""
    with _reader(config_file, data) as store:
        found = _find(store, session)
        conversation = terminal.turns(_messages(store, UUID(found["session_id"])), terminal.parse_ns(found["started"]))
        lost = whole.missing(store, found)
        if not json:
            terminal.play(console, found, conversation, pace)
        else:
            for turn in conversation:
                emit(turn.to_json())
    if lost:
        raise whole.damage(found, lost)


def export(
    session: Annotated[list[str], typer.Argument(metavar="SESSION...", help="Session ids.")],
    file: Annotated[Path, typer.Option("--pcapng", metavar="FILE", help="Write packets that carry the same streams.")],
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Write sessions to a pcapng file for Wireshark, tshark and the like."""
    if file.exists():
        raise Refused(f"{file}: exists already; name a new file")
    with _reader(config_file, data) as store:
        found = [_find(store, one) for one in session]
        incomplete = [(one, lost) for one in found if (lost := whole.missing(store, one))]
        packets = 0
        with file.open("xb") as out:
            pcapng.write_header(out)
            for one in found:
                ends = terminal.parse_ns(one["started"]), terminal.parse_ns(one["ended"])
                packets += pcapng.write_session(out, one, *ends, query.chunks(store, UUID(one["session_id"])))
    if json:
        emit({"file": str(file), "sessions": len(found), "packets": packets})
    else:
        console.print(f"{file}: {len(found)} sessions, {packets} packets", soft_wrap=True)
    if incomplete:
        one, lost = incomplete[0]
        raise whole.damage(one, lost)


def _reader(config_file: Path | None, data: Path | None) -> Store:
    settings: Settings = config.load(config_file, data=data)
    if not settings.store.url and not settings.data.is_dir():
        raise MalformedInput(f"{settings.data}: no such folder; name the appliance's data folder with --data")
    if not settings.store.url and not any((settings.data / name).exists() for name in KEPT):
        raise MalformedInput(f"{settings.data}: nothing is recorded there; name the appliance's folder with --data")
    return open_store(settings, "reader")


def _find(store: Store, name: str) -> dict[str, Any]:
    found = query.session(store, name)
    if found is None:
        raise Refused(f"session {name}: not found; 'verbatim sessions' lists them")
    return found


def _messages(store: Store, session: UUID) -> Iterator[dict[str, Any]]:
    after: str | None = "-1"
    while after is not None:
        page = query.messages(store, session, int(after), PAGE)
        yield from page.items
        after = page.cursor


def _pages(
    fetch: Callable[[int, str | None], query.Page], limit: int | None, json: bool, size: int = LISTED
) -> Iterator[dict[str, Any]]:
    """`limit` None: enough for a screen, or everything for a program, which could not tell that there is more."""
    left = limit if limit is not None else None if json else SHOWN
    cursor: str | None = None
    while left is None or left > 0:
        page = fetch(size if left is None else min(left, size), cursor)
        yield from page.items
        left = None if left is None else left - len(page.items)
        cursor = page.cursor
        if cursor is None:
            return


def _emit_all(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        emit(row)


def _who(identity: dict[str, Any]) -> str:
    return " ← ".join([*identity["act"], identity["subject"]]) if identity["subject"] else "unbound"


def _row(session: dict[str, Any]) -> tuple[str, ...]:
    return (
        session["session_id"],
        session["started"][5:19],
        _who(session["identity"]),
        session["client"]["address"],
        terminal.end(session["server"]),
        session["protocol"] or session["transport"],
        f"{session['bytes']['client']} {session['bytes']['server']}",
        session["coverage"],
        ", ".join(session["findings"]),
    )


def _hit(hit: dict[str, Any]) -> tuple[str, ...]:
    return (
        hit["time"][5:19],
        hit["session_id"],
        _who(hit["session"]["identity"]),
        hit["protocol"],
        hit["kind"],
        " ⏎ ".join(line.strip() for line in hit["snippet"].splitlines() if line.strip()),
    )


def _more(count: int, limit: int | None, what: str) -> None:
    if count == 0:
        errors.print(f"no {what}")
    elif count >= (limit or SHOWN):
        errors.print(f"the first {count} {what}; --limit shows more")
