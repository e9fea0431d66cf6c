"""Settings of a gateway with one interface on each side, and findings by check."""

import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pytest

from appliance.config import Rule, Settings, Wire
from appliance.doctor.finding import Finding, Level
from appliance.doctor.scratch import apart

Value = TypeVar("Value")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces, BPF and nftables")


def gateway(data: Path = Path("/nowhere"), **changes: object) -> Settings:
    """A gateway with agents behind `eth1` and everything else behind `eth0`."""
    values: dict[str, object] = {
        "data": data,
        "wire": Wire(agents=("eth1",), upstream=("eth0",), bpffs=Path("/sys/fs/bpf/vb-doctor-none")),
        "rules": (Rule(to="0.0.0.0/0", protocol="tcp"),),
    }
    return Settings(**(values | changes))  # type: ignore[arg-type]


def worst(found: Iterable[Finding], about: str | None = None) -> Finding:
    """The gravest finding, of those about `about` if it is given."""
    order = [Level.OK, Level.UNKNOWN, Level.WARN, Level.FAIL]
    return max((one for one in found if about in (None, one.about)), key=lambda one: order.index(one.level))


def sh(*commands: str) -> None:
    """Run in the network namespace of the calling thread."""
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)


def in_namespace(look: Callable[[], Value], *commands: str) -> Value:
    """What `look` returns in an empty network namespace with eth0 and eth1, after the commands."""

    def inside() -> Value:
        for name in ("eth0", "eth1"):
            sh(f"ip link add {name} type veth peer name {name}p", f"ip link set {name}p up", f"ip link set {name} up")
        sh("ip addr add 198.51.100.1/24 dev eth0", "ip addr add 10.20.1.1/24 dev eth1", *commands)
        return look()

    return apart(inside)
