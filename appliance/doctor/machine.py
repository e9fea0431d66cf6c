"""Kernel, compiler, memory and clock: what the machine must bring."""

import ctypes
import errno
import importlib.util
import os
import re
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance.config import Settings
from appliance.doctor.finding import Check, Finding, Level
from appliance.doctor.scratch import apart
from appliance.errors import Unavailable
from appliance.wire import bpf, headers, interlock, loader

KERNEL_FLOOR = (6, 1)
PLAUSIBLE = datetime(2026, 1, 1, tzinfo=UTC)  # no clock is right that is before the first release
MAX_AHEAD = 2.0  # seconds by which files may be dated in the future: file systems round
OVERHEAD = 64  # bytes of a kernel map's entry besides key and value, roughly
FILES = 8192  # that the API wants open (api/server.py)
STA_UNSYNC = 0x40  # linux/timex.h
TIMEX_BYTES = 208  # struct timex on 64-bit Linux
TIMEX_STATUS = 40  # offset of .status
INGRESS, ALL = 0xFFFFFFF2, 3  # TC's parent and protocol, as appliance/wire attaches


def kernel() -> Iterator[Finding]:
    release = os.uname().release
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if numbers < KERNEL_FLOOR:
        yield Finding(Check.KERNEL, "", Level.FAIL, f"Linux {release}", "use Linux 6.1 or newer (Debian 12)")
    else:
        yield Finding(Check.KERNEL, "", Level.OK, f"Linux {release}")


def features() -> Iterator[Finding]:
    """What the kernel can do, tried: objects that nobody sees, and a network namespace of our own."""
    tries = (
        ("ring buffer with records of exact size", _dynptr, "CONFIG_BPF_SYSCALL and Linux 5.19 or newer"),
        ("clsact with eBPF programs", lambda: apart(_clsact), "CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"),
        (
            "the interlock's table",
            lambda: apart(_table),
            "CONFIG_NF_TABLES, NF_TABLES_INET, NFT_REJECT and NFT_FIB_INET",
        ),
    )
    for name, attempt, needs in tries:
        try:
            attempt()
        except (OSError, NetlinkError, Unavailable) as error:
            if isinstance(error, OSError) and error.errno == errno.EPERM:  # EACCES is the verifier's
                yield Finding(Check.FEATURES, name, Level.UNKNOWN, "not tried", "run it as root")
                continue
            yield Finding(Check.FEATURES, name, Level.FAIL, f"does not work: {error}", f"use a kernel with {needs}")
        else:
            yield Finding(Check.FEATURES, name, Level.OK, "works")


def _dynptr() -> None:
    ring = bpf.create_map(bpf.RINGBUF, 0, 0, 4096, "doctor")
    try:
        os.close(bpf.load_program(_reserving(ring), "doctor"))
    finally:
        os.close(ring)


def _reserving(ring: int) -> bytes:
    """A program that reserves a record (bpf_ringbuf_reserve_dynptr, helper 198) and gives it up (helper 200)."""

    def op(code: int, registers: int, offset: int, immediate: int) -> bytes:
        return struct.pack("<BBhi", code, registers, offset, immediate)

    place = op(0xBF, 0xA4, 0, 0) + op(0x07, 0x04, 0, -16)  # r4 = r10 - 16
    reserve = op(0x18, 0x11, 0, ring) + op(0, 0, 0, 0) + op(0xB7, 2, 0, 8) + op(0xB7, 3, 0, 0) + place
    give_up = op(0xBF, 0xA1, 0, 0) + op(0x07, 0x01, 0, -16) + op(0xB7, 2, 0, 0)
    return reserve + op(0x85, 0, 0, 198) + give_up + op(0x85, 0, 0, 200) + op(0xB7, 0, 0, 0) + op(0x95, 0, 0, 0)


