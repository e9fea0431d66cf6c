"""Whether the store has all bytes that a session's row counts as recorded: else, what is given out only seems whole."""

import time
from collections.abc import Collection
from uuid import UUID

from appliance.errors import DamagedEvidence
from appliance.model import Direction, Ending
from appliance.store.client import Store
from appliance.store.shapes import Json
from appliance.store.streams import within

SETTLE_SECONDS = 2.0  # a batch's tables are stored one after the other, the session's row maybe before its last bytes
LOOK_SECONDS = 0.1


def stored(store: Store, session_id: UUID | str) -> dict[str, int]:
    """Bytes of each direction's stream that the store has."""
    where, parameters = within(store, session_id)
    found = store.select(
        f"SELECT direction, sum(size) AS bytes FROM (SELECT direction, seq, any(size) AS size FROM chunks "  # noqa: S608
        f"WHERE {where} AND copy = 0 GROUP BY direction, seq) GROUP BY direction",
        parameters,
    )
    return {"client": 0, "server": 0} | {row["direction"]: int(row["bytes"]) for row in found}


def missing(store: Store, session: Json, sides: Collection[str] = tuple(Direction)) -> dict[str, int]:
    """Bytes that are counted in the row of the session (its JSON form) and not stored, of each direction that has such.

    A session that is open has none: its row says how it began.
    """
    if session["ending"] == Ending.OPEN:
        return {}
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        there = stored(store, session["session_id"])
        found = {side: said - there[side] for side in sides if (said := session["bytes"][side]) > there[side]}
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(LOOK_SECONDS)


def damage(session: Json, lost: dict[str, int]) -> DamagedEvidence:
    """The error that says so. `lost`: as `missing` found it, not empty."""
    parts = " and ".join(f"{count} of the {session['bytes'][side]} bytes of the {side}" for side, count in lost.items())
    return DamagedEvidence(
        f"session {session['session_id']}: {parts} were recorded and are not in the store; "
        "see the log of `verbatim store` and its disk, restore a copy of the data folder if there is one"
    )
