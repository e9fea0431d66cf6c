"""Filters are really in the packets' way, and first; what cannot be first is told."""

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from appliance.errors import Unavailable
from appliance.wire import bpf, filters
from appliance.wire.filters import ARRIVAL, DEPARTURE, Filter, Place
from tests.bpf.bench import Namespace

LOOPBACK = 1
PASS = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
PLACES = {ARRIVAL: "ingress", DEPARTURE: "egress"}


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    space = Namespace()
    yield space
    space.close()


@pytest.fixture
def index(namespace: Namespace) -> Iterator[int]:
    """A fresh interface."""
    namespace.ip("link", "add", "wire0", "type", "veth", "peer", "name", "wire1")
    yield namespace.index("wire0")
    namespace.run(lambda: subprocess.run(["ip", "link", "del", "wire0"], check=False, capture_output=True))


@pytest.fixture(params=[ARRIVAL, DEPARTURE], ids=["arrival", "departure"])
def place(request: pytest.FixtureRequest) -> Place:
    assert isinstance(request.param, Place)
    return request.param


def program(place: Place) -> Filter:
    fd = bpf.load_program(PASS, "ours")
    return Filter(place, fd, bpf.program_id(fd))


@pytest.fixture
def ours(place: Place) -> Filter:
    return program(place)


def with_netlink(namespace: Namespace, function: Callable[[IPRoute], bool | str | None]) -> bool | str | None:
    def inside() -> bool | str | None:
        with IPRoute() as netlink:
            return function(netlink)

    return namespace.run(inside)


def is_first(namespace: Namespace, ours: Filter, index: int) -> bool:
    return bool(with_netlink(namespace, lambda netlink: filters.attached(ours, index, netlink)))


def attach(namespace: Namespace, ours: Filter, index: int) -> None:
    with_netlink(namespace, lambda netlink: filters.attach(ours, index, netlink))


def tc(namespace: Namespace, *command: str) -> str:
    done = namespace.run(lambda: subprocess.run(["tc", *command], capture_output=True, text=True, check=True))
    return done.stdout


def test_attach_and_detach(namespace: Namespace, ours: Filter, index: int) -> None:
    where = PLACES[ours.place]
    assert not is_first(namespace, ours, index)
    for _ in range(2):
        attach(namespace, ours, index)
        assert is_first(namespace, ours, index)
    shown = tc(namespace, "filter", "show", "dev", "wire0", where)
    assert shown.count("direct-action") == 1
    assert "protocol all pref 1" in shown
    assert f"id {ours.id} " in shown
    for _ in range(2):
        with_netlink(namespace, lambda netlink: filters.detach(index, netlink))
        assert not is_first(namespace, ours, index)
    assert tc(namespace, "filter", "show", "dev", "wire0", where) == ""


def test_attach_replaces_a_former_program(namespace: Namespace, ours: Filter, index: int) -> None:
    newer = program(ours.place)
    attach(namespace, ours, index)
    assert not is_first(namespace, newer, index)
    attach(namespace, newer, index)
    assert is_first(namespace, newer, index)
    assert not is_first(namespace, ours, index)


@pytest.fixture
def stranger() -> Iterator[str]:
    """Another program, which lets everything pass, as tc(8) takes it."""
    pin = Path("/sys/fs/bpf") / f"vb-stranger-{os.getpid()}"
    bpf.pin(bpf.load_program(PASS, "stranger"), pin)
    yield str(pin)
    pin.unlink()


@pytest.mark.parametrize("handle", ["1", "2"], ids=["instead", "beside"])  # cls_bpf asks the newest of a priority first
def test_a_filter_that_somebody_put_before_it_shows_and_goes(
    namespace: Namespace, ours: Filter, index: int, handle: str, stranger: str
) -> None:
    attach(namespace, ours, index)
    place = ["dev", "wire0", PLACES[ours.place], "pref", "1", "handle", handle]
    tc(namespace, "filter", "replace", *place, "bpf", "da", "object-pinned", stranger)
    assert not is_first(namespace, ours, index)
    attach(namespace, ours, index)
    assert is_first(namespace, ours, index)


@pytest.mark.parametrize("qdisc", ["clsact", "ingress"])
def test_what_somebody_put_in_its_place_goes(
    namespace: Namespace, ours: Filter, index: int, qdisc: str, stranger: str
) -> None:
    attach(namespace, ours, index)
    tc(namespace, "qdisc", "del", "dev", "wire0", "clsact")
    assert not is_first(namespace, ours, index)
    tc(namespace, "qdisc", "add", "dev", "wire0", qdisc)
    if qdisc == "clsact":
        place = ["dev", "wire0", PLACES[ours.place], "protocol", "ip", "pref", "1"]
        tc(namespace, "filter", "add", *place, "bpf", "da", "object-pinned", stranger)
    attach(namespace, ours, index)
    assert is_first(namespace, ours, index)


def test_what_comes_before_filters_is_told(namespace: Namespace, index: int) -> None:
    pin = Path("/sys/fs/bpf") / f"vb-xdp-{os.getpid()}"
    bpf.pin(bpf.load_program(bytes.fromhex("b700000002000000 9500000000000000"), "stranger", kind=bpf.XDP), pin)
    try:
        assert with_netlink(namespace, lambda netlink: filters.before(index, netlink)) == ""
        namespace.ip("link", "set", "dev", "wire0", "xdpgeneric", "pinned", str(pin))
        assert "XDP program" in str(with_netlink(namespace, lambda netlink: filters.before(index, netlink)))
    finally:
        pin.unlink()


def test_a_tcx_program_before_filters_is_told(namespace: Namespace, place: Place, index: int) -> None:
    fd = bpf.load_program(PASS, "stranger")
    kind = filters.TCX["arrival" if place is ARRIVAL else "departure"]
    with suppress(OSError):  # before 6.6 there is no such hook
        link, _ = bpf._call(28, "LINK_CREATE", struct.pack("<4I6Q", fd, index, kind, 0, 0, 0, 0, 0, 0, 0))
        told = str(with_netlink(namespace, lambda netlink: filters.before(index, netlink)))
        os.close(link)
        assert told == f"tcx program {bpf.program_id(fd)} on {'arrival' if place is ARRIVAL else 'departure'}"
    assert with_netlink(namespace, lambda netlink: filters.before(index, netlink)) == ""


def test_interfaces_that_cannot_be(namespace: Namespace, ours: Filter, index: int) -> None:
    with pytest.raises(Unavailable, match="interface lo: not an Ethernet interface"):
        attach(namespace, ours, LOOPBACK)
    with pytest.raises(Unavailable, match="interface 999: No such device"):
        attach(namespace, ours, 999)
    namespace.ip("link", "del", "wire0")
    assert not is_first(namespace, ours, index)
    with_netlink(namespace, lambda netlink: filters.detach(index, netlink))
