"""Pins outlast the process, and what fits is kept."""

import ctypes
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import config
from appliance.errors import MalformedInput, Unavailable
from appliance.wire import abi, bpf, former, loader, program

KEY = abi.pack_address("10.0.0.1")
LEASE = abi.LeaseValue(7, 1).pack()


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[config.Wire]:
    """A bpffs of its own: `open_program` mounts it."""
    made = config.Wire(bpffs=tmp_path / "mount" / "verbatim", ring_bytes=65536, max_flows=16, max_leases=16)
    yield made
    libc = ctypes.CDLL(None, use_errno=True)
    while loader.is_bpffs(made.bpffs.parent):
        assert libc.umount2(str(made.bpffs.parent).encode(), 2) == 0


def _changed(settings: config.Wire, **changes: float) -> config.Wire:
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
    share = settings.max_flows, settings.max_flows_per_lease
    assert held == abi.SettingsValue(0, 200, 2_500_000_000, *share, ring=65536, clamp=16384)
    loaded.close()


def test_the_settings_of_the_program() -> None:
    wire = config.Wire(refusal_interval=0.25, refusal_rate=3, max_flows=4, max_flows_per_lease=2)
    told = abi.SettingsValue.unpack(loader.settings_value(wire, (443, 8443), stalled=True))
    ports = struct.pack("<8H", 443, 8443, *[0] * 6)
    assert told == abi.SettingsValue(1, 3, 250_000_000, 4, 2, ports, 2**24, 2**22)
    with pytest.raises(MalformedInput, match=r"9 different ports; use 8"):
        loader.settings_value(wire, range(1, 10), stalled=False)


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


def test_another_ring_has_another_id_and_the_former_one_stays_until_it_is_drained(settings: config.Wire) -> None:
    first = loader.open_program(settings)
    first.map("leases").update(KEY, LEASE)
    second = loader.open_program(_changed(settings, ring_bytes=131072))
    third = loader.open_program(_changed(settings, ring_bytes=262144))
    assert len({first.ring_id, second.ring_id, third.ring_id}) == 3
    assert second.kept == third.kept == set(second.maps) - {"ring", "meta"}
    assert third.map("leases").lookup(KEY) == LEASE
    left = list(former.find(settings.bpffs))
    assert [(one.id, one.bytes, one.version) for one in left] == [
        (first.ring_id, 65536, abi.ABI),
        (second.ring_id, 131072, abi.ABI),
    ]
    former.remove(left[0])
    assert [one.id for one in former.find(settings.bpffs)] == [second.ring_id]
    fourth = loader.open_program(settings)
    found = list(former.find(settings.bpffs))
    assert [one.id for one in found] == [second.ring_id, third.ring_id]
    loader.unpin(settings.bpffs)
    assert not former.folders(settings.bpffs)
    for one in (left[1], *found):
        os.close(one.fd)
    for loaded in (first, second, third, fourth):
        loaded.close()


def test_flows_move_to_a_map_of_another_size(settings: config.Wire) -> None:
    key = abi.FlowKey(KEY, KEY, 1, 2, 6, 4)
    value = abi.Flow(7, 8, 9, 0, 1, 0, 0, abi.SideState(packets=3), abi.SideState()).pack() + bytes(
        range(abi.TRACKED_BYTES - abi.Flow.SIZE)
    )
    first = loader.open_program(settings)
    first.map("flows").update(key.pack(), value)
    second = loader.open_program(_changed(settings, max_flows=32))
    assert dict(second.map("flows").items()) == {key.pack(): value}
    for loaded in (first, second):
        loaded.close()


def test_flows_of_a_version_that_knew_less_of_them_move_too(settings: config.Wire) -> None:
    key = abi.FlowKey(KEY, KEY, 1, 2, 6, 4).pack()
    value = abi.Flow(7, 8, 9, 0, 1, 0, 0, abi.SideState(packets=3), abi.SideState()).pack()
    first = loader.open_program(settings)
    older = bpf.create_map(bpf.HASH, len(key), len(value), settings.max_flows, "flows")
    bpf.Map(older).update(key, value)
    (settings.bpffs / "flows").unlink()
    bpf.pin(older, settings.bpffs / "flows")
    second = loader.open_program(settings)
    assert dict(second.map("flows").items()) == {key: value.ljust(abi.TRACKED_BYTES, b"\0")}
    os.close(older)
    for loaded in (first, second):
        loaded.close()


@pytest.mark.parametrize(("clamp", "told"), [(0.0, 0), (0.5, 32768), (1.0, 0)])
def test_windows_may_be_left_alone(settings: config.Wire, clamp: float, told: int) -> None:
    value = loader.settings_value(_changed(settings, clamp=clamp), (), stalled=False)
    assert abi.SettingsValue.unpack(value).clamp == told


def test_another_abi_keeps_nothing(settings: config.Wire) -> None:
    first = loader.open_program(settings)
    meta = abi.Meta.unpack(first.map("meta").lookup(bytes(4)) or b"")
    meta.abi += 1
    first.map("meta").update(bytes(4), meta.pack())
    second = loader.open_program(settings)
    assert (second.reused, second.kept) == (False, frozenset())
    assert second.ring_id != first.ring_id
    (left,) = former.find(settings.bpffs)
    assert (left.id, left.version) == (first.ring_id, abi.ABI + 1)
    os.close(left.fd)
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
