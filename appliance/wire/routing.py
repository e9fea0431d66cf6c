"""The way from the program to a relay's socket: rules and routes that deliver what it steered to this machine.

    ip rule add iif agents0 fwmark 0x56420003 lookup 22082        ip route add local default dev lo table 22082

For IPv4 and IPv6, and only while some rule has the lane relay: rules of one's own cost each forwarded packet a little.
A rule for each interface: what the gateway sends itself is never routed by it, whatever sysctl gives the mark to
answers (tcp_fwmark_accept) or to the check of sources (src_valid_mark). Without these a steered packet is not
delivered, and as its hop limit is used up, not forwarded either: connections stall until they are put back.

What bears our protocol number (FRA_PROTOCOL, RTA's rtm_protocol) is ours, other rules and tables are none of ours.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance.errors import Unavailable
from appliance.identity.leases import Now
from appliance.wire.abi import MARK_STEERED
from appliance.wire.faults import Faults
from appliance.wire.neighbours import OURS
from appliance.wire.news import RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE, News

TABLE = 0x5642  # of routes; no other program's, as far as is known
PRIORITY = 86  # of rules: behind the local table (0), before what administrators use to add
MASK = 0xFFFFFFFF
RTMGRP_IPV4_RULE, RTMGRP_IPV6_RULE = 1 << 7, 1 << 18  # groups 8 and 19 (linux/rtnetlink.h)
LOOPBACK = 1  # index of lo in every network namespace
RTN_LOCAL, SCOPE_HOST = 2, 254
NO_IPV6 = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")

Rule = tuple[int, str]  # family, interface


class Routing:
    """Of this network namespace. `interfaces`: where steered packets come from; none: nothing is steered.

    `fileno()` is readable when some rule or route changed: then call `guard`.
    """

    def __init__(self, interfaces: Sequence[str], faults: Faults) -> None:
        self._interfaces = tuple(interfaces)
        self._faults = faults
        self._route = IPRoute()
        groups = RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE | RTMGRP_IPV4_RULE | RTMGRP_IPV6_RULE
        self._news = News(socket.NETLINK_ROUTE, groups)
        self._stands = False
        self._begun = False
        self._missing = ""  # why it could not be put back

    def fileno(self) -> int:
        return self._news.fileno()

    def close(self) -> None:
        """Stop watching. Rules and routes stay."""
        self._news.close()
        self._route.close()

    def guard(self, now: Now) -> None:
        """See that rules and routes are there, and none of ours that should not be."""
        if not self._news.heard() and self._stands:
            return
        try:
            changed = self._reconcile()
            self._news.heard()  # of what was just done
            if changed and self._begun:
                text = "rules or routes that lead steered packets to relays were gone or changed"
                self._faults.repaired("steering-restored", text, now)
            self._missing, self._begun, self._stands = "", True, True
        except (NetlinkError, OSError) as error:
            self._stands = False
            self._missing = os.strerror(error.code) if isinstance(error, NetlinkError) else str(error)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Name and text of what is wrong."""
        if self._missing:
            yield (
                "steering-missing",
                f"rules or routes for relays cannot be put back ({self._missing}), relayed connections stall; see "
                f"ip rule, ip route show table {TABLE}",
            )

    def _reconcile(self) -> bool:
        """Whether anything had to be changed."""
        families = _families() if self._interfaces else ()
        wanted = {(family, name) for family in families for name in self._interfaces}
        changed = False
        there: set[Rule] = set()
        for family, message in _rules(self._route):
            rule = (family, str(message.get_attr("FRA_IIFNAME")))
            if rule in wanted and rule not in there and _is_right(message):
                there.add(rule)
            else:
                _delete_rule(self._route, family, message)
                changed = True
        for family in (socket.AF_INET, socket.AF_INET6):
            found = _routes(self._route, family)
            if family in families and not found:
                _add_route(self._route, family)
                changed = True
            elif found and family not in families:
                _delete_routes(self._route, family)
                changed = True
        for family, name in sorted(wanted - there):
            self._route.rule(
                "add",
                family=family,
                priority=PRIORITY,
                fwmark=MARK_STEERED,
                fwmask=MASK,
                iifname=name,
                table=TABLE,
                protocol=OURS,
            )
            changed = True
        return changed


def present(netlink: IPRoute) -> bool:
    """Whether there are rules or routes of ours, right or not."""
    return any(_rules(netlink)) or any(_routes(netlink, family) for family in (socket.AF_INET, socket.AF_INET6))


def remove(netlink: IPRoute) -> None:
    """Remove rules and routes of ours. Raises `Unavailable`."""
    try:
        for family, message in list(_rules(netlink)):
            _delete_rule(netlink, family, message)
        for family in (socket.AF_INET, socket.AF_INET6):
            _delete_routes(netlink, family)
    except NetlinkError as error:
        reason = os.strerror(error.code)
        raise Unavailable(f"routing: {reason}; run as root, see ip rule and ip route show table {TABLE}") from error


def _families() -> tuple[socket.AddressFamily, ...]:
    """Those that the loopback interface has; without IPv6 there is nothing to steer."""
    with suppress(OSError):
        if NO_IPV6.read_text("ascii").strip() == "0":
            return socket.AF_INET, socket.AF_INET6
    return (socket.AF_INET,)


def _rules(netlink: IPRoute) -> Iterator[tuple[int, Any]]:
    """Rules of ours, of both families."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in netlink.get_rules(family=family):
            if message["family"] == family and message.get_attr("FRA_PROTOCOL") == OURS:
                yield family, message


def _is_right(message: Any) -> bool:
    said = [message.get_attr(name) for name in ("FRA_PRIORITY", "FRA_FWMARK", "FRA_FWMASK", "FRA_TABLE")]
    others = [message.get_attr(name) for name in ("FRA_SRC", "FRA_DST", "FRA_OIFNAME", "FRA_IP_PROTO", "FRA_L3MDEV")]
    return said == [PRIORITY, MARK_STEERED, MASK, TABLE] and not any(others) and not message["flags"] & 2  # invert


def _delete_rule(netlink: IPRoute, family: int, message: Any) -> None:
    named = {"priority": "FRA_PRIORITY", "table": "FRA_TABLE", "fwmark": "FRA_FWMARK", "iifname": "FRA_IIFNAME"}
    values = {key: value for key, name in named.items() if (value := message.get_attr(name)) is not None}
    netlink.rule("delete", family=family, protocol=OURS, **values)


def _routes(netlink: IPRoute, family: int) -> list[Any]:
    return [
        message
        for message in netlink.get_routes(family=family, table=TABLE)
        if message["proto"] == OURS and message["dst_len"] == 0 and message["type"] == RTN_LOCAL
    ]


def _add_route(netlink: IPRoute, family: int) -> None:
    everywhere = "0.0.0.0/0" if family == socket.AF_INET else "::/0"
    netlink.route(
        "replace",
        family=family,
        dst=everywhere,
        oif=LOOPBACK,
        table=TABLE,
        type=RTN_LOCAL,
        scope=SCOPE_HOST if family == socket.AF_INET else 0,
        proto=OURS,
    )


def _delete_routes(netlink: IPRoute, family: int) -> None:
    everywhere = "0.0.0.0/0" if family == socket.AF_INET else "::/0"
    for _ in _routes(netlink, family):
        netlink.route(
            "delete", family=family, dst=everywhere, oif=LOOPBACK, table=TABLE, type=RTN_LOCAL, proto=OURS,
            scope=SCOPE_HOST if family == socket.AF_INET else 0,
        )  # fmt: skip
