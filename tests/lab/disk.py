"""A small disk that fills and grows: a tmpfs in a folder of the test's own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small disk")


class Disk:
    """Mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, megabytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(self.path)], check=True)

    def fill(self, leave: int) -> None:
        """Another program takes all but `leave` bytes."""
        with (self.path / "filler").open("wb") as file:
            room = os.statvfs(self.path)
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave)

    def free(self) -> None:
        """That program removes its file."""
        (self.path / "filler").unlink()


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Disk]:
    """Mounted over `path`, and gone afterwards whatever happened."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "vb-small", str(path)], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
