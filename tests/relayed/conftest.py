"""One lab with one appliance whose rules send what agents say to real servers through relays."""

from collections.abc import Iterator

import pytest

from tests.lab import Lab
from tests.lab.appliance import Appliance, relayed
from tests.lab.services import Llm, Postgres, TlsPostgres, Web
from tests.lab.task import Task


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def appliance(lab: Lab) -> Iterator[Appliance]:
    rules = [
        *relayed(lab, Web, 443),
        *relayed(lab, Web, 80),
        *relayed(lab, Postgres, 5432, source="agent"),
        *relayed(lab, TlsPostgres, 5432),
        *relayed(lab, Llm, 443),
    ]
    with Appliance(lab, lab.folder / "data", rules=rules) as appliance:
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
