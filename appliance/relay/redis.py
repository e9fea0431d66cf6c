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
from collections.abc import Sequence
from enum import Enum, auto
from fnmatch import fnmatchcase
from typing import Final

from appliance.dissect.redis_words import Word
from appliance.identity.credential import Secret
from appliance.model import Direction
from appliance.relay.database import CLIENT, MAX_WORDS, SERVER, TOKEN, DatabaseMediator
from appliance.relay.failure import Refusal
from appliance.relay.inbox import Inbox
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

METHOD: Final = "redis-auth"
MAX_FIRST: Final = 1 << 16  # bytes of a command before log-in; the server itself takes 16 KiB
MAX_TRIES: Final = 3  # tokens
MAX_REPLY: Final = 1 << 16  # bytes of the server's reply to a log-in, as far as that must be understood
OK: Final = b"+OK\r\n"
NO_AUTH: Final = b"-NOAUTH Authentication required.\r\n"
DEFAULT: Final = "default"  # the user of AUTH with a password alone
REFUSED: Final = b"REFUSED-the-gateway-has-logged-in-for-you:-leave-AUTH-RESET-and-passwords-out"
_PASSWORDS: Final = (b"REQUIREPASS", b"MASTERAUTH", b"TLS-KEY-FILE-PASS", b"TLS-CLIENT-KEY-FILE-PASS")  # settings
_SPECIAL: Final = re.compile(rb"[\[\\]")
_CODE: Final = re.compile(rb"-([A-Z]{1,20})[ \r]")
CODES: Final = {  # with which errors begin; ERR for other reasons
    "token-refused": "WRONGPASS",
    "cleartext-token": "NOAUTH",
    "no-credential": "NOPERM",
    "login-refused": "NOPERM",
}


class Phase(Enum):
    START = auto()  # it is not known who the agent is
    WAITING = auto()  # for what the flow was told to do
    LOGIN = auto()  # for the server's reply to it
    OPEN = auto()
    OVER = auto()


