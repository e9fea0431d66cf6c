"""The kernel's two clocks, read as one moment."""

import struct
import time
from pathlib import Path

from appliance.identity.leases import Now

CLOCK = struct.Struct("<QQ")  # payload of a CLOCK frame: CLOCK_BOOTTIME, then Unix time, both ns
TRIES = 5
CLOSE = 20_000  # ns between two readings of CLOCK_BOOTTIME that count as the same moment


def boot_id() -> str:
    """Random per boot (proc(5)): tells whether a recorded CLOCK_BOOTTIME still means anything."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def now(boot: str) -> Now:
    """CLOCK_REALTIME and the CLOCK_BOOTTIME around it. Read again when preempted in between, so that a busy machine
    does not look like a stepped clock."""
    best: tuple[int, int, int] | None = None
    for _ in range(TRIES):
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        unix = time.time_ns()
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if best is None or after - before < best[0]:
            best = (after - before, unix, (before + after) // 2)
        if best[0] < CLOSE:
            break
    assert best is not None
    return Now(best[1], best[2], boot)
