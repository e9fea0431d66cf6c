"""The time after a start in which rows may be stored already: by a recorder that died before it kept its state."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol
from uuid import UUID

from appliance.journal import Cursor
from appliance.model import EventRow, Row
from appliance.store.rows import EVENTS, KEYED, TABLES, by_table


class Sink(Protocol):
    """What the recorder needs of a store."""

    def insert(self, batch: Sequence[Row], /) -> None: ...

    def last_seqs(self, table: str, ids: Collection[UUID], /) -> dict[UUID, int]: ...

    def last_position(self, stream: str, /) -> int | None: ...


class Recovery:
    """`newest`: the journal's last segment when this recorder started; nobody before it has read a later one.

    Segments count, not frames: the number of the last frame can't be told where the journal is damaged.
    """

    def __init__(self, store: Sink, newest: int) -> None:
        self._store = store
        self._newest = newest
        self._seen: dict[str, dict[UUID, int]] = {table: {} for table in KEYED}
        self._position: int | None = None

    def behind(self, cursor: Cursor) -> bool:
        """Whether what was read up to there reaches beyond all that may be stored."""
        return cursor.segment > self._newest

    def fresh(self, rows: Sequence[Row]) -> list[Row]:
        """Those that the store does not have yet; all events are of one journal stream."""
        stored = False
        for table, members in by_table(rows).items():
            if table is EVENTS:
                stored |= self._last_position(members[0]) >= 0
            else:
                stored |= self._last_seqs(table.name, members) >= 0
        return [row for row in rows if self._is_fresh(row)] if stored else list(rows)

    def _last_position(self, event: Any) -> int:
        """That of the events which the store has; -1: none."""
        if self._position is None:
            found = self._store.last_position(event.stream)
            self._position = -1 if found is None else found
        return self._position

    def _last_seqs(self, table: str, rows: Sequence[Any]) -> int:
        """Learn what the store has of the rows' sessions; the highest number of all."""
        seen = self._seen[table]
        ids = {id(row.session_id): row.session_id for row in rows}.values()  # to hash a UUID is slow, and rows share it
        unknown = {one for one in ids if one not in seen}
        if unknown:
            found = self._store.last_seqs(table, unknown)
            seen.update((one, found.get(one, -1)) for one in unknown)
        return max(seen[one] for one in ids)

    def _is_fresh(self, row: Row) -> bool:
        if isinstance(row, EventRow):
            return row.position > self._last_position(row)
        return row.seq > self._seen[TABLES[type(row)].name][row.session_id]
