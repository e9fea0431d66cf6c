"""PostgreSQL in splice mode: only the upgrade to TLS is understood (PostgreSQL 18 documentation, 54.2.10, 54.2.11).

    SSLRequest ──► the server ── `S` ──► TLS with the server, then with the agent ──► bytes pass unchanged
                              ── `N` ──► the agent may go on in clear, or ask for something else
    GSSENCRequest ──► `N` of the gateway's own: within GSSAPI encryption nothing could be recorded
    anything else ──► passes unchanged, and all that follows; where the rule requires TLS to the server, within that

TLS with the server comes first, so that its certificate decides. The server is connected when this begins.
"""

from typing import Final

from appliance.model import Direction
from appliance.relay import postgres_messages as messages
from appliance.relay.failure import Refusal
from appliance.relay.mediator import Commands, Context, Fail, Mediator, Pass, Say, Shut, Splice, StartTls, Take
from appliance.relay.postgres_messages import GSS_REQUEST, REQUEST, SSL_REQUEST

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
ALPN: Final = ("postgresql",)
REQUESTS: Final = (SSL_REQUEST, GSS_REQUEST)


class PostgresUpgrade(Mediator):
    """One connection of an agent."""

    def __init__(self, context: Context) -> None:
        self.ready = False
        self._required = context.rule.upstream_tls == "require"
        self._held = b""  # of the agent, not passed yet
        self._connected = False
        self._asked: set[bytes] = set()  # requests that were answered, or are being
        self._waiting = False  # for the server's answer to an SSLRequest
        self._own = False  # the SSLRequest was the gateway's
        self._securing = False

    def limit(self, direction: Direction) -> int:
        if self.ready or self._securing:
            return 0
        if direction is SERVER:
            return int(self._waiting)
        return 0 if self._waiting else max(0, REQUEST - len(self._held))

    def dialled(self) -> Commands:
        self._connected = True
        return self._go_on()

    def dial_failed(self, reason: str, text: str) -> Commands:
        return self._refuse(Refusal(reason, messages.CONNECTION, f"the gateway did not reach the server: {text}"))

    def receive(self, direction: Direction, data: bytes) -> Commands:
        if self.ready:
            return []
        if direction is CLIENT:
            self._held += data
            return self._go_on()
        return self._answered(data) if self._waiting else [Pass(SERVER, data), *self._splice()]

    def ended(self, direction: Direction) -> Commands:
        """Too little came to be understood."""
        if direction is CLIENT:
            held, self._held = self._held, b""
            return [*([Pass(CLIENT, held)] if held else []), Shut(SERVER)]
        return [Shut(CLIENT)]

    def secured(self, peer: Direction) -> Commands:
        if peer is SERVER and not self._own:
            return [StartTls(CLIENT, alpn=ALPN)]
        self._securing = False
        return self._splice()

    def stop(self, reason: str, text: str) -> Commands:
        return self._refuse(Refusal(reason, messages.CONNECTION, text))

    # -- the upgrade -----------------------------------------------------------------------------------------------

    def _go_on(self) -> Commands:
        """With what the agent said so far."""
        out: Commands = []
        while self._connected and not self._waiting and not self.ready and self._held:
            request = self._held[:REQUEST]
            if request not in REQUESTS:
                if len(request) < REQUEST and any(each.startswith(request) for each in REQUESTS):
                    return out
                return [*out, *self._plain()]
            if request in self._asked:
                return [*out, *self._refuse(messages.violation("a second request for encryption"))]
            if request == SSL_REQUEST and len(self._held) > REQUEST:
                return [*out, *self._refuse(messages.before_tls())]
            self._asked.add(request)
            self._held = self._held[REQUEST:]
            if request == GSS_REQUEST:
                out += [Take(CLIENT, request), Say(CLIENT, b"N")]
            else:
                out.append(Pass(CLIENT, request))
                self._waiting = True
        return out

    def _plain(self) -> Commands:
        """The agent goes on in clear."""
        if self._required:
            self._waiting = self._own = True
            return [Say(SERVER, SSL_REQUEST)]
        return self._splice()

    def _answered(self, data: bytes) -> Commands:
        """The server, to an SSLRequest. An ErrorResponse passes: servers of old answer so."""
        self._waiting = False
        if data == b"S":
            self._securing = True
            told = Take(SERVER, data) if self._own else Pass(SERVER, data)
            return [told, StartTls(SERVER, alpn=ALPN, mirror=not self._own)]
        if data[:1] == b"S":
            return [Take(SERVER, data), *self._refuse(messages.before_tls())]
        if self._required:
            text = "the server does not speak TLS, which the gateway's rule requires"
            return [Take(SERVER, data), *self._refuse(Refusal("upstream-tls", messages.CONNECTION, text))]
        passed = Pass(SERVER, data)
        return [passed] if data == b"N" else [passed, *self._splice()]

    def _splice(self) -> Commands:
        held, self._held, self.ready = self._held, b"", True
        return [*([Pass(CLIENT, held)] if held else []), Splice()]

    def _refuse(self, refusal: Refusal[str]) -> Commands:
        held, self._held = self._held, b""
        said: Commands = [Take(CLIENT, held)] if held else []
        if self._own or not self._securing:  # else the agent is in its handshake, and reads no message
            said.append(Say(CLIENT, messages.error(refusal.code, refusal.text, refusal.hint)))
        self.ready = True
        return [*said, Fail(refusal.reason, refusal.text)]
