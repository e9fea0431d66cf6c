"""What becomes of a request's head on its way to the server, and of the record of it."""

from collections.abc import Collection

from appliance.relay.http_credentials import AUTHORIZED, PROXY_AUTHORIZED, Range, hidden
from appliance.relay.http_head import Framing, Request

OF_UPGRADES = (b"upgrade", b"http2-settings")


def to_websocket(request: Request) -> bool:
    """Does it ask for WebSocket (RFC 6455 §4.1), and for nothing else?"""
    return (
        request.method == b"GET"
        and request.minor == 1
        and request.body.framing is Framing.NONE
        and request.members(b"upgrade") == [b"websocket"]
        and b"upgrade" in request.members(b"connection")
        and len(request.values(b"sec-websocket-key")) == 1
    )


def rewritten(
    request: Request, *, taken: Collection[bytes], credential: tuple[bytes, bytes] | None, path: bytes, proxied: bool
) -> bytes:
    """The head for the server, as it came where nothing has to be changed.

    `taken`: names of fields that end at the gateway. `credential`: the field that takes their place. `path`: the target
    in the place of an absolute one, b"" to leave it. An upgrade to anything but WebSocket is taken out: its protocol
    would escape.
    """
    drop = set(taken)
    add: list[tuple[bytes, bytes]] = []
    if credential is not None:
        drop.add(credential[0])
        add.append(credential)
    if proxied:
        drop |= {PROXY_AUTHORIZED, b"proxy-connection"}
    if request.values(b"upgrade") and not to_websocket(request):
        drop |= {*OF_UPGRADES, b"connection"}
        kept = [each for each in request.members(b"connection") if each not in OF_UPGRADES]
        add += [(b"Connection", b", ".join(kept))] if kept else []
    if not path and not add and not any(field.name in drop for field in request.fields):
        return request.raw
    first = b" ".join((request.method, path, b"HTTP/1.%d" % request.minor)) if path else b""
    return request.without(drop, first, add)


def masked(request: Request, names: Collection[bytes]) -> tuple[Range, ...]:
    """What of these fields' values is not for the record: all, but for the schemes of those that have one."""
    ranges: list[Range] = []
    for field in request.fields:
        shown = hidden(field.value) if field.name in (AUTHORIZED, PROXY_AUTHORIZED) else 0
        if field.name in names and len(field.value) > shown:
            start = field.value_start
            ranges.append((start + shown, start + len(field.value), field.name.decode()))
    return tuple(ranges)
