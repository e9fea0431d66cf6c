from collections.abc import Iterator

import pytest

from tests.bpf.bench import AGENT_MAC, UPSTREAM_MAC, Bench, Namespace


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
