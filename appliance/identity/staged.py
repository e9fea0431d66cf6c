"""Several files that change together: whoever is killed at any moment leaves all of the former ones or all of the new.

The new files are written to a folder beside, and that folder's name is the commit: once it is `STAGED`, they are moved
to their places by whoever comes next. `locked` keeps others out meanwhile; all readers and writers take it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from appliance.journal.key import sync_folder

STAGED = "staged"
_PREPARED = "staged.new"


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Be the only one in `folder`, which is made with mode 0700; waits. What another one began is finished first."""
    for each in (folder.parent, folder):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finish(folder)
        yield folder
    finally:
        os.close(lock)


def replace_together(folder: Path, contents: Mapping[str, bytes | Path | None]) -> None:
    """Put `contents` in place: path from `folder` → bytes, a path to link to, or None for no such file.

    Files get mode 0600. Needs the lock.
    """
    prepared = folder / _PREPARED
    shutil.rmtree(prepared, ignore_errors=True)
    prepared.mkdir(mode=0o700)
    for number, (name, content) in enumerate(contents.items()):
        write_private(prepared / f"{number}.{'gone' if content is None else 'path'}", name.encode())
        if isinstance(content, Path):
            (prepared / f"{number}.content").symlink_to(content)
        elif content is not None:
            write_private(prepared / f"{number}.content", content)
    sync_folder(prepared)
    prepared.replace(folder / STAGED)
    sync_folder(folder)
    finish(folder)


def finish(folder: Path) -> None:
    """Move what is staged to its place. Needs the lock."""
    staged = folder / STAGED
    if not staged.exists():
        return
    changed = {folder}
    for named in sorted(staged.glob("*.path")):
        content = named.with_suffix(".content")
        target = folder / named.read_text()
        changed.add(target.parent)
        if content.is_symlink() or content.exists():  # else it is in its place already
            content.replace(target)
    for named in staged.glob("*.gone"):
        (folder / named.read_text()).unlink(missing_ok=True)
    for each in changed:
        sync_folder(each)
    shutil.rmtree(staged)


def write_private(path: Path, content: bytes) -> None:
    """Write a secret file, mode 0600 from its first byte, replacing the old one as a whole."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