class RedisMediator(DatabaseMediator[str]):
    """One connection of an agent; if it speaks TLS, that is up."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._guarded = self._token or context.secret is not None  # log-ins are the gateway's
        self._phase = Phase.START if self._token else Phase.WAITING
        self._agent: Cutter = Cutter(every=self._token, most=MAX_FIRST if self._token else MAX_HELD)
        self._server = Inbox()  # its reply to a log-in, not whole yet
        self._asked: Command | None = None  # what the agent logs in by
        self._dialled = False
        self._tries = 0
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
        return super().receive(direction, data)

    @property
    def _over(self) -> bool:
        return self._phase is Phase.OVER

    def _code(self, reason: str) -> str:
        return CODES.get(reason, "ERR")

    # -- the agent -------------------------------------------------------------------------------------------------

    def _hear_agent(self) -> None:
        try:
            while self._phase in (Phase.START, Phase.OPEN) and (said := self._agent.next()) is not None:
                if isinstance(said, bytes):
                    self._do(Pass(CLIENT, said) if self._phase is Phase.OPEN else Take(CLIENT, said))
                elif self._phase is Phase.START:
                    self._say_first(said)
                else:
                    self._look(said)
        except Malformed as error:
            raise self._refusal("protocol", f"Protocol error: {error}") from None

    def _say_first(self, command: Command) -> None:
        """Before it is known who the agent is."""
        place = _token_of(command)
        if place is None:
            self._out += [Take(CLIENT, command.data, command.secrets), Say(CLIENT, NO_AUTH)]
            return
        self._do(Take(CLIENT, command.data, tuple((start, end, TOKEN) for start, end, _ in command.secrets)))
        if not self._context.tls:
            text = "the gateway takes an access token as password only over TLS"
            raise self._refusal("cleartext-token", text, "Connect with --tls")
        if token := self._token_in(place.value):
            self._asked, self._phase = command, Phase.WAITING
            self._do(Identify(token, METHOD))

    def _decline(self, told: str, hint: str = "") -> None:
        """The agent may try again."""
        self._tries += 1
        refusal = self._refusal("token-refused", told, hint)
        if self._tries >= MAX_TRIES:
            raise refusal
        self._do(Say(CLIENT, _error(refusal)))
        self._phase = Phase.START
        self._hear_agent()

    def _look(self, command: Command) -> None:
        """A command that may have to do with log-ins."""
        if not self._guarded or not _logs_in(command):
            self._do(Pass(CLIENT, command.data, command.secrets))
            return
        name = command.name.decode("ascii")
        self._do(Take(CLIENT, command.data, command.secrets))
        text = f"{name} is not passed on: the gateway has logged in for the agent"
        self._do(Note("declined", text, {"command": name}, CLIENT, -len(command.data), 0))
        self._do(Say(SERVER, _command(REFUSED)))

    def _agent_ended(self) -> None:
        if self._phase is Phase.OPEN:
            hidden = self._agent.looking
            if rest := self._agent.rest():
                secrets = ((0, len(rest), "password"),) if hidden else ()
                self._do(Pass(CLIENT, rest, secrets))
            self._do(Shut(SERVER))
            return
        self._spill()
        if self._dialled:
            self._do(HangUp())
        self._do(Shut(CLIENT))
        self._phase = Phase.OVER

    # -- the server ------------------------------------------------------------------------------------------------

    def _dial(self) -> None:
        self._phase, self._dialled = Phase.WAITING, False
        self._check_secret()
        tls = self._context.tls or self._context.rule.upstream_tls == "require"
        self._do(Dial(tls=tls, server_name=self._context.server_name))

    def _identified(self) -> None:
        if self._dialled:
            self._connected()
        else:
            self._dial()

    def _connected(self) -> None:
        """Log in, as far as the gateway does that."""
        self._dialled = True
        asked, secret = self._asked, self._secret
        said: list[bytes] = []
        if asked is not None and asked.name == b"HELLO":
            said = _without_login([word.value for word in asked.words], secret)
        elif secret is not None:
            user = [] if secret.user == DEFAULT else [secret.user.encode()]
            said = [b"AUTH", *user, secret.value.reveal().encode()]
        if said:
            self._phase = Phase.LOGIN
            self._do(Say(SERVER, _command(*said)))
            return
        if asked is not None:
            self._do(Say(CLIENT, OK))
        self._open(b"")

    def _hear_server(self) -> None:
        """To a log-in it replies by a line, to HELLO by something longer, or by an error."""
        if self._phase is not Phase.LOGIN:
            raise self._refusal("protocol", "the server speaks out of turn")
        reply = self._server.held()
        hello = self._asked is not None and self._asked.name == b"HELLO"
        if b"\n" not in reply:
            if len(reply) > MAX_REPLY:
                raise self._refusal("protocol", "the server's reply to a log-in has no end")
            return
        if reply.startswith(b"-"):
            self._server.rest()
            self._refused(reply, hello=hello)
        elif hello and reply[:1] in (b"%", b"*"):
            self._open(self._server.rest())
        elif not hello and reply.startswith(OK):
            self._server.rest()
            self._open(reply[len(OK) :] if self._asked is None else reply)
        else:
            raise self._refusal("protocol", "the server's reply to a log-in is none of Redis")

    def _open(self, passed: bytes) -> None:
        """`passed`: what the agent gets of the server's reply."""
        if self._secret is not None:
            self._note_login(self._secret.user, "auth")
        if passed:
            self._do(Pass(SERVER, passed))
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
            self._do(Pass(SERVER, reply))  # a server that does not know HELLO, or this version
            self._asked, self._phase = None, Phase.START
            self._hear_agent()
            return
        self._do(Take(SERVER, reply))
        if secret is None:
            text = "the server asks for a password, and the gateway's rule names no credential"
            raise self._refusal("no-credential", text, "The administrator can name a secret")
        told = reply[1:].partition(b"\r")[0].decode("utf-8", "replace")
        refusal = self._login_refused(secret, {"code": code}, code, told, again=code == "WRONGPASS")
        if refusal is not None:
            raise refusal

    def _server_ended(self) -> None:
        if self._phase is Phase.OPEN:
            self._do(Shut(CLIENT))
        elif self._dialled:
            raise self._refusal("server-gone", "the server closed the connection before the log-in was done")

    # -- the end ---------------------------------------------------------------------------------------------------

    def _refuse(self, refusal: Refusal[str]) -> None:
        self._spill()
        if len(self._server):
            self._do(Take(SERVER, self._server.rest()))
        if self._phase is not Phase.OPEN or self._ends:  # else it would be read as part of something
            self._do(Say(CLIENT, _error(refusal)))
        self._do(Fail(refusal.reason, refusal.text))
        self._phase = Phase.OVER

    def _spill(self) -> None:
        """What the agent said and was not dealt with is on record too; of what may be a password, only the length."""
        hidden = self._agent.looking
        if rest := self._agent.rest():
            self._do(Take(CLIENT, rest, ((0, len(rest), "password"),) if hidden else ()))


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
    """Would this change who is logged in, or how others log in, or tell a password?"""
    name, words = command.name, [word.value.upper() for word in command.words[1:]]
    if name in (b"AUTH", b"RESET"):
        return True
    if name == b"HELLO":
        return b"AUTH" in words[1:]
    if name == b"ACL":
        return words[:1] in ([b"SETUSER"], [b"DELUSER"], [b"LOAD"])
    if name == b"CONFIG" and words[:1] == [b"GET"]:
        return any(_may_match(pattern, password) for pattern in words[1:] for password in _PASSWORDS)
    return name == b"CONFIG" and words[:1] == [b"SET"] and b"REQUIREPASS" in words[1::2]


def _may_match(pattern: bytes, name: bytes) -> bool:
    """By Redis's patterns; from a class of characters or an escape on, anything may."""
    plain, *special = _SPECIAL.split(pattern, maxsplit=1)
    return fnmatchcase(name, plain + b"*" * bool(special))


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _error(refusal: Refusal[str]) -> bytes:
    said = f"{refusal.text[:MAX_WORDS]}{'. ' if refusal.hint else ''}{refusal.hint}"
    return f"-{refusal.code} {' '.join(said.split())}\r\n".encode("utf-8", "replace")
