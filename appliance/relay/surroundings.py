"""What flows share in a worker."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from appliance.config import Settings
from appliance.identity.credential import Secret
from appliance.model import Identity
from appliance.relay.dial import Legs
from appliance.relay.recording import Recording
from appliance.relay.resolve import Resolver
from appliance.relay.route import Routes
from appliance.relay.tls import AgentTls, Cache, ServerTls

MAX_PINS: Final = 4096
Counts = dict[str, int]
LegCounts = dict[str, Counts | None]  # of a leg, by who counted: `kernel`, `socket`; None: nobody did


class Kernel(Legs, Protocol):
    """The program's view of flows (wire/steering.py)."""

    def agent_leg(self, client: str, client_port: int, server: str, server_port: int) -> "AgentLeg | None": ...

    def take_leg(self, client: str, client_port: int, server: str, server_port: int) -> Counts | None: ...

    def lease(self, address: str) -> str | None: ...

    def tend(self) -> None: ...

    def unregister(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class AgentLeg:
    """A steered flow as the program knows it. `lease`: 16 hex digits, "" without one; `start`: ns of CLOCK_BOOTTIME."""

    start: int
    lease: str
    counts: Counts  # sent, acked, packets


@dataclass(slots=True)
class Surroundings:
    """`identity` finds whose a lease is, `verify` an access token's identity (raising `VerbatimError`), `secret` a
    credential by name (raising `VerbatimError`)."""

    settings: Settings
    loop: asyncio.AbstractEventLoop
    recording: Recording
    routes: Routes
    kernel: Kernel | None
    agent_tls: AgentTls
    server_tls: ServerTls
    identity: Callable[[str], Awaitable[Identity | None]]
    verify: Callable[[str], Awaitable[Identity]]
    secret: Callable[..., Secret]  # name, kinds that will do
    names: Resolver
    pins: Cache[tuple[str, str], bool] = field(default_factory=lambda: Cache(MAX_PINS))
    second: float = 0.0  # the loop's time, as of the last tick
    counters: dict[str, int] = field(default_factory=dict)  # refusals by reason

    def count(self, reason: str) -> None:
        self.counters[reason] = self.counters.get(reason, 0) + 1
