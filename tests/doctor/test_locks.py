"""Interlock and other nftables tables, in real network namespaces; pins in a real bpffs."""

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.config import Settings, Wire
from appliance.doctor import examine, locks, network
from appliance.doctor.finding import Check, Finding, Level
from appliance.wire import abi, bpf, interlock, loader, program
from tests.doctor.conftest import gateway, in_namespace, needs_root, worst

pytestmark = needs_root
PORTS = (8443,)
LOCKS = [Check.PINS, Check.FILTERS, Check.INTERLOCK]


def nft(script: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)


def establish(settings: Settings) -> None:
    wire, proxies = settings.wire, interlock.proxy_ports(settings.relay.proxy, PORTS)
    lock = interlock.Interlock(wire.table, wire.agents, wire.upstream, PORTS, proxies)
    try:
        lock.establish()
    finally:
        lock.close()


@pytest.mark.parametrize(
    ("change", "level", "says"),
    [
        ("", Level.OK, "as it should be"),
        ("delete table inet verbatim", Level.FAIL, "no table inet verbatim"),
        ("insert rule inet verbatim forward accept", Level.FAIL, "not as this version"),
        ("flush chain inet verbatim agents", Level.FAIL, "not as this version"),
    ],
    ids=["as it is", "gone", "opened", "flushed"],
)
def test_the_interlock(change: str, level: Level, says: str, tmp_path: Path) -> None:
    settings = gateway(wire=gateway().wire.model_copy(update={"bpffs": tmp_path}))  # it ran before

    def look() -> list[Finding]:
        establish(settings)
        nft(change)
        return list(locks.lock(settings))

    (found,) = in_namespace(look)
    assert (found.level, bool(found.remedy)) == (level, level is not Level.OK)
    assert says in found.found


def test_an_interlock_that_lets_agents_to_the_proxy() -> None:
    settings = gateway(relay={"proxy": ["10.20.1.1:3128"]})

    def look() -> list[Finding]:
        establish(settings)
        return list(locks.lock(settings))

    assert worst(in_namespace(look)).level is Level.OK


def test_an_interlock_of_other_settings() -> None:
    other = gateway(wire=gateway().wire.model_copy(update={"agents": ("eth1", "eth7")}))

    def look() -> list[Finding]:
        establish(other)
        return list(locks.lock(gateway()))

    assert worst(in_namespace(look)).level is Level.FAIL


@pytest.mark.parametrize(
    ("script", "level", "says"),
    [
        ("chain a { type filter hook forward priority 0; policy accept; counter accept; }", None, ""),
        ("chain a { type filter hook forward priority 0; policy drop; }", Level.WARN, "policy drop"),
        ("chain a { type filter hook forward priority 0; tcp dport 25 drop; }", Level.WARN, "drops some"),
        ("chain a { type filter hook input priority 0; policy drop; tcp dport 25 drop; }", None, ""),
        (
            "chain a { type filter hook forward priority -5; meta mark set 0x56420001; }",
            Level.FAIL,
            "sets the mark of recorded packets",
        ),
        ("chain a { type filter hook prerouting priority -5; meta mark set 1; }", Level.WARN, "sets packet marks"),
        ("chain a { type nat hook postrouting priority 100; oifname eth0 masquerade; }", Level.WARN, "masquerade"),
    ],
)
def test_other_tables(script: str, level: Level | None, says: str) -> None:
    def look() -> list[Finding]:
        establish(gateway())
        nft(f"table inet other {{\n{script}\n}}\n")
        return list(locks.other_tables(gateway()))

    found = worst(in_namespace(look))
    assert found.level is (level or Level.OK)
    assert says in found.found
    assert (found.about, bool(found.remedy)) == (("inet other", True) if level else ("", False))


def test_packets_that_are_sent_past_the_forward_hook() -> None:
    def look() -> list[Finding]:
        nft("table netdev other {\nchain a { type filter hook ingress device eth1 priority 0; fwd to eth0; }\n}\n")
        return list(locks.other_tables(gateway()))

    assert worst(in_namespace(look)).level is Level.FAIL


