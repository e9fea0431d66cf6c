"""The TC programs as instructions: from `bpf/wire.c` (recording, with the maps named by number, `abi.MapIndex`) and
`bpf/gate.c` (the way out), by bcc."""

import hashlib
import importlib.util
import os
import platform
import sys
from pathlib import Path

from appliance.errors import Unavailable
from appliance.wire import built, headers

WIRE = "wire"  # name of a file and of the function in it
GATE = "gate"
CACHE = headers.CACHE.parent


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


def compiled(folder: Path, cache: Path = CACHE, name: str = WIRE) -> bytes:
    """The instructions of `name`: those that were kept below `cache`, if they were made from the same as now.

    Compiling takes a second or two. Raises `Unavailable` without bcc or kernel headers.
    """
    tree = headers.find(cache / headers.CACHE.name)
    key = _origin(folder, tree, name)
    instructions = built.read(cache / "programs", key)
    if instructions is None:
        instructions = _compile(folder / f"{name}.c", tree)
        if key == _origin(folder, tree, name):  # else the sources changed meanwhile
            built.write(cache / "programs", key, instructions)
    return instructions


def _origin(folder: Path, tree: Path, name: str) -> str:
    """What names instructions by all that they are made from: sources, compiler, kernel headers, kernel, machine."""
    parts = [name, digest(folder).hex(), platform.release(), platform.version(), platform.machine()]
    compiler = importlib.util.find_spec("bcc")  # without loading it
    for path in (tree, *(Path(each) for each in (compiler and compiler.submodule_search_locations) or ())):
        parts += [str(path.resolve()), str(path.stat().st_mtime_ns)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _compile(source: Path, tree: Path) -> bytes:
    try:
        from bcc import BPF
    except ImportError as error:
        raise Unavailable(f"bcc: {error}; apt-get install python3-bpfcc, for the system's Python") from error
    os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    try:
        module = BPF(src_file=os.fsencode(source), cflags=[f"-I{source.parent}", "-Wno-unused-value"])
        return bytes(module.dump_func(source.stem.encode("ascii")))
    except Exception as error:  # bcc raises bare Exception, and has printed the compiler's words
        raise Unavailable(f"capture program: {source} does not compile: {error}") from error
