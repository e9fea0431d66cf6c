"""The locks: the pinned programs with their filters, and the nftables table; and what else could open a way.

A lock that is missing while the gateway forwards is a failure, whatever was or was not started before. While it does
not forward, one that was never made is the state before the first start.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from appliance.config import Settings
from appliance.doctor.finding import Check, Finding, Level
from appliance.doctor.network import Nic, forwards
from appliance.doctor.scratch import apart
from appliance.errors import MalformedInput, Unavailable
from appliance.wire import abi, bpf, filters, interlock, loader, program
from appliance.wire.ring import fill

TIMEOUT = 4.0  # seconds for one run of nft
START = "start 'verbatim wire', which makes it"
OPEN = ", and forwarding is on"
CLOSE = "start 'verbatim wire'; until it runs: sysctl -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"
PLACES = {"program": filters.ARRIVAL, "gate": filters.DEPARTURE}  # pin -> where it is attached
HELD = 0.9  # of the fill at which windows are held (bpf/clamp.h): bulk comes ever nearer to it, and gets on no more
TRANSLATION = ("snat", "dnat", "masquerade", "redirect")
LEGACY = ("ip", "ip6")


def pins(settings: Settings) -> Iterator[Finding]:
    """Is everything pinned, of this version, of the configured size?"""
    folder = settings.wire.bpffs
    shapes = loader.map_shapes(settings.wire)
    wanted = {*PLACES, *shapes}
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not there & wanted:
        yield _absent(settings, Check.PINS, f"nothing is pinned in {folder}")
        return
    if missing := sorted(wanted - there):
        yield Finding(
            Check.PINS, "", Level.FAIL, f"{', '.join(missing)} not pinned in {folder}", "restart 'verbatim wire'"
        )
        return
    other = [
        name for name, shape in shapes.items() if (fd := bpf.get(folder / name)) is not None and not _fits(fd, shape)
    ]
    if other:
        text = f"{', '.join(sorted(other))} not of the configured size"
        yield Finding(
            Check.PINS, "", Level.WARN, text, "restart 'verbatim wire': it makes them anew, what they hold is lost"
        )
    elif not _current(folder):
        text = "the program is that of another version of Verbatim"
        yield Finding(Check.PINS, "", Level.WARN, text, "restart 'verbatim wire'")
    else:
        yield Finding(Check.PINS, "", Level.OK, f"program and {len(shapes)} maps in {folder}")


def _absent(settings: Settings, check: Check, text: str, *, begun: bool = False) -> Finding:
    """A lock that is not there. `begun`: the others say that it was."""
    if forwards(settings):
        return Finding(check, "", Level.FAIL, text + OPEN, CLOSE)
    return Finding(check, "", Level.FAIL if begun else Level.WARN, text, START)


def ring(settings: Settings) -> Iterator[Finding]:
    """How full it is, whether anybody drains it or not."""
    fd = bpf.get(settings.wire.bpffs / "ring") if settings.wire.bpffs.is_dir() else None
    if fd is None:
        return
    try:
        size, filled = bpf.Map(fd).max_entries, fill(fd)
    finally:
        os.close(fd)
    text = f"{100 * filled / size:.0f} % of {size >> 20} MiB wait for the journal"
    clamp = settings.wire.clamp if 0 < settings.wire.clamp < 1 else 0.5  # off: nothing is held
    held = HELD * (clamp + (1 - clamp) / 3)
    if filled > held * size:
        remedy = "start 'verbatim wire', or see what keeps it: journal, disk, processor"
        yield Finding(Check.RING, "", Level.FAIL, f"{text}: agents' traffic waits", remedy)
    elif filled > clamp * size:
        remedy = "see what keeps 'verbatim wire': journal, disk, processor"
        yield Finding(Check.RING, "", Level.WARN, text, remedy)
    else:
        yield Finding(Check.RING, "", Level.OK, text)


def _fits(fd: int, shape: loader.Shape) -> bool:
    try:
        known = bpf.Map(fd)
        return (known.type, known.key_size, known.value_size, known.max_entries) == (
            shape.kind, shape.key, shape.value, shape.entries,
        )  # fmt: skip
    finally:
        os.close(fd)


def _current(folder: Path) -> bool:
    fd = bpf.get(folder / "meta")
    if fd is None:
        return False
    try:
        meta = abi.Meta.unpack(bpf.Map(fd).lookup(bytes(4)) or bytes(abi.Meta.LAYOUT.size))
    finally:
        os.close(fd)
    return meta.abi == abi.ABI and meta.program == program.digest(program.source_folder())


def attached(settings: Settings, nics: Mapping[str, Nic]) -> Iterator[Finding]:
    """Is the pinned program the first on every interface?"""
    folder = settings.wire.bpffs
    there = PLACES if folder.is_dir() else ()
    pinned = {name: fd for name in there if (fd := bpf.get(folder / name)) is not None}
    try:
        if set(pinned) != set(PLACES):
            yield _absent(settings, Check.FILTERS, "there is no pinned program that could be attached")
            return
        wanted = [filters.Filter(place, pinned[name], bpf.program_id(pinned[name])) for name, place in PLACES.items()]
        with IPRoute() as netlink:
            for name in dict.fromkeys((*settings.wire.agents, *settings.wire.upstream)):
                if name in nics:
                    yield _attached(name, nics[name].index, wanted, netlink)
    finally:
        for fd in pinned.values():
            os.close(fd)


def _attached(name: str, index: int, wanted: Sequence[filters.Filter], netlink: Any) -> Finding:
    if before := filters.before(index, netlink):
        text = f"{before} gets packets before they can be recorded"
        return Finding(Check.FILTERS, name, Level.FAIL, text, f"remove it: ip link set dev {name} xdp off, or bpftool")
    missing = [each.place.name for each in wanted if not filters.attached(each, index, netlink)]
    if missing:
        text = f"not the pinned program's: {', '.join(missing)}"
        return Finding(Check.FILTERS, name, Level.FAIL, text, "start 'verbatim wire', which attaches it each second")
    return Finding(Check.FILTERS, name, Level.OK, "the program comes first, both ways")


def lock(settings: Settings) -> Iterator[Finding]:
    """Is the table as this version would set it up? Compared with one in a network namespace of our own."""
    wire = settings.wire
    try:
        ports = interlock.api_ports(settings.api.listen)
        proxies = interlock.proxy_ports(settings.relay.proxy, ports)
        script = interlock.ruleset(wire.table, wire.agents, wire.upstream, ports, proxies)
    except MalformedInput as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding(Check.INTERLOCK, "", Level.FAIL, what, remedy)
        return
    name = f"table inet {wire.table}"
    now = _table(wire.table)
    if now is None:
        yield _absent(settings, Check.INTERLOCK, f"no {name}", begun=wire.bpffs.is_dir())
        return

    def made() -> str | None:
        _nft("-f", "-", script=script)
        return _table(wire.table)

    if now != apart(made):
        text = f"{name} is not as this version sets it up, or of other settings"
        yield Finding(Check.INTERLOCK, "", Level.FAIL, text, "restart 'verbatim wire', which replaces it")
    else:
        yield Finding(Check.INTERLOCK, "", Level.OK, f"{name} is as it should be")


def other_tables(settings: Settings) -> Iterator[Finding]:
    """What other tables do to forwarded packets. An `accept` in them opens nothing: every chain of a hook is asked."""
    listing = json.loads(_nft("--json", "--terse", "list", "ruleset"))["nftables"]
    names = {*settings.wire.agents, *settings.wire.upstream}
    found = list(strangers(listing, settings.wire.table, names))
    for family in LEGACY:
        path = Path(f"/proc/thread-self/net/{family}_tables_names")
        if path.exists() and (used := path.read_text("ascii").split()):
            text = f"{family}tables-legacy has tables {', '.join(used)}, which nft does not show"
            found.append((f"{family}tables-legacy", Level.WARN, text, f"see {family}tables-legacy-save; use nftables"))
    for about, level, text, remedy in found:
        yield Finding(Check.OTHER_TABLES, about, level, text, remedy)
    if not found:
        yield Finding(Check.OTHER_TABLES, "", Level.OK, "none touches what is forwarded")


def strangers(listing: Sequence[Any], own: str, interfaces: set[str]) -> Iterator[tuple[str, Level, str, str]]:
    """Table, level, what it does, remedy, from `nft --json list ruleset` (libnftables-json(5))."""
    seen: set[tuple[str, str]] = set()
    hooks = {_place(chain): chain for entry in listing if (chain := entry.get("chain"))}
    for entry in listing:
        ((kind, value),) = entry.items()
        table = value.get("table") if isinstance(value, dict) else None
        if table is None or (value.get("family"), table) == ("inet", own):
            continue
        name = f"{value['family']} {table}"
        if kind == "flowtable":
            devices = value.get("dev", [])
            told = _flowtable([devices] if isinstance(devices, str) else devices, interfaces)
        elif kind == "chain":
            told = _chain(value)
        elif kind == "rule":
            told = _rule(value.get("expr", []), hooks.get((value["family"], table, value.get("chain")), {}))
        else:
            continue
        if told and (name, told[1]) not in seen:
            seen.add((name, told[1]))
            yield (name, *told)


def _place(chain: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return chain["family"], chain["table"], chain["name"]


def _flowtable(devices: Sequence[str], interfaces: set[str]) -> tuple[Level, str, str] | None:
    ours = sorted(interfaces & set(devices))
    if not ours:
        return None
    return Level.FAIL, f"a flowtable takes flows of {', '.join(ours)} past the forward hook", "remove the flowtable"


def _chain(chain: Mapping[str, Any]) -> tuple[Level, str, str] | None:
    if chain.get("hook") == "forward" and chain.get("policy") == "drop":
        return (
            Level.WARN,
            "may drop what was recorded: its forward chain has the policy drop",
            "let it accept forwarding",
        )
    return None


def _rule(expressions: Sequence[Any], chain: Mapping[str, Any]) -> tuple[Level, str, str] | None:
    for expression in expressions:
        if not isinstance(expression, dict):
            continue
        for verb, value in expression.items():
            if verb == "mangle" and isinstance(value, dict) and value.get("key") == {"meta": {"key": "mark"}}:
                forged = value.get("value") == abi.MARK_RECORDED
                level = Level.FAIL if forged else Level.WARN
                text = (
                    "sets the mark of recorded packets" if forged else "sets packet marks, which tell what is recorded"
                )
                return level, text, "remove that rule: marks belong to Verbatim on this machine"
            if verb == "fwd":
                return Level.FAIL, "sends packets past the forward hook (fwd)", "remove that rule"
            if verb == "flow":
                return Level.FAIL, "sends flows past the forward hook (flow add)", "remove that rule"
            if verb in TRANSLATION:
                text = f"translates addresses ({verb}): answers to forwarded packets will not be recognised"
                return Level.WARN, text, "except what agents send, or translate on another machine"
            if verb == "queue":
                return Level.WARN, "hands packets to another program (queue)", "except what agents send"
            if verb in ("drop", "reject") and chain.get("hook") == "forward":
                return (
                    Level.WARN,
                    "drops some of what was recorded (forward hook)",
                    "see that it does not concern agents",
                )
    return None


def _table(table: str) -> str | None:
    """Its text, without counters; None: there is none."""
    try:
        return _nft("--stateless", "--terse", "list", "table", "inet", table)
    except FileNotFoundError:
        return None


def _nft(*arguments: str, script: str | None = None) -> str:
    """Raises `FileNotFoundError` when what is listed does not exist, `PermissionError`, `Unavailable`."""
    done = interlock.run_nft(*arguments, script=script, timeout=TIMEOUT)
    if fault := interlock.nft_fault(done):
        if "No such file" in fault:
            raise FileNotFoundError(fault)
        if "not permitted" in fault or "must be root" in fault:
            raise PermissionError(1, "nft needs root")
        raise Unavailable(f"nft: {fault}; see whether the kernel has nftables")
    return done.stdout
