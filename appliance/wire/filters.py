"""Attach the TC programs to interfaces, and look whether they are where every packet passes.

`bpf/wire.c` sits on arrival, `bpf/gate.c` on departure; both are filters of the interface's clsact qdisc (tc-bpf(8)),
the only ones of the first priority. A filter keeps the program that it was attached with until `attach` replaces it, in
one step.

What comes even before filters can only be told, not repaired: XDP programs, which may send a packet to another
interface past everything, and tcx programs (kernel 6.6), which may end the walk through the filters.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance.errors import Unavailable
from appliance.wire import bpf

ARPHRD_ETHER = 1  # linux/if_arp.h
CLSACT = "clsact"
TCX = {"arrival": 46, "departure": 47}  # BPF_TCX_INGRESS, BPF_TCX_EGRESS (linux/bpf.h)

_ETH_P_ALL = 3
_TCA_BPF_ID = 11
_PRIORITY = 1
_HANDLE = 1


@dataclass(frozen=True, slots=True)
class Place:
    """A hook of the clsact qdisc: its number as a filter's parent, and the name of our filter there."""

    parent: int
    name: str


ARRIVAL = Place(0xFFFFFFF2, "verbatim")
DEPARTURE = Place(0xFFFFFFF3, "verbatim_gate")


@dataclass(frozen=True, slots=True)
class Filter:
    """A loaded program and its place on interfaces. `id`: the kernel's number of it."""

    place: Place
    fd: int
    id: int


def attach(wanted: Filter, ifindex: int, netlink: IPRoute) -> None:
    """Make `wanted` the first filter of its place, instead of a former version or anything else of our priority.

    Fine when it already is. Raises `Unavailable`: no such interface, it is not Ethernet (the program would misread its
    packets), or what else is there cannot be removed.
    """
    try:
        links = netlink.get_links(ifindex)
        if not links or links[0]["ifi_type"] != ARPHRD_ETHER:
            name = links[0].get_attr("IFLA_IFNAME") if links else ifindex
            raise Unavailable(f"interface {name}: not an Ethernet interface; name Ethernet interfaces in [wire]")
        if _first(netlink, ifindex, wanted.place) == wanted.id:
            return
        try:
            _replace(wanted, ifindex, netlink)
        except (NetlinkError, FileExistsError):
            _clear(ifindex, netlink, wanted.place)
            _replace(wanted, ifindex, netlink)
        if _first(netlink, ifindex, wanted.place) != wanted.id:
            _clear(ifindex, netlink, wanted.place)  # what stands before it has its priority
            _replace(wanted, ifindex, netlink)
        if _first(netlink, ifindex, wanted.place) != wanted.id:
            raise Unavailable(f"interface {ifindex}: another filter comes before ours; remove it: tc filter show")
    except NetlinkError as error:
        reason = os.strerror(error.code)
        raise Unavailable(f"interface {ifindex}: {reason}; name existing interfaces in [wire], run as root") from error


def attached(wanted: Filter, ifindex: int, netlink: IPRoute) -> bool:
    """Does every packet that comes to this place go through this very program first, tcx and XDP aside?"""
    try:
        return _first(netlink, ifindex, wanted.place) == wanted.id
    except NetlinkError:
        return False


def detach(ifindex: int, netlink: IPRoute, places: Iterable[Place] = (ARRIVAL, DEPARTURE)) -> None:
    """Remove our filters, whatever stands before them. Fine when there are none, or no such interface."""
    for place in places:
        with contextlib.suppress(NetlinkError):
            if any(_is_ours(filter_, place) for filter_ in _filters(netlink, ifindex, place)):
                netlink.tc(
                    "del-filter", "bpf", ifindex, _HANDLE, parent=place.parent, prio=_PRIORITY, protocol=_ETH_P_ALL
                )


def present(ifindex: int, netlink: IPRoute) -> list[Place]:
    """Where our filters are on this interface, whichever program they have and whatever stands before them."""
    found = []
    for place in (ARRIVAL, DEPARTURE):
        with contextlib.suppress(NetlinkError):
            if any(_is_ours(filter_, place) for filter_ in _filters(netlink, ifindex, place)):
                found.append(place)
    return found


