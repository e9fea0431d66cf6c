"""SIGKILL before each operation on files, and in the middle of each write."""

import os
import signal
from collections.abc import Callable
from typing import Any

# What reaches the file system. `Path` and `open` end here too, but for the writes of buffered files, which `fsync` or
# `replace` follows.
OPERATIONS = ("open", "pwrite", "write", "fsync", "fdatasync", "rename", "replace", "unlink", "mkdir", "link")

Say = Callable[[str], None]


def killed_at(number: int, work: Callable[[Say], None]) -> tuple[bool, list[str]]:
    """Run `work` in a child that is killed before its operation `number // 2`; an odd number: half-way through that
    write. Whether it was, and what it said until then. False: it ended well before it got there.
    """
    end, own = os.pipe()
    child = os.fork()
    if child == 0:
        write = os.write

        def say(text: str) -> None:
            write(own, text.encode() + b"\n")

        try:
            _arm(number // 2, halfway=bool(number % 2))
            work(say)
        except BaseException:
            os._exit(2)
        os._exit(0)
    os.close(own)
    with os.fdopen(end, encoding="utf-8") as pipe:
        said = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert died or os.waitstatus_to_exitcode(status) == 0, f"it failed in another way at {number}"
    return died, said


def _arm(last: int, *, halfway: bool) -> None:
    left = last

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                if halfway and name in ("pwrite", "write"):
                    file, data, *place = args
                    real(file, memoryview(data)[: len(data) // 2], *place)
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*args, **named)

        return call

    for name in OPERATIONS:
        setattr(os, name, watched(name, getattr(os, name)))
