"""Load and pin the TC programs (`bpf/wire.c`, `bpf/gate.c`), with the maps and the ring.

Everything is pinned below `settings.bpffs`: the programs as `program` and `gate`, each map under its name. So recording
goes on in the kernel while no process of ours runs, and the next start takes over ring, flows, leases and counters as
they are:

- program of the same sources, all maps of the wanted type and size: taken over as it is (`Program.reused`);
- other sources, or a map of another size: a new program, with all pinned maps that still fit (`Program.kept`);
- another ABI version (`struct meta`): everything is made anew, and so is the ring's id;
- where a new ring takes over, the former set of pins stays beside the new one (former.py) until its ring is drained.

What the maps hold is documented in `bpf/wire.h` (`enum map`) and mirrored by `appliance/wire/abi.py`.
"""

import ctypes
import errno
import os
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance import config
from appliance.errors import MalformedInput, Unavailable
from appliance.wire import abi, bpf, filters, former, program
from appliance.wire.maps import MAX_NETWORKS, MAX_RULES

RULES_MAX = 16 * MAX_RULES  # those of before stay until those of now are there
REFUSALS_MAX = 8192
PORTS_MAX = 8
PROXIES_MAX = 8
HELD_MAX = 4096
LEGS_MAX = 65536
ANSWERS_BYTES = 256 * 1024  # of the ring of DNS answers
SCRATCH_BYTES = 1024
ROUTES_MAX = 2 * MAX_NETWORKS
OWNERS_UNBOUND = 1024  # networks of clients without a lease, which own flows together

_BPFFS_MAGIC = 0xCAFE4A11


@dataclass(frozen=True, slots=True)
class Shape:
    """Type, key and value bytes, entries (the ring: its bytes), flags of a map."""

    kind: int
    key: int
    value: int
    entries: int
    flags: int = 0


@dataclass(slots=True)
class Program:
    """The loaded programs and their maps, as file descriptors of this process; pins and filters outlast it.

    `fd`, `id`: of the recording program; `gate`: file descriptor of the one on departure, -1 where there is none.
    `maps`: by name: leases, rules, interfaces, locals, flows, counters, refusals, settings, ring, scratch, meta,
    quotas, released, budget, networks, held, pressure, relays, legs, answers.
    `ring_id`: 32 hex digits, random, made with the ring. `reused`: nothing was made anew. `kept`: names of the maps
    that were taken over with their contents ("ring" among them: what was not drained is still there).
    """

    fd: int
    id: int
    maps: dict[str, int]
    ring_id: str
    reused: bool
    kept: frozenset[str]
    gate: int = -1

    @property
    def arrival(self) -> filters.Filter:
        """The recording program's place on interfaces."""
        return filters.Filter(filters.ARRIVAL, self.fd, self.id)

    @property
    def departure(self) -> filters.Filter:
        """The gate's place on interfaces."""
        return filters.Filter(filters.DEPARTURE, self.gate, bpf.program_id(self.gate))

    @property
    def ring_fd(self) -> int:
        return self.maps["ring"]

    def map(self, name: str) -> bpf.Map:
        return bpf.Map(self.maps[name])

    def close(self) -> None:
        for fd in (self.fd, self.gate, *self.maps.values()):
            if fd >= 0:
                os.close(fd)


