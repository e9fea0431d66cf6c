"""What the gateway itself answers in HTTP: a status, and a line for people. Nothing of what was captured is in it."""

from http import HTTPStatus
from typing import Final

MISDIRECTED: Final = 421  # RFC 9110 §15.5.20: of another rule than the connection
STOPPED: Final = {
    "time-out": 408,
    "idle": 408,
    "unreachable": 502,
    "server-gone": 502,
    "certificate": 502,
    "tls": 502,
    "lease-ended": 403,
    "too-many-connections": 429,
}
UNSTATED: Final = 503


def status_of(reason: str) -> int:
    """For a flow that must end."""
    return STOPPED.get(reason, UNSTATED)


def dial_status(reason: str) -> int:
    """For a server that could not be reached."""
    return {"refused-by-rule": 403, "time-out": 504, "secret": 503}.get(reason, 502)


def answer(status: int, text: str, *, close: bool, bare: bool = False) -> bytes:
    """An HTTP/1.1 response; `bare`: to HEAD, without its body."""
    body = f"verbatim: {text}\n".encode("utf-8", "replace")
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in challenges(status)),
    ]
    if close:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if bare else body)


def challenges(status: int) -> list[tuple[str, str]]:
    """How to come again (RFC 9110 §11.6.1, §11.7.1)."""
    if status == 407:
        return [("Proxy-Authenticate", f'{scheme} realm="verbatim"') for scheme in ("Basic", "Bearer")]
    return [("WWW-Authenticate", 'Bearer realm="verbatim"')] if status == 401 else []
