"""Load, pin and attach the TC program (`bpf/wire.c`), with its maps and its ring.

Everything is pinned below `settings.bpffs`: the program as `program`, each map under its name. So recording goes on in
the kernel while no process of ours runs, and the next start takes over ring, flows, leases and counters as they are:

- program of the same sources, all maps of the wanted type and size: taken over as it is (`Program.reused`);
- other sources, or a map of another size: a new program, with all pinned maps that still fit (`Program.kept`);
- another ABI version (`struct meta`): everything is made anew, and so is the ring's id.

A filter keeps the program that it was attached with until `attach()` replaces it, in one step.

What the maps hold is documented in `bpf/wire.h` (`enum map`) and mirrored by `appliance/wire/abi.py`.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance import config
from appliance.errors import Unavailable
from appliance.wire import abi, bpf, headers, program

ARPHRD_ETHER = 1
FILTER = "verbatim"
RULES_MAX = 16384
REFUSALS_MAX = 8192
SCRATCH_BYTES = 512

_BPFFS_MAGIC = 0xCAFE4A11
_CLSACT = 0xFFFF0000
_INGRESS = 0xFFFFFFF2
_ETH_P_ALL = 3
_TCA_BPF_ID = 11
_PRIORITY = 1
_HANDLE = 1


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
    """The loaded program and its maps, as file descriptors of this process; pins and filters outlast it.

    `maps`: by name: leases, rules, interfaces, locals, flows, counters, refusals, settings, ring, scratch, meta.
    `ring_id`: 32 hex digits, random, made with the ring. `reused`: nothing was made anew. `kept`: names of the maps
    that were taken over with their contents ("ring" among them: what was not drained is still there).
    """

    fd: int
    id: int
    maps: dict[str, int]
    ring_id: str
    reused: bool
    kept: frozenset[str]

    @property
    def ring_fd(self) -> int:
        return self.maps["ring"]

    def map(self, name: str) -> bpf.Map:
        return bpf.Map(self.maps[name])

    def close(self) -> None:
        for fd in (self.fd, *self.maps.values()):
            os.close(fd)


def map_shapes(settings: config.Wire) -> dict[str, Shape]:
    """The maps by name, in the order of `abi.MapIndex`."""
    address, flow = 16, abi.FlowKey.LAYOUT.size
    return {
        "leases": Shape(bpf.HASH, address, abi.LeaseValue.LAYOUT.size, settings.max_leases),
        "rules": Shape(bpf.LPM_TRIE, abi.RuleKey.LAYOUT.size, abi.RuleValue.LAYOUT.size, RULES_MAX, bpf.NO_PREALLOC),
        "interfaces": Shape(bpf.HASH, 4, 4, 1024),
        "locals": Shape(bpf.HASH, address, 4, 4096),
        "flows": Shape(bpf.HASH, flow, abi.Flow.SIZE, settings.max_flows),
        "counters": Shape(bpf.PERCPU_ARRAY, 4, 8, abi.COUNTER_COUNT),
        "refusals": Shape(bpf.LRU_HASH, abi.RefusalKey.LAYOUT.size, abi.RefusalValue.LAYOUT.size, REFUSALS_MAX),
        "settings": Shape(bpf.ARRAY, 4, abi.SettingsValue.LAYOUT.size, 1),
        "ring": Shape(bpf.RINGBUF, 0, 0, settings.ring_bytes),
        "scratch": Shape(bpf.PERCPU_ARRAY, 4, SCRATCH_BYTES, 1),
        "meta": Shape(bpf.ARRAY, 4, abi.Meta.LAYOUT.size, 1),
    }


def create_maps(settings: config.Wire, names: frozenset[str] | None = None) -> dict[str, int]:
    """New maps (all, or those of `names`), unpinned, `settings` filled in. File descriptors by name."""
    made: dict[str, int] = {}
    for name, shape in map_shapes(settings).items():
        if names is None or name in names:
            made[name] = bpf.create_map(shape.kind, shape.key, shape.value, shape.entries, name, shape.flags)
    if "settings" in made:
        interval = round(settings.refusal_interval * 1e9)
        bpf.Map(made["settings"]).update(bytes(4), abi.SettingsValue(0, 0, interval).pack())
    return made


def load(instructions: bytes, maps: dict[str, int]) -> int:
    """The program with these maps; its file descriptor. `OSError` when the kernel refuses it."""
    return bpf.load_program(
        bpf.relocate(instructions, {i: maps[i.name.lower()] for i in abi.MapIndex}), "verbatim_wire"
    )


def open_program(settings: config.Wire, cache: Path = headers.CACHE) -> Program:
    """Take over what is pinned under `settings.bpffs`, or make it (see the top). Mounts bpffs when there is none.

    Raises `Unavailable`: not root, no bpffs, no bcc, no kernel headers, or the kernel refuses the program.
    """
    try:
        _mount(settings.bpffs)
        return _open(settings, cache)
    except OSError as error:
        hint = "run as root" if error.errno in (errno.EPERM, errno.EACCES) else "`verbatim doctor` checks the machine"
        raise Unavailable(f"capture program: {error}; {hint}") from error


def _open(settings: config.Wire, cache: Path) -> Program:
    folder, source = settings.bpffs, program.source_folder()
    version = program.digest(source)
    maps = _kept(settings)
    kept = frozenset(maps)
    meta = abi.Meta.unpack(bpf.Map(maps["meta"]).lookup(bytes(4)) or b"") if "meta" in maps else None
    pinned = bpf.get(folder / "program")
    if pinned is not None:
        if meta is not None and meta.program == version and kept == set(map_shapes(settings)):
            return Program(pinned, bpf.program_id(pinned), maps, meta.ring.hex(), True, kept)
        os.close(pinned)
    instructions = program.compiled(source, cache)
    maps |= create_maps(settings, frozenset(map_shapes(settings)) - kept)
    fd = load(instructions, maps)
    # Whatever goes is gone before anything new comes: a crash in between leaves a set that the next start completes.
    for name in ("program", *(maps.keys() - kept)):
        (folder / name).unlink(missing_ok=True)
    ring = meta.ring if meta is not None and "ring" in kept else secrets.token_bytes(16)
    bpf.Map(maps["meta"]).update(bytes(4), abi.Meta(abi.ABI, 0, ring, version).pack())
    for name in maps.keys() - kept:
        bpf.pin(maps[name], folder / name)
    bpf.pin(fd, folder / "program")
    return Program(fd, bpf.program_id(fd), maps, ring.hex(), False, kept)


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
    if meta is None or abi.Meta.unpack(meta).abi != abi.ABI or "ring" not in found:
        for fd in found.values():
            os.close(fd)
        return {}
    return found


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


def attach(loaded: Program, ifindex: int) -> None:
    """Make `loaded` the interface's first ingress filter, in place of a former version. Fine when it already is.

    Raises `Unavailable`: no such interface, or it is not Ethernet (the program would misread its packets).
    """
    with IPRoute() as netlink:
        try:
            links = netlink.get_links(ifindex)
            if not links or links[0]["ifi_type"] != ARPHRD_ETHER:
                name = links[0].get_attr("IFLA_IFNAME") if links else ifindex
                raise Unavailable(f"interface {name}: not an Ethernet interface; name Ethernet interfaces in [wire]")
            if _filter(netlink, ifindex) == loaded.id:
                return
            with contextlib.suppress(FileExistsError, NetlinkError):  # there is a clsact: what follows says what fails
                netlink.tc("add", "clsact", ifindex)
            netlink.tc(
                "replace-filter",
                "bpf",
                ifindex,
                _HANDLE,
                fd=loaded.fd,
                name=FILTER,
                parent=_INGRESS,
                prio=_PRIORITY,
                protocol=_ETH_P_ALL,
                direct_action=True,
            )
        except NetlinkError as error:
            reason = os.strerror(error.code)
            raise Unavailable(
                f"interface {ifindex}: {reason}; name existing interfaces in [wire], run as root"
            ) from error


def attached(loaded: Program, ifindex: int) -> bool:
    """Does every packet that arrives on the interface go through this very program first?"""
    with IPRoute() as netlink:
        try:
            return _filter(netlink, ifindex) == loaded.id
        except NetlinkError:
            return False


def detach(ifindex: int) -> None:
    """Remove our filter. Fine when there is none, or no such interface. From here on nothing is forwarded."""
    with IPRoute() as netlink, contextlib.suppress(NetlinkError):
        if _filter(netlink, ifindex) is not None:
            netlink.tc("del-filter", "bpf", ifindex, _HANDLE, parent=_INGRESS, prio=_PRIORITY, protocol=_ETH_P_ALL)


def _filter(netlink: IPRoute, ifindex: int) -> int | None:
    """The id of the program in our filter's place. A filter before it would show as another place: then None."""
    for message in netlink.get_filters(ifindex, parent=_INGRESS):
        options = message.get_attr("TCA_OPTIONS")
        if options is None:  # the head of a priority
            continue
        place = (message["info"] >> 16, socket.ntohs(message["info"] & 0xFFFF), message["handle"])
        if place != (_PRIORITY, _ETH_P_ALL, _HANDLE) or message.get_attr("TCA_KIND") != "bpf":
            return None
        if options.get_attr("TCA_BPF_NAME") != FILTER:
            return None
        return next((_number(slot.nla) for slot in options["attrs"] if slot.nla["header"]["type"] == _TCA_BPF_ID), None)
    return None


def _number(attribute: Any) -> int:
    """A u32 that pyroute2 has no name for: behind the attribute's header of 4 bytes."""
    return int(struct.unpack_from("<I", attribute.data, attribute.offset + 4)[0])


def unpin(folder: Path) -> None:
    """Remove all pins under `settings.bpffs`. Attached filters keep program and maps alive until they are detached."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()
