"""The name that cleartext HTTP gives for the server (RFC 9112 §3.2), for rules with a host."""

import re
from typing import Final

MAX_HEAD: Final = 16384
_HOST: Final = re.compile(
    rb"\r?\n[Hh][Oo][Ss][Tt]:[ \t]*([^\s:\[\]]{1,253}|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?[ \t]*\r?\n"
)
_BEGUN: Final = re.compile(rb"[A-Z]{1,32}(?: |\Z)")


def authority(prefix: bytes) -> str:
    """The host of an HTTP/1 request that begins with these bytes, without its port; "" where there is none."""
    found = _HOST.search(prefix[:MAX_HEAD])
    return found[1].decode("ascii", "replace").strip("[]").lower() if found else ""


def names_host(prefix: bytes) -> bool:
    """Has the Host come with these first bytes, if they are HTTP/1 at all? More of them may tell where it has not."""
    if not _BEGUN.match(prefix) or len(prefix) >= MAX_HEAD:
        return True
    return b"\n\r\n" in prefix or b"\n\n" in prefix
