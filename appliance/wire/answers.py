"""What the wire process answers on its control socket (control.py has the requests), and what it says of itself."""

from dataclasses import dataclass
from enum import IntEnum

from appliance.errors import MalformedInput
from appliance.identity.leases import identity_from_json, identity_to_json, lease_id
from appliance.journal import Writer
from appliance.wire import maps
from appliance.wire.abi import COUNTER_COUNT, Counter, Reason
from appliance.wire.control import Json
from appliance.wire.drain import Drain
from appliance.wire.faults import Faults
from appliance.wire.interfaces import Interfaces
from appliance.wire.leasing import Leasing
from appliance.wire.loader import Program
from appliance.wire.notes import Notes
from appliance.wire.relays import Relays
from appliance.wire.ring import Ring
from appliance.wire.sweep import Sweeper
from appliance.wire.watch import Watch
from appliance.wire.windows import Reopener


@dataclass(frozen=True, slots=True)
class Answers:
    """Of the parts that the loop drives; requests change leases and put notes on record, nothing else."""

    program: Program
    ring: Ring
    writer: Writer
    notes: Notes
    drain: Drain
    faults: Faults
    watch: Watch
    interfaces: Interfaces
    leasing: Leasing
    sweeper: Sweeper
    reopener: Reopener
    relays: Relays

    def answer(self, request: Json) -> Json:
        """One request of the control socket."""
        now = self.notes.now()
        match request.get("do"):
            case "grant":
                identity = identity_from_json(request.get("identity"))
                address, expires = str(request.get("address")), _time(request)
                lease = self.leasing.grant(address, identity, expires, self.interfaces.behind, now)
            case "renew":
                given = request.get("identity")
                newer = None if given is None else identity_from_json(given)
                lease = self.leasing.renew(lease_id(request.get("id")), _time(request), newer, now)
            case "revoke":
                lease = self.leasing.revoke(lease_id(request.get("id")), now)
            case "list":
                self.leasing.expire(now)
                return {"leases": [lease.to_json() for lease in self.leasing.table.list()]}
            case "identity":
                self.leasing.expire(now)
                return {"identity": identity_to_json(self.leasing.table.get(lease_id(request.get("id"))).identity)}
            case "status":
                return {"status": self.status()}
            case "note":
                self.faults.noted(request, now)
                return {"noted": True}
            case _:
                raise MalformedInput(
                    "control request: unknown; do one of grant, renew, revoke, list, identity, status, note"
                )
        return {"lease": lease.to_json()}

    def status(self) -> Json:
        """What the process says of itself, also once a second in its status file."""
        counters = self.program.map("counters")
        counts = [
            sum(int.from_bytes(value, "little") for value in counters.lookup_percpu(maps.U32.pack(index)))
            for index in range(COUNTER_COUNT)
        ]
        return {
            "ring": {"bytes": self.ring.size, "fill": self.ring.fill, "id": self.program.ring_id},
            "recorded": {"packets": counts[Counter.PACKETS], "bytes": counts[Counter.BYTES]},
            "refusals": {word(reason): counts[reason] for reason in Reason if counts[reason]},
            "others": {word(other): counts[other] for other in Counter if Counter.BYTES < other < Counter.UNTOLD}
            | {"untold": sum(counts[Counter.UNTOLD : Counter.TOLD])},
            "journal": {
                "bytes": self.writer.size(),
                "room": self.writer.room(),
                "stalled": self.drain.stalled,
            },
            "reopened": self.reopener.reopened,
            "leases": len(self.leasing.table.leases),
            "flows": self.sweeper.alive,
            "relays": self.relays.serving,
            "interfaces": {
                name: {"index": self.interfaces.indexes.get(name, 0), "role": role.name.lower()}
                for name, role in self.interfaces.roles.items()
            },
            "interlock": self.watch.locked,
            "faults": self.faults.present,
            "repairs": dict(self.faults.repairs),
        }


def word(name: IntEnum) -> str:
    """As events spell it: no-lease, ring-full."""
    return name.name.lower().replace("_", "-")


def _time(request: Json) -> int:
    value = request.get("expires_ns")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise MalformedInput("expires_ns: not a time in nanoseconds; send an integer")
    return value
