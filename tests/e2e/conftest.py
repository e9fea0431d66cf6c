"""One lab with one appliance for all end-to-end tests. Each test takes its own leases under its own run id."""

import http.client
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.lab import Lab
from tests.lab.appliance import Appliance, literal
from tests.lab.demo.steps import rules
from tests.lab.fixtures import family, run_id, task

__all__ = ["family", "run_id", "task"]  # fixtures

NEIGHBOUR_SECONDS = 0.2


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def appliance(lab: Lab) -> Iterator[Appliance]:
    with Appliance(lab, lab.folder / "data", rules=rules(lab)) as appliance:
        yield appliance


def _ask_for_ever(lab: Lab, stop: threading.Event) -> None:
    """Requests to the OpenID provider on one connection while it lasts, then on the next."""
    trust = ssl.create_default_context(cafile=str(lab.pki.certificate))
    trust.check_hostname = False  # asked by address: name files are not a thread's own
    while not stop.is_set():
        connection = http.client.HTTPSConnection(lab.idp.addresses[0], timeout=5, context=trust)
        with suppress(OSError, http.client.HTTPException):
            while not stop.wait(NEIGHBOUR_SECONDS):
                connection.request("GET", "/jwks")
                connection.getresponse().read()
        connection.close()


@pytest.fixture(scope="session", autouse=True)
def neighbour(lab: Lab, appliance: Appliance) -> Iterator[None]:
    """Somebody else's traffic, always: recorded time goes on, as on a gateway in use."""
    stop = threading.Event()
    busy = threading.Thread(target=lambda: lab.agent(2).call(lambda: _ask_for_ever(lab, stop)))
    busy.start()
    yield
    stop.set()
    busy.join()


ONE_FAMILY = pytest.mark.parametrize("family", [1], ids=["IPv6"])  # where another test has shown both
Url = Callable[[str], str]


@pytest.fixture
def url(lab: Lab, family: int) -> Url:
    """URL of a path of the lab's web server, by address, in clear text."""
    return lambda path: f"http://{literal(lab.web.addresses[family])}{path}"
