"""The watchdog of the three locks: puts back what is ours, and names what it may not touch.

The recording program on arrival (`bpf/wire.c`), the interlock (nftables), the gate on departure (`bpf/gate.c`): what
passes has passed all three, and each holds alone. They are looked after when the kernel tells of a change, and each
second in any case; the recording program first, since with it nothing unrecorded passes whatever became of the others.
Where one was gone the others are looked at too: if all were, that is told with its bounds.
"""

from collections.abc import Iterator
from typing import Any

import structlog

from appliance.errors import VerbatimError
from appliance.identity.leases import Now
from appliance.wire import filters
from appliance.wire.faults import Faults
from appliance.wire.interfaces import Interfaces
from appliance.wire.interlock import Interlock
from appliance.wire.loader import Program
from appliance.wire.locks import EVERYWHERE, FILTER, GATE, INTERLOCK, Locks, Unguarded
from appliance.wire.notes import Notes

log = structlog.get_logger()
PLACES = {FILTER: "the recording program was not attached to", GATE: "the gate was not attached to"}


class Watch:
    """A `program` that was taken over should have been attached: where it is not is told."""

    def __init__(
        self, interlock: Interlock, interfaces: Interfaces, program: Program, faults: Faults, notes: Notes
    ) -> None:
        self._interlock = interlock
        self._interfaces = interfaces
        self._programs = {FILTER: program.arrival, GATE: program.departure}  # as faults call them
        self._faults = faults
        self._notes = notes
        self._locks = Locks()
        if program.reused:
            interfaces.took_over(*self._programs.values())
            if not interlock.standing:
                self._locks.missing(INTERLOCK, EVERYWHERE)
        self._locks.put_back(INTERLOCK, EVERYWHERE, notes.now())
        self._failing: dict[str, dict[str, str]] = {}  # program → interface → reason
        self._unlocked = ""  # why the interlock could not be put back

    @property
    def locked(self) -> bool:
        """Whether the interlock is in place."""
        return not self._unlocked

    def guard(self, now: Now) -> None:
        """See that the programs are attached to every interface."""
        if self._attach(now):
            self._lock(now)
        self._judge()

    def lock(self, now: Now) -> None:
        """See that the interlock is as it should be."""
        if self._lock(now):
            self._attach(now)
        self._judge()

    def _attach(self, now: Now) -> bool:
        """Whether a program was missing somewhere."""
        locks, missing = self._locks, False
        for program, wanted in self._programs.items():
            looked = self._notes.now()
            done = self._interfaces.guard(wanted)
            back = self._notes.now()
            for name in done.present:
                locks.in_place(program, name, looked)
            for name in [*done.attached, *done.failing]:
                if name in done.restored or locks.knows(program, name):
                    since, missing = locks.missing(program, name), True
                if name in done.restored:
                    text = f"{PLACES[program]} {name}"
                    self._faults.repaired(f"{program}-restored", text, now, interface=name, **_since(since))
                if name in done.attached:
                    locks.put_back(program, name, back)
            for name in locks.places(program) - {*done.present, *done.attached, *done.failing}:
                locks.put_back(program, name, back)  # the interface is gone: nothing passes there
            self._failing[program] = done.failing
        return missing

    def _lock(self, now: Now) -> bool:
        """Whether the interlock was missing."""
        looked = self._notes.now()
        try:
            if self._interlock.verify():
                self._locks.in_place(INTERLOCK, EVERYWHERE, looked)
                self._unlocked = ""
                return False
            since = self._locks.missing(INTERLOCK, EVERYWHERE)
            self._interlock.establish()
            self._locks.put_back(INTERLOCK, EVERYWHERE, self._notes.now())
            self._faults.repaired("interlock-restored", "the nftables table was gone or changed", now, **_since(since))
            self._unlocked = ""
        except (VerbatimError, OSError) as error:
            if not self._unlocked:
                log.error("interlock-missing", reason=str(error))
            self._unlocked = str(error)
        return True

    def _judge(self) -> None:
        """Put on record that nothing held, if it was so."""
        found = self._locks.judge(self._notes.now())
        if found is not None:
            names = ", ".join(found.interfaces)
            text = f"nothing held back unrecorded packets on {names}: recording program, gate and interlock were gone"
            self._notes.event("unguarded", text, self._notes.now(), **_bounds(found))

    def faults(self) -> Iterator[tuple[str, str]]:
        """Name and text of what is wrong with locks and interfaces."""
        for program, failing in self._failing.items():
            if failing:
                said = ", ".join(f"{name} ({reason})" for name, reason in failing.items())
                yield (
                    f"{program}-missing",
                    f"{PLACES[program]} {said}, and cannot be; the other locks let nothing pass, see tc filter show",
                )
        if self._unlocked:
            yield (
                "interlock-missing",
                f"the nftables table cannot be put back ({self._unlocked}); the other locks hold, see nft list ruleset",
            )
        if strangers := self._interlock.strangers:
            yield (
                "ruleset-foreign",
                f"nftables: {', '.join(strangers)}, which can stop recorded traffic and weakens the interlock; remove "
                "such rules from the gateway",
            )
        if shadows := [f"{name}: {found}" for name, found in self._shadows()]:
            yield (
                "filter-shadowed",
                f"other programs get packets before they are recorded: {'; '.join(shadows)}; detach them: "
                "ip link set dev NAME xdp off, bpftool net detach",
            )
        yield from self._interfaces.faults()

    def _shadows(self) -> Iterator[tuple[str, str]]:
        for name, index in self._interfaces.indexes.items():
            if found := filters.before(index, self._interfaces.netlink):
                yield name, found


def _since(moment: Now | None) -> dict[str, Any]:
    """When it was last seen in place, on both clocks; nothing if that is not known."""
    return {} if moment is None else {"since_ns": moment.unix, "since_boottime_ns": moment.boottime}


def _bounds(found: Unguarded) -> dict[str, Any]:
    since = _since(found.since) or {"since_ns": None, "since_boottime_ns": 0}
    until = {"until_ns": found.until.unix, "until_boottime_ns": found.until.boottime}
    return {**since, **until, "interfaces": list(found.interfaces)}
