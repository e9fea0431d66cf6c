"""One lab for all tests of this folder, without the appliance: the gateway is a plain router."""

from collections.abc import Iterator

import pytest

from tests.lab import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab
