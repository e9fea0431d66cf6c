"""Pins outlast the process, what fits is kept, and a filter is really in the packets' way."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import config
from appliance.errors import Unavailable
from appliance.wire import abi, bpf, loader, program
from tests.bpf.bench import Namespace

KEY = abi.pack_address("10.0.0.1")
LOOPBACK = 1
LEASE = abi.LeaseValue(7, 1).pack()


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[config.Wire]:
    """A bpffs of its own: `open_program` mounts it."""
    made = config.Wire(bpffs=tmp_path / "mount" / "verbatim", ring_bytes=65536, max_flows=16, max_leases=16)
    yield made
    libc = ctypes.CDLL(None, use_errno=True)
    while loader.is_bpffs(made.bpffs.parent):
        assert libc.umount2(str(made.bpffs.parent).encode(), 2) == 0


def _changed(settings: config.Wire, **changes: int) -> config.Wire:
    return settings.model_copy(update=changes)


def test_made_once_then_taken_over(settings: config.Wire) -> None:
    first = loader.open_program(settings)
    assert (first.reused, first.kept) == (False, frozenset())
    assert set(first.maps) == {index.name.lower() for index in abi.MapIndex}
    assert len(first.ring_id) == 32
    first.map("leases").update(KEY, LEASE)
    first.close()
    again = loader.open_program(settings)
    assert (again.reused, again.ring_id, again.id) == (True, first.ring_id, first.id)
    assert again.kept == set(again.maps)
    assert again.map("leases").lookup(KEY) == LEASE
    again.close()


def test_settings_are_there_from_the_start(settings: config.Wire) -> None:
    loaded = loader.open_program(settings.model_copy(update={"refusal_interval": 2.5}))
    held = abi.SettingsValue.unpack(loaded.map("settings").lookup(bytes(4)) or b"")
    assert held == abi.SettingsValue(0, 0, 2_500_000_000)
    loaded.close()


def test_another_source_replaces_the_program_and_keeps_the_maps(
    settings: config.Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loader.open_program(settings)
    first.map("leases").update(KEY, LEASE)
    newer = tmp_path / "bpf"
    shutil.copytree(program.source_folder(), newer)
    with (newer / "wire.h").open("a") as header:
        header.write("/* a newer version */\n")
    monkeypatch.setattr(program, "source_folder", lambda: newer)
    second = loader.open_program(settings)
    assert (second.reused, second.ring_id) == (False, first.ring_id)
    assert second.id != first.id
    assert second.kept == set(second.maps)
    assert second.map("leases").lookup(KEY) == LEASE
    third = loader.open_program(settings)
    assert (third.reused, third.id) == (True, second.id)
    for loaded in (first, second, third):
        loaded.close()


def test_a_map_of_another_size_is_made_anew_and_the_others_are_kept(settings: config.Wire) -> None:
    first = loader.open_program(settings)
    first.map("leases").update(KEY, LEASE)
    second = loader.open_program(_changed(settings, max_flows=32))
    assert (second.reused, second.ring_id) == (False, first.ring_id)
    assert second.kept == set(second.maps) - {"flows"}
    assert second.map("flows").max_entries == 32
    assert second.map("leases").lookup(KEY) == LEASE
    for loaded in (first, second):
        loaded.close()


def test_another_ring_has_another_id(settings: config.Wire) -> None:
    first = loader.open_program(settings)
    second = loader.open_program(_changed(settings, ring_bytes=131072))
    assert second.ring_id != first.ring_id
    assert second.kept == frozenset()
    for loaded in (first, second):
        loaded.close()


def test_another_abi_keeps_nothing(settings: config.Wire) -> None:
    first = loader.open_program(settings)
    meta = abi.Meta.unpack(first.map("meta").lookup(bytes(4)) or b"")
    meta.abi += 1
    first.map("meta").update(bytes(4), meta.pack())
    second = loader.open_program(settings)
    assert (second.reused, second.kept) == (False, frozenset())
    assert second.ring_id != first.ring_id
    for loaded in (first, second):
        loaded.close()


def test_a_start_that_was_cut_short_is_completed(settings: config.Wire) -> None:
    first = loader.open_program(settings)
    for missing in ("program", "leases"):
        (settings.bpffs / missing).unlink()
        second = loader.open_program(settings)
        assert (second.reused, second.ring_id) == (False, first.ring_id)
        second.close()
    third = loader.open_program(settings)
    assert third.reused
    third.close()
    first.close()


def test_unpin_removes_everything_and_twice_is_fine(settings: config.Wire) -> None:
    first = loader.open_program(settings)
    loader.unpin(settings.bpffs)
    assert not settings.bpffs.exists()
    loader.unpin(settings.bpffs)
    second = loader.open_program(settings)
    assert second.ring_id != first.ring_id
    for loaded in (first, second):
        loaded.close()


def test_no_bpffs_is_mounted_over_other_files(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    with pytest.raises(Unavailable, match=r"not empty; set wire\.bpffs"):
        loader.open_program(config.Wire(bpffs=tmp_path / "verbatim"))


def test_a_refused_program_is_an_error(settings: config.Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wire.c").write_text("int wire(struct __sk_buff *skb) { return *(int *)0; }\n")
    monkeypatch.setattr(program, "source_folder", lambda: tmp_path)
    with pytest.raises(Unavailable, match="PROG_LOAD"):
        loader.open_program(settings)


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    space = Namespace()
    space.ip("link", "add", "wire0", "type", "veth", "peer", "name", "wire1")
    yield space
    space.close()


@pytest.fixture
def loaded(settings: config.Wire) -> Iterator[loader.Program]:
    made = loader.open_program(settings)
    yield made
    made.close()


def _filters(namespace: Namespace, device: str = "wire0") -> str:
    command = ["tc", "filter", "show", "dev", device, "ingress"]
    return namespace.run(lambda: subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_attach_and_detach(namespace: Namespace, loaded: loader.Program) -> None:
    index = namespace.index("wire0")
    assert not namespace.run(lambda: loader.attached(loaded, index))
    for _ in range(2):
        namespace.run(lambda: loader.attach(loaded, index))
        assert namespace.run(lambda: loader.attached(loaded, index))
    assert _filters(namespace).count("direct-action") == 1
    assert "protocol all pref 1" in _filters(namespace)
    assert f"id {loaded.id} " in _filters(namespace)
    for _ in range(2):
        namespace.run(lambda: loader.detach(index))
        assert not namespace.run(lambda: loader.attached(loaded, index))
    assert _filters(namespace) == ""


def test_attach_replaces_a_former_program(namespace: Namespace, loaded: loader.Program, settings: config.Wire) -> None:
    index = namespace.index("wire0")
    newer = loader.open_program(_changed(settings, max_flows=32))
    namespace.run(lambda: loader.attach(loaded, index))
    assert not namespace.run(lambda: loader.attached(newer, index))
    namespace.run(lambda: loader.attach(newer, index))
    assert namespace.run(lambda: loader.attached(newer, index))
    assert not namespace.run(lambda: loader.attached(loaded, index))
    namespace.run(lambda: loader.detach(index))
    newer.close()


def test_a_filter_that_somebody_put_before_it_shows(
    namespace: Namespace, loaded: loader.Program, settings: config.Wire
) -> None:
    index = namespace.index("wire0")
    namespace.run(lambda: loader.attach(loaded, index))
    stranger = bpf.load_program(bytes.fromhex("b700000000000000 9500000000000000"), "stranger")
    bpf.pin(stranger, settings.bpffs / "stranger")
    pinned = ["object-pinned", str(settings.bpffs / "stranger")]
    # cls_bpf asks the newest filter of a priority first: this one would let everything pass before ours sees it.
    command = ["tc", "filter", "add", "dev", "wire0", "ingress", "pref", "1", "handle", "2", "bpf", "da", *pinned]
    namespace.run(lambda: subprocess.run(command, check=True, capture_output=True))
    assert not namespace.run(lambda: loader.attached(loaded, index))
    namespace.ip("link", "del", "wire0")
    assert not namespace.run(lambda: loader.attached(loaded, index))
    namespace.run(lambda: loader.detach(index))


def test_interfaces_that_cannot_be(namespace: Namespace, loaded: loader.Program) -> None:
    with pytest.raises(Unavailable, match="interface lo: not an Ethernet interface"):
        namespace.run(lambda: loader.attach(loaded, LOOPBACK))
    with pytest.raises(Unavailable, match="interface 999: No such device"):
        namespace.run(lambda: loader.attach(loaded, 999))
