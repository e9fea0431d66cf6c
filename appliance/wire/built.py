"""Instructions of compiled programs, kept on disk: compiling takes seconds, and the compiler 150 MB of memory.

A file's name is the SHA-256 of all that its instructions are made from (program.py); it holds the SHA-256 of its
content, then the content. One that was not written to its end is none. A folder that cannot be written keeps nothing.
"""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

KEPT = 16  # files, the newest


def read(folder: Path, name: str) -> bytes | None:
    """What `write` kept under this name; None: nothing, or not whole, or not this user's own."""
    try:
        with (folder / name).open("rb") as file:
            mode = os.fstat(file.fileno())
            whole = file.read()
    except OSError:
        return None
    content = whole[hashlib.sha256().digest_size :]
    own = mode.st_uid == os.geteuid() and not mode.st_mode & 0o022
    return content if own and whole == _sealed(content) else None


def write(folder: Path, name: str, content: bytes) -> None:
    """Keep `content`, and of all that is kept the newest `KEPT`."""
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as fresh:
            fresh.write(_sealed(content))
        Path(fresh.name).replace(folder / name)
        for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
            path.unlink(missing_ok=True)


def _sealed(content: bytes) -> bytes:
    return hashlib.sha256(content).digest() + content
