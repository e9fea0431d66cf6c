"""The watchdog of the three locks: puts back what is ours, and names what it may not touch.

The recording program on arrival (`bpf/wire.c`), the interlock (nftables), the gate on departure (`bpf/gate.c`): what
passes has passed all three, and each holds alone. They are looked after when the kernel tells of a change, and each
second in any case; the recording program first, since with it nothing unrecorded passes whatever became of the others.
"""

from collections.abc import Iterator

import structlog

from appliance.errors import VerbatimError
from appliance.identity.leases import Now
from appliance.wire import filters
from appliance.wire.faults import Faults
from appliance.wire.interfaces import Interfaces
from appliance.wire.interlock import Interlock
from appliance.wire.loader import Program

log = structlog.get_logger()
PLACES = {"filter": "the recording program was not attached to", "gate": "the gate was not attached to"}


class Watch:
    """A `program` that was taken over should have been attached: where it is not is told."""

    def __init__(self, interlock: Interlock, interfaces: Interfaces, program: Program, faults: Faults) -> None:
        self._interlock = interlock
        self._interfaces = interfaces
        self._programs = {"filter": program.arrival, "gate": program.departure}  # as faults call them
        self._faults = faults
        if program.reused:
            interfaces.took_over(*self._programs.values())
        self._failing: dict[str, dict[str, str]] = {}  # program → interface → reason
        self._unlocked = ""  # why the interlock could not be put back

    @property
    def locked(self) -> bool:
        """Whether the interlock is in place."""
        return not self._unlocked

    def guard(self, now: Now) -> None:
        """See that the programs are attached to every interface."""
        for program, wanted in self._programs.items():
            done = self._interfaces.guard(wanted)
            for name in done.restored:
                self._faults.repaired(f"{program}-restored", f"{PLACES[program]} {name}", now, interface=name)
            self._failing[program] = done.failing

    def lock(self, now: Now) -> None:
        """See that the interlock is as it should be."""
        try:
            if not self._interlock.verify():
                self._interlock.establish()
                self._faults.repaired("interlock-restored", "the nftables table was gone or changed", now)
            self._unlocked = ""
        except (VerbatimError, OSError) as error:
            if not self._unlocked:
                log.error("interlock-missing", reason=str(error))
            self._unlocked = str(error)

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