def _clsact() -> None:
    program = bpf.load_program(struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0), "doctor")
    try:
        with IPRoute() as netlink:
            netlink.tc("add", "clsact", 1)
            netlink.tc(
                "add-filter", "bpf", 1, 1, fd=program, name="doctor", parent=INGRESS, prio=1, protocol=ALL,
                direct_action=True,
            )  # fmt: skip
    finally:
        os.close(program)


def _table() -> None:
    lock = interlock.Interlock("verbatim_doctor", ("lo",), ("lo",), (8443,))
    try:
        lock.establish()
    finally:
        lock.close()


def kernel_headers(*, cache: Path = headers.CACHE, installed: Path = headers.INSTALLED) -> Iterator[Finding]:
    """Without making the merged view that the first start makes."""
    own = headers.MODULES / os.uname().release / "build"
    if (own / "include").is_dir():
        yield Finding(Check.HEADERS, "", Level.OK, f"the running kernel's, {own}")
        return
    try:
        found = headers.pair(installed)
    except Unavailable as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding(Check.HEADERS, "", Level.FAIL, what.removeprefix("kernel headers: "), remedy)
        return
    text = f"Debian's, {found[0].parent}, for another kernel of the same interfaces"
    ready = (cache / found[1].name).is_dir()
    yield Finding(Check.HEADERS, "", Level.OK, text if ready else f"{text}; merged at first start in {cache}")


def compiler() -> Iterator[Finding]:
    if importlib.util.find_spec("bcc") is None:
        remedy = "apt-get install python3-bpfcc, and use the system's Python (make setup does)"
        yield Finding(Check.COMPILER, "", Level.FAIL, "bcc is not installed for this Python", remedy)
    else:
        yield Finding(Check.COMPILER, "", Level.OK, "bcc is installed")


def nftables() -> Iterator[Finding]:
    if interlock.nft_path():
        yield Finding(Check.NFTABLES, "", Level.OK, "nft is installed")
    else:
        yield Finding(Check.NFTABLES, "", Level.FAIL, "nft is missing", "apt-get install nftables")


def bpffs(settings: Settings) -> Iterator[Finding]:
    folder = settings.wire.bpffs
    at = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path("/"))
    if loader.is_bpffs(at):
        yield Finding(Check.BPFFS, "", Level.OK, f"mounted, for {folder}")
    elif at == folder.parent and any(at.iterdir()):
        remedy = "set wire.bpffs to a folder on one"
        yield Finding(Check.BPFFS, "", Level.FAIL, f"{at} is no BPF file system and not empty", remedy)
    elif at == folder:
        remedy = f"remove it, or mount -t bpf bpf {folder.parent}"
        yield Finding(Check.BPFFS, "", Level.FAIL, f"{folder} is there, but on no BPF file system", remedy)
    else:
        yield Finding(Check.BPFFS, "", Level.WARN, f"not mounted at {folder.parent}", "the first start mounts it")


def memory(settings: Settings) -> Iterator[Finding]:
    """The configured bounds against what this machine, and this control group, has."""
    wanted = bounds(settings)
    has = memory_limit()
    parts = ", ".join(f"{name} {size >> 20} MiB" for name, size in wanted.items() if size >> 20)
    total = sum(wanted.values())
    text = f"up to {total >> 20} MiB of {has >> 20} MiB ({parts})"
    if total > has:
        remedy = f"lower {', '.join(_bounding(settings))}, or give the machine more"
        yield Finding(Check.MEMORY, "", Level.FAIL, text, remedy)
    elif 10 * total > 8 * has:
        remedy = f"give the machine more memory, or lower {', '.join(_bounding(settings))}"
        yield Finding(Check.MEMORY, "", Level.WARN, text, remedy)
    else:
        yield Finding(Check.MEMORY, "", Level.OK, text)


def _bounding(settings: Settings) -> tuple[str, ...]:
    """The settings that `bounds` are made of."""
    ours = ("wire.ring_bytes", "wire.max_flows", "record.max_memory")
    return ours if settings.store.url else (*ours, "store.max_memory")


