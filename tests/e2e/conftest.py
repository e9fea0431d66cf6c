"""One lab with one appliance for all end-to-end tests. Each test takes its own leases under its own run id."""

from collections.abc import Callable, Iterator

import pytest

from tests.lab import Lab
from tests.lab.appliance import Appliance, literal
from tests.lab.task import Task


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def appliance(lab: Lab) -> Iterator[Appliance]:
    with Appliance(lab, lab.folder / "data") as appliance:
        yield appliance


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    """A name for the test's own sessions: letters, digits and dashes."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.fixture
def task(appliance: Appliance, lab: Lab, run_id: str) -> Iterator[Task]:
    """Agent 1 with a lease for `agent-one`."""
    with Task(appliance, 1, lab.token("agent-one"), run_id) as task:
        yield task


@pytest.fixture(params=[0, 1], ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> int:
    """Index into the pair of addresses that every host of the lab has."""
    return int(request.param)


Url = Callable[[str], str]


@pytest.fixture
def url(lab: Lab, family: int) -> Url:
    """URL of a path of the lab's web server, by address, in clear text."""
    return lambda path: f"http://{literal(lab.web.addresses[family])}{path}"