def map_shapes(settings: config.Wire) -> dict[str, Shape]:
    """The maps by name, in the order of `abi.MapIndex`."""
    address, flow = 16, abi.FlowKey.LAYOUT.size
    owners = 2 * settings.max_leases + OWNERS_UNBOUND  # leases that ended have flows for a while
    return {
        "leases": Shape(bpf.HASH, address, abi.LeaseValue.LAYOUT.size, settings.max_leases),
        "rules": Shape(bpf.LPM_TRIE, abi.RuleKey.LAYOUT.size, abi.RuleValue.LAYOUT.size, RULES_MAX, bpf.NO_PREALLOC),
        "interfaces": Shape(bpf.HASH, 4, 4, 1024),
        "locals": Shape(bpf.HASH, address, 4, 4096),
        "flows": Shape(bpf.HASH, flow, abi.TRACKED_BYTES, settings.max_flows),
        "counters": Shape(bpf.PERCPU_ARRAY, 4, 8, abi.COUNTER_COUNT),
        "refusals": Shape(bpf.LRU_HASH, abi.RefusalKey.LAYOUT.size, abi.RefusalValue.LAYOUT.size, REFUSALS_MAX),
        "settings": Shape(bpf.ARRAY, 4, abi.SettingsValue.LAYOUT.size, 1),
        "ring": Shape(bpf.RINGBUF, 0, 0, settings.ring_bytes),
        "scratch": Shape(bpf.PERCPU_ARRAY, 4, SCRATCH_BYTES, 1),
        "meta": Shape(bpf.ARRAY, 4, abi.Meta.LAYOUT.size, 1),
        "quotas": Shape(bpf.HASH, abi.Owner.LAYOUT.size, abi.Quota.LAYOUT.size, owners),
        "released": Shape(bpf.HASH, abi.Owner.LAYOUT.size, 8, owners),
        "budget": Shape(bpf.ARRAY, 4, abi.Budget.LAYOUT.size, 1),
        "networks": Shape(bpf.LPM_TRIE, abi.NetworkKey.LAYOUT.size, 4, ROUTES_MAX, bpf.NO_PREALLOC),
        "held": Shape(bpf.HASH, flow, abi.Held.LAYOUT.size, HELD_MAX),
        "pressure": Shape(bpf.ARRAY, 4, abi.Pressure.LAYOUT.size, 1),
        "relays": Shape(bpf.HASH, 4, abi.RelayValue.LAYOUT.size, abi.RELAYS_MAX),
        "legs": Shape(bpf.HASH, flow, abi.Leg.SIZE, LEGS_MAX, bpf.NO_PREALLOC),
        "answers": Shape(bpf.RINGBUF, 0, 0, ANSWERS_BYTES),
    }


def settings_value(
    settings: config.Wire,
    ports: Sequence[int],
    *,
    stalled: bool,
    rules: int = 0,
    proxies: Sequence[int] = (),
    names: bool = False,
) -> bytes:
    """The one element of map `settings`. `ports`: TCP ports of the gateway for agents; `rules`: `maps.rules_number`;
    `proxies`: TCP ports of the gateway where relays are a proxy; `names`: rules name hosts."""
    if len(ports) > PORTS_MAX:
        raise MalformedInput(f"api.listen: {len(ports)} different ports; use {PORTS_MAX} at most")
    if len(proxies) > PROXIES_MAX:
        raise MalformedInput(f"relay.proxy: {len(proxies)} different ports; use {PROXIES_MAX} at most")
    return abi.SettingsValue(
        stalled=int(stalled),
        refusal_rate=settings.refusal_rate,
        refusal_interval=round(settings.refusal_interval * 1e9),
        max_flows=settings.max_flows,
        max_flows_per_lease=settings.max_flows_per_lease,
        ports=struct.pack(f"<{PORTS_MAX}H", *ports, *[0] * (PORTS_MAX - len(ports))),
        ring=settings.ring_bytes,
        clamp=round(settings.ring_bytes * settings.clamp) if settings.clamp < 1 else 0,
        rules=rules,
        names=int(names),
        proxies=struct.pack(f"<{PROXIES_MAX}H", *proxies, *[0] * (PROXIES_MAX - len(proxies))),
    ).pack()


def create_maps(settings: config.Wire, names: frozenset[str] | None = None) -> dict[str, int]:
    """New maps (all, or those of `names`), unpinned, `settings` filled in. File descriptors by name."""
    made: dict[str, int] = {}
    for name, shape in map_shapes(settings).items():
        if names is None or name in names:
            made[name] = bpf.create_map(shape.kind, shape.key, shape.value, shape.entries, name, shape.flags)
    if "settings" in made:
        bpf.Map(made["settings"]).update(bytes(4), settings_value(settings, (), stalled=False))
    return made


def load(instructions: bytes, maps: dict[str, int], name: str = "verbatim_wire") -> int:
    """The program with these maps; its file descriptor. `OSError` when the kernel refuses it."""
    return bpf.load_program(bpf.relocate(instructions, {i: maps[i.name.lower()] for i in abi.MapIndex}), name)


def open_program(settings: config.Wire) -> Program:
    """Take over what is pinned under `settings.bpffs`, or make it (see the top). Mounts bpffs when there is none.

    Raises `Unavailable`: not root, no bpffs, no bcc, no kernel headers, or the kernel refuses the program.
    """
    try:
        _mount(settings.bpffs)
        return _open(settings)
    except OSError as error:
        hint = "run as root" if error.errno in (errno.EPERM, errno.EACCES) else "`verbatim doctor` checks the machine"
        raise Unavailable(f"capture program: {error}; {hint}") from error


