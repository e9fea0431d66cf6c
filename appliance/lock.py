"""One process at a time: a lock file in `DATA/run/`, held as long as the process lives."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.errors import Refused
from appliance.status import run_folder


@contextmanager
def only(data: Path, verb: str) -> Iterator[None]:
    """Be the only `verbatim <verb>` of this data folder. Raises `Refused` while another one is."""
    file = os.open(run_folder(data) / f"{verb}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 20).decode("ascii", "replace").strip() or "unknown"
            raise Refused(f"{data}: 'verbatim {verb}' is running (process {holder}); stop that first") from None
        with suppress(OSError):  # for people only: a full disk keeps nobody from starting
            os.truncate(file, 0)
            os.write(file, b"%d\n" % os.getpid())
        yield
    finally:
        os.close(file)
