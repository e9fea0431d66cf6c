"""How many flows each owner (a lease, or an address without one) has at all workers together.

The kernel spreads an agent's connections over the workers, of two generations for a while, and a lease's limit holds
for all of them. Each worker has a file in `DATA/run/relay-flows/` that all map into memory: a table of owners and
counts, written by that worker alone, which holds a lock on it for as long as it lives. So a worker that was killed
counts no more, and nobody waits for anybody.
"""

import fcntl
import hashlib
import mmap
import os
import struct
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

from appliance.status import run_folder

SLOTS: Final = 8192
TRIED: Final = 16  # slots in which an owner may be; one that finds none is counted by its own worker only
_SLOT: Final = struct.Struct("<QQ")  # hash of the owner, flows
_SIZE: Final = SLOTS * _SLOT.size


class Tally:
    """The table of the worker that writes the stream `name`, and those of the others as of the last `refresh`."""

    def __init__(self, data: Path, name: str) -> None:
        self._folder = run_folder(data) / "relay-flows"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._own: Counter[str] = Counter()
        self._others: dict[str, tuple[int, mmap.mmap]] = {}  # by name: which file, and its table
        self._name = name
        self._file = self._begin()
        self._table = mmap.mmap(self._file, _SIZE)
        self._table[:] = bytes(_SIZE)  # of one that was killed
        self.refresh()

    def _begin(self) -> int:
        path = self._folder / self._name
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)  # at most a `refresh` has it, for a moment
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file).st_ino:
                    os.ftruncate(file, _SIZE)
                    return file
            os.close(file)

    def refresh(self) -> None:
        """Learn which other workers there are; the files of those that are gone are removed."""
        names = {entry.name for entry in os.scandir(self._folder)} - {self._name}
        for name in names | self._others.keys():
            path = self._folder / name
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._forget(name)
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                self._forget(name)
            except BlockingIOError:
                self._map(name, file)
            finally:
                os.close(file)

    def _map(self, name: str, file: int) -> None:
        said = os.fstat(file)
        known = self._others.get(name)
        if said.st_size == _SIZE and (known is None or known[0] != said.st_ino):
            self._forget(name)
            self._others[name] = said.st_ino, mmap.mmap(file, _SIZE, prot=mmap.PROT_READ)

    def _forget(self, name: str) -> None:
        known = self._others.pop(name, None)
        if known is not None:
            known[1].close()

    def count(self, owner: str) -> int:
        """Flows of this owner."""
        key = _key(owner)
        return self._own[owner] + sum(_find(table, key)[1] for _, table in self._others.values())

    def add(self, owner: str, change: int) -> None:
        """It has so many flows more at this worker."""
        self._own[owner] += change
        flows = self._own[owner]
        if not flows:
            del self._own[owner]
        key = _key(owner)
        at, _ = _find(self._table, key)
        if at < 0:
            at = next((at for at in _places(key) if not _SLOT.unpack_from(self._table, at)[1]), -1)
        if at >= 0:
            _SLOT.pack_into(self._table, at, key, flows)

    def close(self) -> None:
        (self._folder / self._name).unlink(missing_ok=True)
        for name in list(self._others):
            self._forget(name)
        self._table.close()
        os.close(self._file)


def _key(owner: str) -> int:
    return int.from_bytes(hashlib.blake2b(owner.encode(), digest_size=8).digest(), "little") or 1


def _places(key: int) -> list[int]:
    return [(key + step) % SLOTS * _SLOT.size for step in range(TRIED)]


def _find(table: mmap.mmap, key: int) -> tuple[int, int]:
    """Where the owner is, -1: nowhere, and its flows."""
    for at in _places(key):
        found, flows = _SLOT.unpack_from(table, at)
        if found == key:
            return at, flows
    return -1, 0
