"""MySQL and MariaDB in the path: who the agent is, and how the server is logged in to.

    WAITING ── dialled ──► GREETING ── the server's ──► START: the gateway's greeting to the agent
    START ── SSLRequest ──► TLS with the server, then with the agent, whose certificate is like the server's ──► START
          └─ HandshakeResponse ──► TOKEN ── mysql_clear_password: an access token ──► WAITING
                               └─ a lease is enough ──► WAITING
    WAITING ── identified, TLS with the server ──► LOGIN (mysql_login; the agent itself, where there is no credential)
    LOGIN ── OK ──► OPEN: what passes is looked at for COM_CHANGE_USER only (mysql_commands); or bytes pass unchanged
    any ── what must not be ──► ERR with a number and an SQLSTATE, OVER

The server speaks first, so it is dialled first. Its greeting tells the version and what it can do; the agent gets the
same with random bytes of the gateway's own, and without what the gateway does not do (compression). Both sides then
have the same capabilities in what matters behind the log-in, so that all of that passes unchanged. Packets are counted:
the agent's and the server's numbers differ during the log-in and begin again with each command.

Where the rule names no credential and a lease is enough the agent logs in by itself, to the server's own random bytes.
"""

import secrets
import struct
from enum import Enum, auto
from typing import Final

from appliance.dissect import mysql_fields as fields
from appliance.dissect import mysql_session as session
from appliance.dissect.mysql_frames import HEADER
from appliance.dissect.mysql_half import SSL_REQUEST
from appliance.model import Direction
from appliance.relay import mysql_messages as messages
from appliance.relay.database import CLIENT, SERVER, TOKEN, DatabaseMediator
from appliance.relay.failure import Refusal
from appliance.relay.mediator import (
    Commands,
    Context,
    Dial,
    Fail,
    HangUp,
    Identify,
    Note,
    Pass,
    Say,
    Shut,
    Splice,
    StartTls,
    Take,
)
from appliance.relay.mysql_commands import Opened
from appliance.relay.mysql_login import KEY_REQUESTS, SHA2, Login
from appliance.relay.mysql_messages import CLEAR, NATIVE, SCRAMBLE, Code, Greeting, Response, hidden
from appliance.relay.tls import alert

METHOD: Final = "mysql-password"
USE_TLS: Final = "Connect with TLS, as by --ssl"
_FAST: Final = b"\x01\x03"  # of caching_sha2_password: the proof was enough


class Phase(Enum):
    WAITING = auto()  # for what the flow was told to do
    GREETING = auto()  # of the server
    START = auto()  # the agent's first packets
    TOKEN = auto()  # its access token was asked for
    LOGIN = auto()
    OPEN = auto()
    OVER = auto()


