"""The name that cleartext HTTP gives for the server (RFC 9112 §3.2), for rules with a host."""

import re
from typing import Final

MAX_HEAD: Final = 16384
_HOST: Final = re.compile(
    rb"\r?\n[Hh][Oo][Ss][Tt]:[ \t]*([^\s:\[\]]{1,253}|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?[ \t]*\r?\n"
)


def authority(prefix: bytes) -> str:
    """The host of an HTTP/1 request that begins with these bytes, without its port; "" where there is none."""
    found = _HOST.search(prefix[:MAX_HEAD])
    return found[1].decode("ascii", "replace").strip("[]").lower() if found else ""
