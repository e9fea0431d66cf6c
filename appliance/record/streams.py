"""The recorders of all journal streams: the wire's, and those of the relays, also of streams that come later.

They take turns, each a bounded step. What `record.max_memory` allows is for all of them: the wire has the whole while
no relay's stream goes on; else it has one half, and the relays' streams that go on share the other one. The rows that
wait for the store are bounded for all of them too. `record.max_sessions` holds for each stream.
"""

from collections.abc import Iterable
from typing import Any

import structlog

from appliance.config import Settings
from appliance.errors import MalformedInput
from appliance.record.recorder import RELAY, Recorder, Unfinished
from appliance.record.recovery import Sink

WIRE = "wire"
SUMS = ("backlog_bytes", "sessions_open", "sessions_bytes", "memory_short", "rows", "damaged", "torn_tails")
DETAILS = ("backlog_bytes", "lag_seconds", "sessions_open", "rows", "damaged")

log = structlog.get_logger()


class Streams:
    """Has the interface of one `Recorder`. `look` finds new streams; call it from time to time."""

    def __init__(self, settings: Settings, store: Sink, unfinished: Unfinished) -> None:
        self._settings = settings
        self._store = store
        self._unfinished = unfinished
        self._recorders: dict[str, Recorder] = {}
        self._unreadable: dict[str, str] = {}  # streams of another format version, until their writers set them aside

    def look(self) -> None:
        folder = self._settings.data / "journal"
        relays = sorted(
            (path.name for path in folder.glob("relay-*") if RELAY.fullmatch(path.name)), key=lambda name: int(name[6:])
        )
        for name in (WIRE, *relays):
            if name not in self._recorders:
                self._open(name)
        self._share()

    def step(self) -> bool:
        """A step of each. Whether there may be more to do at once."""
        busy = False
        for recorder in self._recorders.values():
            busy |= recorder.step()
        return busy

    def finish(self) -> list[str]:
        """Store what is read, and write snapshots. Why some of it is not stored; nothing is lost by that."""
        return [recorder.fault for recorder in self._recorders.values() if not recorder.finish()]

    def values(self) -> dict[str, object]:
        """For the status file: sums, the worst of each, and `streams`, which has the details."""
        each = {name: recorder.values() for name, recorder in self._recorders.items()}
        behind = [said for said in each.values() if said["backlog_bytes"]]
        read = _numbers((behind or each.values()), "read_ns")
        return {
            **{name: sum(_numbers(each.values(), name)) for name in SUMS},
            "read_ns": (min if behind else max)(read, default=0),
            "unstored_ns": min(filter(None, _numbers(each.values(), "unstored_ns")), default=0),
            "lag_seconds": max(_numbers(each.values(), "lag_seconds"), default=0.0),
            "faults": self._faults(each),
            "store": next((str(said["store"]) for said in each.values() if said["store"] != "ok"), "ok"),
            "streams": {name: {one: said[one] for one in DETAILS} for name, said in each.items()},
        }

    def close(self) -> None:
        for recorder in self._recorders.values():
            recorder.close()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _open(self, name: str) -> None:
        folder = self._settings.data / "journal" / name
        try:
            self._recorders[name] = Recorder(self._settings, folder, self._store, self._unfinished)
        except MalformedInput as error:
            if self._unreadable.get(name) != str(error):
                log.error("journal-version", reason=str(error))
            self._unreadable[name] = str(error)
        else:
            self._unreadable.pop(name, None)

    def _share(self) -> None:
        limits = self._settings.record
        relays = [recorder for name, recorder in self._recorders.items() if name != WIRE]
        going = sum(not recorder.closed for recorder in relays)
        half = limits.model_copy(update={"max_memory": max(1, limits.max_memory // 2)})
        part = limits.model_copy(update={"max_memory": max(1, limits.max_memory // (2 * max(1, going)))})
        for name, recorder in self._recorders.items():
            whole = limits if not going else half
            recorder.share(whole if name == WIRE else part, 1 + going)

    def _faults(self, each: dict[str, dict[str, object]]) -> dict[str, str]:
        """By name; what several streams say is told once."""
        texts: dict[str, dict[str, None]] = {}
        for said in each.values():
            faults = said["faults"]
            assert isinstance(faults, dict)
            for name, text in faults.items():
                texts.setdefault(name, {})[text] = None
        found = {name: "; ".join(some) for name, some in texts.items()}
        if self._unreadable:
            found["journal-version"] = "; ".join(self._unreadable.values())
        return found


def _numbers(each: Iterable[dict[str, Any]], name: str) -> list[Any]:
    return [said[name] for said in each]
