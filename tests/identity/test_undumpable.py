"""A process that forbids dumps of itself, as the kernel shows it to its own user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
if sys.argv[1] == "forbid":
    from appliance.identity.undumpable import forbid_dumps
    forbid_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE)[1], flush=True)
sys.stdin.read()
"""
NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run a process as another user")
@pytest.mark.parametrize(("word", "owner"), [("forbid", 0), ("allow", NOBODY)])
def test_its_own_user_may_read_neither_memory_nor_environment_and_no_core_is_written(word: str, owner: int) -> None:
    """What is not dumpable belongs to root in /proc (proc(5)), and the kernel writes no core of it (core(5))."""
    command = [sys.executable, "-c", CHILD, word]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=NOBODY, group=NOBODY, extra_groups=[]
    ) as process:
        assert process.stdout is not None
        limit = int(process.stdout.readline())
        owners = {Path(f"/proc/{process.pid}/{name}").stat().st_uid for name in ("environ", "mem", "maps")}
        process.kill()
    assert owners == {owner}
    assert limit == 0 or word == "allow"
