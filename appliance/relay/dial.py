"""Connections to servers: from which address, within what time, and counted by the kernel from the first packet on."""

import asyncio
import errno
import os
import socket
from ipaddress import ip_address
from typing import Final, Protocol

from appliance.relay.failure import Failure
from appliance.relay.leg import Leg

IP_TRANSPARENT: Final = 19  # linux/in.h
IPV6_TRANSPARENT: Final = 75  # linux/in6.h
TRIES: Final = 3  # with another port each, where the chosen one is taken


class Legs(Protocol):
    """What the kernel is told of connections to servers (wire/steering.py)."""

    def put_leg(
        self, client: str, client_port: int, server: str, server_port: int, *, transparent: bool, unbound: bool
    ) -> None: ...


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
    """No rule makes the gateway itself a server: raises `Failure` for its own addresses, and for what is none."""
    server = ip_address(address)
    if server.is_loopback or server.is_unspecified or server.is_multicast or server.is_link_local:
        raise Failure("refused-by-rule", f"{address} is no address of a server")
    try:
        own = own_address(address, 9)
    except OSError:
        return  # there is no way to it at all, which connecting will tell
    if ip_address(own) == server:
        raise Failure("refused-by-rule", f"{address} is the gateway itself")


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
        sock = socket.socket(family_of(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if source:
                transparent(sock)
            local = source or own_address(address, port)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((local, 0))
            if kernel is not None:
                own = sock.getsockname()[1]
                kernel.put_leg(local, own, address, port, transparent=bool(source), unbound=unbound)
            async with asyncio.timeout(seconds):
                await loop.sock_connect(sock, (address, port))
            return Leg(loop, sock)
        except TimeoutError as error:
            sock.close()
            raise Failure("time-out", f"{address} port {port}: no answer within {seconds:g} s") from error
        except OSError as error:
            sock.close()
            if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE) and left:
                continue
            raise Failure("unreachable", f"{address} port {port}: {os.strerror(error.errno or 0)}") from error
        except BaseException:
            sock.close()
            raise
    raise Failure("unreachable", f"{address} port {port}: no free port")


async def resolve(loop: asyncio.AbstractEventLoop, host: str, port: int, seconds: float) -> list[str]:
    """The addresses of a host, in the system's order. Raises `Failure`."""
    try:
        return [str(ip_address(host.strip("[]")))]
    except ValueError:
        pass
    try:
        async with asyncio.timeout(seconds):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise Failure("time-out", f"{host}: its name was not resolved within {seconds:g} s") from error
    except (OSError, UnicodeError) as error:
        raise Failure("unreachable", f"{host}: its name cannot be resolved") from error
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
