"""A small gateway for each file: Bob's host has leases, the thief's has none."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.evasion.subnet import BOB, OPEN, Cable, Subnet, grant
from tests.wire.net import Wire


@pytest.fixture(scope="module")
def net() -> Iterator[Subnet]:
    with Subnet() as net:
        yield net


@pytest.fixture(scope="module")
def wire(net: Subnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    wire = Wire(net, tmp_path_factory.mktemp("evasion"), rules=OPEN, bind="")
    wire.wire = "refusal_rate = 100000\n"
    try:
        wire.start()
        grant(wire, net, net.agent, BOB)
        yield wire
    finally:
        wire.teardown()


@pytest.fixture
def agent(net: Subnet, wire: Wire) -> Iterator[Cable]:
    with closing(Cable(net, net.agent)) as cable:
        yield cable


@pytest.fixture
def thief(net: Subnet, wire: Wire) -> Iterator[Cable]:
    with closing(Cable(net, net.thief)) as cable:
        yield cable
