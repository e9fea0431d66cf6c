"""What people hand to a verb: values that must not be seen, spans of time, and who they are."""

import getpass
import os
import re
import sys
import warnings
from datetime import timedelta
from pathlib import Path

from appliance.errors import MalformedInput, Unavailable

UNSET = 2**32 - 1  # of /proc/self/loginuid: no log-in
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_SECONDS = 10 * 365 * 86400


def hidden(what: str, file: Path | None, limit: int) -> bytes:
    """A secret value, of at most `limit` bytes and one more: from `file` ('-': standard input), standard input where
    that is no terminal, else asked for without showing it. Never from an argument: others see those.
    """
    try:
        if file is not None and str(file) != "-":
            with file.open("rb") as opened:
                return opened.read(limit + 1)
        if file is not None or not sys.stdin.isatty():
            return sys.stdin.buffer.read(limit + 1)
    except OSError as error:
        raise MalformedInput(f"{file or 'standard input'}: {error.strerror}; name a file that you may read") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would be shown as it is typed
            first = getpass.getpass(f"{what}: ")
            again = getpass.getpass("again: ")
    except (EOFError, getpass.GetPassWarning):
        raise Unavailable(f"{what}: no terminal to ask on; give it on standard input or with --file") from None
    if first != again:
        raise MalformedInput(f"{what}: given in two ways; type the same twice, or use --file")
    return first.encode()


def span(option: str, text: str) -> timedelta:
    """`90s`, `30m`, `12h`, `7d`, or `0`. Raises `MalformedInput`."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = 0 if text == "0" else int(found[1]) * UNITS[found[2]] if found else -1
    if not 0 <= seconds <= MAX_SECONDS:
        raise MalformedInput(f"{option}: {text!r} is not a span of time; write 90s, 30m, 12h, 7d or 0")
    return timedelta(seconds=seconds)


def user() -> int:
    """The user who logged in, whoever they became since (the kernel keeps it through sudo); else the process's own."""
    try:
        logged_in = int(Path("/proc/self/loginuid").read_text())
    except (OSError, ValueError):
        return os.getuid()
    return os.getuid() if logged_in == UNSET else logged_in
