"""Real stores: the service in a process of its own, and chDB in this one (one folder at a time per process)."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.store.client import Store, open_store
from appliance.store.link import Service, live_service
from tests.lab.wait import until

PATIENCE = 60.0  # seconds


@contextmanager
def serving(data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `verbatim store` of the folder, ready for use."""
    command = [sys.executable, "-m", "appliance", "store", "--data", str(data)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: live_service(data) is not None or process.poll() is not None, "start of the store", PATIENCE)
            assert process.poll() is None, "the store did not start"
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a folder whose service runs."""
    settings = Settings(data=tmp_path_factory.mktemp("served"))
    with serving(settings.data):
        yield settings


@pytest.fixture(scope="session")
def access(served: Settings) -> Service:
    """Address and tokens of that service."""
    found = live_service(served.data)
    assert found is not None
    return found


@pytest.fixture(scope="module", params=["service", "in-process"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store open for writing, once over HTTP and once within this process."""
    if request.param == "service":
        settings = request.getfixturevalue("served")
    else:
        settings = Settings(data=tmp_path_factory.mktemp("embedded"))
    with open_store(settings, "writer") as found:
        yield found
