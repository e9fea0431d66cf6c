"""Credentials that the gateway uses in the place of agents', and what makes one valid.

| kind | the secret value | beside it |
| --- | --- | --- |
| password | a password | the user |
| token | what follows `Bearer` in `Authorization`, or the whole value of the header that is named | the header |
| ssh-key | a private key (OpenSSH or PEM, without a passphrase) | the user, an OpenSSH certificate |
| tls-client | a private key in PEM | the certificate chain in PEM, the leaf first |

What is beside the value may be shown to who operates the gateway; the value never is.
"""

import base64
import hashlib
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from appliance.errors import MalformedInput
from appliance.identity.secret_text import SecretText

MAX_VALUE = 64 * 1024  # bytes of what is read
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # token, RFC 9110 section 5.6.2
_VISIBLE = re.compile(r"[!-~]+(?:[ \t]+[!-~]+)*")  # field content in ASCII, RFC 9110 section 5.5
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----", re.S)
AUTHORIZATION = "authorization"


class Kind(StrEnum):
    PASSWORD = "password"  # noqa: S105
    TOKEN = "token"  # noqa: S105
    SSH_KEY = "ssh-key"
    TLS_CLIENT = "tls-client"


@dataclass(frozen=True, slots=True)
class Secret:
    """One credential; `former`, while its grace lasts, is what it was before it was rotated."""

    name: str
    kind: Kind
    value: SecretText
    user: str = ""
    header: str = ""
    certificate: str = ""
    generation: int = 1
    set_ns: int = 0
    uid: int = 0
    fingerprint: str = ""  # of a public key or certificate; of passwords and tokens there is none: it could be guessed
    former: "Secret | None" = field(default=None)

    def field(self) -> tuple[str, SecretText]:
        """Of a token: the HTTP header's name in lower case and its whole value."""
        if self.header:
            return self.header, self.value
        return AUTHORIZATION, SecretText(f"Bearer {self.value.reveal()}")


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise MalformedInput(f"secret {name[:64]!r}: a name has up to 64 of a-z, 0-9 and -, as orders-db")
    return name


def parse(name: str, kind: Kind, given: bytes, *, user: str = "", header: str = "", certificate: bytes = b"") -> Secret:
    """A credential of what a person handed in. Raises `MalformedInput`, which says what is wrong and nothing of it."""
    check_name(name)
    for what, text, allowed in (
        ("user", user, (Kind.PASSWORD, Kind.SSH_KEY)),
        ("header", header, (Kind.TOKEN,)),
        ("certificate", certificate, (Kind.SSH_KEY, Kind.TLS_CLIENT)),
    ):
        if text and kind not in allowed:
            raise MalformedInput(f"secret {name}: a {kind} has no {what}; leave --{what} out")
    if not user.isprintable() or len(user) > 256:
        raise MalformedInput(f"secret {name}: --user is not a user's name; give up to 256 printable characters")
    text = _text(name, "value", given)
    beside = _text(name, "certificate", certificate) if certificate else ""
    secret = Secret(name, kind, SecretText(text), user, header.lower(), beside)
    match kind:
        case Kind.PASSWORD:
            return _password(secret)
        case Kind.TOKEN:
            return _token(secret)
        case Kind.SSH_KEY:
            return _ssh_key(secret)
        case Kind.TLS_CLIENT:
            return _tls_client(secret)


def _text(name: str, what: str, given: bytes) -> str:
    if len(given) > MAX_VALUE:
        raise MalformedInput(f"secret {name}: its {what} is longer than {MAX_VALUE} bytes")
    try:
        text = given.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedInput(f"secret {name}: its {what} is not UTF-8 text") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise MalformedInput(f"secret {name}: its {what} is empty; give it on standard input or with --file")
    if "\0" in text:
        raise MalformedInput(f"secret {name}: its {what} has a NUL byte, which no protocol takes")
    return text


def _password(secret: Secret) -> Secret:
    if not secret.user:
        raise MalformedInput(f"secret {secret.name}: a password needs its user; give --user")
    if any(character in secret.value.reveal() for character in "\r\n"):
        raise MalformedInput(f"secret {secret.name}: more than one line; give the password alone")
    return secret


def _token(secret: Secret) -> Secret:
    if secret.header and not _HEADER.fullmatch(secret.header):
        raise MalformedInput(f"secret {secret.name}: --header is not the name of an HTTP header; write x-api-key")
    if not _VISIBLE.fullmatch(secret.value.reveal()):
        raise MalformedInput(f"secret {secret.name}: not what a header can hold; give one line of visible ASCII")
    if not secret.header and (" " in secret.value.reveal() or "\t" in secret.value.reveal()):
        raise MalformedInput(f"secret {secret.name}: a bearer token has no blanks; give it alone, or name a --header")
    return secret


def _ssh_key(secret: Secret) -> Secret:
    text = secret.value.reveal()
    load = serialization.load_ssh_private_key if "OPENSSH" in text[:64] else serialization.load_pem_private_key
    try:
        key = load(text.encode() + b"\n", None)
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise MalformedInput(
            f"secret {secret.name}: not a private key for SSH without a passphrase; ssh-keygen -p takes that off"
        ) from None
    if secret.certificate:
        try:
            identity = serialization.load_ssh_public_identity(secret.certificate.encode())
        except (ValueError, TypeError, UnsupportedAlgorithm):
            identity = None
        if not isinstance(identity, serialization.SSHCertificate):
            raise MalformedInput(f"secret {secret.name}: --certificate is not an OpenSSH certificate (…-cert.pub)")
        signed = identity.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        if signed != public:
            raise MalformedInput(f"secret {secret.name}: the certificate is of another key")
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return replace(secret, fingerprint=f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}")


def _tls_client(secret: Secret) -> Secret:
    """Certificates and key may come in one file, in any order."""
    given = f"{secret.value.reveal()}\n{secret.certificate}"
    blocks = [(found[1], found[0]) for found in _BLOCK.finditer(given)]
    keys = [block for label, block in blocks if label.endswith("PRIVATE KEY")]
    chain = [block for label, block in blocks if label == "CERTIFICATE"]
    if len(keys) != 1 or not chain:
        raise MalformedInput(
            f"secret {secret.name}: {len(keys)} private keys and {len(chain)} certificates in PEM; give one key and "
            "its chain"
        )
    try:
        key = serialization.load_pem_private_key(keys[0].encode(), None)
        certificates = [x509.load_pem_x509_certificate(block.encode()) for block in chain]
        fits = key.public_key() == certificates[0].public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise MalformedInput(
            f"secret {secret.name}: key or certificate is not readable PEM without a passphrase"
        ) from None
    if not fits:
        raise MalformedInput(f"secret {secret.name}: the key is not that of the first certificate; put the leaf first")
    return replace(
        secret,
        value=SecretText(keys[0] + "\n"),
        certificate="\n".join(chain) + "\n",
        fingerprint=f"SHA256:{certificates[0].fingerprint(hashes.SHA256()).hex(':').upper()}",
    )
