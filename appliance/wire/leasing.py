"""Leases in force: the pure table, its file, the journal and the kernel's map, always in that spirit:

granting:  journal → file → kernel. Nothing is in force that is not on record; a failure on the way takes it back.
ending:    file → journal → kernel. Never held up by a full journal, whose frame then follows.

`DATA/state/leases.json` is replaced as a whole. What the kernel holds beyond the table (a crash between two of these
steps) is removed at the next start.
"""

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog

from appliance import config
from appliance.errors import MalformedInput, Unavailable
from appliance.identity.leases import Change, Lease, LeaseTable, Now, What, agent_address
from appliance.model import Identity
from appliance.wire import maps
from appliance.wire.abi import pack_address, unpack_address
from appliance.wire.bpf import Map
from appliance.wire.neighbours import Neighbours
from appliance.wire.notes import Notes

log = structlog.get_logger()


class Leasing:
    """The wire process's leases. `indexes`: agent-facing interfaces that exist, by name; follows `moved`."""

    def __init__(
        self,
        path: Path,
        table: LeaseTable,
        kernel: Map,
        notes: Notes,
        indexes: Mapping[str, int],
        neighbours: Neighbours | None = None,
    ) -> None:
        """`neighbours`: what leases are bound to link-layer addresses by; None: they are not."""
        self._path = path
        self._neighbours = neighbours
        self._kernel = kernel
        self._notes = notes
        self._indexes = indexes
        self.table = table
        self.unsaved = ""  # why the file of leases could not be written, the last time
        self.ended = 0  # leases since the start: whoever sees it rise has flows to cut

    @property
    def numbers(self) -> frozenset[int]:
        """Lease numbers as flows bear them."""
        return frozenset(lease.number for lease in self.table.leases.values())

    def restore(self, now: Now) -> None:
        """Put the table of the last run in force again, on record, and nothing else."""
        self.expire(now)
        for lease in self.table.list():
            self._notes.lease(Change(What.RESTORED, lease), now, must=True)
        for key in maps.reconcile(self._kernel, maps.lease_entries(self.table.list(), self._indexes), "leases"):
            address = unpack_address(key)
            self._notes.event(
                "lease-removed", "a lease that was no longer on the books was removed", now, address=address
            )

    def moved(self, indexes: Mapping[str, int]) -> None:
        """The agent-facing interfaces changed: leases follow those of the same name.

        Raises `Unavailable`: the next call tries again, or, where only neighbours could not be held, the next `tend`.
        """
        if indexes != self._indexes:
            maps.reconcile(self._kernel, maps.lease_entries(self.table.list(), indexes), "leases")
            self._indexes = dict(indexes)
            self.tend()

    def tend(self) -> None:
        """See that what could not be saved is, and that the neighbour entries of the leases are there, and no others
        of ours. Raises `Unavailable`."""
        if self.unsaved:
            with suppress(Unavailable):  # it is named for as long as it lasts
                self._save(self.table)
        if self._neighbours:
            leases = self.table.list()
            self._neighbours.reconcile(
                {place: link for lease in leases if (place := self._place(lease)) and (link := _link(lease))}
            )

    def grant(self, address: str, identity: Identity, expires_ns: int, behind: Callable[[str], str], now: Now) -> Lease:
        """See `LeaseTable.grant`. `behind` tells the interface of an address.

        Raises `Unavailable` when it could not be recorded; then nothing has changed.
        """
        self.expire(now)
        interface = behind(agent_address(address))
        link = self._link_of(agent_address(address), interface)
        table, changes = self.table.grant(address, identity, expires_ns, now, _number(self.table), interface, link)
        self._enact(table, changes, now)
        return changes[-1].lease

    def renew(self, id: str, expires_ns: int, identity: Identity | None, now: Now) -> Lease:
        """See `LeaseTable.renew`."""
        table, change = self.table.renew(id, expires_ns, now, identity)
        self._enact(table, (change,), now)
        return change.lease

    def revoke(self, id: str, now: Now) -> Lease:
        """See `LeaseTable.revoke`. Live flows are cut by the program at their next packet."""
        table, change = self.table.revoke(id)
        self._end(table, (change,), now)
        return change.lease

    def expire(self, now: Now) -> None:
        """End what is over by either clock."""
        table, changes = self.table.expire(now)
        if changes:
            self._end(table, changes, now)

    def _enact(self, table: LeaseTable, changes: tuple[Change, ...], now: Now) -> None:
        *ended, gained = changes
        before = self.table
        self._notes.lease(gained, now)  # the only step that may say no without a trace
        try:
            self._save(table)
            for key, value in maps.lease_entries((gained.lease,), self._indexes).items():
                maps.put(self._kernel, key, value, "leases")
            if self._neighbours and gained.lease.link and (place := self._place(gained.lease)):
                self._neighbours.hold(place, _link(gained.lease))
        except Unavailable:
            # Without this lease and without the one that it was to follow: on record, and closed rather than open.
            self._end(before.without(gained.lease.address), (replace(gained, what=What.REVOKED),), now)
            raise
        self.table = table
        for change in ended:
            self._notes.lease(change, now, must=True)
        self.ended += len(ended)

    def _end(self, table: LeaseTable, changes: tuple[Change, ...], now: Now) -> None:
        self.table = table
        try:
            self._save(table)
        except Unavailable as error:
            log.error("leases-unsaved", reason=str(error))  # ends all the same; a restart could bring it back
        for change in changes:
            self._notes.lease(change, now, must=True)
            self._kernel.delete(pack_address(change.lease.address))
            if self._neighbours and change.lease.link and (place := self._place(change.lease)):
                self._neighbours.free(place)
        self.ended += len(changes)

    def _save(self, table: LeaseTable) -> None:
        try:
            save(self._path, table)
            self.unsaved = ""
        except Unavailable as error:
            self.unsaved = str(error)
            raise

    def _link_of(self, address: str, interface: str) -> str:
        """The link-layer address to bind the lease of `address` to; empty: none."""
        if self._neighbours is None or interface not in self._indexes:
            return ""
        return self._neighbours.link(address, self._indexes[interface]).hex(":")

    def _place(self, lease: Lease) -> tuple[int, str] | None:
        index = self._indexes.get(lease.interface)
        return None if index is None else (index, lease.address)


