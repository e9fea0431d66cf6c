"""A disk that somebody else fills: what is said of it, and that everything is over when there is room again."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab.wait import until
from tests.wire.net import Net, Wire, sh
from tests.wire.test_daemon import connection, exchange, lease

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces, BPF and nftables")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=48m", "vb-disk", str(folder))
    yield folder
    sh("umount", "-l", str(folder))


def fill(path: Path) -> None:
    """Until the disk has not a byte left."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_the_disk_is_named_and_leases_are_saved_again_without_another_one(net: Net, disk: Path) -> None:
    wire, ballast = Wire(net, disk / "data"), disk / "ballast"
    try:
        id = lease(wire.start())
        fill(ballast)
        stalled = until(lambda: wire.client.status()["faults"].get("journal-stalled"), "it is named")
        assert "the disk has " in stalled
        assert stalled.endswith("free disk space")
        wire.client.revoke(id)
        until(lambda: "leases-unsaved" in wire.client.status()["faults"], "it is named")
        ballast.unlink()
        until(lambda: not wire.client.status()["faults"], "all is well")
        assert b'"leases":[]' in (wire.data / "state" / "leases.json").read_bytes()
        lease(wire)
        with connection(net) as (agent, upstream, _):
            assert exchange(agent, upstream)
    finally:
        ballast.unlink(missing_ok=True)
        wire.teardown()
