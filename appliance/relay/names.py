"""The name that cleartext HTTP gives for the server (RFC 9112 §3.2), for rules with a host."""

import re
from typing import Final

MAX_HEAD: Final = 16384
_NAME: Final = rb"([^\s:/@\[\]]{1,253}|\[[0-9A-Fa-f:.]{1,64}\])"
_TARGET: Final = re.compile(rb"[A-Z]{1,32} [A-Za-z]{1,16}://(?:[^\s/@]{0,253}@)?" + _NAME)  # absolute-form wins, §3.2.2
_HOST: Final = re.compile(rb"\n[Hh][Oo][Ss][Tt][ \t]*:(?:\r?\n?[ \t])*" + _NAME)  # also as only lax servers take it
_END: Final = re.compile(rb"\n\r?\n")
_BEGUN: Final = re.compile(rb"[A-Z]{1,32}(?: |\Z)")


def authority(prefix: bytes) -> str:
    """The host of an HTTP/1 request that begins with these bytes, without its port; "" where there is none."""
    return next(iter(authorities(prefix)), "")


def authorities(prefix: bytes) -> list[str]:
    """All hosts that it may be taken for one to: its target's, and that of each Host field, as lax servers read it."""
    head = _END.split(prefix[:MAX_HEAD], maxsplit=1)[0]
    found = [_TARGET.match(head), *_HOST.finditer(head)]
    return [each[1].decode("ascii", "replace").strip("[]").lower() for each in found if each is not None]


def names_host(prefix: bytes) -> bool:
    """Has the Host come with these first bytes, if they are HTTP/1 at all? More of them may tell where it has not."""
    if not _BEGUN.match(prefix) or len(prefix) >= MAX_HEAD:
        return True
    first, ended, _ = prefix.partition(b"\n")
    if ended and b" HTTP/1." not in first:
        return True
    return b"\n\r\n" in prefix or b"\n\n" in prefix
