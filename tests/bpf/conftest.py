from collections.abc import Iterator

import pytest

from appliance import config
from tests.bpf.bench import AGENT_MAC, UPSTREAM_MAC, Bench, Namespace
from tests.bpf.windows import A4, A6, RING


@pytest.fixture(scope="session")
def namespace() -> Iterator[Namespace]:
    space = Namespace()
    space.ip(
        "link",
        "add",
        "agents",
        "address",
        AGENT_MAC,
        "type",
        "veth",
        "peer",
        "name",
        "servers",
        "address",
        UPSTREAM_MAC,
    )
    yield space
    space.close()


@pytest.fixture
def bench(namespace: Namespace) -> Iterator[Bench]:
    """Interfaces with their roles; no lease, no rule."""
    made = Bench(namespace, namespace.index("agents"), namespace.index("servers"))
    yield made
    made.close()


@pytest.fixture
def open_bench(bench: Bench) -> Bench:
    """Two agents, of both families, with leases, and every destination open, echo too."""
    for number, address in enumerate(("10.0.1.5", "10.0.1.6", "fd00:1::5", "fd00:1::6"), 7):
        bench.lease(address, number)
    for to, icmp in (("0.0.0.0/0", 1), ("::/0", 58)):
        bench.rule(to)
        bench.rule(to, protocol=icmp, number=2)
    return bench


@pytest.fixture
def full(namespace: Namespace) -> Iterator[Bench]:
    """A bench whose ring keeps what is recorded, with leases and rules for everything, and no quota on its ring."""
    bench = Bench(
        namespace, namespace.index("agents"), namespace.index("servers"), config.Wire(ring_bytes=RING, max_flows=64)
    )
    for number, address in enumerate((A4, A6), 7):
        bench.lease(address, number)
    for to in ("0.0.0.0/0", "::/0"):
        bench.rule(to)
    bench.hold = True
    yield bench
    bench.close()
