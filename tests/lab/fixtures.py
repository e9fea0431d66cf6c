"""What tests with an appliance in a lab ask for by name; their conftest has the fixtures `lab` and `appliance`."""

from collections.abc import Iterator

import pytest

from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.task import Task


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
