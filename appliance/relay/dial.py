"""Connections to servers: from which address, within what time, and counted by the kernel from the first packet on."""

import asyncio
import errno
import os
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Protocol

from appliance.errors import VerbatimError
from appliance.relay.failure import Failure
from appliance.relay.leg import Leg

IP_TRANSPARENT: Final = 19  # linux/in.h
IPV6_TRANSPARENT: Final = 75  # linux/in6.h
_THIS_NETWORK: Final = IPv4Network("0.0.0.0/8")  # RFC 1122 §3.2.1.3
_BROADCAST: Final = IPv4Address("255.255.255.255")
_NAT64: Final = IPv6Network("64:ff9b::/96")
TRIES: Final = 3  # with another port each, where the chosen one is taken


class Legs(Protocol):
    """What the kernel is told of connections to servers (wire/steering.py)."""

    def put_leg(
        self, client: str, client_port: int, server: str, server_port: int, *, transparent: bool, unbound: bool
    ) -> None: ...

    def take_leg(self, client: str, client_port: int, server: str, server_port: int) -> dict[str, int] | None: ...


def transparent(sock: socket.socket) -> None:
    """Let the socket have addresses that are not this machine's. Raises `PermissionError` without CAP_NET_ADMIN."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET


def own_address(address: str, port: int) -> str:
    """The address that the gateway would speak from to this server. Raises `OSError` without a route."""
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as probe:
        probe.connect((address, port or 9))
        return str(probe.getsockname()[0])


def check(address: str) -> None:
    """No rule makes the gateway itself a server: raises `Failure` for its own addresses, and for what is none.

    An address that stands for another one of IPv4 is judged as that too: mapped (RFC 4291), NAT64 (RFC 6052), 6to4
    (RFC 3056).
    """
    for server in _meant(ip_address(address)):
        if any((server.is_loopback, server.is_unspecified, server.is_multicast, server.is_link_local)) or (
            server in _THIS_NETWORK or server == _BROADCAST
        ):
            raise Failure("refused-by-rule", f"{address} is no address of a server")
        if _is_own(server):
            raise Failure("refused-by-rule", f"{address} is the gateway itself")


def _meant(server: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    if isinstance(server, IPv4Address):
        return [server]
    inner = server.ipv4_mapped or server.sixtofour
    if server in _NAT64:
        inner = IPv4Address(server.packed[12:])
    return [server] if inner is None else [server, inner]


def _is_own(server: IPv4Address | IPv6Address) -> bool:
    """Only an address of its own can be bound, whichever interface has it (ip(7); where ip_nonlocal_bind is set, any
    can, and nothing is dialled by name). Raises `Failure` where that cannot be told."""
    try:
        with socket.socket(family_of(str(server)), socket.SOCK_DGRAM) as probe:
            probe.bind((str(server), 0))
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT):
            return False
        raise Failure("unreachable", f"{server}: {error.strerror}") from error
    return True


async def connect(
    loop: asyncio.AbstractEventLoop,
    address: str,
    port: int,
    source: str,
    kernel: Legs | None,
    seconds: float,
    *,
    unbound: bool = False,
) -> Leg:
    """Connect to a server, from `source` ("": the gateway's own address). `unbound`: a server among the agents needs no
    lease. Raises `Failure`."""
    for left in reversed(range(TRIES)):
        sock, taken = None, 0
        try:
            sock = socket.socket(family_of(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            if source:
                transparent(sock)
            local = source or own_address(address, port)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((local, 0))
            if kernel is not None:
                taken = sock.getsockname()[1]
                kernel.put_leg(local, taken, address, port, transparent=bool(source), unbound=unbound)
            async with asyncio.timeout(seconds):
                await loop.sock_connect(sock, (address, port))
            return Leg(loop, sock)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if kernel is not None and taken:  # the kernel's table has an end
                with suppress(OSError, LookupError, VerbatimError):
                    kernel.take_leg(local, taken, address, port)
            if isinstance(error, TimeoutError):
                raise Failure("time-out", f"{address} port {port}: no answer within {seconds:g} s") from error
            if isinstance(error, VerbatimError):
                raise Failure("unreachable", f"{address} port {port}: {error}") from error
            if not isinstance(error, OSError):
                raise
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE) or not left:
                raise Failure("unreachable", f"{address} port {port}: {os.strerror(error.errno or 0)}") from error
    raise Failure("unreachable", f"{address} port {port}: no free port")
