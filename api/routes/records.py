"""Sessions, their messages and their bytes; search and events."""

import re
from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Response
from fastapi.responses import StreamingResponse

from api.deps import AnyParts, Auditor, Parts, Reader
from api.errors import NotFound
from appliance.model import Direction
from appliance.store import query, whole

router = APIRouter(prefix="/v1", tags=["records"])

Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(max_length=1024, description="`next` of the page before")]
Moment = Annotated[str | None, Query(max_length=64, description="RFC 3339, or 15m, 2h, 7d ago")]
Name = Annotated[str, Query(max_length=512)]
RANGE = re.compile(r"bytes=(?=\d|-\d)(\d{0,19})-(\d{0,19})", re.ASCII)
Bounds = tuple[int, int]


def filters(
    protocol: Name = "",
    subject: Name = "",
    run_id: Name = "",
    address: Annotated[str, Query(max_length=64, description="of either side; a network such as 10.0.0.0/8 too")] = "",
    coverage: Name = "",
    finding: Name = "",
    since: Moment = None,
    until: Moment = None,
) -> query.SessionFilter:
    return query.SessionFilter(
        protocol=protocol,
        subject=subject,
        run_id=run_id,
        address=address,
        coverage=coverage,
        finding=finding,
        since=since,
        until=until,
    )


@router.get("/sessions")
def sessions(
    reader: Reader,
    parts: AnyParts,
    chosen: Annotated[query.SessionFilter, Depends(filters)],
    limit: Limit = 100,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """Sessions, newest first: `{"sessions": [...], "next": cursor or null}`."""
    page = query.sessions(parts.store, chosen, limit, cursor)
    return {"sessions": page.items, "next": page.cursor}


@router.get("/sessions/{session_id}")
def session(session_id: UUID, reader: Reader, parts: AnyParts) -> dict[str, Any]:
    """One session, with its findings."""
    return _session(parts, session_id) | {"findings_detail": query.findings(parts.store, session_id)}


@router.get("/sessions/{session_id}/messages")
def messages(
    session_id: UUID, reader: Reader, parts: AnyParts, after: Annotated[int, Query(ge=-1)] = -1, limit: Limit = 100
) -> dict[str, Any]:
    """Messages in order of `seq`, those behind `after`: `{"messages": [...], "next": after or null}`."""
    _session(parts, session_id)
    page = query.messages(parts.store, session_id, after, limit)
    return {"messages": page.items, "next": None if page.cursor is None else int(page.cursor)}


@router.get("/sessions/{session_id}/stream", response_class=StreamingResponse)
def stream(
    session_id: UUID,
    direction: Direction,
    reader: Reader,
    parts: AnyParts,
    wanted: Annotated[str | None, Header(alias="Range", max_length=64)] = None,
) -> Response:
    """Exactly the bytes that one side sent; one byte range may be asked for (RFC 9110 §14).

    Ranges count the recorded bytes. Where the recording has gaps, `Verbatim-Gaps` lists them as offsets of the stream
    (`start-end`, end excluded) and the bytes around them follow each other. Of a session that is open, those stored by
    now. An error, before the first byte, when the store has fewer than were recorded.
    """
    found = _session(parts, session_id)
    if lost := whole.missing(parts.store, found, (direction,)):
        raise whole.damage(found, lost)
    size = whole.stored(parts.store, session_id)[direction.value]
    gaps = [
        f"{finding['start']}-{finding['end']}"
        for finding in query.findings(parts.store, session_id)
        if finding["kind"] == "gap" and finding["direction"] == direction.value
    ]
    headers = {"Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
    if gaps:
        headers["Verbatim-Gaps"] = ", ".join(gaps[:100])
    bounds = _range(wanted, size)
    if bounds is None and wanted and RANGE.fullmatch(wanted):
        raise HTTPException(416, f"range: not within the {size} recorded bytes", {"Content-Range": f"bytes */{size}"})
    start, end = bounds or (0, size)
    if bounds:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    body = _cut(query.stream(parts.store, session_id, direction), start, end)
    return StreamingResponse(
        body, status_code=206 if bounds else 200, headers=headers, media_type="application/octet-stream"
    )


@router.get("/search")
def search(
    reader: Reader,
    parts: AnyParts,
    q: Annotated[str, Query(max_length=4096, description='words, "phrases", field:value, AND, OR, NOT, ranges')],
    since: Moment = None,
    until: Moment = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """Messages that match, newest first: `{"hits": [...], "next": cursor or null}`."""
    page = query.search(parts.store, q, since, until, limit, cursor)
    return {"hits": page.items, "next": page.cursor}


@router.get("/events")
def events(
    reader: Reader,
    parts: AnyParts,
    kind: Name = "",
    address: Name = "",
    since: Moment = None,
    until: Moment = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """What happened outside of sessions (refusals, leases, restarts): `{"events": [...], "next": cursor or null}`."""
    page = query.events(parts.store, kind, address, since, until, limit, cursor)
    return {"events": page.items, "next": page.cursor}


@router.get("/audit")
def audit(
    auditor: Auditor,
    parts: AnyParts,
    actor: Name = "",
    since: Moment = None,
    until: Moment = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """Who read what through this API, newest first: `{"audit": [...], "next": cursor or null}`."""
    page = query.audit(parts.store, actor, since, until, limit, cursor)
    return {"audit": page.items, "next": page.cursor}


def _session(parts: Parts, session_id: UUID) -> dict[str, Any]:
    found = query.session(parts.store, session_id)
    if found is None:
        raise NotFound(f"no session {session_id}; GET /v1/sessions lists them")
    return found


def _range(wanted: str | None, size: int) -> Bounds | None:
    """First byte and end (excluded) of a satisfiable single range, else None: other forms are ignored (RFC 9110)."""
    matched = RANGE.fullmatch(wanted or "")
    if matched is None:
        return None
    first, last = matched.groups()
    if not first:
        start, end = max(0, size - int(last or 0)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
    return (start, end) if start < end else None


def _cut(pieces: Iterator[tuple[int, bytes]], start: int, end: int) -> Iterator[bytes]:
    """The recorded bytes from `start` to `end`, counted without gaps."""
    at = 0
    for _, piece in pieces:
        following = at + len(piece)
        if following > start:
            yield piece[max(0, start - at) : end - at]
        at = following
        if at >= end:
            return