@pytest.mark.parametrize(
    ("entry", "level"),
    [
        ({"flowtable": {"family": "inet", "table": "other", "name": "f", "dev": ["eth0", "eth9"]}}, Level.FAIL),
        ({"flowtable": {"family": "inet", "table": "other", "name": "f", "dev": "eth1"}}, Level.FAIL),
        ({"flowtable": {"family": "inet", "table": "other", "name": "f", "dev": ["eth9"]}}, None),
        ({"rule": {"family": "ip", "table": "other", "chain": "a", "expr": [{"flow": {"op": "add"}}]}}, Level.FAIL),
        ({"rule": {"family": "ip", "table": "other", "chain": "a", "expr": [{"queue": {"num": 1}}]}}, Level.WARN),
        ({"rule": {"family": "inet", "table": "verbatim", "chain": "forward", "expr": [{"drop": None}]}}, None),
    ],
)
def test_what_this_kernel_may_not_have(entry: dict[str, Any], level: Level | None) -> None:
    """As libnftables-json(5) shows them."""
    found = [told[1] for told in locks.strangers([{"metainfo": {}}, entry], "verbatim", {"eth0", "eth1"})]
    assert found == ([level] if level else [])


@pytest.fixture
def pinned() -> Iterator[Settings]:
    """Maps and two little programs, pinned as the wire process pins them."""
    folder = Path(f"/sys/fs/bpf/vb-doctor-{secrets.token_hex(3)}")
    settings = gateway(wire=Wire(agents=("eth1",), upstream=("eth0",), bpffs=folder, ring_bytes=65536))
    folder.mkdir()
    maps = loader.create_maps(settings.wire)
    nothing = b"\xb7" + bytes(7) + b"\x95" + bytes(7)  # r0 = 0; exit
    meta = abi.Meta(abi.ABI, 0, bytes(16), program.digest(program.source_folder()))
    bpf.Map(maps["meta"]).update(bytes(4), meta.pack())
    for name, fd in {**maps, **{place: bpf.load_program(nothing, place) for place in locks.PLACES}}.items():
        bpf.pin(fd, folder / name)
    yield settings
    loader.unpin(folder)


def pins_with(settings: Settings, **changes: Any) -> Finding:
    changed = settings.wire.model_copy(update=changes)
    return worst(locks.pins(settings.model_copy(update={"wire": changed})))


def test_pins(pinned: Settings) -> None:
    assert pins_with(pinned).level is Level.OK
    assert "ring not of the configured size" in pins_with(pinned, ring_bytes=131072).found
    assert pins_with(pinned, bpffs=Path("/sys/fs/bpf/vb-doctor-none")).level is Level.WARN
    (pinned.wire.bpffs / "flows").unlink()
    gone = pins_with(pinned)
    assert (gone.level, gone.remedy) == (Level.FAIL, "restart 'verbatim wire'")
    assert gone.found.startswith("flows not pinned")


def test_pins_of_another_version(pinned: Settings) -> None:
    meta = bpf.get(pinned.wire.bpffs / "meta")
    assert meta is not None
    bpf.Map(meta).update(bytes(4), abi.Meta(abi.ABI, 0, bytes(16), bytes(32)).pack())
    assert "another version" in pins_with(pinned).found


def test_a_program_that_is_not_attached(pinned: Settings) -> None:
    found = in_namespace(lambda: list(locks.attached(pinned, network.look())))
    assert [(one.about, one.level) for one in found] == [("eth1", Level.FAIL), ("eth0", Level.FAIL)]
    assert "start 'verbatim wire'" in found[0].remedy


@pytest.mark.parametrize("switch", ["ipv4/ip_forward", "ipv6/conf/all/forwarding", ""])
def test_no_lock_stands(switch: str, tmp_path: Path) -> None:
    """Before the first start, or torn down: a failure exactly while the machine forwards."""
    settings = gateway(tmp_path)

    def look() -> list[Finding]:
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            (network.SYSCTL / name).write_text(str(int(name == switch)))
        return [one for one in examine(settings, root=True) if one.check in LOCKS]

    found = in_namespace(look)
    level = Level.FAIL if switch else Level.WARN
    assert [(one.check, one.level) for one in found] == [(check, level) for check in LOCKS]
    assert ["forwarding is on" in one.found and "ip_forward=0" in one.remedy for one in found] == [bool(switch)] * 3
