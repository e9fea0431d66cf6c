"""Redis in the path: who the agent is, and how the server is logged in to (redis.io: AUTH, HELLO; Redis 7).

    START ── AUTH, or HELLO with AUTH: an access token ──► WAITING ── identified, dialled ──► LOGIN
          └─ anything else: -NOAUTH
    a lease is enough: the server is dialled at once ──► LOGIN
    LOGIN ── the server takes the rule's credential ──► OPEN: what passes is looked at for log-ins only
    any ── what must not be ──► an error of RESP, OVER

Once the gateway has logged in for an agent, that cannot log in as somebody else: a command that would is not passed on.
In its place the server gets one that does not exist, whose name says why: so its error comes where the agent waits
for an answer, behind those to commands before it, and within MULTI too. Without a credential or token the agent logs in
by itself; its passwords are kept by length only.
"""

import re
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Final

from appliance.dissect.redis_words import Word
from appliance.identity.credential import Kind, Secret
from appliance.model import Direction, Identity
from appliance.relay.failure import Failure
from appliance.relay.mediator import (
    ANY,
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
    Take,
)
from appliance.relay.redis_commands import MAX_HELD, Command, Cutter, Malformed

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
METHOD: Final = "redis-auth"
MAX_FIRST: Final = 1 << 16  # bytes of a command before log-in; the server itself takes 16 KiB
MAX_TRIES: Final = 3  # tokens
MAX_REPLY: Final = 1 << 16  # bytes of the server's reply to a log-in, as far as that must be understood
MAX_WORDS: Final = 1000  # characters of an error
OK: Final = b"+OK\r\n"
NO_AUTH: Final = b"-NOAUTH Authentication required.\r\n"
DEFAULT: Final = "default"  # the user of AUTH with a password alone
REFUSED: Final = b"REFUSED-the-gateway-has-logged-in-for-you:-leave-AUTH-RESET-and-changes-of-passwords-out"
_CODE: Final = re.compile(rb"-([A-Z]{1,20})[ \r]")
_TOKEN: Final = "token"  # noqa: S105


class Phase(Enum):
    START = auto()  # it is not known who the agent is
    WAITING = auto()  # for what the flow was told to do
    LOGIN = auto()  # for the server's reply to it
    OPEN = auto()
    OVER = auto()


class Refusal(Failure):
    """A flow must end, and the agent can be told why."""

    def __init__(self, reason: str, text: str, *, code: str = "ERR") -> None:
        super().__init__(reason, text)
        self.code = code


