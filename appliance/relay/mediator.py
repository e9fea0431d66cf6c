"""What a protocol part of a relay is asked, and what it may say.

A mediator is sans-IO: bytes and news in, commands out; no socket, no file, no clock. `Mediation` carries the commands
out in their order: what is to be recorded goes to the journal first, and only when it is there are bytes sent.
Directions name who speaks: `CLIENT` is the agent, `SERVER` the upstream server.

The record is the plaintext of the agent's leg: what the agent said, and what it was told. `Pass` is both recorded and
forwarded; `Take` is what the agent said to the gateway only; `Say` to the agent is what the gateway said itself. What
is said to, or taken from, the server alone is not part of the stream: a `Note` tells of it, without secrets.

A mediator never raises on bytes of a peer: it says `Fail`, behind an error in the protocol's own language.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

from appliance.config import RelayRule
from appliance.identity.credential import Secret
from appliance.model import Direction, Identity

ANY: Final = 1 << 18  # bytes to read at once where the protocol sets no bound


@dataclass(frozen=True, slots=True)
class Pass:
    """Record `data` as said by `direction` and forward it. Ranges of `secrets` (start, end, what), within `data`, are
    asterisks in the record."""

    direction: Direction
    data: bytes
    secrets: tuple[tuple[int, int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Take:
    """The agent said `data` to the gateway: recorded (secrets as in `Pass`), not forwarded.

    From the server: not recorded in the stream, as the agent does not get it; a note of kind `withheld` counts it.
    """

    direction: Direction
    data: bytes
    secrets: tuple[tuple[int, int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Say:
    """The gateway's own words. To the agent (`to` CLIENT): recorded as bytes of the server's direction, noted as
    `generated`. To the server: not in the stream."""

    to: Direction
    data: bytes
    secrets: tuple[tuple[int, int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to the server. `host` empty: the original destination. Answered by `dialled`, `dial_failed` or `refused`.

    `tls`: begin with TLS; `server_name` and `alpn` as the agent offered them. `host` is a name or an address that a
    rule must allow (explicit proxy); the rules are asked again. One connection at a time: a former one must be closed.
    `by_rule`: begin with TLS also where the rule asks for it (`upstream_tls`).
    """

    host: str = ""
    port: int = 0
    tls: bool = False
    server_name: str = ""
    alpn: tuple[str, ...] = ()
    by_rule: bool = False


@dataclass(frozen=True, slots=True)
class StartTls:
    """Speak TLS with `peer` from the next byte on: CLIENT as its server, SERVER as its client. Answered by `secured`.

    To the agent: the certificate is minted for the name in its ClientHello, else for the original destination. To the
    server: `server_name`, else the name that the agent asked for when its TLS began, else the server's address. A
    mediator says this only when it holds no byte of that peer that it has not dealt with; see `Mediator.limit`.
    """

    peer: Direction
    server_name: str = ""
    alpn: tuple[str, ...] = ()
    mirror: bool = False  # SERVER: by the name in the agent's ClientHello, which comes next and waits


@dataclass(frozen=True, slots=True)
class Identify:
    """Verify an access token. Answered by `identified` or `unidentified`. `method`: how it was carried, as
    `postgres-password`, for the session's identity."""

    token: str = field(repr=False)
    method: str


@dataclass(frozen=True, slots=True)
class Note:
    """Put something on record. Kinds as in journal/relayed.py: `upstream`, `tls`, `protocol`, or a finding.

    `start` and `end` are counted from where `direction`'s stream is when the note is carried out: negative ones lie
    before.
    """

    kind: str
    text: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    direction: Direction | None = None
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Shut:
    """Nothing more will be sent to this peer (half-close)."""

    peer: Direction


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the connection to the server, when what was said to it is sent; another `Dial` may follow."""


@dataclass(frozen=True, slots=True)
class Splice:
    """The mediator is done: from here on bytes pass unchanged in both directions, and it is not asked any more."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What follows is a conversation with another server, as if the agent had connected to it now: TLS is looked for,
    the rules are asked by its name, and another mediator may take over. `host`, `port`: as in the `Dial` before."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Fail:
    """End the flow when everything before is sent. `reason` is a kebab-case word for findings and counters, `text` says
    what happened; neither carries bytes of a peer."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """As `Fail`, but the agent has time to read what was said: the flow ends when the agent does."""

    reason: str
    text: str


Command = Pass | Take | Say | Dial | StartTls | Identify | Note | Shut | HangUp | Splice | Tunnel | Fail | Refuse
Commands = list[Command]


@dataclass(frozen=True, slots=True)
class Context:
    """What a mediator knows from the beginning."""

    rule: RelayRule
    client_address: str
    client_port: int
    server_address: str  # the original destination
    server_port: int
    identity: Identity | None  # of the agent's lease; None: it has none
    secret: Secret | None = None  # the rule's credential
    server_name: str = ""  # of the agent's TLS, where that is terminated before the mediator is asked
    alpn: str = ""
    tls: bool = False  # the agent speaks TLS already
    proxied: bool = False  # the agent spoke to the explicit proxy, and the original destination is the gateway
    permits: Callable[[str], bool] = lambda name: True  # may the server be called so under this flow's rule?


class Mediator(Protocol):
    """One flow's protocol. Every method gives the commands to carry out, in order; those with a body here need not be
    of a protocol that never asks for what they answer.

    `ready`: log-in is done, so that its time limit does not hold any more.
    """

    ready: bool

    def __init__(self, context: Context) -> None: ...

    def limit(self, direction: Direction) -> int:
        """The most bytes to read from this peer at once, `ANY` where it does not matter; 0: none for now. Where TLS may
        begin behind what is read, no byte more than that."""
        ...

    def start(self) -> Commands:
        """The agent is connected (and its TLS, if that comes first, is up). Who serves speaks first may `Dial` here."""
        return []

    def receive(self, direction: Direction, data: bytes) -> Commands: ...

    def ended(self, direction: Direction) -> Commands:
        """This peer sends no more."""
        ...

    def dialled(self) -> Commands:
        """The server is connected, and its TLS up if that was asked for."""
        ...

    def dial_failed(self, reason: str, text: str) -> Commands:
        """`reason`: `refused-by-rule`, `unreachable`, `time-out`, `certificate`, `tls`."""
        ...

    def refused(self, reason: str, text: str) -> Commands:
        """Answers `Dial`, too: this flow gets no server (`too-many-connections`, `secret`)."""
        return self.stop(reason, text)

    def secured(self, peer: Direction) -> Commands:
        """TLS with this peer is up, as `StartTls` asked; a failure ends the flow."""
        return []

    def identified(self, identity: Identity) -> Commands:
        """The token is accepted."""
        return []

    def unidentified(self, text: str) -> Commands:
        """The token is not accepted; `text` is for the record and may be told to the agent."""
        return []

    def stop(self, reason: str, text: str) -> Commands:
        """The flow must end for a reason outside of the protocol (`time-out`, `idle`, `too-many-connections`,
        `lease-ended`, `server-gone`, `shutdown`): the error in the protocol's own language, if one can be said now,
        then `Fail(reason, text)`."""
        ...


@runtime_checkable
class Routed(Protocol):
    """A mediator that chooses the server: it hears of the rule for that before `dialled`."""

    def routed(self, rule: RelayRule, secret: Secret | None) -> None: ...