def resume(path: Path, settings: config.Settings, notes: Notes, now: Now) -> LeaseTable:
    """`load` within the limits of the settings. A damaged file is set aside, and told of: the table is empty then."""
    limits = settings.leases.max_seconds, settings.wire.max_leases
    most = settings.leases.max_per_identity
    try:
        return load(path, *limits, now, most)
    except MalformedInput as error:
        path.replace(path.with_suffix(".damaged"))
        notes.event("leases-lost", "the file of leases is damaged: agents must ask again", now, reason=str(error))
        return LeaseTable(*limits, holder_limit=most)


def load(path: Path, max_seconds: float, limit: int, now: Now, holder_limit: int = 0) -> LeaseTable:
    """The table as the last run left it; an empty one where there is no file. Raises `MalformedInput`."""
    try:
        said = msgspec.json.decode(path.read_bytes())
        return LeaseTable.from_json(said, max_seconds, limit, now, holder_limit)
    except FileNotFoundError:
        return LeaseTable(max_seconds, limit, holder_limit=holder_limit)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}; make it readable") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedInput(f"{path}: not JSON; remove it, agents will ask for new leases") from error


def save(path: Path, table: LeaseTable) -> None:
    """Replace the file as a whole, on the disk when this returns. Raises `Unavailable`."""
    fresh = path.with_suffix(".new")
    try:
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as stream:
            stream.write(msgspec.json.encode(table.to_json()))
            stream.flush()
            os.fsync(file)
        fresh.replace(path)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}; see to the disk") from error


def _link(lease: Lease) -> bytes:
    return bytes.fromhex(lease.link.replace(":", ""))


def _number(table: LeaseTable) -> int:
    """A random u64 that no lease has, and not 0."""
    taken = {lease.number for lease in table.leases.values()} | {0}
    while (number := secrets.randbits(64)) in taken:
        pass
    return number
