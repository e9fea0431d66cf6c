"""Bytes that a session's row counts and the store does not have: what gives bytes out fails, and says so."""

from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.model import Direction
from appliance.store.client import open_store
from tests.cli.conftest import run
from tests.store import samples

TEXT = b"3 of the 8 bytes of the server were recorded and are not in the store"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Session 1 lacks a chunk of its server, session 2 lacks nothing."""
    folder = tmp_path_factory.mktemp("missing") / "data"
    server = Direction.SERVER
    with open_store(Settings(data=folder), "writer") as store:
        store.insert([samples.session(of, 1, client_bytes=0, server_bytes=8, messages=0) for of in (1, 2)])
        store.insert([samples.chunk(1, 0, server, 0, b"abc"), samples.chunk(1, 2, server, 6, b"gh")])
        store.insert([samples.chunk(2, 0, server, 0, b"abcdefgh")])
    return folder


def test_stream_writes_what_there_is_and_fails(data: Path) -> None:
    said = run("stream", str(samples.number(1)), "--direction", "server", "--data", str(data))
    assert (said.returncode, said.stdout) == (1, b"abcgh")
    assert TEXT in said.stderr
    assert b"bytes 3 to 6 are missing" in said.stderr
    assert b"Traceback" not in said.stderr


def test_export_writes_what_there_is_and_fails(data: Path, tmp_path: Path) -> None:
    ids = [str(samples.number(of)) for of in (2, 1)]
    said = run("export", *ids, "--pcapng", str(tmp_path / "out.pcapng"), "--data", str(data))
    assert (said.returncode, TEXT in said.stderr) == (1, True)
    assert b"abcdefgh" in (tmp_path / "out.pcapng").read_bytes()


def test_replay_fails(data: Path) -> None:
    said = run("replay", str(samples.number(1)), "--data", str(data))
    assert (said.returncode, TEXT in said.stderr) == (1, True)


def test_a_session_that_lacks_nothing_is_well(data: Path) -> None:
    said = run("stream", str(samples.number(2)), "--direction", "server", "--data", str(data))
    assert (said.returncode, said.stdout, said.stderr) == (0, b"abcdefgh", b"")
