"""What a lab leaves on the machine, written down before it exists: the next run removes what a killed one left."""

import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.lab.net import NETNS, inhabitants, ip

REGISTER = Path("/run/verbatim-lab")
BPFFS = Path("/sys/fs/bpf")


def birth(pid: int) -> int | None:
    """When a process started, in ticks since boot (proc(5), stat field 22): tells a reused id. None: it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def claim(prefix: str, temp: Path) -> None:
    """Write down that this process owns everything that carries `prefix`."""
    REGISTER.mkdir(exist_ok=True)
    entry = {"pid": os.getpid(), "birth": birth(os.getpid()), "temp": str(temp)}
    (REGISTER / f"{prefix}.json").write_text(json.dumps(entry))


def remove(prefix: str) -> None:
    """Remove everything that carries `prefix`: processes, namespaces, interfaces, pins, files, and the claim last."""
    claim_file = REGISTER / f"{prefix}.json"
    temp = Path(json.loads(claim_file.read_text())["temp"])
    spaces = [path.name for path in NETNS.glob(f"{prefix}-*")] if NETNS.exists() else []
    for space in spaces:
        while pids := inhabitants(space):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    for space in spaces:
        ip(f"netns del {space}")
    for link in Path("/sys/class/net").glob(f"{prefix}-*"):
        subprocess.run(["ip", "link", "del", link.name], capture_output=True)  # may have gone with its namespace
    shutil.rmtree(BPFFS / prefix, ignore_errors=True)
    shutil.rmtree(temp, ignore_errors=True)
    claim_file.unlink(missing_ok=True)


def sweep() -> list[str]:
    """Remove what labs left whose process is gone; their prefixes."""
    gone = []
    for path in sorted(REGISTER.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            entry = json.loads(path.read_text())
            if birth(entry["pid"]) != entry["birth"]:
                remove(path.stem)
                gone.append(path.stem)
    return gone
