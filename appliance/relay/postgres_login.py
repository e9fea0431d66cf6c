"""Who answers when a PostgreSQL server asks for a password (PostgreSQL 18 documentation, 54.2.1 and 54.3).

    Login        the gateway, with the rule's credential or none; the agent gets no word of it
    PassThrough  the agent itself; its password is kept by length only

Both are asked with the server's authentication requests, whole. `Login` lets a server ask in one way only: one that
asked for SCRAM and then for the password in clear would have the better of both.

Channel binding (SCRAM-SHA-256-PLUS, RFC 5929) ties a log-in to the server's TLS certificate, which for the agent is
the gateway's: the offer is withheld. A client that can bind says so in its first message (flag `y`, RFC 5802 section
6), and a server that offered it must then refuse, as somebody took the offer away. The proof of the password covers
the flag, so it cannot be changed here.
"""

import hashlib
from typing import Final, Protocol

from appliance.dissect import postgres_fields as fields
from appliance.dissect.postgres_frames import HEADER
from appliance.identity.credential import Secret
from appliance.model import Direction
from appliance.relay import postgres_messages as messages
from appliance.relay.failure import Failure, Refusal
from appliance.relay.mediator import Commands, Pass, Say, Take
from appliance.relay.postgres_messages import CLEARTEXT, MD5, OK, SASL, SASL_CONTINUE, SASL_FINAL
from appliance.relay.scram import MECHANISM, Scram

PLUS: Final = "SCRAM-SHA-256-PLUS"
NAMES: Final = {CLEARTEXT: "password", MD5: "md5", SASL: "sasl", 7: "gss", 9: "sspi"}
_SALT: Final = 4  # bytes
_PASSWORD: Final = 0x70  # p


class Answers(Protocol):
    """Both kinds. Raises `Refusal` from every method."""

    method: str  # how the server had itself shown who this is; "trust": it did not ask
    done: bool

    def wants_agent(self) -> bool:
        """Whether the agent is to speak now."""
        ...

    def asked(self, request: bytes) -> Commands:
        """The server's authentication request."""
        ...

    def answered(self, message: bytes) -> Commands:
        """The agent's message."""
        ...


class Login:
    """`secret` None: the server must do without. `tls`: the server's leg is encrypted."""

    def __init__(self, secret: Secret | None, *, tls: bool) -> None:
        self.method = "trust"
        self.done = False
        self._secret = secret
        self._tls = tls
        self._scram: Scram | None = None
        self._due: tuple[int, ...] = (OK, CLEARTEXT, MD5, SASL)  # what the server may say now

    def wants_agent(self) -> bool:
        return False

    def answered(self, message: bytes) -> Commands:
        raise messages.violation("a message of the agent while the gateway logs in")

    def asked(self, request: bytes) -> Commands:
        code, body = messages.authentication_code(request), request[HEADER + 4 :]
        if code == OK and self._scram is not None and OK not in self._due:
            text = "the server ended SCRAM without proof that it knows the password"
            raise Refusal("server-signature", messages.CONNECTION, text)
        if code == OK and OK in self._due:
            self.done = True
            return [Pass(Direction.SERVER, request)]
        if code not in self._due:
            asked = NAMES.get(code, str(code))
            raise Refusal(
                "unsupported-login",
                messages.AUTHORIZATION,
                f"the server asks for a log-in that the gateway does not do, or not now: {asked}",
                "The server must ask for scram-sha-256, md5, or password over TLS",
            )
        if self._secret is None:
            raise Refusal(
                "no-credential",
                messages.AUTHORIZATION,
                "the server asks for a password, and the gateway's rule names no credential",
                "The administrator can name a secret in the rule",
            )
        try:
            answer = self._answer(code, body, self._secret)
        except Failure as failure:
            raise _as_refusal(failure) from None
        taken: Commands = [Take(Direction.SERVER, request)]
        return taken if answer is None else [*taken, Say(Direction.SERVER, messages.message(b"p", answer))]

    def _answer(self, code: int, body: bytes, secret: Secret) -> bytes | None:
        password = secret.value
        if code == SASL:
            self._scram, self.method, self._due = Scram(password), "scram-sha-256", (SASL_CONTINUE,)
            if MECHANISM not in offered(body):
                raise Failure("unsupported-login", "the server offers no SCRAM-SHA-256")
            first = self._scram.first()
            return MECHANISM.encode() + b"\0" + len(first).to_bytes(4) + first
        if code == SASL_CONTINUE and self._scram is not None:
            self._due = (SASL_FINAL,)
            return self._scram.final(body)
        if code == SASL_FINAL and self._scram is not None:
            self._due = (OK,)
            self._scram.verify(body)
            return None
        self._due = (OK,)
        self.method = NAMES[code]
        if code == MD5:
            if len(body) != _SALT:
                raise Failure("protocol", "the server's salt for MD5 does not have 4 bytes")
            inner = _md5(password.reveal().encode() + secret.user.encode())
            return b"md5" + _md5(inner + body) + b"\0"
        if not self._tls:
            text = "the server asks for the password in clear, and its connection is not encrypted"
            raise Failure("cleartext-password", text)
        return password.reveal().encode() + b"\0"


