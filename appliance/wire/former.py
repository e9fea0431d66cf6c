"""Rings that another one replaced, when an upgrade brought another layout of records or another size.

The new program is attached in place of the old one first, in one step on each interface; from then on nothing is added
to the former ring, and what it holds goes to the journal, before anything of the new one. Its pins stay beside the new
ones until then (`BPFFS-former1`, ...), so that a crash in between loses nothing. Records of another ABI are journaled
as they are; whoever reads the journal says that it cannot read them.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from appliance.errors import Unavailable
from appliance.journal import RING, FrameKind, Writer
from appliance.wire import abi, bpf
from appliance.wire.notes import Notes
from appliance.wire.ring import Ring

LOOK = 0.02  # seconds, in which a program that was replaced has long returned
LOOKS = 3  # at an empty ring, before nothing more is expected
PATIENCE = 10.0  # seconds for records that a replaced program began


@dataclass(frozen=True, slots=True)
class Former:
    """`id`: 32 hex digits, empty where it is unknown; `version`: the ABI of its records. `fd` is the caller's."""

    folder: Path
    fd: int
    bytes: int
    id: str
    version: int


def folders(bpffs: Path) -> list[Path]:
    """Of former sets of pins beside `bpffs`, oldest first."""
    stem = f"{bpffs.name}-former"
    numbers = [path.name.removeprefix(stem) for path in bpffs.parent.glob(f"{stem}*")] if bpffs.parent.exists() else []
    return [bpffs.with_name(stem + number) for number in sorted(filter(str.isdecimal, numbers), key=int)]


def beside(bpffs: Path) -> Path:
    """A free name for the set of pins that is to be replaced: after all others."""
    last = max((int(path.name.rpartition("-former")[2]) for path in folders(bpffs)), default=0)
    return next(
        path for number in count(last + 1) if not (path := bpffs.with_name(f"{bpffs.name}-former{number}")).exists()
    )


def find(bpffs: Path) -> Iterator[Former]:
    """The rings of former sets, oldest first. What `remove` left of a set when it died is removed."""
    for folder in folders(bpffs):
        if (one := pinned(folder)) is None:
            unpin(folder)
        else:
            yield one


def pinned(folder: Path) -> Former | None:
    """The ring of one set of pins, former or not. None: there is none."""
    named, ring = bpf.get(folder / "meta"), bpf.get(folder / "ring")
    meta = None
    if named is not None:
        meta = abi.Meta.unpack(bpf.Map(named).lookup(bytes(4)) or bytes(abi.Meta.LAYOUT.size))
        os.close(named)
    if ring is None:
        return None
    name, version = (meta.ring.hex(), meta.abi) if meta else ("", 0)
    return Former(folder, ring, bpf.Map(ring).max_entries, name, version)


def drain(former: Former, node: str, writer: Writer, notes: Notes) -> dict[str, Any]:
    """Move all that a former ring holds to the journal, and say so; nothing may write to it any more.

    What the next OPEN frame has to say of it: `after` (its id), `until` (its last position). Raises `Unavailable` when
    the journal takes no more; what is there already is dropped by position when it is repeated.
    """
    ring = Ring(former.fd, former.bytes)
    try:
        begun = ring.position
        if ring.fill:
            notes.open(node, former.id, begun, notes.now())
        left = empty(ring, writer, notes)
        text = "another ring took over; what the former one held is in the journal"
        if left:
            text = f"another ring took over; {left} bytes that the former one held were never completed"
        if former.version != abi.ABI:
            text += f", as records of version {former.version}: read them with the release that wrote them"
        bounds = {"from": begun, "to": ring.position, "left": left, "former_ring": former.id, "version": former.version}
        notes.event("ring-replaced", text, notes.now(), **bounds)
        if not notes.flush():
            raise Unavailable("journal: takes nothing now; free disk space or let the recorder catch up")
        return {"after": former.id, "until": ring.position} if not left else {}
    finally:
        ring.close()


def empty(ring: Ring, writer: Writer, notes: Notes, end: int | None = None) -> int:
    """Move what a ring holds to the journal, up to position `end`; without one, until nothing more comes.

    Bytes that are left: of records that were begun and never completed. Raises `Unavailable` when the journal takes no
    more; the ring then still has the rest.
    """
    looks, deadline = 0, time.monotonic() + PATIENCE
    while looks < LOOKS and time.monotonic() < deadline and (end is None or ring.position < end):
        position, upto = ring.position, ring.committed(ring.position, writer.max_payload)
        if upto > position:
            now = notes.now()
            notes.clock(now)
            with ring.span(position, upto) as span:
                writer.append(FrameKind.SPAN, span, ring_start=position, ring_end=upto, layout=RING, time_ns=now.unix)
            writer.sync()
            ring.advance(upto)
            looks, deadline = 0, time.monotonic() + PATIENCE
        else:
            looks += not ring.fill
            time.sleep(LOOK)
    return ring.fill


def remove(former: Former) -> None:
    """Unpin a drained set: its ring before all else, lest it be drained once more without its name."""
    os.close(former.fd)
    (former.folder / "ring").unlink()
    unpin(former.folder)


def unpin(folder: Path) -> None:
    """Remove one set of pins."""
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()
