"""The machine under the recorder changes or fails: interfaces, addresses, a dead process, a full disk.

As in test_fail_closed.py, a packet socket on the upstream host tells what passed, and the journal what is recorded.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance import status
from tests.lab.wait import until
from tests.wire.net import AGENT, AGENT6, Net, Wire, sh
from tests.wire.sniffer import UDP, Sniffer
from tests.wire.storm import CLOSED, RULES, Storm
from tests.wire.test_fail_closed import GATEWAY, GATEWAY6, faults, given, introduce, missing

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces, BPF and nftables")
SMALL_DISK = 40 * 2**20
SEGMENTS = "segment_bytes = 2097152\nmax_bytes = 33554432\n"


def leases(wire: Wire) -> None:
    for address, gateway in ((AGENT, GATEWAY), (AGENT6, GATEWAY6)):
        until(lambda a=address, g=gateway: introduce(wire, g) and given(wire, a), "a lease")  # type: ignore[misc]


@pytest.fixture(scope="module")
def running(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    api = f'[api]\nlisten = ["{GATEWAY}:8443"]\n'
    wire = Wire(net, tmp_path_factory.mktemp("wire"), rules=api + RULES)
    try:
        yield wire.start()
    finally:
        wire.teardown()


@pytest.fixture
def wire(running: Wire) -> Wire:
    leases(running)
    return running


def told(wire: Wire, fault: str, since: int) -> bool:
    """It began, and is over, on record."""
    return wire.events()[since:].count(fault) >= 2 and fault not in faults(wire)


def test_a_renamed_interface_is_closed_until_it_has_its_name_again(net: Net, wire: Wire) -> None:
    since = len(wire.events())
    with Sniffer(net.upstream) as sniffer, Storm(net) as storm:
        until(lambda: storm.passes(0.1), "traffic flows")
        sh("ip", "link", "set", "agents0", "name", "other0", netns=net.gateway)
        fault = until(lambda: faults(wire).get("interface-missing"), "it is named")
        storm.rage(0.2)
        until(lambda: not storm.passes(0.2), "nothing passes")
        sh("ip", "link", "set", "other0", "name", "agents0", netns=net.gateway)
        until(lambda: storm.passes(0.2), "traffic flows again")
    assert "interface agents0: is gone or renamed" in fault
    assert missing(wire, sniffer) == []
    assert storm.got[CLOSED] == 0
    until(lambda: told(wire, "interface-missing", since), "told")


def test_an_interface_that_is_down_is_named_and_works_when_it_is_up(net: Net, wire: Wire) -> None:
    since = len(wire.events())
    route = ["ip", "-6", "addr", "replace", f"{GATEWAY6}/64", "dev", "agents0", "nodad"]
    with Sniffer(net.upstream) as sniffer, Storm(net) as storm:
        until(lambda: storm.passes(0.1), "traffic flows")
        sh("ip", "link", "set", "agents0", "down", netns=net.gateway)
        until(lambda: "interface-down" in faults(wire), "it is named")
        sh("ip", "link", "set", "agents0", "up", netns=net.gateway)
        sh(*route, netns=net.gateway)  # the kernel drops IPv6 addresses of an interface that goes down
        until(lambda: storm.passes(0.2), "traffic flows again")
    assert missing(wire, sniffer) == []
    assert storm.got[CLOSED] == 0
    until(lambda: told(wire, "interface-down", since), "told")


def test_a_lost_address_is_named_and_taken_up_again(net: Net, wire: Wire) -> None:
    since = len(wire.events())
    address = f"{GATEWAY}/24"
    with Sniffer(net.upstream) as sniffer, Storm(net) as storm:
        until(lambda: storm.passes(0.1), "traffic flows")
        sh("ip", "addr", "del", address, "dev", "agents0", netns=net.gateway)
        until(lambda: "address-missing" in faults(wire), "it is named")
        sh("ip", "addr", "add", address, "dev", "agents0", netns=net.gateway)
        until(lambda: storm.passes(0.2), "traffic flows again")
    assert missing(wire, sniffer) == []
    assert storm.got[CLOSED] == 0
    until(lambda: told(wire, "address-missing", since), "told")


@contextmanager
def side_door(net: Net) -> Iterator[None]:
    """A second wire between agent and gateway, and between gateway and upstream, that nobody configured."""
    for host, number in ((net.agent, 3), (net.upstream, 4)):
        name = f"side{number}"
        sh("ip", "link", "add", name, "netns", net.gateway, "type", "veth", "peer", "name", "eth1", "netns", host)
        for netns, link, last in ((net.gateway, name, 1), (host, "eth1", 2)):
            sh("ip", "addr", "add", f"10.91.{number}.{last}/24", "dev", link, netns=netns)
            sh("ip", "link", "set", link, "up", netns=netns)
    try:
        yield
    finally:
        for number in (3, 4):
            sh("ip", "link", "del", f"side{number}", netns=net.gateway)


def test_through_an_interface_that_nobody_configured_nothing_passes(net: Net, wire: Wire) -> None:
    since = len(wire.events())
    with (
        side_door(net),
        Sniffer(net.upstream, "eth1") as behind,
        Sniffer(net.agent, "eth1") as before,
        Sniffer(net.upstream) as usual,
    ):
        fault = until(lambda: faults(wire).get("interface-unknown"), "it is named")
        # From a configured interface to the new one, from the new one to a configured one, and past both.
        ways = (
            ("10.91.1.1", "eth0", "10.91.4.2"),
            ("10.91.3.1", "eth1", "10.91.2.2"),
            ("10.91.3.1", "eth1", "10.91.4.2"),
        )
        for gateway, device, to in ways:
            sh("ip", "route", "replace", to, "via", gateway, "dev", device, netns=net.agent)
            for port in (7000, CLOSED):
                sh("bash", "-c", f"echo hello > /dev/udp/{to}/{port}", netns=net.agent)
        sh("ip", "route", "replace", "10.91.3.2", "via", "10.91.2.1", "dev", "eth0", netns=net.upstream)
        sh("bash", "-c", "echo hello > /dev/udp/10.91.3.2/7000", netns=net.upstream)
        sh("ip", "route", "flush", "10.91.2.2/32", netns=net.agent)
        sh("bash", "-c", "echo hello > /dev/udp/10.91.2.2/7000", netns=net.agent)
        until(lambda: usual.seen({AGENT}), "what goes the configured way arrives")
        sh("ip", "route", "flush", "10.91.4.2/32", netns=net.agent)
        sh("ip", "route", "flush", "10.91.3.2/32", netns=net.upstream)
    assert "side3, side4" in fault
    assert [one for one in behind.seen({AGENT, "10.91.3.2"}) if one.protocol == UDP] == []
    assert [one for one in before.seen({"10.91.2.2", "10.91.4.2"}) if one.protocol == UDP] == []
    assert [one for one in usual.seen({"10.91.3.2"}) if one.protocol == UDP] == []
    until(lambda: told(wire, "interface-unknown", since), "told")


def test_a_dead_process_and_a_full_ring_let_nothing_unrecorded_pass(net: Net, wire: Wire) -> None:
    with Sniffer(net.upstream) as sniffer, Storm(net) as storm:
        until(lambda: storm.passes(0.1), "traffic flows")
        wire.stop(signal.SIGKILL)
        storm.flood()
        until(lambda: not storm.passes(0.3), "nothing passes any more")
        assert not status.read(wire.data)["wire"].live
        wire.start()
        until(lambda: storm.passes(0.2), "traffic flows again")
    assert missing(wire, sniffer) == []
    assert storm.got[CLOSED] == 0
    until(lambda: "silent" in wire.events(), "told")
    assert wire.client.status()["refusals"]["ring-full"] > 0


@pytest.fixture(params=["blocks", "inodes"])
def tight(request: pytest.FixtureRequest, net: Net, running: Wire, tmp_path: Path) -> Iterator[Wire]:
    """A wire process whose data folder is a small disk of its own."""
    running.stop()
    disk = tmp_path / "disk"
    disk.mkdir()
    inodes = "nr_inodes=64," if request.param == "inodes" else ""
    sh("mount", "-t", "tmpfs", "-o", f"{inodes}size={SMALL_DISK}", "tmpfs", str(disk))
    wire = Wire(net, disk / "data", rules=RULES, journal=SEGMENTS)
    try:
        yield wire.start()
    finally:
        wire.stop(signal.SIGKILL)
        sh("umount", str(disk))
        running.start()


def fill(wire: Wire) -> list[Path]:
    """Take what blocks and inodes are left."""
    made = []
    folder = wire.data.parent / "other"
    folder.mkdir()
    free = os.statvfs(folder)
    try:
        for number in range(max(1, free.f_ffree if free.f_files < 1000 else 1)):
            made.append(folder / str(number))
            made[-1].touch()
        with made[0].open("wb", buffering=0) as file:
            while free.f_files >= 1000:
                file.write(bytes(65536))
    except OSError:
        pass
    return made


def test_a_full_disk_stalls_traffic_and_is_told_and_goes_on_when_there_is_room(net: Net, tight: Wire) -> None:
    wire = tight
    leases(wire)
    with Sniffer(net.upstream) as sniffer, Storm(net) as storm:
        until(lambda: storm.passes(0.1), "traffic flows")
        made = fill(wire)
        storm.flood()
        until(lambda: "journal-stalled" in status.read(wire.data)["wire"].faults, "it is named")
        until(lambda: not storm.passes(0.3), "nothing passes any more")
        assert wire.process is not None
        assert wire.process.poll() is None, wire.log.read_text()
        for path in made:
            path.unlink()
        until(lambda: not wire.client.status()["journal"]["stalled"], "it goes on")
        until(lambda: storm.passes(0.3), "traffic flows again")
    assert missing(wire, sniffer) == []
    assert storm.got[CLOSED] == 0
    until(lambda: {"journal-stalled", "journal-resumed"} <= set(wire.events()), "told")
