"""The TC programs as instructions: from `bpf/wire.c` (recording, with the maps named by number, `abi.MapIndex`) and
`bpf/gate.c` (the way out), by bcc."""

import hashlib
import os
import sys
from pathlib import Path

from appliance.errors import Unavailable
from appliance.wire import headers

WIRE = "wire"  # name of a file and of the function in it
GATE = "gate"


def source_folder() -> Path:
    """`bpf/` of the checkout, else where the installation put it."""
    checkout = Path(__file__).resolve().parents[2] / "bpf"
    installed = Path(sys.prefix) / "share" / "verbatim" / "bpf"
    for folder in (checkout, installed):
        if (folder / f"{WIRE}.c").is_file():
            return folder
    raise Unavailable(f"capture program: neither in {checkout} nor in {installed}; install the package again")


def digest(folder: Path) -> bytes:
    """What names this version of the program: SHA-256 of its sources, by name."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.[ch]")):
        for part in (path.name.encode("ascii"), path.read_bytes()):
            total.update(len(part).to_bytes(8, "little") + part)
    return total.digest()


def compiled(folder: Path, cache: Path = headers.CACHE, name: str = WIRE) -> bytes:
    """The instructions of `name`. Takes a second or two. Raises `Unavailable` without bcc or kernel headers."""
    try:
        from bcc import BPF
    except ImportError as error:
        raise Unavailable(f"bcc: {error}; apt-get install python3-bpfcc, for the system's Python") from error
    os.environ["BCC_KERNEL_SOURCE"] = str(headers.find(cache))
    source = folder / f"{name}.c"
    try:
        module = BPF(src_file=os.fsencode(source), cflags=[f"-I{folder}", "-Wno-unused-value"])
        return bytes(module.dump_func(name.encode("ascii")))
    except Exception as error:  # bcc raises bare Exception, and has printed the compiler's words
        raise Unavailable(f"capture program: {source} does not compile: {error}") from error