def strip(ifindex: int, netlink: IPRoute) -> bool:
    """Remove the clsact qdisc where it has no filter left; whether it did. Fine when there is none."""
    try:
        if not any(qdisc.get_attr("TCA_KIND") == CLSACT for qdisc in netlink.get_qdiscs(ifindex)):
            return False
        if any(netlink.get_filters(ifindex, parent=place.parent) for place in (ARRIVAL, DEPARTURE)):
            return False
        netlink.tc("del", CLSACT, ifindex)
    except NetlinkError:  # it is gone
        return False
    return True


def before(ifindex: int, netlink: IPRoute) -> str:
    """What gets the interface's packets before (XDP, tcx) our filters do, in words; empty: nothing."""
    found = []
    try:
        for link in netlink.get_links(ifindex):
            xdp = link.get_attr("IFLA_XDP")
            if xdp is not None and xdp.get_attr("IFLA_XDP_ATTACHED"):
                found.append(f"XDP program {xdp.get_attr('IFLA_XDP_PROG_ID')}")
    except NetlinkError:
        return ""  # it is gone
    for when, kind in TCX.items():
        found += [f"tcx program {program} on {when}" for program in bpf.programs_at(ifindex, kind)]
    return ", ".join(found)


def _replace(wanted: Filter, ifindex: int, netlink: IPRoute) -> None:
    with contextlib.suppress(FileExistsError, NetlinkError):  # there is a clsact: what follows says what fails
        netlink.tc("add", CLSACT, ifindex)
    netlink.tc(
        "replace-filter",
        "bpf",
        ifindex,
        _HANDLE,
        fd=wanted.fd,
        name=wanted.place.name,
        parent=wanted.place.parent,
        prio=_PRIORITY,
        protocol=_ETH_P_ALL,
        direct_action=True,
    )


def _clear(ifindex: int, netlink: IPRoute, place: Place) -> None:
    """Remove all filters of our priority; an ingress qdisc, which has no departure, goes as a whole."""
    for kind, protocol in sorted({(kind, protocol) for kind, protocol, *_ in _filters(netlink, ifindex, place)}):
        with contextlib.suppress(NetlinkError):
            netlink.tc("del-filter", kind, ifindex, 0, parent=place.parent, prio=_PRIORITY, protocol=protocol)
    for qdisc in netlink.get_qdiscs(ifindex):
        if qdisc.get_attr("TCA_KIND") == "ingress":
            with contextlib.suppress(NetlinkError):
                netlink.tc("del", "ingress", ifindex)


def _filters(netlink: IPRoute, ifindex: int, place: Place) -> Iterator[tuple[str, int, int, Any]]:
    """Kind, protocol, handle and options of what has our priority or is asked before, in that order."""
    for message in netlink.get_filters(ifindex, parent=place.parent):
        if message["info"] >> 16 <= _PRIORITY:
            protocol = socket.ntohs(message["info"] & 0xFFFF)
            yield message.get_attr("TCA_KIND"), protocol, message["handle"], message.get_attr("TCA_OPTIONS")


def _first(netlink: IPRoute, ifindex: int, place: Place) -> int | None:
    """The id of the program in our filter's place. A filter before it would show as another one: then None."""
    for kind, protocol, handle, options in _filters(netlink, ifindex, place):
        if options is None:  # the head of a priority
            continue
        if not _is_ours((kind, protocol, handle, options), place):
            return None
        return next((_number(slot.nla) for slot in options["attrs"] if slot.nla["header"]["type"] == _TCA_BPF_ID), None)
    return None


def _is_ours(filter_: tuple[str, int, int, Any], place: Place) -> bool:
    *what, options = filter_
    if what != ["bpf", _ETH_P_ALL, _HANDLE] or options is None:
        return False
    return bool(options.get_attr("TCA_BPF_NAME") == place.name)


def _number(attribute: Any) -> int:
    """A u32 that pyroute2 has no name for: behind the attribute's header of 4 bytes."""
    return int(struct.unpack_from("<I", attribute.data, attribute.offset + 4)[0])
