"""What tests of relays with real clients and servers share."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lab.pki import Pki
from tests.relay.running import Address, Begin, Prepare, Running


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Who signs the servers' certificates."""
    return Pki(tmp_path_factory.mktemp("pki") / "pki")


@pytest.fixture
def begin(tmp_path: Path, pki: Pki) -> Iterator[Begin]:
    """Starts relays of one data folder, which end with the test. Their rule mediates, with what is given of it and of
    the settings' section."""
    with ExitStack() as running:

        def one(server: Address, prepare: Prepare, rule: dict[str, Any], **relay: Any) -> Running:
            mediated = {"mode": "mediate", "ca": str(pki.certificate)} | rule
            rules = [{"to": "127.0.0.0/8", "lane": "relay", "protocol": "tcp", "relay": mediated}]
            return running.enter_context(Running(tmp_path / "data", rules, server, prepare, relay=relay))

        yield one
