"""The gateway's log-in to a MySQL server with a rule's credential ("Authentication Methods" of the MySQL source code
documentation; MariaDB Knowledge Base, "Authentication Plugin - ed25519").

| method | what the server gets |
| --- | --- |
| mysql_native_password, client_ed25519 | a proof of the password |
| caching_sha2_password | a proof; if the server has not cached the password, that itself: by TLS, else by its RSA key |
| sha256_password, mysql_clear_password | the password: by TLS; sha256_password else by its RSA key |

A server may switch the method once, and ask in the order of that method only. The arithmetic is PyMySQL's.
"""

from enum import Enum, auto
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from pymysql import _auth

from appliance.dissect import mysql_fields as fields
from appliance.dissect.mysql_fields import EOF, MORE_DATA
from appliance.identity.credential import Secret
from appliance.relay import mysql_messages as messages
from appliance.relay.failure import Refusal
from appliance.relay.mysql_messages import CLEAR, NATIVE, SCRAMBLE, Code

SHA2: Final = "caching_sha2_password"
SHA256: Final = "sha256_password"
ED25519: Final = "client_ed25519"
METHODS: Final = (NATIVE, SHA2, SHA256, ED25519, CLEAR)
SIZES: Final = {ED25519: 32}  # bytes of the server's scramble, where they are not 20
MAX_KEY: Final = 8192  # bytes of an RSA key in PEM
_FAST, _FULL = b"\x03", b"\x04"
KEY_REQUESTS: Final = {SHA2: b"\x02", SHA256: b"\x01"}  # for the server's RSA key


class Step(Enum):
    METHOD = auto()  # the server may switch
    FAST = auto()  # caching_sha2_password: whether the proof is enough
    KEY = auto()  # the server's RSA key was asked for
    ENDED = auto()  # nothing more is to be asked


class Login:
    """`secret` None: the server must do without. `tls`: the server's leg is encrypted."""

    def __init__(self, secret: Secret | None, plugin: str, scramble: bytes, *, tls: bool) -> None:
        self.method = plugin if plugin in METHODS else NATIVE
        self._secret = secret
        self._password = b"" if secret is None else secret.value.reveal().encode()
        self._scramble = scramble
        self._tls = tls
        self._switched = False
        self._step = Step.METHOD

    def first(self) -> bytes:
        """What goes into the handshake response: a proof, or nothing yet. Never the password."""
        if self._secret is None or self.method not in (NATIVE, SHA2):
            return b""
        return self._begin()

    def asked(self, body: bytes) -> bytes | None:
        """The body of an answer to the server's packet; None: there is nothing to answer. Raises `Refusal`."""
        if body[0] == EOF and not self._switched:
            self._switched = True
            return self._switch(body)
        if self._secret is not None and body[0] == MORE_DATA:
            return self._more(body[1:])
        raise unsupported(f"a step that {self.method} does not have, or not now")

    def _switch(self, body: bytes) -> bytes:
        name, at = fields.until_nul(body, 1)
        method = name.decode("ascii", "replace")
        if method not in METHODS:
            raise unsupported("another method")
        if self._secret is None:
            raise Refusal(
                "no-credential",
                messages.DENIED,
                "the server asks for a password, and the gateway's rule names no credential",
                "The administrator can name a secret in the rule",
            )
        self.method, self._step = method, Step.METHOD
        self._scramble = body[at:] if method == ED25519 else body[at:][:SCRAMBLE]
        if method != CLEAR and len(self._scramble) != SIZES.get(method, SCRAMBLE):
            raise messages.violation(f"the server's random bytes for {method} are too few, or too many")
        return self._begin()

    def _begin(self) -> bytes:
        """The first answer of a method."""
        self._step = Step.ENDED
        if self.method == NATIVE:
            return bytes(_auth.scramble_native_password(self._password, self._scramble))
        if self.method == ED25519:
            return bytes(_auth.ed25519_password(self._password, self._scramble))
        if self.method == SHA2:
            self._step = Step.FAST
            return bytes(_auth.scramble_caching_sha2(self._password, self._scramble))
        return self._whole()

    def _whole(self) -> bytes:
        """The password itself, where that is safe."""
        if self._tls:
            self._step = Step.ENDED
            return self._password + b"\0"
        if self.method == CLEAR:
            text = "the server asks for the password in clear, and its connection is not encrypted"
            raise Refusal("cleartext-password", messages.DENIED, text, "Give the server TLS")
        self._step = Step.KEY
        return KEY_REQUESTS[self.method]

    def _more(self, said: bytes) -> bytes | None:
        if self._step is Step.FAST and said == _FAST:
            self._step = Step.ENDED
            return None
        if self._step is Step.FAST and said == _FULL:
            return self._whole()
        if self._step is Step.KEY:
            self._step = Step.ENDED
            return self._by_key(said)
        raise unsupported(f"a step that {self.method} does not have, or not now")

    def _by_key(self, key: bytes) -> bytes:
        try:
            if len(key) > MAX_KEY:
                raise ValueError
            return bytes(_auth.sha2_rsa_encrypt(self._password, self._scramble, key))
        except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
            text = "what the server gives as its RSA key is none, or too small for the password"
            raise Refusal("protocol", messages.UNREACHABLE, text) from None


def unsupported(asked: str) -> Refusal[Code]:
    return Refusal(
        "unsupported-login",
        messages.DENIED,
        f"the server asks for a log-in that the gateway does not do: {asked}",
        f"The server must ask for one of {', '.join(METHODS)}",
    )