class MysqlMediator(DatabaseMediator[Code]):
    """One connection of an agent."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._phase = Phase.WAITING
        self._agent: messages.Packets = messages.Packets()
        self._server: messages.Packets = messages.Packets()
        self._own = context.secret is not None or self._token  # the gateway logs in
        self._greeting: Greeting | None = None
        self._greeted = False  # the agent was
        self._asked: bytes | None = None  # the body of the agent's SSLRequest
        self._response: Response | None = None
        self._packet = b""  # of that
        self._flags = 0  # what the server was told of the agent's capabilities
        self._tls = self._server_tls = False
        self._securing: Direction | None = None  # while the agent waits for its TLS: whose comes next
        self._agent_number = self._server_number = 0  # of the next packet to them
        self._login: Login | None = None
        self._method = ""
        self._answers = False  # the agent is to answer the server
        self._after = Opened()

    # -- what a mediator is asked ----------------------------------------------------------------------------------

    def limit(self, direction: Direction) -> int:
        phase = self._phase
        if phase is Phase.OPEN:
            return self._after.limit(direction)
        if direction is SERVER:
            speaks = phase in (Phase.GREETING, Phase.LOGIN, Phase.START, Phase.TOKEN)
            return self._server.missing() if speaks else 0
        speaks = phase in (Phase.START, Phase.TOKEN) or (phase is Phase.LOGIN and self._answers)
        return self._agent.missing() if speaks else 0

    def start(self) -> Commands:
        return self._run(self._dial)

    def receive(self, direction: Direction, data: bytes) -> Commands:
        if self._phase is Phase.OPEN:
            return self._after.receive(direction, data)
        return super().receive(direction, data)

    def ended(self, direction: Direction) -> Commands:
        if self._phase is Phase.OPEN:
            return self._after.ended(direction)
        return super().ended(direction)

    def secured(self, peer: Direction) -> Commands:
        return self._run(self._agent_secured if peer is CLIENT else self._server_secured)

    def stop(self, reason: str, text: str) -> Commands:
        if self._phase is Phase.OPEN:
            return self._after.stop(reason, text)
        return super().stop(reason, text)

    @property
    def _over(self) -> bool:
        return self._phase is Phase.OVER

    def _code(self, reason: str) -> Code:
        return messages.CODES.get(reason, messages.UNREACHABLE)

    # -- the agent -------------------------------------------------------------------------------------------------

    def _hear_agent(self) -> None:
        if self._phase is Phase.WAITING:
            raise messages.before_tls()
        while self._phase is Phase.START and (packet := self._agent.packet()) is not None:
            self._say_first(packet)
        if self._phase is Phase.TOKEN and (packet := self._agent.packet()) is not None:
            self._take_token(packet)
        if self._phase is Phase.LOGIN and self._answers and (packet := self._agent.packet()) is not None:
            self._pass_answer(packet)

    def _say_first(self, packet: bytes) -> None:
        """SSLRequest, or a handshake response."""
        body, number = packet[HEADER:], messages.number_of(packet)
        try:
            if number != self._agent_number:
                raise messages.violation(f"a packet with the number {number} where {self._agent_number} comes next")
            capabilities = messages.capabilities_of(body)
            if capabilities & (session.COMPRESS | session.ZSTD):
                text = "the client compresses, which the gateway did not offer"
                raise Refusal("compression", messages.UNSUPPORTED, text, "Connect without compression")
            if capabilities & session.SSL and not self._tls:
                self._encrypt(packet, body)
                return
            if self._asked is not None and capabilities != fields.capabilities(self._asked):
                raise messages.violation("a client that has other capabilities within TLS than before")
            response = messages.response(body)
        except Refusal:
            self._do(Take(CLIENT, packet, hidden(packet, HEADER + SSL_REQUEST)))
            raise
        self._agent_number = number + 1
        self._response, self._packet = response, packet
        self._identify(response, packet)

    def _encrypt(self, packet: bytes, body: bytes) -> None:
        assert self._greeting is not None
        if len(body) != SSL_REQUEST or not self._greeting.offered(own=self._own) & session.SSL:
            raise messages.violation("a client that asks for TLS, and goes on without")
        self._do(Take(CLIENT, packet))
        if len(self._agent):
            raise messages.before_tls()
        self._agent_number, self._asked = messages.number_of(packet) + 1, body
        self._phase = Phase.WAITING
        if self._greeting.capabilities & session.SSL:
            self._encrypt_server(body)
        else:
            self._securing = CLIENT
            self._do(Note("upstream-cleartext", "the agent comes by TLS, but the server does not speak it"))
            self._do(StartTls(CLIENT))

    def _agent_secured(self) -> None:
        self._phase, self._securing, self._tls = Phase.START, None, True

    def _identify(self, response: Response, packet: bytes) -> None:
        """Whether it is known who the agent is."""
        begin, end = (HEADER + place for place in response.place)
        proof = ((begin, end, "password"),) if end > begin else ()
        if self._token and self._tls and response.plugin == CLEAR and response.answer:
            self._verify(packet, response.answer, begin)
            return
        self._do(Take(CLIENT, packet, proof))
        if not self._token:
            self._identified()
            return
        if not self._tls:
            text = "the gateway asks for an access token as password, and only over TLS"
            raise self._refusal("cleartext-token", text, USE_TLS)
        self._say(messages.switch(self._agent_number, CLEAR))
        self._phase = Phase.TOKEN

    def _take_token(self, packet: bytes) -> None:
        self._agent_number = messages.number_of(packet) + 1
        self._verify(packet, packet[HEADER:], HEADER)

    def _verify(self, packet: bytes, answer: bytes, begin: int) -> None:
        """A token with a NUL behind it, in its packet."""
        given = answer.removesuffix(b"\0")
        self._do(Take(CLIENT, packet, ((begin, begin + len(given), TOKEN),) if given else ()))
        token = self._token_in(given)
        self._phase = Phase.WAITING
        self._do(Identify(token, METHOD))

    def _pass_answer(self, packet: bytes) -> None:
        """Its own password, or a step towards that."""
        self._answers = False
        body = packet[HEADER:]
        asks = body == KEY_REQUESTS.get(self._method)
        self._agent_number = messages.number_of(packet) + 1
        self._do(Take(CLIENT, packet, () if asks else hidden(packet, HEADER)))
        self._say(messages.packet(self._server_number, body), SERVER)
        self._server_number += 1

    def _agent_ended(self) -> None:
        self._spill_agent()
        self._do(HangUp())
        self._do(Shut(CLIENT))
        self._phase = Phase.OVER

    # -- the server ------------------------------------------------------------------------------------------------

    def _dial(self) -> None:
        self._phase = Phase.WAITING
        self._do(Dial())

    def _connected(self) -> None:
        self._server_tls = False
        self._phase = Phase.GREETING
        self._check_secret()

    def _hear_server(self) -> None:
        if self._phase is Phase.WAITING:
            raise messages.before_tls()
        while self._phase in (Phase.GREETING, Phase.START, Phase.TOKEN, Phase.LOGIN):
            packet = self._server.packet()
            if packet is None:
                return
            try:
                self._hear_packet(packet, packet[HEADER:])
            except Refusal:
                self._do(Take(SERVER, packet))
                raise

    def _hear_packet(self, packet: bytes, body: bytes) -> None:
        if not body:
            raise messages.violation("the server said an empty packet during the log-in")
        if body[0] == fields.ERR:
            self._refused(packet, body)
        elif self._phase is Phase.GREETING:
            self._greet(packet, body)
        elif self._phase is Phase.LOGIN:
            if messages.number_of(packet) != self._server_number & 0xFF:
                raise messages.violation("the server's packets do not count on")
            self._server_number += 1
            self._answer(packet, body)
        else:
            raise messages.violation("the server speaks out of turn")

    def _greet(self, packet: bytes, body: bytes) -> None:
        greeting = self._greeting = Greeting.read(body)
        if messages.number_of(packet):
            raise messages.violation("the server's greeting is not its first packet")
        self._server_number = 1
        if self._context.rule.upstream_tls == "require" and not greeting.capabilities & session.SSL:
            text = "the server does not speak TLS, which the gateway's rule requires"
            raise Refusal("upstream-tls", messages.UNREACHABLE, text)
        if self._greeted:
            self._do(Take(SERVER, packet))
            self._identified()
            return
        own = bytes(secrets.choice(range(33, 127)) for _ in range(SCRAMBLE)) if self._own else b""
        told = greeting.offering(greeting.offered(own=self._own), own, NATIVE)
        self._tell(packet, messages.packet(0, told))
        self._greeted, self._agent_number = True, 1
        self._phase = Phase.START

    def _encrypt_server(self, asked: bytes) -> None:
        """TLS with the server: as the agent asked for it, or its rule."""
        assert self._greeting is not None
        if len(self._server):
            raise messages.before_tls()
        self._server_tls = True  # it is told so, and does not get anything else before
        flags = self._greeting.told(fields.capabilities(asked), own=self._own, tls=True)
        self._say(messages.packet(self._server_number, messages.fixed(asked, flags)), SERVER)
        self._server_number += 1
        waits = self._asked is not None and not self._tls
        self._securing = SERVER if waits else None
        self._do(StartTls(SERVER, self._context.server_name, mirror=waits))
        self._phase = Phase.WAITING

    def _server_secured(self) -> None:
        if self._securing is not None:
            self._securing = CLIENT
            self._do(StartTls(CLIENT))
        else:
            self._open()

    def _identified(self) -> None:
        """The agent is known; the server's leg is made as it shall be."""
        assert self._greeting is not None
        assert self._response is not None
        wanted = self._tls or self._context.rule.upstream_tls == "require"
        if wanted and not self._server_tls and self._greeting.capabilities & session.SSL:
            self._encrypt_server(self._response.fixed)
        else:
            self._open()

    def _open(self) -> None:
        """Log in."""
        greeting, response, secret = self._greeting, self._response, self._secret
        assert greeting is not None
        assert response is not None
        flags = greeting.told(response.capabilities, own=self._own, tls=self._server_tls)
        if self._flags and (flags ^ self._flags) & ~messages.LOGIN_ONLY:
            text = "the server has other capabilities than a moment ago"
            raise Refusal("protocol", messages.UNREACHABLE, text, "Try again")
        self._flags, self._phase = flags, Phase.LOGIN
        if self._own:
            self._login = Login(secret, greeting.plugin, greeting.scramble, tls=self._server_tls)
            user = response.user if secret is None else secret.user.encode()
            said = response.saying(flags, user, self._login.first(), self._login.method)
            self._say(messages.packet(self._server_number, said), SERVER)
        else:
            self._method = response.plugin
            body = self._packet[HEADER:]
            said = messages.fixed(body, flags) + body[SSL_REQUEST:]
            self._say(messages.packet(self._server_number, said), SERVER)
        self._server_number += 1

    def _answer(self, packet: bytes, body: bytes) -> None:
        """The server, to who logs in."""
        if body[0] == fields.OK:
            self._opened(body)
        elif self._login is not None:
            answer = self._login.asked(body)
            self._do(Take(SERVER, packet))
            if answer is not None:
                self._say(messages.packet(self._server_number, answer), SERVER)
                self._server_number += 1
        else:
            if body[0] == fields.EOF:
                self._method = fields.until_nul(body, 1)[0].decode("ascii", "replace")
            self._tell(packet, messages.packet(self._agent_number, body))
            self._answers = body != _FAST
            self._agent_number += 1

    def _opened(self, body: bytes) -> None:
        assert self._response is not None
        response = self._response
        if self._own and response.plugin == SHA2 and response.answer and not self._token:
            self._say(messages.packet(self._agent_number, _FAST))  # before which such a client takes no OK
            self._agent_number += 1
        self._do(Pass(SERVER, messages.packet(self._agent_number, body)))
        user = response.user[:256].decode("utf-8", "replace")
        self._note_login(user, self._method if self._login is None else self._login.method)
        self.ready = True
        if self._own:
            self._phase = Phase.OPEN
        else:
            self._do(Splice())
            self._phase = Phase.OVER

    def _refused(self, packet: bytes, body: bytes) -> None:
        """The server's error. One about the gateway's credential is not the agent's to know."""
        try:
            said = fields.error(body, "utf-8")
        except (ValueError, IndexError, struct.error):
            raise messages.violation("the server's error does not fit its layout") from None
        secret = self._secret
        if secret is None or said.code not in messages.ABOUT_CREDENTIALS:
            told = body if not self._greeted or said.sqlstate else body[:3] + b"#HY000" + body[3:]
            self._do(Pass(SERVER, messages.packet(self._agent_number, told)))
            self._spill_agent()
            self._do(Fail("login-refused", f"the server refused the session: error {said.code}"))
            self._phase = Phase.OVER
            return
        self._do(Take(SERVER, packet))
        again = self._phase is Phase.LOGIN
        refusal = self._login_refused(secret, {"error": said.code}, f"error {said.code}", said.message, again=again)
        if refusal is not None:
            self._refuse(refusal)

    def _server_ended(self) -> None:
        if self._phase is not Phase.WAITING:
            raise Refusal("server-gone", messages.UNREACHABLE, "the server closed the connection during the log-in")

    # -- commands --------------------------------------------------------------------------------------------------

    def _say(self, packet: bytes, to: Direction = CLIENT) -> None:
        self._do(Say(to, packet))

    def _tell(self, packet: bytes, told: bytes) -> None:
        """What the server said, as the agent is told it."""
        if packet == told:
            self._do(Pass(SERVER, packet))
        else:
            self._do(Take(SERVER, packet))
            self._say(told)

    def _refuse(self, refusal: Refusal[Code]) -> None:
        self._spill_agent()
        if len(self._server):
            self._do(Take(SERVER, self._server.rest()))
        if self._securing is SERVER:  # the agent has begun its handshake, and reads nothing else
            self._say(alert("access-denied" if refusal.reason == "certificate" else "internal-error"))
        elif self._securing is None:
            number = self._agent_number
            self._say(messages.error(number, refusal.code, refusal.text, refusal.hint, greeted=self._greeted))
        self._do(Fail(refusal.reason, refusal.text))
        self._phase = Phase.OVER

    def _spill_agent(self) -> None:
        """What it said and was not dealt with is on record too; of what may be a password, only how long it is."""
        if rest := self._agent.rest():
            harmless = HEADER + SSL_REQUEST if self._phase is Phase.START else 0
            self._do(Take(CLIENT, rest, hidden(rest, harmless)))
