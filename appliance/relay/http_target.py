"""Where a request wants to go: its target and its Host, which must say the same (RFC 9112 §3.2)."""

import re
from dataclasses import dataclass
from typing import Final

from appliance.relay.http_head import Ambiguous, Framing, Malformed, Request

_AUTHORITY: Final = re.compile(rb"([A-Za-z0-9._~-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(\d{0,5}))?")
_ABSOLUTE: Final = re.compile(rb"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)
_OTHER: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{0,31}://")
PORTS: Final = {b"http": 80, b"https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """`host` in lower case without brackets, "" where the request names none; `port` 0: that of its scheme.

    `scheme` and `path` of an absolute form only; `path` is what a server that is no proxy gets.
    """

    host: str
    port: int = 0
    scheme: bytes = b""
    path: bytes = b""

    @property
    def absolute(self) -> bool:
        return bool(self.scheme)


def target_of(request: Request) -> Target:
    """Raises `Ambiguous` where target and Host differ, or one of them is none, `Malformed` for another scheme."""
    hosts = request.values(b"host")
    host, port = authority(hosts[0], "host") if hosts else ("", 0)
    target = request.target
    if request.method == b"CONNECT":
        asked, number = authority(target, "target")
        if not number or request.body.framing is not Framing.NONE:
            raise Ambiguous("target", "a CONNECT without a port, or with a body")
        if host and (host, port or number) != (asked, number):
            raise Ambiguous("host", "a Host other than that of the target")
        return Target(asked, number)
    if target.startswith(b"/"):
        if b"#" in target:
            raise Ambiguous("target", "a fragment in the target")
        return Target(host, port)
    if target == b"*" and request.method == b"OPTIONS":
        return Target(host, port)
    found = _ABSOLUTE.fullmatch(target)
    if found is None and _OTHER.match(target) and target.split(b":", 1)[0].lower() not in PORTS:
        raise Malformed("a target of a scheme other than http and https")
    if found is None:
        raise Ambiguous("target", "a target of no form that HTTP knows")
    scheme, rest = found[1].lower(), found[3]
    asked, number = authority(found[2], "target")
    if hosts and (host, port or PORTS[scheme]) != (asked, number or PORTS[scheme]):
        raise Ambiguous("host", "a Host other than that of the target")
    if not rest and request.method == b"OPTIONS":
        rest = b"*"
    elif not rest.startswith(b"/"):
        rest = b"/" + rest
    return Target(asked, number or PORTS[scheme], scheme, rest)


def authority(text: bytes, case: str) -> tuple[str, int]:
    """Host and port (0: none given). Raises `Ambiguous` of that case."""
    found = _AUTHORITY.fullmatch(text)
    port = int(found[2] or 0) if found is not None else 0
    if found is None or port > 65535:
        raise Ambiguous(case, f"a {case} that is none")
    return found[1].decode("ascii").strip("[]").lower(), port
