"""The gateway's interfaces: which exist and work, whether our programs are attached, which addresses are the gateway's.

Interfaces are known by name, since an index is lost when one is made anew (a re-created VLAN, a hot-plugged card). The
kernel tells of changes of links, addresses and filters over rtnetlink (RTMGRP_*), upon which everything is looked at
again. News can be lost and not all changes are told: so it is looked each second too.
"""

import contextlib
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance import config
from appliance.errors import MalformedInput, Refused, Unavailable
from appliance.wire import filters
from appliance.wire.abi import Role
from appliance.wire.filters import Filter, Place
from appliance.wire.news import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK, RTMGRP_TC, News

IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40  # linux/if.h
BROADCAST = "255.255.255.255"
ONLY = "\0verbatim.wire"
MAX_NAMES = 8  # of interfaces in one text


@dataclass(slots=True)
class Guarded:
    """What looking after one program's filters came to: names of interfaces, and reasons by name."""

    present: list[str]
    attached: list[str]  # where it was not
    restored: list[str]  # of these, where it had been
    failing: dict[str, str]


class Interfaces:
    """The interfaces named in `settings`. `fileno()` is readable when something changed: then `news()`.

    `expected`: addresses that the gateway should have.
    """

    def __init__(self, settings: config.Wire, expected: Iterable[str] = ()) -> None:
        self.roles = roles(settings)
        self.indexes = {name: index for name in self.roles if (index := interface_index(name))}
        missing = [name for name in self.roles if name not in self.indexes]
        if missing:
            raise Unavailable(
                f"interface {', '.join(missing)}: does not exist; create it, or correct wire.agents and wire.upstream"
            )
        self._other = settings.other
        self._expected = frozenset(expected)
        self._addresses: frozenset[str] = frozenset()
        self._flags: dict[str, int] = {}
        self._known: set[tuple[Place, int]] = set()  # hook and index of what was attached once
        groups = RTMGRP_LINK | RTMGRP_TC | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
        self._news = News(socket.NETLINK_ROUTE, groups)
        self.netlink = IPRoute()

    def fileno(self) -> int:
        return self._news.fileno()

    def close(self) -> None:
        self._news.close()
        self.netlink.close()

    def news(self) -> bool:
        """Whether links, addresses or filters changed since the last call."""
        return self._news.heard()

    @property
    def agents(self) -> dict[str, int]:
        """Agent-facing interfaces that exist: name → index."""
        return {name: index for name, index in self.indexes.items() if self.roles[name] is Role.AGENT}

    def refresh(self) -> list[str]:
        """Look at links and addresses again. Names of the configured interfaces that came back, or came anew."""
        links = {link.get_attr("IFLA_IFNAME"): link for link in self.netlink.get_links()}
        self._flags = {name: link["flags"] for name, link in links.items()}
        before = self.indexes
        self.indexes = {name: links[name]["index"] for name in self.roles if name in links}
        self._addresses = frozenset(self._list_addresses())
        return [name for name, index in self.indexes.items() if index != before.get(name)]

    def guard(self, wanted: Filter) -> Guarded:
        """Attach the program wherever it is not."""
        done = Guarded([], [], [], {})
        for name, index in self.indexes.items():
            try:
                if filters.attached(wanted, index, self.netlink):
                    self._known.add((wanted.place, index))
                    done.present.append(name)
                    continue
                filters.attach(wanted, index, self.netlink)
            except (Unavailable, NetlinkError, OSError) as error:
                if interface_index(name) == index:  # else it vanished meanwhile, and the next look will tell
                    done.failing[name] = str(error)
                continue
            done.attached.append(name)
            if (wanted.place, index) in self._known:
                done.restored.append(name)
            self._known.add((wanted.place, index))
        return done

    def took_over(self, *wanted: Filter) -> None:
        """These programs ran before this process did: where they are not attached, they were removed."""
        self._known |= {(each.place, index) for each in wanted for index in self.indexes.values()}

    def faults(self) -> Iterator[tuple[str, str]]:
        """Name and text of what the last `refresh` showed to be wrong."""
        if lost := [name for name in self.roles if name not in self.indexes]:
            yield (
                "interface-missing",
                f"{_listed('interface', lost)} gone or renamed, nothing passes there; create it again under its name, "
                "or correct wire.agents and wire.upstream",
            )
        ready = IFF_UP | IFF_RUNNING
        if down := [name for name in self.indexes if self._flags.get(name, ready) & ready != ready]:
            yield (
                "interface-down",
                f"{_listed('interface', down)} down, nothing passes there; ip link set it up, and see cable and peer",
            )
        if strangers := sorted(name for name, flags in self._flags.items() if self._is_stranger(name, flags)):
            yield (
                "interface-unknown",
                f"{_listed('interface', strangers)} not configured, nothing is forwarded from there or to there; name "
                "it in wire.agents, wire.upstream or wire.other, or take it down",
            )
        if missing := sorted(self._expected - self._addresses):
            yield (
                "address-missing",
                f"{_listed('address', missing)} of api.listen but not of this machine, agents cannot ask for leases "
                "there; add it to its interface again, or correct api.listen",
            )

    def _is_stranger(self, name: str, flags: int) -> bool:
        if name in self.roles or flags & IFF_LOOPBACK or not flags & IFF_UP:
            return False
        return not any(fnmatchcase(name, pattern) for pattern in self._other)

    def addresses(self) -> frozenset[str]:
        """All addresses of this network namespace, with their broadcast addresses, as of the last `refresh`."""
        return self._addresses

    def _list_addresses(self) -> Iterator[str]:
        yield BROADCAST
        for message in self.netlink.get_addr():
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            yield from (value for value in (address, message.get_attr("IFA_BROADCAST")) if value)

    def behind(self, address: str) -> str:
        """The agent-facing interface that the kernel's routes lead to for `address`. `Refused`: it is another one."""
        index = None
        with contextlib.suppress(NetlinkError):
            for message in self.netlink.route("get", dst=address):
                index = message.get_attr("RTA_OIF")
        for name, known in self.agents.items():
            if known == index:
                return name
        raise Refused(f"address {address}: not behind an agent-facing interface; ask from an agent's host")


def roles(settings: config.Wire) -> Mapping[str, Role]:
    """Interface name → role, as configured."""
    both = set(settings.agents) & set(settings.upstream)
    if both or not settings.agents or not settings.upstream:
        reason = f"{', '.join(sorted(both))} is on both sides" if both else "one side has no interface"
        raise MalformedInput(f"wire.agents, wire.upstream: {reason}; name the interfaces of each side")
    return {**dict.fromkeys(settings.agents, Role.AGENT), **dict.fromkeys(settings.upstream, Role.UPSTREAM)}


def claim() -> socket.socket:
    """Hold the name of the one wire process of this network namespace: two would take the interfaces from each other.

    An abstract Unix address (unix(7)) belongs to the namespace, and goes with the process. Raises `Refused`.
    """
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        name.bind(ONLY)
    except OSError as error:
        name.close()
        raise Refused("wire: another process has this machine's interfaces; stop that one first") from error
    return name


def interface_index(name: str) -> int | None:
    """None: there is no such interface now."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{what} {', '.join(names[:MAX_NAMES])}{more}: is"
