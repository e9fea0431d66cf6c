"""Which addresses are no server's: the gateway's own, all of them, and those that stand for one."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable

import pytest

from appliance.relay import dial
from appliance.relay.failure import Failure
from tests.lab.net import CLONE_NEWNET

OWN = ("192.0.2.1/24", "192.0.2.2/24", "198.51.100.9/32", "2001:db8::1/64", "2001:db8::2/64")


def apart(work: Callable[[], None]) -> None:
    """Run it in a thread with a network of its own."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            subprocess.run(["ip", "link", "add", "vb-dial", "type", "veth", "peer", "name", "vb-dial-peer"], check=True)
            for name in ("lo", "vb-dial", "vb-dial-peer"):
                subprocess.run(["ip", "link", "set", name, "up"], check=True)
            for address in OWN:
                nodad = ("nodad",) if ":" in address else ()
                subprocess.run(["ip", "address", "add", address, "dev", "vb-dial", *nodad], check=True)
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not failures, failures


def refused(*addresses: str) -> Callable[[], None]:
    def work() -> None:
        for address in addresses:
            with pytest.raises(Failure, match=rf"{address} is (the gateway itself|no address of a server)"):
                dial.check(address)

    return work


def test_every_address_of_the_gateway_is_its_own() -> None:
    """Also those that it would not speak from."""
    apart(refused(*(address.partition("/")[0] for address in OWN), "::ffff:192.0.2.2"))


def test_what_stands_for_another_address_is_judged_as_that() -> None:
    apart(
        refused(
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b::192.0.2.1",
            "2002:c000:0201::1",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "::",
            "fe80::1",
            "ff02::1",
        )
    )


def test_other_servers_pass() -> None:
    def work() -> None:
        for address in ("192.0.2.3", "203.0.113.1", "2001:db8::3", "64:ff9b::203.0.113.1"):
            dial.check(address)

    apart(work)
