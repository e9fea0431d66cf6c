"""Kernel headers for bcc, which wants a kernel source tree even for programs that use nothing but the uapi headers.

The running kernel's own (`/lib/modules/RELEASE/build`) where they are installed; else Debian's newest, of which bcc
needs one tree: Debian splits it in `linux-headers-X-common` and `linux-headers-X-FLAVOUR`, so a view of both is laid
out as symbolic links. Their version does not matter to the program: it uses no structure of the kernel's inside.
"""

import os
import platform
import re
import tempfile
from pathlib import Path

from appliance.errors import Unavailable

CACHE = Path("/var/cache/verbatim/kernel-headers")
INSTALLED = Path("/usr/src")
MODULES = Path("/lib/modules")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def find(cache: Path = CACHE, *, installed: Path = INSTALLED, modules: Path = MODULES) -> Path:
    """The folder to compile against. Raises `Unavailable` when no headers are installed."""
    own = modules / platform.release() / "build"
    if (own / "include").is_dir():
        return own
    return _merged(*pair(installed), cache)


def pair(installed: Path = INSTALLED) -> tuple[Path, Path]:
    """Debian's newest headers: the common tree and that of this machine's flavour. Raises `Unavailable`: none."""
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    pairs = [
        (common, flavour)
        for common in installed.glob("linux-headers-*-common")
        for flavour in [common.with_name(common.name.removesuffix("common") + architecture)]
        if flavour.is_dir()
    ]
    if not pairs:
        raise Unavailable(
            f"kernel headers: none for {platform.release()} and no Debian headers in {installed}, which the capture "
            f"program is compiled with; install them: apt-get install linux-headers-{architecture}"
        )
    return max(pairs, key=lambda pair: [int(part) for part in re.findall(r"\d+", pair[0].name)])


def _merged(common: Path, flavour: Path, cache: Path) -> Path:
    view = cache / flavour.name
    if view.is_dir():
        return view
    try:
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{flavour.name}.", dir=cache))
        _overlay(fresh, [flavour, common])
        fresh.chmod(0o755)
        try:
            fresh.rename(view)
        except OSError:
            if not view.is_dir():  # else another process was quicker, with the same content
                raise
    except OSError as error:
        raise Unavailable(f"kernel headers: {cache}: {error.strerror}; make it writable for root") from error
    return view


def _overlay(target: Path, sources: list[Path]) -> None:
    """Names of the first source win; folders that several sources have are merged."""
    for name in sorted({entry.name for source in sources for entry in os.scandir(source)}):
        having = [source / name for source in sources if (source / name).exists()]
        if len(having) > 1 and all(path.is_dir() and not path.is_symlink() for path in having):
            (target / name).mkdir()
            _overlay(target / name, having)
        elif having:
            (target / name).symlink_to(having[0])
