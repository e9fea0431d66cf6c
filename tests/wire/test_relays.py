"""Relays that register, and what becomes of the places and legs of those that died."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import config
from appliance.errors import Unavailable
from appliance.identity.leases import Now
from appliance.wire import abi, bpf, loader
from appliance.wire.abi import FlowKey, Leg, RelayValue
from appliance.wire.relays import Relays
from appliance.wire.steering import Steering, flow_key, lives, worker_number

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for BPF")
NOW = Now(0, 0, "boot")
KEY = flow_key("10.0.0.1", 40000, "192.0.2.1", 443)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[config.Settings]:
    """Maps that are pinned in a bpffs of their own."""
    wire = config.Wire(bpffs=tmp_path / "mount" / "verbatim", ring_bytes=65536, max_flows=16, max_leases=16)
    loader.open_program(wire).close()
    yield config.Settings(wire=wire)
    libc = ctypes.CDLL(None, use_errno=True)
    while loader.is_bpffs(wire.bpffs.parent):
        assert libc.umount2(str(wire.bpffs.parent).encode(), 2) == 0


@pytest.fixture
def maps(settings: config.Settings) -> Iterator[dict[str, bpf.Map]]:
    found = {name: bpf.Map(bpf.get(settings.wire.bpffs / name) or -1) for name in ("relays", "legs", "leases", "flows")}
    yield found
    for each in found.values():
        os.close(each.fd)


def dead() -> int:
    """The number of a process that is over."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    number = worker_number(process.pid)
    assert number is not None
    assert lives(number)
    process.communicate(b"\n")
    assert not lives(number)
    return number


def test_a_number_names_a_process_and_not_the_next_of_its_id() -> None:
    own = worker_number(os.getpid())
    assert own is not None
    assert lives(own)
    assert not lives(own + (1 << 22))
    assert worker_number(2**22 - 1) is None


def registered(settings: config.Settings) -> int:
    """How many relays take connections."""
    fd = bpf.get(settings.wire.bpffs / "relays")
    assert fd is not None
    try:
        return len(list(bpf.Map(fd).keys()))
    finally:
        os.close(fd)


def test_the_dead_are_forgotten_and_the_living_stay(settings: config.Settings, maps: dict[str, bpf.Map]) -> None:
    told: list[dict[str, Any]] = []
    relays = Relays(maps["relays"], maps["legs"], lambda kind, text, now, **more: told.append({"kind": kind, **more}))
    steering = Steering.open(settings)
    steering.register(1080)
    gone = dead()
    steering.put_leg(KEY, transparent=True)
    other = FlowKey(KEY.source, KEY.destination, 40001, 443, 6, 4)
    maps["relays"].update((9).to_bytes(4, "little"), RelayValue(gone, 1081).pack())
    maps["legs"].update(other.pack(), Leg(0, 0, gone, 0, abi.SideState(), abi.SideState()).pack())
    relays.tend(NOW)
    assert told == [{"kind": "relay-gone", "slot": 9, "port": 1081, "pid": gone & (1 << 22) - 1}]
    assert (relays.serving, registered(settings)) == (1, 1)
    assert steering.leg(other) is None
    leg = steering.take_leg(KEY)
    assert leg is not None
    assert leg.flags == abi.LEG_F_TRANSPARENT
    assert steering.leg(KEY) is None
    steering.unregister()
    assert registered(settings) == 0
    steering.close()


def test_a_registration_that_was_lost_is_made_again(settings: config.Settings, maps: dict[str, bpf.Map]) -> None:
    steering = Steering.open(settings)
    steering.register(1080)
    assert not steering.tend()
    (place,) = maps["relays"].keys()
    maps["relays"].update(place, RelayValue(1, 1).pack())
    assert steering.tend()
    assert registered(settings) == 2, "in another place"
    maps["relays"].delete(place)
    loader.unpin(settings.wire.bpffs)
    with pytest.raises(Unavailable, match="start verbatim wire"):
        steering.tend()
    loader.open_program(settings.wire).close()
    assert steering.tend(), "other maps"
    assert registered(settings) == 1
    steering.unregister()
    assert registered(settings) == 0
    steering.close()


def test_places_are_for_one_relay_each(settings: config.Settings) -> None:
    relays = [Steering.open(settings) for _ in range(abi.RELAYS_MAX)]
    for each in relays:
        each.register(1080)
    one = Steering.open(settings)
    assert registered(settings) == abi.RELAYS_MAX
    with pytest.raises(Unavailable, match="64 places are taken"):
        one.register(1080)
    relays[5].close()
    one.register(1080)
    assert registered(settings) == abi.RELAYS_MAX
    for each in (one, *relays[:5], *relays[6:]):
        each.close()


def test_leases_and_flows_are_those_of_the_kernel(settings: config.Settings, maps: dict[str, bpf.Map]) -> None:
    steering = Steering.open(settings)
    assert steering.lease("10.0.0.1") is None
    maps["leases"].update(abi.pack_address("10.0.0.1"), abi.LeaseValue(7, 2**62).pack())
    assert steering.lease("10.0.0.1") == 7
    maps["leases"].update(abi.pack_address("10.0.0.1"), abi.LeaseValue(7, 1).pack())
    assert steering.lease("10.0.0.1") is None, "it is over"
    for lane, found in ((abi.Lane.TAP, False), (abi.Lane.RELAY, True)):
        flow = abi.Flow(3, 4, 7, 1, lane, 0, 0, abi.SideState(), abi.SideState())
        maps["flows"].update(KEY.pack(), flow.pack().ljust(abi.TRACKED_BYTES, b"\0"))
        assert (steering.flow("10.0.0.1", 40000, "192.0.2.1", 443) == flow) is found
    steering.close()
