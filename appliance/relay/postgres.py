"""PostgreSQL in the path: who the agent is, and how the server is logged in to (PostgreSQL 18 documentation, 54.2).

    agent ── SSLRequest ─► `S`, TLS │ GSSENCRequest ─► `N` │ CancelRequest ─► the server, unchanged
    START ── StartupMessage ──► TOKEN ── password: an access token ──► WAITING for what the flow is asked:
             └─ a lease is enough ────────────────────────────────────► identified, dialled, secured
    WAITING ── TLS wanted ──► UPGRADING (SSLRequest to the server) ──► WAITING ──► LOGIN (postgres_login)
    LOGIN ── AuthenticationOk ──► STARTED ── ReadyForQuery ──► bytes pass unchanged
    any ── what must not be ──► ErrorResponse with an SQLSTATE, OVER

The agent gets what the server says of its session as it is: parameters, the key for CancelRequests, the settings. It
does not get what the server says of the gateway's credential.

Nothing is read of a peer behind a place where TLS may begin (CVE-2021-23222), and what came behind it ends the flow.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from appliance.dissect import postgres_fields as fields
from appliance.dissect.postgres_frames import HEADER, MAX_CREDENTIAL, MAX_SHORT
from appliance.model import Direction
from appliance.relay import postgres_messages as messages
from appliance.relay.database import CLIENT, SERVER, TOKEN, DatabaseMediator
from appliance.relay.failure import Refusal
from appliance.relay.mediator import (
    ANY,
    Command,
    Commands,
    Context,
    Dial,
    Fail,
    Identify,
    Note,
    Pass,
    Say,
    Shut,
    Splice,
    StartTls,
    Take,
)
from appliance.relay.postgres_login import Answers, Login, PassThrough
from appliance.relay.postgres_messages import StartUp

ALPN: Final = ("postgresql",)
METHOD: Final = "postgres-password"
STATES: Final = {  # SQLSTATE of reasons that are not the protocol's
    "time-out": "57014",  # query_canceled, as the server's own authentication_timeout
    "idle": "57P05",  # idle_session_timeout
    "too-many-connections": "53300",
    "lease-ended": "57P01",  # admin_shutdown
    "shutdown": "57P01",
    "journal-full": "53100",  # disk_full
    "refused-by-rule": messages.REFUSED,
    "token-refused": messages.PASSWORD,
    "cleartext-token": messages.AUTHORIZATION,
    "secret": messages.AUTHORIZATION,
    "login-refused": messages.AUTHORIZATION,
}
UPGRADE_FIRST: Final = "Connect with sslmode=require"
PASSWORD: Final = 0x70  # p, the type of every answer to an authentication request


class Phase(Enum):
    START = auto()  # start-up packets of the agent
    TOKEN = auto()  # its access token was asked for
    WAITING = auto()  # for what the flow was told to do
    UPGRADING = auto()  # for the server's answer to an SSLRequest
    LOGIN = auto()
    STARTED = auto()  # logged in, not ready yet
    CANCEL = auto()
    OVER = auto()


class PostgresMediator(DatabaseMediator[str]):
    """One connection of an agent."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._phase = Phase.START
        self._agent: messages.Messages = messages.Messages(MAX_CREDENTIAL)
        self._server: messages.Messages = messages.Messages(MAX_SHORT)
        self._told: list[bytes] = []  # messages of the server that pass together
        self._tls = context.tls  # with the agent
        self._server_tls = False
        self._asked: set[bytes] = set()  # requests for encryption, each of which is answered once
        self._agent_gone = False  # it sends no more
        self._securing = False  # TLS with the agent is under way: it understands no message
        self._start_up: StartUp | None = None
        self._cancel = b""
        self._login: Answers | None = None

    # -- what a mediator is asked ----------------------------------------------------------------------------------

    def limit(self, direction: Direction) -> int:
        if direction is SERVER:
            if self._phase in (Phase.LOGIN, Phase.STARTED, Phase.CANCEL):
                return ANY
            return int(self._phase is Phase.UPGRADING)
        if self._phase is Phase.START:
            return self._agent.missing(typed=False)
        if self._phase is Phase.TOKEN or self._agent_answers():
            return self._agent.missing(typed=True)
        return int(self._phase is Phase.CANCEL)

    def secured(self, peer: Direction) -> Commands:
        return self._run(self._agent_secured if peer is CLIENT else self._server_secured)

    def _run(self, step: Callable[[], None]) -> Commands:
        out = super()._run(step)
        self._pass_told()
        return out

    @property
    def _over(self) -> bool:
        return self._phase is Phase.OVER

    def _code(self, reason: str) -> str:
        return STATES.get(reason, messages.CONNECTION)

    # -- the agent -------------------------------------------------------------------------------------------------

    def _hear_agent(self) -> None:
        if self._securing:
            raise messages.before_tls()
        while self._phase is Phase.START and (packet := self._agent.packet()) is not None:
            self._say_first(packet)
        if self._phase is Phase.TOKEN and (message := self._agent.message()) is not None:
            self._take_token(message)
        while self._agent_answers() and (message := self._agent.message()) is not None:
            self._pass_answer(message)
        if self._phase is Phase.CANCEL and len(self._agent):
            raise messages.violation("bytes behind a CancelRequest")

    def _agent_answers(self) -> bool:
        return self._phase is Phase.LOGIN and self._login is not None and self._login.wants_agent()

    def _say_first(self, packet: bytes) -> None:
        """A start-up packet."""
        self._do(Take(CLIENT, packet))
        if packet in (messages.SSL_REQUEST, messages.GSS_REQUEST):
            self._encrypt(packet)
        elif messages.is_cancel(packet):
            self._cancel = packet
            self._dial()
        else:
            self._start_up = messages.start_up(packet)
            self._identify()

    def _encrypt(self, packet: bytes) -> None:
        """Only TLS, in which the gateway can see; after GSSAPI encryption is declined, clients ask for that."""
        if self._tls or packet in self._asked:
            raise messages.violation("a second request for encryption")
        self._asked.add(packet)
        if packet == messages.GSS_REQUEST:
            self._do(Say(CLIENT, b"N"))
            return
        if len(self._agent):
            raise messages.before_tls()
        self._do(Say(CLIENT, b"S"))
        self._do(StartTls(CLIENT, alpn=ALPN))
        self._phase, self._securing = Phase.WAITING, True

    def _agent_secured(self) -> None:
        self._phase, self._securing, self._tls = Phase.START, False, True

    def _identify(self) -> None:
        self._check_secret()
        if not self._token:
            self._dial()
            return
        if not self._tls:
            text = "the gateway asks for an access token as password, and only over TLS"
            raise self._refusal("cleartext-token", text, UPGRADE_FIRST)
        self._do(Say(CLIENT, messages.authentication(messages.CLEARTEXT)))
        self._phase = Phase.TOKEN

    def _take_token(self, message: bytes) -> None:
        secret = message[0] == ord("p") and message.endswith(b"\0")
        end = len(message) - secret
        self._do(Take(CLIENT, message, ((HEADER, end, TOKEN),) if end > HEADER else ()))
        if not secret:
            raise messages.violation("a message that is not the password which was asked for")
        token = self._token_in(message[HEADER:end])
        self._phase = Phase.WAITING
        self._do(Identify(token, METHOD))

    def _pass_answer(self, message: bytes) -> None:
        """Its own password, or a step towards that."""
        assert self._login is not None
        try:
            self._out += self._login.answered(message)
        except Refusal:
            self._do(Take(CLIENT, message, ((HEADER, len(message), "password"),) if len(message) > HEADER else ()))
            raise

    def _agent_ended(self) -> None:
        """It may have been asked for a password that it does not have: psql then asks its user and comes again."""
        self._spill_agent()
        self._agent_gone = True
        if self._phase in (Phase.START, Phase.TOKEN, Phase.WAITING):
            self._do(Shut(CLIENT))
            self._phase = Phase.OVER
        else:
            self._do(Shut(SERVER))

    # -- the server ------------------------------------------------------------------------------------------------

    def _identified(self) -> None:
        self._dial()

    def _dial(self) -> None:
        self._phase = Phase.WAITING
        self._do(Dial())

    def _connected(self) -> None:
        self._server_tls = False
        if self._tls or self._context.rule.upstream_tls == "require":
            self._do(Say(SERVER, messages.SSL_REQUEST))
            self._phase = Phase.UPGRADING
        else:
            self._open()

    def _server_secured(self) -> None:
        self._server_tls = True
        self._open()

    def _open(self) -> None:
        """The server's leg is as it shall be."""
        if self._start_up is None:
            self._do(Say(SERVER, self._cancel))
            self._phase = Phase.CANCEL
            return
        start, secret = self._start_up, self._secret
        if secret is not None or self._token:
            self._login = Login(secret, tls=self._server_tls)
        else:
            self._login = PassThrough(agent_tls=self._tls, server_tls=self._server_tls)
        self._do(Say(SERVER, (start if secret is None else start.acting_as(secret.user)).packet()))
        self._phase = Phase.LOGIN

    def _hear_server(self) -> None:
        if self._phase is Phase.WAITING:
            raise messages.before_tls()
        if self._phase is Phase.UPGRADING:
            self._upgrade(self._server.rest())
        while self._phase in (Phase.LOGIN, Phase.STARTED) and (message := self._server.message()) is not None:
            self._hear_message(message)
        if self._phase is Phase.LOGIN:
            self._hear_agent()
        elif self._phase is Phase.CANCEL:
            self._do(Pass(SERVER, self._server.rest()))

    def _upgrade(self, answer: bytes) -> None:
        self._do(Take(SERVER, answer))
        self._phase = Phase.WAITING
        if answer == b"S":
            self._do(StartTls(SERVER, self._context.server_name, ALPN))
        elif answer == b"N" and self._context.rule.upstream_tls != "require":
            self._do(Note("upstream-cleartext", "the agent came by TLS, but the server does not speak it"))
            self._open()
        elif answer == b"N":
            text = "the server does not speak TLS, which the gateway's rule requires"
            raise Refusal("upstream-tls", messages.CONNECTION, text)
        else:
            raise Refusal(
                "upstream-tls", messages.CONNECTION, "the server does not answer a request for TLS with yes or no"
            )

    def _hear_message(self, message: bytes) -> None:
        kind = message[:1]
        assert self._login is not None
        if kind == b"R" and self._phase is Phase.LOGIN:
            self._ask(self._login, message)
        elif kind == b"E":
            self._refused(message)
        elif kind in (b"N", b"v") or (self._phase is Phase.STARTED and kind in (b"S", b"K")):
            self._told.append(message)
        elif kind == b"Z" and self._phase is Phase.STARTED:
            self._told += (message, self._server.rest())
            self._pass_told()
            if rest := self._agent.rest():  # a password that nobody asked for any more is one still
                self._do(Pass(CLIENT, rest, ((0, len(rest), "password"),) if rest[0] == PASSWORD else ()))
            self._do(Splice())
            self._phase, self.ready = Phase.OVER, True
        else:
            self._do(Take(SERVER, message))
            raise messages.violation("the server said something that has no place in a log-in")

    def _ask(self, login: Answers, request: bytes) -> None:
        """The server wants to know who this is, or does by now."""
        self._pass_told()
        try:
            self._out += login.asked(request)
        except Refusal:
            self._do(Take(SERVER, request))
            raise
        if login.done:
            self._phase = Phase.STARTED
            self._opened()

    def _opened(self) -> None:
        assert self._login is not None
        assert self._start_up is not None
        user = self._start_up.value(b"user")[:256].decode("utf-8", "replace")
        self._note_login(user, self._login.method)

    def _refused(self, message: bytes) -> None:
        """The server's error. One about the gateway's credential is not the agent's to know."""
        try:
            said = fields.error_fields(message[HEADER:], "utf-8", False)
        except ValueError:
            said = {}
        state = said.get("sqlstate", "")
        state = state if len(state) == 5 and state.isascii() and state.isalnum() else "unknown"
        secret = self._secret
        if secret is None or not state.startswith("28"):
            self._do(Pass(SERVER, message))
            self._spill_agent()
            self._do(Fail("login-refused", f"the server refused the session: SQLSTATE {state}"))
            self._phase = Phase.OVER
            return
        self._do(Take(SERVER, message))
        again = state == messages.PASSWORD and self._phase is Phase.LOGIN
        told = said.get("message", "")
        refusal = self._login_refused(secret, {"sqlstate": state}, f"SQLSTATE {state}", told, again=again)
        if refusal is not None:
            raise refusal

    def _server_ended(self) -> None:
        if self._phase is Phase.CANCEL or self._agent_gone:
            self._do(Shut(CLIENT))
        elif self._phase is not Phase.WAITING:
            raise Refusal("server-gone", messages.CONNECTION, "the server closed the connection during the log-in")

    # -- commands --------------------------------------------------------------------------------------------------

    def _do(self, command: Command) -> None:
        self._pass_told()
        self._out.append(command)

    def _pass_told(self) -> None:
        if self._told:
            self._out.append(Pass(SERVER, b"".join(self._told)))
            self._told = []

    def _refuse(self, refusal: Refusal[str]) -> None:
        self._spill_agent()
        if len(self._server):
            self._do(Take(SERVER, self._server.rest()))
        if not self._securing and not self._cancel:
            self._do(Say(CLIENT, messages.error(refusal.code, refusal.text, refusal.hint)))
        self._do(Fail(refusal.reason, refusal.text))
        self._phase = Phase.OVER

    def _spill_agent(self) -> None:
        """What it said and was not dealt with is on record too; where a password is asked for, only how long it is."""
        rest = self._agent.rest()
        if rest:
            asked = self._phase is Phase.TOKEN or self._login is not None
            self._do(Take(CLIENT, rest, ((0, len(rest), "password"),) if asked else ()))
