"""What `verbatim status` and `/metrics` tell: the processes' own values put together, with rates between two looks.

Counters of the wire are the kernel's and go on when the process starts anew; when one goes down (a new program was
loaded), or a process says nothing, the rate is unknown: None.
"""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from appliance.config import Settings
from appliance.health import PROCESSES, RELAY, State, parts
from appliance.journal import Aside, set_aside
from appliance.status import Status, read
from appliance.wire import bpf
from appliance.wire.ring import fill

Said = Mapping[str, Status]


@dataclass(frozen=True, slots=True)
class Look:
    """What every process said last, read at the Unix time `time`.

    `ring`: its size and fill in bytes, as the kernel has them; None: it cannot be asked.
    `aside`: what of the journal could not be read and is kept; None: not known.
    """

    time: float
    said: Said
    ring: tuple[int, int] | None = None
    aside: Aside | None = None


def look(settings: Settings) -> Look:
    """Now."""
    said = read(settings.data)
    try:
        aside = set_aside(settings.data)
    except OSError:
        aside = None
    return Look(time.time(), said, pinned_ring(settings), aside)


def pinned_ring(settings: Settings) -> tuple[int, int] | None:
    """Size and fill of the pinned ring; None: there is none, or this user may not look."""
    try:
        fd = bpf.get(settings.wire.bpffs / "ring")
    except OSError:
        return None
    if fd is None:
        return None
    try:
        return bpf.Map(fd).max_entries, fill(fd)
    finally:
        os.close(fd)


def value(status: Status | None, path: Iterable[str]) -> Any:
    """What a process published at `path`; None: nothing."""
    found: Any = status.values if status else None
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def number(status: Status | None, *path: str) -> float | None:
    found = value(status, path)
    return found if isinstance(found, int | float) else None


def counts(status: Status | None, *path: str) -> dict[str, float] | None:
    """Numbers by name, as a process published them at `path`; None: nothing."""
    found = value(status, path)
    if not isinstance(found, Mapping):
        return None
    return {str(name): count for name, count in sorted(found.items()) if isinstance(count, int | float)}


def ring(look: Look) -> tuple[float | None, float | None]:
    """Its size and fill in bytes, of the kernel, whatever the wire process does; else as that said last."""
    wire = look.said.get("wire")
    return look.ring or (number(wire, "ring", "bytes"), number(wire, "ring", "fill"))


def rate(earlier: Look | None, later: Look, process: str, *path: str) -> float | None:
    """Growth of a counter, per second of the process's own publishing times."""
    before, after = earlier.said.get(process) if earlier else None, later.said.get(process)
    first, last = number(before, *path), number(after, *path)
    if before is None or after is None or first is None or last is None:
        return None
    seconds = after.time - before.time
    return (last - first) / seconds if seconds > 0 and last >= first else None


def backlog_seconds(said: Said, now: float) -> float | None:
    """How much recorded time the recorder has not read: from the last frame that it read to the newest one.

    The wire process writes a frame each second at least, so the newest is about as old as its last word.
    """
    record, wire = said.get("record"), said.get("wire")
    read_ns = number(record, "read_ns")
    if record is None or not read_ns or (record.live and not number(record, "backlog_bytes")):
        return 0.0 if record and record.live else None
    return max(0.0, (wire.time if wire else now) - read_ns / 1e9)


def lag_seconds(said: Said, now: float) -> float | None:
    """Age of the oldest record that is not in the store; grows while the recorder is dead."""
    record = said.get("record")
    if record is None or record.live:
        return number(record, "lag_seconds")
    oldest_ns = number(record, "unstored_ns") or number(record, "read_ns")
    behind = backlog_seconds(said, now)
    if not oldest_ns or not behind:
        return behind
    return max(0.0, now - oldest_ns / 1e9)


def overview(earlier: Look | None, later: Look, *, embedded: bool) -> dict[str, Any]:
    """The one shape of `verbatim status --json`. Unknown values are None; rates are per second."""
    said = later.said
    wire, record, store = said.get("wire"), said.get("record"), said.get("store")
    found = parts(said, embedded=embedded, names=PROCESSES)
    size, filled = ring(later)
    return {
        "time": datetime.fromtimestamp(later.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "healthy": all(part.state is State.OK for part in found.values()),
        "processes": {
            name: {
                "state": part.state.value,
                "pid": said[name].pid if name in said else None,
                "age_seconds": round(said[name].age, 3) if name in said else None,
                "faults": dict(part.faults),
                "repairs": dict(part.repairs),
            }
            for name, part in found.items()
        },
        "recorded": {
            "packets": number(wire, "recorded", "packets"),
            "bytes": number(wire, "recorded", "bytes"),
            "packets_per_second": _round(rate(earlier, later, "wire", "recorded", "packets")),
            "bytes_per_second": _round(rate(earlier, later, "wire", "recorded", "bytes")),
        },
        "ring": {
            "bytes": size,
            "fill_bytes": filled,
            "fill": _round(filled / size, 4) if filled is not None and size else None,
        },
        "refusals": _counts(earlier, later, "refusals"),
        "others": _counts(earlier, later, "others"),
        "journal": {
            "bytes": number(wire, "journal", "bytes"),
            "room_bytes": number(wire, "journal", "room"),
            "stalled": value(wire, ("journal", "stalled")),
            "damaged_parts": later.aside.parts if later.aside else None,
            "damaged_bytes": later.aside.size if later.aside else None,
            "backlog_bytes": number(record, "backlog_bytes"),
            "backlog_seconds": _round(backlog_seconds(said, later.time), 3),
        },
        "store": {
            "lag_seconds": _round(lag_seconds(said, later.time), 3),
            "rows_per_second": _round(rate(earlier, later, "record", "rows")),
            "rows": counts(store, "rows"),
            "bytes": number(store, "bytes"),
        },
        "relay": {name: number(said.get(RELAY), name) for name in ("workers", "flows", "accepted", "bytes")},
        "leases": number(wire, "leases"),
        "flows": number(wire, "flows"),
        "sessions_open": number(record, "sessions_open"),
    }


def _counts(earlier: Look | None, later: Look, kind: str) -> dict[str, dict[str, float | None]] | None:
    """Packets by name, with their rate. One that was not there before counted from 0. None: nobody says."""
    found = counts(later.said.get("wire"), kind)
    if found is None:
        return None
    before = counts(earlier.said.get("wire"), kind) if earlier else None
    return {
        name: {"count": count, "per_second": _round(_growth(earlier, later, before, name, count))}
        for name, count in found.items()
    }


def _growth(
    earlier: Look | None, later: Look, before: Mapping[str, float] | None, name: str, count: float
) -> float | None:
    if earlier is None or before is None:
        return None
    seconds = later.said["wire"].time - earlier.said["wire"].time
    more = count - before.get(name, 0)
    return more / seconds if seconds > 0 and more >= 0 else None


def _round(found: float | None, digits: int = 1) -> float | None:
    return None if found is None else round(found, digits)