def _open(settings: config.Wire) -> Program:
    folder, source = settings.bpffs, program.source_folder()
    version = program.digest(source)
    maps = _kept(settings)
    kept = frozenset(maps)
    meta = abi.Meta.unpack(bpf.Map(maps["meta"]).lookup(bytes(4)) or b"") if "meta" in maps else None
    pinned = bpf.get(folder / "program")
    if pinned is not None:
        if meta is not None and meta.program == version and kept == set(map_shapes(settings)):
            gate = bpf.get(folder / "gate")
            if gate is None:
                gate = _load_gate(source, maps)
                bpf.pin(gate, folder / "gate")
            return Program(pinned, bpf.program_id(pinned), maps, meta.ring.hex(), True, kept, gate)
        os.close(pinned)
    instructions = program.compiled(source)
    maps |= create_maps(settings, frozenset(map_shapes(settings)) - kept)
    fd, gate = load(instructions, maps), _load_gate(source, maps)
    if kept and "flows" not in kept:
        _carry_over(folder / "flows", maps["flows"])
    fresh = set(maps) - kept
    if "ring" not in kept and (folder / "ring").exists():  # it may hold records, and the attached program adds some
        folder.rename(former.beside(folder))
        folder.mkdir(mode=0o700)
        fresh = set(maps)
    # Whatever goes is gone before anything new comes: a crash in between leaves a set that the next start completes.
    for name in ("program", "gate", *fresh):
        (folder / name).unlink(missing_ok=True)
    ring = meta.ring if meta is not None and "ring" in kept else secrets.token_bytes(16)
    bpf.Map(maps["meta"]).update(bytes(4), abi.Meta(abi.ABI, 0, ring, version).pack())
    for name in sorted(fresh, key=lambda name: name != "meta"):  # no ring without its name
        bpf.pin(maps[name], folder / name)
    bpf.pin(gate, folder / "gate")
    bpf.pin(fd, folder / "program")
    return Program(fd, bpf.program_id(fd), maps, ring.hex(), False, kept, gate)


def _load_gate(source: Path, maps: dict[str, int]) -> int:
    return load(program.compiled(source, name=program.GATE), maps, "verbatim_gate")


def _kept(settings: config.Wire) -> dict[str, int]:
    """The pinned maps that fit; none when they are of another ABI, or when it is unknown whose ring it is."""
    found: dict[str, int] = {}
    for name, shape in map_shapes(settings).items():
        fd = bpf.get(settings.bpffs / name)
        if fd is None:
            continue
        known = bpf.Map(fd)
        if (known.type, known.key_size, known.value_size, known.max_entries) == (
            shape.kind,
            shape.key,
            shape.value,
            shape.entries,
        ):
            found[name] = fd
        else:
            os.close(fd)
    meta = bpf.Map(found["meta"]).lookup(bytes(4)) if "meta" in found else None
    unknown = meta is None or abi.Meta.unpack(meta).abi != abi.ABI
    for name in list(found):
        if unknown or (name == "meta" and "ring" not in found):  # it goes with its ring
            os.close(found.pop(name))
    return found


def _carry_over(pinned: Path, fd: int) -> None:
    """Copy the flows of a map of another size, so that connections go on. Those that don't fit are picked up anew."""
    before = bpf.get(pinned)
    if before is None:
        return
    old, new = bpf.Map(before), bpf.Map(fd)
    try:
        if (old.type, old.key_size) == (new.type, new.key_size) and old.value_size <= new.value_size:
            for key, value in old.items():
                new.update(key, value.ljust(new.value_size, b"\0"))
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
    finally:
        os.close(before)


def _mount(folder: Path) -> None:
    """Make `folder` on a bpffs: its parent, where one is mounted now when there is none yet."""
    parent = folder.parent
    if not parent.exists():
        parent.mkdir(mode=0o700, parents=True)
    if not is_bpffs(parent):
        if any(parent.iterdir()):
            raise Unavailable(f"bpffs: {parent} is no BPF file system and not empty; set wire.bpffs to a folder on one")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"bpf", os.fsencode(parent), b"bpf", 0, b"mode=0700") != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"mount -t bpf bpf {parent}: {os.strerror(code)}")
    folder.mkdir(mode=0o700, exist_ok=True)


def is_bpffs(folder: Path) -> bool:
    """Is a BPF file system mounted here? (statfs(2), f_type)"""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)
    if libc.statfs(os.fsencode(folder), buffer) != 0:
        return False
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == _BPFFS_MAGIC


def unpin(folder: Path) -> None:
    """Remove all pins under `settings.bpffs`. Attached filters keep program and maps alive until they are detached."""
    for each in (folder, *former.folders(folder)):
        if each.is_dir():
            former.unpin(each)