class RedisMediator:
    """One connection of an agent; if it speaks TLS, that is up."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._secret: Secret | None = context.secret
        self._token = context.rule.identify == "token"
        self._guarded = self._token or context.secret is not None  # log-ins are the gateway's
        self._phase = Phase.START if self._token else Phase.WAITING
        self.ready = False
        self._agent = Cutter(every=self._token, most=MAX_FIRST if self._token else MAX_HELD)
        self._server = bytearray()  # its reply to a log-in, not whole yet
        self._out: Commands = []
        self._asked: Command | None = None  # what the agent logs in by
        self._connected = False
        self._tries = 0
        self._user = ""
        self._ends = True  # the server's last words ended a line

    # -- what a mediator is asked ----------------------------------------------------------------------------------

    def limit(self, direction: Direction) -> int:
        phase = self._phase
        if direction is CLIENT:
            return ANY if phase in (Phase.OPEN, Phase.START) else 0
        return ANY if phase is not Phase.WAITING else 0

    def start(self) -> Commands:
        return [] if self._token else self._run(self._dial)

    def receive(self, direction: Direction, data: bytes) -> Commands:
        if direction is SERVER and self._phase is Phase.OPEN:
            self._ends = data.endswith(b"\n")
            return [Pass(SERVER, data)]
        if direction is CLIENT:
            self._agent.feed(data)
            return self._run(self._hear_agent)
        self._server += data
        return self._run(self._hear_server)

    def ended(self, direction: Direction) -> Commands:
        return self._run(self._agent_ended if direction is CLIENT else self._server_ended)

    def dialled(self) -> Commands:
        return self._run(self._connect)

    def dial_failed(self, reason: str, text: str) -> Commands:
        return self._run(lambda: self._refuse(Refusal(reason, f"the gateway did not reach the server: {text}")))

    def secured(self, peer: Direction) -> Commands:
        return []

    def identified(self, identity: Identity) -> Commands:
        return self._run(self._connect if self._connected else self._dial)

    def unidentified(self, text: str) -> Commands:
        return self._run(lambda: self._decline(text))

    def stop(self, reason: str, text: str) -> Commands:
        return self._run(lambda: self._refuse(Refusal(reason, text)))

    def _run(self, step: Callable[[], None]) -> Commands:
        """The commands of one step."""
        if self._phase is Phase.OVER:
            return []
        self._out = []
        try:
            step()
        except Refusal as refusal:
            self._refuse(refusal)
        return self._out

    # -- the agent -------------------------------------------------------------------------------------------------

    def _hear_agent(self) -> None:
        try:
            while self._phase in (Phase.START, Phase.OPEN) and (said := self._agent.next()) is not None:
                if isinstance(said, bytes):
                    self._out.append(Pass(CLIENT, said) if self._phase is Phase.OPEN else Take(CLIENT, said))
                elif self._phase is Phase.START:
                    self._say_first(said)
                else:
                    self._look(said)
        except Malformed as error:
            raise Refusal("protocol", f"Protocol error: {error}") from None

    def _say_first(self, command: Command) -> None:
        """Before it is known who the agent is."""
        place = _token_of(command)
        if place is None:
            self._out += [Take(CLIENT, command.data, command.secrets), Say(CLIENT, NO_AUTH)]
            return
        self._out.append(Take(CLIENT, command.data, tuple((start, end, _TOKEN) for start, end, _ in command.secrets)))
        if not self._context.tls:
            text = "the gateway takes an access token as password only over TLS; connect with --tls"
            raise Refusal("cleartext-token", text, code="NOAUTH")
        token = place.value
        if not token or not token.isascii() or b"\0" in token:
            self._decline("it is none")
            return
        self._asked, self._phase = command, Phase.WAITING
        self._out.append(Identify(token.decode("ascii"), METHOD))

    def _decline(self, text: str) -> None:
        """Not this token."""
        self._tries += 1
        told = f"the gateway does not accept the access token that was given as password: {text}"
        if self._tries >= MAX_TRIES:
            raise Refusal("token-refused", told, code="WRONGPASS")
        self._out.append(Say(CLIENT, _error("WRONGPASS", told)))
        self._phase = Phase.START
        self._hear_agent()

    def _look(self, command: Command) -> None:
        """A command that may have to do with log-ins."""
        if not self._guarded or not _logs_in(command):
            self._out.append(Pass(CLIENT, command.data, command.secrets))
            return
        name = command.name.decode("ascii")
        self._out.append(Take(CLIENT, command.data, command.secrets))
        text = f"{name} is not passed on: the gateway has logged in for the agent"
        self._out.append(Note("declined", text, {"command": name}, CLIENT, -len(command.data), 0))
        self._out.append(Say(SERVER, _command(REFUSED)))

    def _agent_ended(self) -> None:
        if self._phase is Phase.OPEN:
            hidden = self._agent.looking
            if rest := self._agent.rest():
                secrets = ((0, len(rest), "password"),) if hidden else ()
                self._out.append(Pass(CLIENT, rest, secrets))
            self._out.append(Shut(SERVER))
            return
        self._spill()
        if self._connected:
            self._out.append(HangUp())
        self._out.append(Shut(CLIENT))
        self._phase = Phase.OVER

    # -- the server ------------------------------------------------------------------------------------------------

    def _dial(self) -> None:
        secret = self._secret
        self._phase, self._connected = Phase.WAITING, False
        if secret is not None and secret.kind is not Kind.PASSWORD:
            text = f"the rule's secret {secret.name} is a {secret.kind}, not a password"
            raise Refusal("secret", f"{text}; the administrator can name one of kind password")
        tls = self._context.tls or self._context.rule.upstream_tls == "require"
        self._out.append(Dial(tls=tls, server_name=self._context.server_name))

    def _connect(self) -> None:
        """Log in, as far as the gateway does that."""
        self._connected = True
        asked, secret = self._asked, self._secret
        said: list[bytes] = []
        if asked is not None and asked.name == b"HELLO":
            said = _without_login([word.value for word in asked.words], secret)
        elif secret is not None:
            user = [] if secret.user == DEFAULT else [secret.user.encode()]
            said = [b"AUTH", *user, secret.value.reveal().encode()]
        if said:
            self._phase = Phase.LOGIN
            self._out.append(Say(SERVER, _command(*said)))
            return
        if asked is not None:
            self._out.append(Say(CLIENT, OK))
        self._open(b"")

    def _hear_server(self) -> None:
        """To a log-in it replies by a line, to HELLO by something longer, or by an error."""
        if self._phase is not Phase.LOGIN:
            said = bytes(self._server)
            self._server.clear()
            self._out.append(Take(SERVER, said))
            raise Refusal("protocol", "the server speaks out of turn")
        reply = bytes(self._server)
        hello = self._asked is not None and self._asked.name == b"HELLO"
        if b"\n" not in reply:
            if len(reply) > MAX_REPLY:
                raise Refusal("protocol", "the server's reply to a log-in has no end")
            return
        if reply.startswith(b"-"):
            self._server.clear()
            self._refused(reply, hello=hello)
        elif hello and reply[:1] in (b"%", b"*"):
            self._server.clear()
            self._open(reply)
        elif not hello and reply.startswith(OK):
            self._server.clear()
            self._open(reply[len(OK) :] if self._asked is None else reply)
        else:
            raise Refusal("protocol", "the server's reply to a log-in is none of Redis")

    def _open(self, passed: bytes) -> None:
        """`passed`: what the agent gets of the server's reply."""
        secret = self._secret
        if secret is not None:
            said = {"user": secret.user, "method": "auth", "secret": secret.name}
            self._out.append(Note("upstream", f"logged in as {secret.user}", {"login": said}))
        if passed:
            self._out.append(Pass(SERVER, passed))
            self._ends = passed.endswith(b"\n")
        self._phase, self.ready, self._asked = Phase.OPEN, True, None
        self._agent.every, self._agent.most = False, MAX_HELD
        self._hear_agent()

    def _refused(self, reply: bytes, *, hello: bool) -> None:
        """The server's error. One about the gateway's credential is not the agent's to know."""
        secret = self._secret
        found = _CODE.match(reply)
        code = found[1].decode("ascii") if found else "unknown"
        if hello and code not in ("WRONGPASS", "NOAUTH", "NOPERM"):
            self._out.append(Pass(SERVER, reply))  # a server that does not know HELLO, or this version
            self._asked, self._phase = None, Phase.START
            self._hear_agent()
            return
        self._out.append(Take(SERVER, reply))
        if secret is None:
            text = "the server asks for a password, and the gateway's rule names no credential"
            raise Refusal("no-credential", f"{text}; the administrator can name a secret", code="NOPERM")
        told = reply[1:].partition(b"\r")[0].decode("utf-8", "replace")
        attrs = {"code": code, "secret": secret.name, "generation": secret.generation}
        if secret.value.reveal() not in told:
            attrs["message"] = told[:MAX_WORDS]
        self._out.append(Note("login-refused", "the server refused the gateway's credential", attrs))
        if secret.former is not None and code == "WRONGPASS":  # rotated here, not yet there
            self._secret = secret.former
            self._out.append(HangUp())
            self._dial()
            return
        text = f"the server refused the credential that the gateway uses for this rule ({code})"
        hint = f"the administrator should look at secret {secret.name}"
        raise Refusal("login-refused", f"{text}; {hint}", code="NOPERM")

    def _server_ended(self) -> None:
        if self._phase is Phase.OPEN:
            self._out.append(Shut(CLIENT))
        elif self._connected:
            raise Refusal("server-gone", "the server closed the connection before the log-in was done")

    # -- the end ---------------------------------------------------------------------------------------------------

    def _refuse(self, refusal: Refusal) -> None:
        self._spill()
        if self._server:
            self._out.append(Take(SERVER, bytes(self._server)))
        if self._phase is not Phase.OPEN or self._ends:  # else it would be read as part of something
            self._out.append(Say(CLIENT, _error(refusal.code, refusal.text)))
        self._out.append(Fail(refusal.reason, refusal.text))
        self._phase = Phase.OVER

    def _spill(self) -> None:
        """What the agent said and was not dealt with is on record too; of what may be a password, only the length."""
        hidden = self._agent.looking
        if rest := self._agent.rest():
            self._out.append(Take(CLIENT, rest, ((0, len(rest), "password"),) if hidden else ()))


