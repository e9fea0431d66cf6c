"""Where agents' addresses are: behind which interface, and at which link-layer address.

Routes say behind which interface an address belongs; the program asks them of clients without a lease (IPv6 has no
rp_filter). A lease is bound to the link-layer address that the agent had when it was granted: the hosts of one subnet
could else borrow each other's addresses by ARP. From then on the gateway's own neighbour entry is permanent, so that
nobody else on the subnet can draw the agent's answers to itself. Entries bear a protocol number of ours (NDA_PROTOCOL),
by which those that a crash left are known and removed; an administrator's own are left alone.

An agent behind another router has no link-layer address of its own here: its router keeps such hosts apart.
"""

import socket
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance.errors import Refused, Unavailable

OURS = 0x56  # NDA_PROTOCOL; below 0x80 none is taken but those of routing daemons (linux/rtnetlink.h, RTPROT_*)
PERMANENT = 0x80  # linux/neighbour.h, NUD_*
KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | PERMANENT  # reachable, stale, delay, probe, no ARP
RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE = 0x40, 0x400  # linux/rtnetlink.h
RTN_UNICAST = 1
TABLE_LOCAL = 255
EVERYWHERE = {IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/64")}  # on every link: no interface's own

DEFAULT = {socket.AF_INET: str(IPv4Address(0)), socket.AF_INET6: "::"}

Network = IPv4Network | IPv6Network
Place = tuple[int, str]  # interface index, address


class Neighbours:
    """Routes and neighbour entries of this network namespace."""

    def __init__(self) -> None:
        self._route = IPRoute()
        self._news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._news.setblocking(False)
        self._news.bind((0, RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE))
        self._networks: dict[Network, int] | None = None

    def close(self) -> None:
        self._news.close()
        self._route.close()

    def networks(self) -> Mapping[Network, int]:
        """Network → index of the interface that the routes lead to; read again after a change of them."""
        if self._heard() or self._networks is None:
            self._networks = self._read()
        return self._networks

    def _heard(self) -> bool:
        heard = False
        try:
            while self._news.recv(65536):
                heard = True
        except BlockingIOError:
            pass
        except OSError:  # overrun: something was missed
            heard = True
        return heard

    def _read(self) -> dict[Network, int]:
        found: dict[Network, tuple[int, int]] = {}
        for message in self._route.get_routes():
            index = message.get_attr("RTA_OIF")
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
        """Make the neighbour entry permanent. Raises `Unavailable`."""
        index, address = place
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
            raise Unavailable(f"address {address}: no neighbour entry: {error}; run as root") from error

    def free(self, place: Place) -> None:
        """Let the kernel look for the neighbour again, whoever it will be."""
        index, address = place
        with suppress(NetlinkError):  # gone with its interface
            self._route.neigh("delete", family=_family(address), dst=address, ifindex=index)

    def reconcile(self, wanted: Mapping[Place, bytes]) -> None:
        """Have exactly these entries, as far as they are ours; an interface that went down lost them."""
        there: dict[Place, bytes] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in self._route.get_neighbours(family=family):
                if message["state"] & PERMANENT and message.get_attr("NDA_PROTOCOL") == OURS:
                    link = bytes.fromhex((message.get_attr("NDA_LLADDR") or "").replace(":", ""))
                    there[message["ifindex"], message.get_attr("NDA_DST")] = link
        for place, link in wanted.items():
            if there.get(place) != link:
                self.hold(place, link)
        for place in there.keys() - wanted.keys():
            self.free(place)


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def same_link(claimed: bytes | None, known: bytes, address: str) -> bytes:
    """`known`, the neighbour entry's, unless the agent's frames come from another one (`claimed`; None: not seen).

    Raises `Refused`: somebody between the two poses as the agent to the gateway.
    """
    if claimed and known and claimed != known:
        raise Refused(
            f"address {address}: its frames come from {claimed.hex(':')}, answers go to {known.hex(':')}; "
            "find out which host of the subnet claims the address"
        )
    return known
