"""Whether the kernel told of a change: a netlink socket (netlink(7)) of which only that it has something matters.

What changed is looked up where it stands, since news can be lost: an overrun is news as well.
"""

import socket

RTMGRP_LINK = 0x1  # groups of NETLINK_ROUTE (linux/rtnetlink.h)
RTMGRP_TC = 0x8
RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x10, 0x100
RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE = 0x40, 0x400


class News:
    """`protocol`: a netlink family; `groups`: mask of its multicast groups. `fileno()` is readable when there are any.

    Of the network namespace in which it was made. Raises `OSError`.
    """

    def __init__(self, protocol: int, groups: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setblocking(False)
            self._socket.bind((0, groups))
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def heard(self) -> bool:
        """Whether anything changed since the last call."""
        heard = False
        try:
            while self._socket.recv(65536):
                heard = True
        except BlockingIOError:
            pass
        except OSError:  # overrun: something was missed
            heard = True
        return heard
