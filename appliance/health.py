"""Judges the processes by what they published: which part works, what is wrong with the others, and the remedy.

A process names its faults itself (appliance/status.py). Those that it cannot name, because it is dead or does not know
what too much is, are named here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from appliance.status import Status, read

PARTS = ("wire", "record", "store")  # what the API needs
PROCESSES = (*PARTS, "api")
RELAY = "relay"
MAX_LAG = 60.0  # seconds from packet to store before search counts as behind
MAX_AHEAD = 2.0  # seconds by which a status file may be dated in the future before the clock counts as set back


class State(StrEnum):
    OK = "ok"
    FAILING = "failing"  # it runs, and says or shows that something is wrong
    SILENT = "silent"  # it ended without a word, or hangs
    STOPPED = "stopped"  # it ended on purpose, or was never started


@dataclass(frozen=True, slots=True)
class Part:
    """One process. `faults`: name → what is wrong, why, and the remedy. `repairs`: what it put back, since start."""

    name: str
    state: State
    faults: Mapping[str, str] = field(default_factory=dict)
    repairs: Mapping[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """ "ok", or all faults."""
        return " | ".join(self.faults.values()) or "ok"


def parts(said: Mapping[str, Status], *, embedded: bool, names: tuple[str, ...] = PARTS) -> dict[str, Part]:
    """Each process of `names` by what it last said. `embedded`: the store is ours to watch.

    Relays run where rules need them: they count once they have spoken.
    """
    asked = (*names, *(() if RELAY in names or RELAY not in said else (RELAY,)))
    return {name: part(name, said.get(name)) for name in asked if embedded or name != "store"}


def judge(data: Path, *, embedded: bool) -> dict[str, str]:
    """Part → "ok", or what is wrong and what to do."""
    return {name: found.verdict for name, found in parts(read(data), embedded=embedded).items()}


def part(name: str, status: Status | None) -> Part:
    if status is None:
        return Part(name, State.STOPPED, {"stopped": f"not running; start it with 'verbatim {name}' or 'verbatim up'"})
    if not status.live:
        text = f"silent for {status.age:.0f} s; look at its log and restart it"
        return Part(name, State.SILENT, {"silent": text}, status.repairs)
    faults = {**_shown(name, status), **status.faults}
    return Part(name, State.FAILING if faults else State.OK, faults, status.repairs)


def _shown(name: str, status: Status) -> dict[str, str]:
    """What the values of a live process give away."""
    faults: dict[str, str] = {}
    values = status.values
    if status.age < -MAX_AHEAD:
        faults["clock-set-back"] = (
            f"the clock was set back by {-status.age:.0f} s or more; see that time is synchronised"
        )
    if name == "wire":
        if _section(values, "journal").get("stalled"):
            faults["journal-stalled"] = (
                "the journal is full, agents' traffic is stalled; free disk space or see why 'record' lags"
            )
        if not values.get("interlock", True):
            faults["interlock-missing"] = "the nftables interlock is missing; it is being restored, see the log"
    if name == "record":
        if (fault := values.get("store", "ok")) != "ok":
            faults["store-refuses"] = str(fault)
        if (lag := _seconds(values.get("lag_seconds"))) > MAX_LAG:
            faults["store-behind"] = (
                f"{lag:.0f} s behind the wire; search does not show the newest traffic yet, "
                "wait or give 'verbatim record' more processor time"
            )
    return faults


def _section(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
