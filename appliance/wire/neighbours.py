"""Where agents' addresses are: behind which interface, and at which link-layer address.

Routes say behind which interface an address belongs; the program asks them of clients without a lease (IPv6 has no
rp_filter). A lease is bound to the link-layer address that the agent had when it was granted: the hosts of one subnet
could else borrow each other's addresses by ARP. From then on the gateway's own neighbour entry is permanent, so that
nobody else on the subnet can draw the agent's answers to itself. Entries bear a protocol number of ours (NDA_PROTOCOL),
by which those that a crash left are known and removed. A permanent entry of the administrator's does as well, and is
left alone; where it is of another link-layer address than the lease, nothing is held and the conflict is named.

An agent behind another router has no link-layer address of its own here: its router keeps such hosts apart. A network
to which several routers lead (ECMP) is behind the interface that they share. Where they are behind different ones, no
interface is right for all of its packets, as leases have one interface too: it is behind none, and its sources are
refused as spoofed, as a whole instead of by the chance of a hash.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance.errors import Unavailable
from appliance.wire.news import RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE, RTMGRP_LINK, News

OURS = 0x56  # NDA_PROTOCOL; below 0x80 none is taken but those of routing daemons (linux/rtnetlink.h, RTPROT_*)
PERMANENT = 0x80  # linux/neighbour.h, NUD_*
KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | PERMANENT  # reachable, stale, delay, probe, no ARP
RTN_UNICAST = 1
RTNH_F_DEAD = 1  # of a next hop that is not used
NO_INTERFACE = 0  # no index of any
TABLE_LOCAL = 255
EVERYWHERE = {IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/64")}  # on every link: no interface's own

DEFAULT = {socket.AF_INET: str(IPv4Address(0)), socket.AF_INET6: "::"}

MAX_TOLD = 4  # entries that cannot be held, in one text

Network = IPv4Network | IPv6Network
Place = tuple[int, str]  # interface index, address


@dataclass(frozen=True, slots=True)
class Entry:
    """A permanent neighbour entry: its link-layer address, and whether we made it."""

    link: bytes
    ours: bool


class Neighbours:
    """Routes and neighbour entries of this network namespace."""

    def __init__(self) -> None:
        self._route = IPRoute()
        # Of IPv4 routes that go with a link the kernel tells nothing but that the link went.
        self._news = News(socket.NETLINK_ROUTE, RTMGRP_LINK | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE)
        self._networks: dict[Network, int] | None = None
        self._again = False

    def close(self) -> None:
        self._news.close()
        self._route.close()

    def networks(self) -> Mapping[Network, int]:
        """Network → index of the interface that the routes lead to, or `NO_INTERFACE`; read again after a change.

        And once more at the next call: a link that goes down is told of before its routes are gone.
        """
        heard = self._news.heard()
        if heard or self._again or self._networks is None:
            self._networks = self._read()
        self._again = heard
        return self._networks

    def _read(self) -> dict[Network, int]:
        found: dict[Network, tuple[int, int]] = {}
        for message in self._route.get_routes():
            index = _behind(message)
            table = message.get_attr("RTA_TABLE") or message["table"]
            if index is None or message["type"] != RTN_UNICAST or table == TABLE_LOCAL:
                continue
            address = message.get_attr("RTA_DST") or DEFAULT.get(message["family"])
            if address is None:
                continue
            network = ip_network(f"{address}/{message['dst_len']}", strict=False)
            metric = message.get_attr("RTA_PRIORITY") or 0
            if network not in EVERYWHERE and (network not in found or metric < found[network][0]):
                found[network] = metric, index
        return {network: index for network, (_, index) in found.items()}

    def link(self, address: str, index: int) -> bytes:
        """The link-layer address of an agent, 6 bytes; none (b"") for one behind another router.

        Raises `Unavailable`: the kernel does not know it now.
        """
        for message in self._route.route("get", dst=address):
            if message.get_attr("RTA_GATEWAY") or message.get_attr("RTA_VIA"):
                return b""
        with suppress(NetlinkError):
            for message in self._route.neigh("get", family=_family(address), dst=address, ifindex=index):
                found = message.get_attr("NDA_LLADDR")
                if found and message["state"] & KNOWN:
                    return bytes.fromhex(found.replace(":", ""))
        raise Unavailable(f"address {address}: its link-layer address is not known; let the agent ask again")

    def hold(self, place: Place, link: bytes) -> None:
        """Make the neighbour entry permanent, or find that it is. Raises `Unavailable`."""
        index, address = place
        entry = self._entry(place)
        if entry is not None and not entry.ours:
            if entry.link == link:
                return
            raise Unavailable(
                f"address {address}: its host is at {entry.link.hex(':')} for good, says a neighbour entry that is not "
                f"ours, but its lease is bound to {link.hex(':')}; remove or correct it (ip neigh show nud permanent)"
            )
        try:
            self._route.neigh(
                "replace",
                family=_family(address),
                dst=address,
                ifindex=index,
                lladdr=link.hex(":"),
                state=PERMANENT,
                NDA_PROTOCOL=OURS,
            )
        except NetlinkError as error:
            raise Unavailable(
                f"address {address}: no neighbour entry on interface {index}: {os.strerror(error.code)}; run as root, "
                "and see that the interface is up and speaks IP of that version (ip addr, sysctl disable_ipv6)"
            ) from error

    def free(self, place: Place) -> None:
        """Let the kernel look for the neighbour again, whoever it will be, unless the entry is not ours."""
        index, address = place
        entry = self._entry(place)
        if entry is not None and entry.ours:
            with suppress(NetlinkError):  # gone with its interface
                self._route.neigh("delete", family=_family(address), dst=address, ifindex=index)

    def reconcile(self, wanted: Mapping[Place, bytes]) -> None:
        """Have exactly these entries, as far as they are ours; an interface that went down lost them.

        Raises `Unavailable` with all that could not be held, after all the rest was done.
        """
        there = self.permanent()
        failing = []
        for place, link in wanted.items():
            entry = there.get(place)
            if entry is None or entry.link != link:
                try:
                    self.hold(place, link)
                except Unavailable as error:
                    failing.append(str(error))
        for place, entry in there.items():
            if entry.ours and place not in wanted:
                self.free(place)
        if failing:
            more = f"; and {len(failing) - MAX_TOLD} more" if len(failing) > MAX_TOLD else ""
            raise Unavailable("; ".join(failing[:MAX_TOLD]) + more)

    def permanent(self) -> dict[Place, Entry]:
        """All permanent neighbour entries, ours and others."""
        return {
            (message["ifindex"], str(message.get_attr("NDA_DST"))): entry
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in self._route.get_neighbours(family=family)
            if (entry := _permanent(message)) is not None
        }

    def _entry(self, place: Place) -> Entry | None:
        """The permanent entry of this place; None: there is none."""
        index, address = place
        with suppress(NetlinkError):
            for message in self._route.neigh("get", family=_family(address), dst=address, ifindex=index):
                return _permanent(message)
        return None


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _permanent(message: Any) -> Entry | None:
    """What a netlink message says of a neighbour (linux/neighbour.h); None: the entry is not permanent."""
    if not message["state"] & PERMANENT:
        return None
    link = bytes.fromhex((message.get_attr("NDA_LLADDR") or "").replace(":", ""))
    return Entry(link, message.get_attr("NDA_PROTOCOL") == OURS)


def _behind(route: Any) -> int | None:
    """The interface of a route's next hops, `NO_INTERFACE` for several; None: it leads nowhere."""
    indexes = set(_hops(route))
    return NO_INTERFACE if len(indexes) > 1 else next(iter(indexes), None)


def _hops(route: Any) -> Iterator[int]:
    if (index := route.get_attr("RTA_OIF")) is not None:
        yield index
    for hop in route.get_attr("RTA_MULTIPATH") or ():
        if not hop["flags"] & RTNH_F_DEAD:
            yield hop["oif"]
