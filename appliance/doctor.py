"""`verbatim doctor`: looks at machine and appliance, says what is wrong and how to mend it. Changes nothing."""

import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from appliance.config import Issuer, Settings
from appliance.errors import Unavailable
from appliance.health import judge
from appliance.identity.oidc import fetch_keys
from appliance.status import read

KERNEL_FLOOR = (6, 1)


class Level(Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and the remedy when it is not fine."""

    check: str
    level: Level
    found: str
    remedy: str = ""

    @property
    def sentence(self) -> str:
        return f"{self.found}; {self.remedy}" if self.remedy else self.found


def examine(settings: Settings, *, root: bool) -> list[Finding]:
    """Every check, in the order of the path: kernel, machine, data, processes, issuers."""
    found = [_kernel(), _headers(), *_forwarding(), *_interfaces(settings), *_tools(), *_data(settings)]
    found += [
        _finding(name, verdict) for name, verdict in judge(settings.data, embedded=not settings.store.url).items()
    ]
    found += [_journal(settings), *_refusals(settings), *(_issuer(issuer) for issuer in settings.issuers)]
    if not settings.issuers:
        found.append(
            Finding("issuers", Level.FAIL, "no issuer is configured", "add [[issuers]], or no agent gets a lease")
        )
    if not settings.rules:
        found.append(Finding("rules", Level.FAIL, "no rule is configured", "add [[rules]], or everything is refused"))
    if not root:
        found.append(Finding("root", Level.WARN, "not run as root", "run it with sudo to see all"))
    return found


def _finding(name: str, verdict: str) -> Finding:
    what, _, remedy = verdict.partition("; ")
    return Finding(name, Level.OK if verdict == "ok" else Level.FAIL, what, remedy)


def _kernel() -> Finding:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < KERNEL_FLOOR:
        return Finding("kernel", Level.FAIL, f"Linux {release}", "use Linux 6.1 or newer (Debian 12)")
    return Finding("kernel", Level.OK, f"Linux {release}")


def _headers() -> Finding:
    if Path(f"/lib/modules/{os.uname().release}/build").exists():
        return Finding("headers", Level.OK, "the running kernel's")
    if list(Path("/usr/src").glob("linux-headers-*-common")):
        return Finding("headers", Level.OK, "Debian's, for another kernel of the same interfaces")
    return Finding("headers", Level.FAIL, "no kernel headers", "apt-get install linux-headers-amd64")


def _forwarding() -> Iterator[Finding]:
    for name, path in (("IPv4", "ipv4/ip_forward"), ("IPv6", "ipv6/conf/all/forwarding")):
        switch = Path("/proc/sys/net") / path
        if not switch.exists():
            yield Finding(f"forwarding {name}", Level.WARN, "this kernel has no such protocol")
        elif switch.read_text("ascii").strip() != "1":
            key = f"net.{path.replace('/', '.')}"
            yield Finding(f"forwarding {name}", Level.FAIL, f"{key} is off", f"sysctl -w {key}=1, and in /etc/sysctl.d")
        else:
            yield Finding(f"forwarding {name}", Level.OK, "on")


def _interfaces(settings: Settings) -> Iterator[Finding]:
    present = {name for _, name in socket.if_nameindex()}
    for role, names in (("wire.agents", settings.wire.agents), ("wire.upstream", settings.wire.upstream)):
        if not names:
            yield Finding(role, Level.FAIL, "no interface is configured", f"set {role} to the names of interfaces")
        for name in names:
            there = name in present
            remedy = "" if there else f"correct {role}, or bring the interface up"
            yield Finding(
                f"{role} {name}", Level.OK if there else Level.FAIL, "present" if there else "missing", remedy
            )


def _tools() -> Iterator[Finding]:
    if shutil.which("nft", path=os.defpath + ":/usr/sbin:/sbin"):
        yield Finding("nftables", Level.OK, "nft is installed")
    else:
        yield Finding("nftables", Level.FAIL, "nft is missing", "apt-get install nftables")


def _data(settings: Settings) -> Iterator[Finding]:
    if not settings.data.exists():
        yield Finding("data", Level.WARN, f"{settings.data} does not exist yet", "it is made at first start")
        return
    mode = settings.data.stat().st_mode & 0o777
    if mode & 0o077:
        yield Finding("data", Level.WARN, f"{settings.data} has mode {mode:o}", f"chmod 700 {settings.data}")
    free = shutil.disk_usage(settings.data).free
    least = settings.journal.min_free_bytes
    if free < least:
        yield Finding(
            "disk", Level.FAIL, f"{free >> 20} MiB free", f"free space: traffic stalls below {least >> 20} MiB"
        )
    elif free < 2 * least:
        yield Finding("disk", Level.WARN, f"{free >> 20} MiB free", f"traffic stalls below {least >> 20} MiB")
    else:
        yield Finding("disk", Level.OK, f"{free >> 20} MiB free, traffic stalls below {least >> 20} MiB")


def _journal(settings: Settings) -> Finding:
    wire = read(settings.data).get("wire")
    journal = wire.values.get("journal", {}) if wire else {}
    if not journal:
        return Finding("journal", Level.WARN, "nothing is known of it", "start 'verbatim wire'")
    room = (
        f"{int(journal.get('bytes', 0)) >> 20} MiB used, {int(journal.get('room', 0)) >> 20} MiB until traffic stalls"
    )
    if journal.get("stalled"):
        return Finding(
            "journal", Level.FAIL, f"traffic is stalled: {room}", "free disk space, or see why 'record' lags"
        )
    return Finding("journal", Level.OK, room)


def _refusals(settings: Settings) -> Iterator[Finding]:
    wire = read(settings.data).get("wire")
    counts = wire.values.get("refusals", {}) if wire else {}
    told = ", ".join(f"{int(count)} {reason.replace('_', ' ')}" for reason, count in sorted(counts.items()) if count)
    if wire:
        yield Finding("refusals", Level.OK, f"packets since the program was loaded: {told or 'none'}")


def _issuer(issuer: Issuer) -> Finding:
    name = f"issuer {issuer.issuer}"
    try:
        keys = fetch_keys(issuer)
    except Unavailable as error:
        return Finding(
            name, Level.FAIL, str(error).partition(";")[0].removeprefix(f"{name}: "), "see that it can be reached"
        )
    return Finding(name, Level.OK, f"{len(keys)} signature keys")