def _token_of(command: Command) -> Word | None:
    """The password of AUTH, or of HELLO with AUTH."""
    words = command.words
    if command.name == b"AUTH" and len(words) in (2, 3):
        return words[-1]
    if command.name == b"HELLO":
        at = _auth_in([word.value for word in words])
        return words[at + 2] if at else None
    return None


def _auth_in(words: Sequence[bytes]) -> int:
    """Where HELLO has its AUTH, with a user and a password behind it; 0: nowhere."""
    at = 2
    while at < len(words):
        option = words[at].upper()
        if option == b"AUTH" and at + 2 < len(words):
            return at
        at += 2 if option == b"SETNAME" else 1
    return 0


def _without_login(words: Sequence[bytes], secret: Secret | None) -> list[bytes]:
    """HELLO as the server gets it."""
    at = _auth_in(words)
    own = [] if secret is None else [b"AUTH", secret.user.encode(), secret.value.reveal().encode()]
    return [*words[:at], *own, *words[at + 3 :]]


def _logs_in(command: Command) -> bool:
    """Would this change who is logged in, or how others log in?"""
    name, words = command.name, [word.value.upper() for word in command.words[1:]]
    if name in (b"AUTH", b"RESET"):
        return True
    if name == b"HELLO":
        return b"AUTH" in words[1:]
    if name == b"ACL":
        return words[:1] in ([b"SETUSER"], [b"DELUSER"], [b"LOAD"])
    return name == b"CONFIG" and words[:1] == [b"SET"] and b"REQUIREPASS" in words[1::2]


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _error(code: str, text: str) -> bytes:
    said = " ".join(text[:MAX_WORDS].split())
    return f"-{code} {said}\r\n".encode("utf-8", "replace")
