"""MySQL in splice mode: only the upgrade to TLS is understood.

    the server's greeting passes ── SSLRequest ──► passes; TLS with the server, then with the agent ──► unchanged
                                 └─ anything else ──► passes unchanged, and all that follows
    not a greeting ──► passes unchanged, and all that follows

TLS with the server comes first, so that its certificate decides. The server is connected when this begins. What is
agreed on for the log-in passes as it is, compression too: packets are counted from the greeting on, so nothing can be
put between. So TLS to the server for an agent without is refused here; mediate mode does it.
"""

from typing import Final

from appliance.dissect import mysql_fields as fields
from appliance.dissect import mysql_session as session
from appliance.dissect.mysql_frames import FULL, HEADER, WORD
from appliance.dissect.mysql_half import SSL_REQUEST
from appliance.model import Direction
from appliance.relay import mysql_messages as messages
from appliance.relay.failure import Refusal
from appliance.relay.mediator import Commands, Context, Fail, Mediator, Pass, Say, Shut, Splice, StartTls, Take
from appliance.relay.mysql_messages import Code, Greeting
from appliance.relay.tls import alert

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
GREETING: Final = 10  # the first byte of one


class MysqlUpgrade(Mediator):
    """One connection of an agent."""

    def __init__(self, context: Context) -> None:
        self.ready = False
        self._required = context.rule.upstream_tls == "require"
        self._name = context.server_name
        self._greeted = False
        self._encrypts = False  # the server can
        self._securing: Direction | None = None
        self._held = {CLIENT: b"", SERVER: b""}

    def limit(self, direction: Direction) -> int:
        """Of the server its greeting, of the agent its first packet, and no byte behind them."""
        if self.ready or self._securing is not None or self._greeted is (direction is SERVER):
            return 0
        held = self._held[direction]
        if len(held) < HEADER:
            return HEADER - len(held)
        (word,) = WORD.unpack_from(held)
        return max(1, HEADER + int(word & FULL) - len(held))

    def dialled(self) -> Commands:
        return []

    def dial_failed(self, reason: str, text: str) -> Commands:
        return self._refuse(Refusal(reason, messages.UNREACHABLE, f"the gateway did not reach the server: {text}"))

    def receive(self, direction: Direction, data: bytes) -> Commands:
        if self.ready:
            return []
        self._held[direction] += data
        held = self._held[direction]
        if self._securing is not None or self._greeted is (direction is SERVER):
            return self._refuse(messages.before_tls() if self._greeted else messages.violation("words out of turn"))
        if direction is SERVER:
            return self._hear_server(held)
        length = WORD.unpack_from(held)[0] & FULL if len(held) >= HEADER else SSL_REQUEST
        if length != SSL_REQUEST or not self._encrypts:
            return self._plain()
        return self._asked(held) if len(held) >= HEADER + SSL_REQUEST else []

    def ended(self, direction: Direction) -> Commands:
        """Too little came to be understood."""
        return [*self._pass(direction), Shut(direction.other)]

    def secured(self, peer: Direction) -> Commands:
        if peer is SERVER:
            self._securing = CLIENT
            return [StartTls(CLIENT)]
        self._securing = None
        return self._splice()

    def stop(self, reason: str, text: str) -> Commands:
        return self._refuse(Refusal(reason, messages.UNREACHABLE, text))

    # -- the upgrade -----------------------------------------------------------------------------------------------

    def _hear_server(self, held: bytes) -> Commands:
        """Its greeting; anything else is not for here."""
        if len(held) < HEADER:
            return []
        (word,) = WORD.unpack_from(held)
        if word >> 24 or not 0 < word & FULL <= fields.MAX_GREETING or held[HEADER : HEADER + 1] not in (b"", b"\n"):
            return self._other("the server's first words are no greeting of MySQL's")
        if len(held) < HEADER + (word & FULL):
            return []
        try:
            greeting = Greeting.read(held[HEADER:])
        except Refusal as refusal:
            return self._other(refusal.text)
        self._greeted, self._encrypts = True, bool(greeting.capabilities & session.SSL)
        if self._required and not self._encrypts:
            return self._refuse(_without("the server does not speak TLS, which the gateway's rule requires"))
        return self._pass(SERVER)

    def _other(self, text: str) -> Commands:
        if self._required:
            return self._refuse(_without(f"the gateway's rule requires TLS to the server: {text}"))
        return self._splice()

    def _asked(self, held: bytes) -> Commands:
        if not fields.capabilities(held[HEADER:]) & session.SSL:
            return self._plain()
        if len(held) > HEADER + SSL_REQUEST or self._held[SERVER]:
            return self._refuse(messages.before_tls())
        self._securing = SERVER
        return [*self._pass(CLIENT), StartTls(SERVER, self._name, mirror=True)]

    def _plain(self) -> Commands:
        """The agent goes on in clear."""
        if self._required:
            text = "the gateway's rule requires TLS to the server, and the client did not ask for it"
            return self._refuse(_without(text, "Connect with TLS, as by --ssl"))
        return self._splice()

    def _pass(self, direction: Direction) -> Commands:
        held, self._held[direction] = self._held[direction], b""
        return [Pass(direction, held)] if held else []

    def _splice(self) -> Commands:
        self.ready = True
        return [*self._pass(SERVER), *self._pass(CLIENT), Splice()]

    def _refuse(self, refusal: Refusal[Code]) -> Commands:
        self.ready = True
        said: Commands = []
        if held := self._held[CLIENT]:
            start = HEADER + SSL_REQUEST
            said.append(Take(CLIENT, held, ((start, len(held), "password"),) if len(held) > start else ()))
        if self._held[SERVER]:
            said.append(Take(SERVER, self._held[SERVER]))
        if self._securing is SERVER:  # the agent is in its handshake, and reads nothing else
            said.append(Say(CLIENT, alert("access-denied" if refusal.reason == "certificate" else "internal-error")))
        elif self._securing is None:
            number = int(self._greeted) + bool(held)
            words = messages.error(number, refusal.code, refusal.text, refusal.hint, greeted=self._greeted)
            said.append(Say(CLIENT, words))
        self._held = {CLIENT: b"", SERVER: b""}
        return [*said, Fail(refusal.reason, refusal.text)]


def _without(text: str, hint: str = "") -> Refusal[Code]:
    return Refusal("upstream-tls", messages.INSECURE, text, hint)
