"""Fixtures around real TLS handshakes."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dissect.handshakes import make_certificate, shake_hands
from tests.dissect.harness import Turn

Handshake = Callable[..., list[Turn]]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate with its key: CN and names `a.example`, `b.example`, 192.0.2.1."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "both.pem")


@pytest.fixture(scope="session")
def handshake(certificate: Path) -> Handshake:
    """Shakes hands and exchanges a little; returns who sent what. `version`, `alpn`, `groups` (server's), `name`."""
    return functools.partial(shake_hands, certificate)


@pytest.fixture(scope="session")
def client_hello(handshake: Handshake) -> bytes:
    data = handshake()[0][1]
    assert isinstance(data, bytes)
    return data
