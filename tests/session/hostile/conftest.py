from collections.abc import Iterator

import pytest

from tests.session.hostile.cases import Linux
from tests.session.hostile.rig import Rig


@pytest.fixture(scope="package")
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.fixture(scope="package")
def linux(rig: Rig) -> Iterator[Linux]:
    made = Linux(rig)
    yield made
    made.close()
