"""A network namespace of a thread's own, in which things may be tried on a live gateway: it ends with the thread."""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

CLONE_NEWNET = 0x40000000  # linux/sched.h
Value = TypeVar("Value")
_libc = ctypes.CDLL(None, use_errno=True)


def apart(function: Callable[[], Value]) -> Value:
    """What `function` returns when called in an empty namespace; its sockets and programs belong there. Needs root."""
    answer: list[Value] = []
    failure: list[BaseException] = []

    def inside() -> None:
        try:
            if _libc.unshare(CLONE_NEWNET):
                code = ctypes.get_errno()
                raise OSError(code, f"a network namespace to try things in: {os.strerror(code)}")
            answer.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=inside, name="doctor-apart", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return answer[0]
