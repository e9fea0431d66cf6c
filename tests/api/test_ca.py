"""The CA over the API while it is rotated: nothing is restarted."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import httpx2 as httpx
import pytest

from api import app as application
from api.app import create, listen
from api.app import server as make
from api.deps import Parts
from appliance.config import Settings
from appliance.identity import ca
from appliance.identity.oidc import Verifier
from appliance.store.client import Store
from appliance.wire.control import Client
from tests.lab.wait import until


class Served:
    def __init__(self, data: Path, port: int) -> None:
        self.data = data
        self.port = port

    def fetch(self, trusted: str, path: str = "/v1/ca.crt") -> httpx.Response | None:
        """What the API answers who trusts these certificates; None: they do not believe it."""
        context = ssl.create_default_context(cadata=trusted)
        with suppress(httpx.ConnectError):
            return httpx.get(f"https://127.0.0.1:{self.port}{path}", verify=context, trust_env=False)
        return None


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(application, "TEND_SECONDS", 0.05)
    settings = Settings(data=tmp_path)
    current, nothing = ca.Current(tmp_path, "gateway"), cast(Store, None)
    parts = Parts(settings, Verifier(()), current, nothing, nothing, cast(Client, None))
    running = make(create(parts), *ca.api_certificate(current(), tmp_path, ["127.0.0.1"]))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listen(f"127.0.0.1:{port}")]}, daemon=True)
    thread.start()
    yield Served(tmp_path, port)
    running.should_exit = True
    thread.join(20)


def test_a_rotation_is_handed_out_and_shown_at_once(served: Served) -> None:
    former = ca.load(served.data)
    trusted = former.pem.decode()
    assert until(lambda: served.fetch(trusted), "the API serves").text == trusted
    fresh = ca.rotate(served.data, now=datetime.now(UTC), overlap=timedelta(days=1))
    answer = until(lambda: served.fetch(fresh.pem.decode()), "who trusts only the new CA believes it")
    assert answer.text == (fresh.pem + former.pem).decode()
    assert answer.headers["verbatim-fingerprint-sha256"] == fresh.fingerprint
    shown = served.fetch(trusted, "/v1/ca")  # who trusts only the former one, too
    assert shown is not None
    assert shown.json() == {"fingerprint_sha256": fresh.fingerprint, "pem": fresh.pem.decode()}
    last = ca.rotate(served.data, now=datetime.now(UTC), overlap=timedelta())
    assert until(lambda: served.fetch(last.pem.decode()), "the last one is shown").text == last.pem.decode()
    assert served.fetch(answer.text) is None