def bounds(settings: Settings) -> dict[str, int]:
    """Bytes that each part may take at most, roughly: ring, other kernel maps when full, sessions, embedded store."""
    shapes = loader.map_shapes(settings.wire)
    ring = shapes.pop("ring").entries
    maps = 0
    for shape in shapes.values():
        values = shape.value * (bpf.possible_cpus() if shape.kind == bpf.PERCPU_ARRAY else 1)
        maps += shape.entries * (shape.key + values + OVERHEAD)
    store = 0 if settings.store.url else settings.store.max_memory
    return {"ring": ring, "kernel maps": maps, "recorder": settings.record.max_memory, "store": store}


def memory_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes: the machine's memory, or less where a control group (v2) of this process says so."""
    said = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"))
    least = int(said[1]) << 10 if said else 0
    with suppress(OSError):
        path = next((line[3:] for line in own.read_text().splitlines() if line.startswith("0::")), "/").strip("/")
        group = root / path
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            with suppress(OSError, ValueError):  # "max", or a hierarchy of version 1
                least = min(least, int((folder / "memory.max").read_text("ascii")))
    return least


def limits() -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        remedy = f"set LimitNOFILE={FILES} or more in the unit of 'verbatim api'"
        yield Finding(Check.LIMITS, "open files", Level.WARN, f"{hard} at most", remedy)
    else:
        yield Finding(Check.LIMITS, "open files", Level.OK, "unlimited" if hard < 0 else f"{hard} at most")


def clock(settings: Settings, now: float | None = None) -> Iterator[Finding]:
    """Is it synchronised, is it plausible, and was it set back?"""
    now = time.time() if now is None else now
    if now < PLAUSIBLE.timestamp():
        text = f"it is {datetime.fromtimestamp(now, UTC):%Y-%m-%d} here"
        yield Finding(Check.CLOCK, "", Level.FAIL, text, "set the clock; tokens and certificates are judged by it")
        return
    if (ahead := _ahead(settings.data, now)) is not None:
        path, seconds = ahead
        text = f"{path} is dated {seconds:.0f} s in the future: the clock was set back, or is behind"
        yield Finding(Check.CLOCK, "", Level.FAIL, text, "see that time is synchronised before the appliance starts")
    elif (synchronised := _synchronised()) is None:
        yield Finding(
            Check.CLOCK, "", Level.UNKNOWN, "the kernel does not say whether it is synchronised", "run timedatectl"
        )
    elif not synchronised:
        remedy = "apt-get install systemd-timesyncd or chrony; records are as right as the clock"
        yield Finding(Check.CLOCK, "", Level.WARN, "not synchronised", remedy)
    else:
        yield Finding(Check.CLOCK, "", Level.OK, "synchronised")


def _ahead(data: Path, now: float) -> tuple[Path, float] | None:
    """What of ours is furthest in the future, by more than `MAX_AHEAD`, and by how many seconds."""
    found: list[tuple[float, Path]] = []
    for pattern in ("run/*.status.json", "journal/wire/*.seg", "state/*"):
        for path in data.glob(pattern):
            with suppress(OSError):
                found.append((path.stat().st_mtime - now, path))
    certificate = data / "keys" / "ca.crt"
    with suppress(OSError, ValueError):
        made = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_before_utc
        found.append((made.timestamp() - now, certificate))
    furthest = max(found, default=(0.0, data))
    return (furthest[1], furthest[0]) if furthest[0] > MAX_AHEAD else None


def _synchronised() -> bool | None:
    """adjtimex(2): needs no rights to ask."""
    buffer = ctypes.create_string_buffer(TIMEX_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(buffer) < 0:
        return None
    return not ctypes.c_int.from_buffer(buffer, TIMEX_STATUS).value & STA_UNSYNC
