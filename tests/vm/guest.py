"""Debian 12's stock kernel under QEMU's software emulation, with `loader.c` as its only process.

The kernel comes from Debian's package (downloaded once, unpacked, never installed), into `.cache/vm/` of the checkout.
"""

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "vm"
META_PACKAGE = "linux-image-cloud-amd64"
BOOT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class MapShape:
    kind: int
    key: int
    value: int
    entries: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """Instructions that name their maps by place in `maps`."""

    maps: Sequence[MapShape]
    instructions: bytes

    def packed(self) -> bytes:
        head = struct.pack("<II", len(self.maps), len(self.instructions) // 8)
        shapes = (struct.pack("<5I", m.kind, m.key, m.value, m.entries, m.flags) for m in self.maps)
        return head + b"".join(shapes) + self.instructions


@dataclass(frozen=True, slots=True)
class Verdict:
    loaded: bool
    log: str


def need(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise AssertionError(f"{', '.join(missing)} not found; `make setup` installs what the tests need")


def kernel() -> Path:
    """The kernel image. Downloads and unpacks Debian's package when it is not there yet."""
    need("apt-get", "apt-cache", "dpkg")
    found = sorted(CACHE.glob("boot/vmlinuz-*"))
    if found:
        return found[-1]
    CACHE.mkdir(parents=True, exist_ok=True)
    depends = _run(["apt-cache", "depends", META_PACKAGE])
    named = re.search(r"Depends: (linux-image-\S+)", depends)
    if named is None:
        raise AssertionError(f"apt knows no {META_PACKAGE}; `make setup` updates its lists")
    _run(["apt-get", "download", named[1]], cwd=CACHE)
    (package,) = CACHE.glob(f"{named[1]}_*.deb")
    unpacked = CACHE / "unpacked"
    _run(["dpkg", "-x", str(package), str(unpacked)])
    (unpacked / "boot").rename(CACHE / "boot")
    shutil.rmtree(unpacked)
    package.unlink()
    return sorted(CACHE.glob("boot/vmlinuz-*"))[-1]


def _run(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} failed: {done.stderr.strip()}; `make setup` installs what is needed")
    return done.stdout


def _initramfs(folder: Path, programs: dict[str, Program]) -> Path:
    root = folder / "root"
    (root / "programs").mkdir(parents=True)
    (root / "dev").mkdir()
    os.mknod(root / "dev" / "console", 0o600 | 0o020000, os.makedev(5, 1))
    _run(["gcc", "-static", "-O1", "-Wall", "-o", str(root / "init"), str(HERE / "loader.c")])
    for name, program in programs.items():
        (root / "programs" / name).write_bytes(program.packed())
    image = folder / "initramfs"
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with image.open("wb") as out:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names.encode(), stdout=out, check=True)
    return image


def boot(folder: Path, programs: dict[str, Program]) -> tuple[str, dict[str, Verdict]]:
    """Load each program in the guest. Returns the release of its kernel and what became of them, by name."""
    need("qemu-system-x86_64", "cpio", "gcc")
    image = kernel()
    command = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-m",
        "256",
        "-smp",
        "1",
        "-nographic",
        "-no-reboot",
        "-nodefaults",
    ]
    command += ["-serial", "stdio", "-kernel", str(image), "-initrd", str(_initramfs(folder, programs))]
    command += ["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
    done = subprocess.run(command, capture_output=True, timeout=BOOT_SECONDS, stdin=subprocess.DEVNULL, check=False)
    text = done.stdout.decode("utf-8", "replace").replace("\r", "")
    verdicts = {
        name: Verdict(result == "loaded", log.strip())
        for name, result, log in re.findall(r"^result (\S+) (\S+)\n(.*?)^end \1$", text, re.MULTILINE | re.DOTALL)
    }
    if "\ndone\n" not in text:
        raise AssertionError(f"the guest did not finish:\n{text[-2000:]}{done.stderr.decode()[-500:]}")
    return image.name.removeprefix("vmlinuz-"), verdicts
