"""HTTP in the path: which version an agent speaks, as TLS agreed on it (ALPN), or by its first bytes."""

from typing import Protocol, cast

from appliance.config import RelayRule
from appliance.dissect.http2_frames import PREFACE
from appliance.identity.credential import Secret
from appliance.model import Direction, Identity
from appliance.relay.http1 import Http1
from appliance.relay.http2 import Http2
from appliance.relay.mediator import ANY, Commands, Context, Mediator


class _Version(Mediator, Protocol):
    def routed(self, rule: RelayRule, secret: Secret | None) -> None: ...


class HttpMediator(Mediator):
    """One connection of an agent. HTTP/2 without TLS begins with its preface (RFC 9113 §3.3, prior knowledge)."""

    ready = True  # a request may come at any time: there is no log-in

    def __init__(self, context: Context) -> None:
        self._context = context
        self._begun = b""
        self._connected = False
        self._version: _Version | None = None
        if context.proxied or (context.tls and context.alpn != "h2"):
            self._version = Http1(context)
        elif context.tls:
            self._version = Http2(context)

    def limit(self, direction: Direction) -> int:
        return ANY if self._version is None else self._version.limit(direction)

    def routed(self, rule: RelayRule, secret: Secret | None) -> None:
        if self._version is not None:
            self._version.routed(rule, secret)

    def receive(self, direction: Direction, data: bytes) -> Commands:
        if self._version is not None:
            return self._version.receive(direction, data)
        if direction is Direction.SERVER:  # before the agent has asked anything: HTTP/1.1 knows what that is
            return self._choose(Http1(self._context), direction, data)
        self._begun += data
        if len(self._begun) < len(PREFACE) and PREFACE.startswith(self._begun):
            return []
        kind = Http2 if self._begun.startswith(PREFACE) else Http1
        return self._choose(kind(self._context), direction, self._begun)

    def _choose(self, version: _Version, direction: Direction, data: bytes) -> Commands:
        self._version = version
        out = version.dialled() if self._connected else []
        return out + version.receive(direction, data)

    def ended(self, direction: Direction) -> Commands:
        if self._version is None:
            version = Http1(self._context)
            out = self._choose(version, Direction.CLIENT, self._begun)
            return out + version.ended(direction)
        return self._version.ended(direction)

    def dialled(self) -> Commands:
        if self._version is None:
            self._connected = True
            return []
        return self._version.dialled()

    def dial_failed(self, reason: str, text: str) -> Commands:
        return cast(_Version, self._version).dial_failed(reason, text)

    def refused(self, reason: str, text: str) -> Commands:
        return cast(_Version, self._version).refused(reason, text)

    def identified(self, identity: Identity) -> Commands:
        return cast(_Version, self._version).identified(identity)

    def unidentified(self, text: str) -> Commands:
        return cast(_Version, self._version).unidentified(text)

    def stop(self, reason: str, text: str) -> Commands:
        version = self._version or Http1(self._context)
        out = version.receive(Direction.CLIENT, self._begun) if self._version is None and self._begun else []
        self._version = version
        return out + version.stop(reason, text)