class PassThrough:
    """`agent_tls`, `server_tls`: which leg is encrypted."""

    def __init__(self, *, agent_tls: bool, server_tls: bool) -> None:
        self.method = "trust"
        self.done = False
        self._downgraded = agent_tls and not server_tls
        self._asked = OK  # the request that the agent is to answer; OK: none
        self._withheld = False  # the server offered channel binding

    def wants_agent(self) -> bool:
        return self._asked != OK

    def asked(self, request: bytes) -> Commands:
        code, body = messages.authentication_code(request), request[HEADER + 4 :]
        self._asked = OK if code == SASL_FINAL else code
        self.method = NAMES.get(code, self.method)
        self.done = code == OK
        if code == CLEARTEXT and self._downgraded:
            text = "the server asks for the password in clear, and does not encrypt as the agent does"
            raise Refusal("cleartext-password", messages.AUTHORIZATION, text, "Give the server TLS, or use SCRAM")
        if code != SASL:
            return [Pass(Direction.SERVER, request)]
        names = offered(body)
        if PLUS not in names:
            return [Pass(Direction.SERVER, request)]
        left = [name for name in names if name != PLUS]
        if not left:
            raise binding("the server takes no log-in without channel binding")
        self._withheld = True
        said = b"".join(name.encode() + b"\0" for name in left) + b"\0"
        return [Take(Direction.SERVER, request), Say(Direction.CLIENT, messages.authentication(SASL, said))]

    def answered(self, message: bytes) -> Commands:
        body = message[HEADER:]
        if message[0] != _PASSWORD:
            raise messages.violation("a message of the agent that is no answer to the server's question for a password")
        if self._asked == SASL:
            self.method = self._begun(body)
        # SCRAM never holds the password; of anything else only the length is kept, as by the dissector
        harmless = self._asked in (SASL, SASL_CONTINUE) and fields.scram(body) is not None
        self._asked = OK
        end = len(message) - message.endswith(b"\0")
        secrets = () if harmless or end <= HEADER else ((HEADER, end, "password"),)
        return [Pass(Direction.CLIENT, message, secrets)]

    def _begun(self, body: bytes) -> str:
        """The mechanism that the agent chose."""
        name, _, rest = body.partition(b"\0")
        mechanism = name.decode("ascii", "replace")
        if mechanism == PLUS:
            raise binding("the client binds its log-in to the TLS certificate of the server")
        if self._withheld and mechanism == MECHANISM and rest[4:5] == b"y":
            raise binding("the client asks that no channel binding was withheld, and the server offered it")
        return mechanism.lower() if mechanism == MECHANISM else "sasl"


def offered(body: bytes) -> list[str]:
    """The mechanisms of AuthenticationSASL, from behind its code. Raises `Refusal`."""
    try:
        return fields.strings(body, "ascii")
    except ValueError:
        raise messages.violation("the server's list of log-in mechanisms has no end") from None


def binding(text: str) -> Refusal[str]:
    return Refusal(
        "channel-binding",
        messages.AUTHORIZATION,
        f"SCRAM with channel binding does not pass a gateway that sees inside TLS: {text}",
        "Connect with channel_binding=disable; or the administrator can name a secret in the gateway's rule",
    )


def _as_refusal(failure: Failure) -> Refusal[str]:
    if isinstance(failure, Refusal):
        return failure
    return Refusal(failure.reason, messages.CONNECTION, f"the gateway's log-in to the server failed: {failure.text}")


def _md5(data: bytes) -> bytes:
    """As in PostgreSQL's own log-in, which a server may still ask for."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest().encode()
