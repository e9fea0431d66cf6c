"""Takes what other processes left for the journal (`journal/spool.py`) and puts it on record."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from appliance.errors import MalformedInput
from appliance.identity.leases import Now
from appliance.journal import spool

AT_ONCE = 64  # notes in one turn of the loop

log = structlog.get_logger()


class Spooled:
    """`noted` puts a request of the control socket on record or raises; `flush` tells whether the journal has all."""

    def __init__(self, data: Path, noted: Callable[[Mapping[str, Any], Now], None], flush: Callable[[], bool]) -> None:
        self._data = data
        self._noted = noted
        self._flush = flush
        self._told: list[Path] = []  # noted, but not known to be in the journal yet

    def step(self, now: Now) -> None:
        """Journal some of what waits; what the journal has is removed."""
        if self._told and not self._settle():
            return
        for path in spool.left(self._data, AT_ONCE):
            try:
                self._noted(spool.read(path), now)
            except (MalformedInput, OSError) as error:
                log.error("not-recorded", what=path.name, reason=str(error))
                path.rename(path.with_suffix(".refused"))
            else:
                self._told.append(path)
        self._settle()

    def _settle(self) -> bool:
        if not self._flush():
            return False
        for path in self._told:
            path.unlink(missing_ok=True)
        self._told.clear()
        return True
