"""Keeps a process's memory off the disk: what it holds in plaintext must not end in a core dump.

prctl(2), PR_SET_DUMPABLE: the kernel writes no core file of the process, and other processes of its user can neither
trace it nor read its memory or environment. RLIMIT_CORE says the same to its children; a core that is piped to a
program (core(5)) is not bound by that limit, but by the former.
"""

import ctypes
import os
import resource

from appliance.errors import Unavailable

_PR_SET_DUMPABLE = 4
_LIBC = ctypes.CDLL(None, use_errno=True)


def forbid_dumps() -> None:
    """For this process, until it executes another program. Raises `Unavailable` when the kernel does not take it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise Unavailable(f"core dumps cannot be forbidden: {reason}; let the sandbox allow prctl(2)")
