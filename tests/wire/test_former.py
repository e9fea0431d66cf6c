"""Former sets of pins in a real bpffs: what a crash leaves of one is drained, or gone."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.wire import abi, bpf, former

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for BPF maps")
PINS = ("flows", "gate", "meta", "program", "ring", "rules")
RING = bytes(range(16))


@pytest.fixture
def bpffs() -> Iterator[Path]:
    folder = Path("/sys/fs/bpf") / f"vb-f{secrets.token_hex(3)}"
    yield folder
    for each in former.folders(folder):
        for entry in each.iterdir():
            entry.unlink()
        each.rmdir()


def replaced(bpffs: Path) -> Path:
    """A set of pins whose ring another one replaced."""
    folder = former.beside(bpffs)
    folder.mkdir()
    for name in PINS:
        if name == "ring":
            fd = bpf.create_map(bpf.RINGBUF, 0, 0, 4096, name)
        else:
            fd = bpf.create_map(bpf.ARRAY, 4, abi.Meta.LAYOUT.size, 1, name)
        if name == "meta":
            bpf.Map(fd).update(bytes(4), abi.Meta(abi.ABI, 0, RING, bytes(32)).pack())
        bpf.pin(fd, folder / name)
        os.close(fd)
    return folder


def test_a_drained_set_goes_as_a_whole(bpffs: Path) -> None:
    folder = replaced(bpffs)
    (one,) = former.find(bpffs)
    assert (one.folder, one.id, one.version, one.bytes) == (folder, RING.hex(), abi.ABI, 4096)
    former.remove(one)
    assert not folder.exists()
    assert list(former.find(bpffs)) == []


@pytest.mark.parametrize("done", range(len(PINS)))
def test_a_removal_that_died_halfway_is_finished(bpffs: Path, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    class Died(Exception):
        pass

    unlinked: list[str] = []
    really = Path.unlink

    def unlink(path: Path) -> None:
        if len(unlinked) == done:
            raise Died
        unlinked.append(path.name)
        really(path)

    folder = replaced(bpffs)
    (one,) = former.find(bpffs)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(Died):
            former.remove(one)
    for left in former.find(bpffs):
        assert left.id == RING.hex(), "a ring that is drained again bears its name"
        former.remove(left)
    assert not folder.exists()


def test_an_empty_folder_is_gone_too(bpffs: Path) -> None:
    folder = former.beside(bpffs)
    folder.mkdir()
    assert list(former.find(bpffs)) == []
    assert not folder.exists()
