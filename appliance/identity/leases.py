"""Leases: which identity acts behind an agent's address, and until when.

The table is pure: no file, no clock, no kernel. Every operation gets the time and gives back the next table and what
happened (`Change`s), in order; the wire process journals these, keeps the table on disk and copies it to the kernel.

One lease per agent address. The same holder (issuer, subject, client and actor chain) asking again keeps the lease and
moves its end; with another run id the old lease is superseded, so that no session straddles two runs. Another holder is
refused while a lease is live.

A lease ends by two clocks, whichever comes first: the Unix time of its token, and a deadline in CLOCK_BOOTTIME fixed
when it was granted. A wall clock that is set back therefore never extends a lease; one that is set forward ends it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MappingProxyType
from typing import Any, Self

from appliance.errors import MalformedInput, Refused
from appliance.model import Identity

VERSION = 1
MAX_TEXT = 2048  # characters of one identity field
MAX_ITEMS = 1024  # actors, groups
LINK = re.compile("[0-9a-f]{2}(:[0-9a-f]{2}){5}")
LISTS = ("act", "groups")  # fields of an identity that hold several texts


class LeaseHeld(Refused):
    """Another identity holds the address."""


class LeaseUnknown(Refused):
    """No live lease has this id."""


class What(StrEnum):
    """What happened to a lease."""

    GRANTED = "granted"
    RENEWED = "renewed"
    RESTORED = "restored"  # by a wire process that started, as the one before it left it
    REVOKED = "revoked"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class Now:
    """One moment on both clocks, in nanoseconds, and the boot that CLOCK_BOOTTIME belongs to."""

    unix: int
    boottime: int
    boot: str


@dataclass(frozen=True, slots=True)
class Lease:
    """`identity` held by `address`. `id` is 16 hex digits, the kernel's u64, never 0.

    `interface`: the agent-facing one that the address is behind; from another one it has no lease. `link`: the only
    link-layer address that it may be used from, as 02:00:00:00:00:01; empty: any.
    """

    id: str
    address: str
    identity: Identity
    granted_ns: int  # Unix time
    expires_ns: int  # Unix time
    deadline_ns: int  # CLOCK_BOOTTIME of `boot`
    boot: str
    interface: str = ""
    link: str = ""

    @property
    def number(self) -> int:
        return int(self.id, 16)

    def live(self, now: Now) -> bool:
        return now.unix < self.expires_ns and now.boottime < self.deadline_ns

    def to_json(self) -> dict[str, Any]:
        """As the control socket and the journal show it: without what only the owner of the table needs."""
        return {
            "id": self.id,
            "address": self.address,
            "granted_ns": self.granted_ns,
            "expires_ns": self.expires_ns,
            "identity": identity_to_json(self.identity),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`; what only the table's owner needs is taken where given. Raises `MalformedInput`."""
        return cls(
            id=lease_id(value.get("id")),
            address=agent_address(value.get("address")),
            identity=identity_from_json(value.get("identity")),
            granted_ns=_integer(value, "granted_ns"),
            expires_ns=_integer(value, "expires_ns"),
            deadline_ns=_integer(value, "deadline_ns") if "deadline_ns" in value else 0,
            boot=_text(value, "boot"),
            interface=_text(value, "interface"),
            link=_link(value),
        )


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that happened to one lease; `lease` as it is afterwards."""

    what: What
    lease: Lease


def lease_id(value: object) -> str:
    """Check a lease id: 16 lower-case hex digits, not all zero."""
    if not isinstance(value, str) or len(value) != 16 or set(value) - set("0123456789abcdef") or not int(value, 16):
        raise MalformedInput("lease id: not 16 lower-case hex digits; use the id that granting the lease returned")
    return value


def agent_address(value: object) -> str:
    """Normal form of an address that an agent can have; IPv4 in its own notation also where it came v4-mapped."""
    if not isinstance(value, str) or len(value) > 64:
        raise MalformedInput("agent address: not a string; give an IPv4 or IPv6 address")
    try:
        parsed: IPv4Address | IPv6Address = ip_address(value)
    except ValueError:
        raise MalformedInput("agent address: not an IPv4 or IPv6 address; give one like 192.0.2.7") from None
    if isinstance(parsed, IPv6Address):
        if parsed.scope_id or parsed.is_link_local:
            raise MalformedInput("agent address: link-local; use the agent's routable address")
        parsed = parsed.ipv4_mapped or parsed
    if parsed.is_unspecified or parsed.is_multicast or parsed.is_loopback:
        raise MalformedInput("agent address: not a host's address; use the agent's routable address")
    return str(parsed)


def identity_to_json(identity: Identity) -> dict[str, Any]:
    return {name: list(v) if isinstance(v := getattr(identity, name), tuple) else v for name in Identity.__slots__}


def identity_from_json(value: object) -> Identity:
    """Strict inverse of `identity_to_json`; missing fields default. Raises `MalformedInput`."""
    if not isinstance(value, Mapping) or set(value) - set(Identity.__slots__):
        raise MalformedInput(
            "identity: not an object of the known fields; send issuer, subject, client, act, groups, …"
        )
    fields: dict[str, Any] = {name: (_texts if name in LISTS else _text)(value, name) for name in value}
    return Identity(**fields)


def holder(identity: Identity) -> tuple[object, ...]:
    """What must be equal for two tokens to be the same holder's. Groups and the token itself change at a refresh."""
    return identity.issuer, identity.subject, identity.client, identity.act


