"""The network of a file's tests, unless it makes another."""

from collections.abc import Iterator

import pytest

from tests.wire.net import Net


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with Net() as net:
        yield net
