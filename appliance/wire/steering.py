"""What a relay process needs of the wire: to be steered connections to, and the kernel's books of both its legs.

A relay opens the pinned maps by `Steering.open`, listens at one port on 0.0.0.0 and [::] (IP_TRANSPARENT and
IPV6_TRANSPARENT, no SO_REUSEPORT), and then registers that port. From then on new connections of agents reach it, each
relay its share; what `getsockname` says of an accepted socket is the address of the server that the agent meant.

Hand-over: a new relay registers first; the old one unregisters, goes on to accept for a moment, as handshakes that
began with it end with it, closes its listeners, and keeps its connections for as long as it likes. None is refused.

Before a relay connects to a server it binds the socket (to any port) and puts the leg in, else the kernel does not
count its first packets, and cannot steer the answers to a socket that is bound to the agent's own address.

A relay that dies needs not unregister: the wire process finds out within a second (relays.py). Meanwhile the program
asks the other listeners.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from appliance import config
from appliance.errors import Unavailable
from appliance.wire import abi, bpf
from appliance.wire.abi import LEG_F_TRANSPARENT, LEG_F_UNBOUND, Flow, FlowKey, LeaseValue, Leg, RelayValue, SideState
from appliance.wire.maps import TCP, U32

MAPS = ("flows", "legs", "relays", "leases")
PROCESS_BITS = 22  # of a worker's number; process numbers are smaller (proc(5), pid_max)
START = 19  # of /proc/PID/stat, behind the name in brackets: starttime, field 22


def worker_number(pid: int) -> int | None:
    """Names a process for as long as the machine runs; None: there is none of that number, or it is a zombie."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(") ")[2].split()
        if fields[0] not in "ZX":
            return int(fields[START]) << PROCESS_BITS | pid
    return None


def lives(worker: int) -> bool:
    """Whether the process of this number runs."""
    return worker_number(worker & (1 << PROCESS_BITS) - 1) == worker


def flow_key(source: str, source_port: int, destination: str, destination_port: int) -> FlowKey:
    """Of a TCP connection, as its client sends. Addresses in text form."""
    family = 6 if ":" in destination else 4
    return FlowKey(abi.pack_address(source), abi.pack_address(destination), source_port, destination_port, TCP, family)


class Steering:
    """The maps of the pinned program, for one relay process. Needs root, as the maps are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[str, bpf.Map] = {}
        self._place: tuple[bytes, RelayValue] | None = None  # key in map relays and what it holds, while registered
        number = worker_number(os.getpid())
        if number is None:
            raise Unavailable("/proc: not mounted; a relay cannot name itself without")
        self._worker = number
        self._maps = self._open()

    @classmethod
    def open(cls, settings: config.Settings) -> Self:
        """Raises `Unavailable`: no wire process of this release has pinned its maps yet."""
        return cls(settings.wire.bpffs)

    def _open(self) -> dict[str, bpf.Map]:
        fds: list[int] = []
        try:
            meta = bpf.get(self._folder / "meta")
            if meta is None:
                raise Unavailable(f"{self._folder}: no maps are pinned there; start verbatim wire")
            fds.append(meta)
            version = abi.Meta.unpack(bpf.Map(meta).lookup(bytes(4)) or bytes(abi.Meta.LAYOUT.size)).abi
            found = {name: bpf.get(self._folder / name) for name in MAPS}
            fds += [fd for fd in found.values() if fd is not None]
            if version != abi.ABI or None in found.values():
                raise Unavailable(f"{self._folder}: maps of another release; restart verbatim wire")
            return {name: bpf.Map(fds.pop()) for name in reversed(MAPS)}
        except OSError as error:
            raise Unavailable(f"{self._folder}: {error}; run as root") from error
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        """Unregister, and let go of the maps. Legs that were not taken stay until the process ends."""
        self.unregister()
        self._let_go(self._maps)
        self._maps = {}

    @staticmethod
    def _let_go(maps: dict[str, bpf.Map]) -> None:
        for each in maps.values():
            os.close(each.fd)

    def tend(self) -> bool:
        """Once a second: see that this is still registered in the maps that the program uses. Whether it was not.

        The wire process makes some maps anew when their size is set to another one, or after a teardown; legs that were
        in a former map are not counted any more. Raises `Unavailable`: there are no maps now.
        """
        fresh = self._open()
        same = all(bpf.map_id(fresh[name].fd) == bpf.map_id(self._maps[name].fd) for name in MAPS)
        old, self._maps = self._maps, fresh
        self._let_go(old)
        lost = self._place is not None and not self._stands(*self._place)
        if self._place is not None and lost:
            self._place = self._take_place(self._place[1])
        return not same or lost

    def _stands(self, key: bytes, value: RelayValue) -> bool:
        return self._relays.lookup(key) == value.pack()

    @property
    def _relays(self) -> bpf.Map:
        return self._maps["relays"]

    def register(self, port: int) -> None:
        """Take new connections at `port`, where this process listens. Raises `Unavailable`."""
        self._place = self._take_place(RelayValue(self._worker, port))

    def _take_place(self, value: RelayValue) -> tuple[bytes, RelayValue]:
        for key in map(U32.pack, range(abi.RELAYS_MAX)):
            with suppress(FileExistsError):
                self._relays.update(key, value.pack(), bpf.NOEXIST)
                return key, value
        raise Unavailable(
            f"relay: all {abi.RELAYS_MAX} places are taken; run fewer workers, or wait for old ones to end"
        )

    def unregister(self) -> None:
        """Take no new connections. Established ones, and handshakes that began, go on."""
        place, self._place = self._place, None
        if place is not None and self._stands(*place):
            self._relays.delete(place[0])

    def flow(self, client: str, client_port: int, server: str, server_port: int) -> Flow | None:
        """The agent's leg: lease (0: none), start, both sides' counts. None: the kernel knows no such relayed flow."""
        value = self._maps["flows"].lookup(flow_key(client, client_port, server, server_port).pack())
        flow = None if value is None else Flow.unpack(value)
        return flow if flow is not None and flow.lane == abi.Lane.RELAY else None

    def lease(self, address: str) -> int | None:
        """The number of the lease in force for an agent's address; None: there is none."""
        value = self._maps["leases"].lookup(abi.pack_address(address))
        if value is None:
            return None
        lease = LeaseValue.unpack(value)
        return lease.id if lease.expires > time.clock_gettime_ns(time.CLOCK_BOOTTIME) else None

    def put_leg(self, key: FlowKey, *, transparent: bool, unbound: bool = False) -> None:
        """Tell the program of a connection that is about to be made. `key`: as this process sends, see `flow_key`.

        `transparent`: its source is the agent's address; `unbound`: a server among the agents needs no lease. Raises
        `Unavailable`: there are too many.
        """
        flags = LEG_F_TRANSPARENT * transparent | LEG_F_UNBOUND * unbound
        leg = Leg(0, 0, self._worker, flags, SideState(), SideState())
        try:
            self._maps["legs"].update(key.pack(), leg.pack())
        except OSError as error:
            raise Unavailable(f"kernel map legs: {error.strerror}; lower relay.max_connections") from error

    def leg(self, key: FlowKey) -> Leg | None:
        """What the kernel counted so far; None: it was taken, or never put in."""
        value = self._maps["legs"].lookup(key.pack())
        return None if value is None else Leg.unpack(value)

    def take_leg(self, key: FlowKey) -> Leg | None:
        """The last counts of a connection that is over; the program forgets it. What comes later is not steered."""
        leg = self.leg(key)
        self._maps["legs"].delete(key.pack())
        return leg
