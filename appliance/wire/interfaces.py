"""The gateway's interfaces: which exist, whether the program is attached to each, which addresses are the gateway's.

Interfaces are known by name, since an index is lost when one is made anew (a re-created VLAN, a hot-plugged card). The
kernel tells of changes of links and addresses over rtnetlink (RTMGRP_*), upon which everything is looked at again.
Nothing tells when someone deletes a filter: that is looked for each second.
"""

import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance import config
from appliance.errors import MalformedInput, Refused, Unavailable
from appliance.wire.abi import Role

RTMGRP_LINK = 0x1  # linux/rtnetlink.h
RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV6_IFADDR = 0x100
BROADCAST = "255.255.255.255"


@dataclass(frozen=True, slots=True)
class Fact:
    """Something to be put on record."""

    kind: str
    text: str
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Filters:
    """How the program is attached (appliance/wire/loader.py), by interface index."""

    attach: Callable[[int], None]
    attached: Callable[[int], bool]


class Interfaces:
    """The interfaces named in `settings`. `fileno()` is readable when something changed: then `news()`."""

    def __init__(self, settings: config.Wire) -> None:
        self.roles = roles(settings)
        self.indexes = {name: index for name in self.roles if (index := interface_index(name))}
        missing = [name for name in self.roles if name not in self.indexes]
        if missing:
            raise Unavailable(
                f"interface {', '.join(missing)}: does not exist; create it, or correct wire.agents and wire.upstream"
            )
        groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
        self._news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._news.setblocking(False)
        self._news.bind((0, groups))
        self._route = IPRoute()

    def fileno(self) -> int:
        return self._news.fileno()

    def close(self) -> None:
        self._news.close()
        self._route.close()

    def news(self) -> bool:
        """Whether links or addresses changed since the last call."""
        heard = False
        try:
            while self._news.recv(65536):
                heard = True
        except BlockingIOError:
            pass
        except OSError:  # overrun: something was missed
            heard = True
        return heard

    @property
    def agents(self) -> dict[str, int]:
        """Agent-facing interfaces that exist: name → index."""
        return {name: index for name, index in self.indexes.items() if self.roles[name] is Role.AGENT}

    def refresh(self) -> list[Fact]:
        """Look the names up again. What went and came is told."""
        facts = []
        for name in self.roles:
            index, before = interface_index(name), self.indexes.get(name)
            if index == before:
                continue
            if index is None:
                del self.indexes[name]
                facts.append(Fact("interface-lost", f"interface {name} is gone", {"interface": name}))
            else:
                self.indexes[name] = index
                facts.append(Fact("interface-found", f"interface {name} is there again", {"interface": name}))
        return facts

    def guard(self, filters: Filters) -> list[str]:
        """Attach the program wherever it is not; gives back the names of these interfaces. Raises `Unavailable`."""
        restored = []
        for name, index in self.indexes.items():
            try:
                if not filters.attached(index):
                    filters.attach(index)
                    restored.append(name)
            except (Unavailable, NetlinkError, OSError) as error:
                if interface_index(name) == index:  # else it vanished meanwhile, and the next look will tell
                    raise Unavailable(
                        f"interface {name}: the program cannot be attached: {error}; see its qdiscs"
                    ) from error
        return restored

    def addresses(self) -> frozenset[str]:
        """All addresses of this network namespace, with their broadcast addresses."""
        found = {BROADCAST}
        for message in self._route.get_addr():
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            found.update(value for value in (address, message.get_attr("IFA_BROADCAST")) if value)
        return frozenset(found)

    def behind(self, address: str) -> str:
        """The agent-facing interface that the kernel's routes lead to for `address`. `Refused`: it is another one."""
        index = None
        with contextlib.suppress(NetlinkError):
            for message in self._route.route("get", dst=address):
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


def interface_index(name: str) -> int | None:
    """None: there is no such interface now."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None