@dataclass(frozen=True)
class LeaseTable:
    """All live leases by address. `max_seconds` bounds a lease from its grant or last renewal, `limit` their number."""

    max_seconds: float
    limit: int
    leases: Mapping[str, Lease] = field(default_factory=lambda: MappingProxyType({}))
    holder_limit: int = 0  # leases of one holder; 0: any number

    def list(self) -> tuple[Lease, ...]:
        return tuple(sorted(self.leases.values(), key=lambda lease: (lease.granted_ns, lease.id)))

    def get(self, id: str) -> Lease:
        """Raises `LeaseUnknown`."""
        for lease in self.leases.values():
            if lease.id == id:
                return lease
        raise LeaseUnknown(f"lease {id}: unknown or ended; ask for a new one")

    def grant(
        self,
        address: str,
        identity: Identity,
        expires_ns: int,
        now: Now,
        number: int,
        interface: str = "",
        link: str = "",
    ) -> tuple["LeaseTable", tuple[Change, ...]]:
        """Bind `address` to `identity` until `expires_ns` (Unix) or the maximum, whichever comes first.

        `number` is a fresh random u64, the id if a new lease is made. The last change holds the resulting lease.
        Raises `LeaseHeld`, `Refused` (token expired, table full) or `MalformedInput`.
        """
        address = agent_address(address)
        table, changes = self.expire(now)
        held = table.leases.get(address)
        if held and holder(held.identity) == holder(identity) and held.identity.run_id == identity.run_id:
            moved = table._with(replace(held, interface=interface, link=link))
            renewed, change = moved.renew(held.id, expires_ns, now, identity)
            return renewed, (*changes, change)
        if held and holder(held.identity) != holder(identity):
            raise LeaseHeld(f"address {address}: leased to another identity; wait for its end or revoke it")
        if not held and len(table.leases) >= table.limit:
            raise Refused(f"leases: all {table.limit} are taken; raise wire.max_leases")
        if not held and table._is_greedy(identity):
            raise Refused(
                f"leases: this identity has {table.holder_limit}, the most that it may; give some of them back"
            )
        id = lease_id(f"{number:016x}")
        bound = replace(identity, lease_id=id, method="lease")
        lease = table._until(Lease(id, address, bound, now.unix, 0, 0, now.boot, interface, link), expires_ns, now)
        ended = (Change(What.SUPERSEDED, held),) if held else ()
        return table._with(lease), (*changes, *ended, Change(What.GRANTED, lease))

    def renew(
        self, id: str, expires_ns: int, now: Now, identity: Identity | None = None
    ) -> tuple["LeaseTable", Change]:
        """Move the end of a live lease; `identity` of a newer token must be the same holder's, and its groups count."""
        lease = self.get(lease_id(id))
        if not lease.live(now):
            raise LeaseUnknown(f"lease {id}: unknown or ended; ask for a new one")
        if identity is not None:
            if holder(identity) != holder(lease.identity):
                raise LeaseHeld(f"lease {id}: belongs to another identity; renew with a token of its holder")
            kept = replace(identity, run_id=lease.identity.run_id, lease_id=id, method="lease")
            lease = replace(lease, identity=kept)
        lease = self._until(lease, expires_ns, now)
        return self._with(lease), Change(What.RENEWED, lease)

    def revoke(self, id: str) -> tuple["LeaseTable", Change]:
        """End a lease now. Raises `LeaseUnknown`."""
        lease = self.get(lease_id(id))
        return self.without(lease.address), Change(What.REVOKED, lease)

    def expire(self, now: Now) -> tuple["LeaseTable", tuple[Change, ...]]:
        """Drop the leases that ended by either clock."""
        ended = [lease for lease in self.list() if not lease.live(now)]
        if not ended:
            return self, ()
        table = self.without(*(lease.address for lease in ended))
        return table, tuple(Change(What.EXPIRED, lease) for lease in ended)

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                **lease.to_json(),
                "deadline_ns": lease.deadline_ns,
                "boot": lease.boot,
                "interface": lease.interface,
                "link": lease.link,
            }
            for lease in self.list()
        ]
        return {"version": VERSION, "leases": rows}

    @classmethod
    def from_json(cls, value: object, max_seconds: float, limit: int, now: Now, holder_limit: int = 0) -> Self:
        """Read a table back, ended leases included (call `expire` next). Raises `MalformedInput`.

        After a reboot CLOCK_BOOTTIME began again, so the deadline is set anew from the Unix time that is left. A wall
        clock that is before the grant is known to be wrong: such a lease ends at once rather than living too long.
        """
        if (
            not isinstance(value, Mapping)
            or value.get("version") != VERSION
            or not isinstance(value.get("leases"), list)
        ):
            raise MalformedInput(
                f"leases: not version {VERSION} of the file; remove it, agents will ask for new leases"
            )
        found: dict[str, Lease] = {}
        for row in value["leases"]:
            if not isinstance(row, Mapping):
                raise MalformedInput("leases: an entry is not an object; remove the file, agents will ask again")
            lease = Lease.from_json(row)
            if lease.boot != now.boot:
                left = lease.expires_ns - now.unix if now.unix >= lease.granted_ns else 0
                lease = replace(lease, deadline_ns=now.boottime + max(left, 0), boot=now.boot)
            found[lease.address] = lease
        return cls(max_seconds, limit, MappingProxyType(found), holder_limit)

    def _is_greedy(self, identity: Identity) -> bool:
        mine = holder(identity)
        return 0 < self.holder_limit <= sum(holder(lease.identity) == mine for lease in self.leases.values())

    def _until(self, lease: Lease, expires_ns: int, now: Now) -> Lease:
        left = min(expires_ns - now.unix, int(self.max_seconds * 1e9))
        if left <= 0:
            raise Refused("lease: its token has expired; get a new token")
        return replace(lease, expires_ns=now.unix + left, deadline_ns=now.boottime + left, boot=now.boot)

    def _with(self, lease: Lease) -> "LeaseTable":
        return replace(self, leases=MappingProxyType({**self.leases, lease.address: lease}))

    def without(self, *addresses: str) -> "LeaseTable":
        """The table less the leases of these addresses."""
        rest = {address: lease for address, lease in self.leases.items() if address not in addresses}
        return replace(self, leases=MappingProxyType(rest))


def _integer(value: Mapping[str, Any], name: str) -> int:
    number = value.get(name)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 63:
        raise MalformedInput(f"{name}: not a time in nanoseconds; send an integer")
    return number


def _link(value: Mapping[str, Any]) -> str:
    text = _text(value, "link")
    if text and not LINK.fullmatch(text):
        raise MalformedInput("link: not a link-layer address; write it like 02:00:00:00:00:01")
    return text


def _text(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name, "")
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise MalformedInput(f"{name}: not a string of at most {MAX_TEXT} characters")
    return text


def _texts(value: Mapping[str, Any], name: str) -> tuple[str, ...]:
    items = value.get(name, [])
    wrong = not isinstance(items, list | tuple) or len(items) > MAX_ITEMS
    if wrong or any(not isinstance(item, str) or len(item) > MAX_TEXT for item in items):
        raise MalformedInput(f"{name}: not a list of at most {MAX_ITEMS} strings")
    return tuple(items)
