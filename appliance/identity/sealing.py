"""How a secret lies on the disk: sealed, bound to its name and kind, in a format with a version.

    offset  size  content
    0       8     "vbsecret"
    8       1     version of the format: 1
    9       1     kind: 1 password, 2 token, 3 ssh-key, 4 tls-client
    10      8     id of the key: HKDF-SHA256(secrets.key, no salt, info "verbatim secrets key id", 8)
    18      12    nonce, random
    30      …     AES-256-GCM of a JSON object, and its tag of 16 bytes

The cipher's key is HKDF-SHA256(secrets.key, no salt, info "verbatim secrets 1", 32); the additional data is the header
(bytes 0 to 29) and the secret's name, so that a file says nothing under another name, kind or version. Sealing draws a
new nonce each time; NIST SP 800-38D allows 2^32 of these with one key.
"""

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.errors import DamagedEvidence, Refused
from appliance.identity.credential import Kind, Secret
from appliance.identity.secret_text import SecretText

MAGIC = b"vbsecret"
VERSION = 1
HEADER = 30
MAX_FILE = 1 << 20
_KINDS = (Kind.PASSWORD, Kind.TOKEN, Kind.SSH_KEY, Kind.TLS_CLIENT)
_FIELDS = ("user", "header", "certificate", "generation", "set_ns", "uid", "fingerprint")


@dataclass(frozen=True)
class SealingKey:
    """32 random bytes, from which what seals and what names it are derived."""

    secret: bytes = field(repr=False)

    @cached_property
    def key_id(self) -> bytes:
        return self._derive(b"verbatim secrets key id", 8)

    @cached_property
    def cipher(self) -> AESGCM:
        return AESGCM(self._derive(b"verbatim secrets 1", 32))

    def _derive(self, info: bytes, size: int) -> bytes:
        return HKDF(SHA256(), size, salt=None, info=info).derive(self.secret)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A secret as it is kept; the former one until `former_until_ns` (Unix time)."""

    secret: Secret
    former_until_ns: int = 0


def seal(key: SealingKey, sealed: Sealed) -> bytes:
    """The bytes of a file."""
    secret = sealed.secret
    said = _to_json(secret)
    if secret.former is not None:
        said |= {"former": _to_json(secret.former), "former_until_ns": sealed.former_until_ns}
    kind = bytes((_KINDS.index(secret.kind) + 1,))
    header = MAGIC + bytes((VERSION,)) + kind + key.key_id + os.urandom(12)
    return header + key.cipher.encrypt(header[18:], msgspec.json.encode(said), header + secret.name.encode())


def unseal(key: SealingKey, name: str, content: bytes) -> Sealed:
    """Raises `Refused` when another key sealed it, `DamagedEvidence` when it is not what was sealed as `name`."""
    if len(content) <= HEADER or content[:8] != MAGIC:
        raise DamagedEvidence(f"secret {name}: not a sealed secret; restore its file, or remove it and set it anew")
    if content[8] != VERSION:
        raise Refused(f"secret {name}: of format {content[8]}, this release reads {VERSION}; use that which wrote it")
    check_key(key, name, content)
    header = content[:HEADER]
    try:
        said = msgspec.json.decode(key.cipher.decrypt(header[18:], content[HEADER:], header + name.encode()))
        kind = _KINDS[content[9] - 1]
        secret = _from_json(name, kind, said)
        if "former" not in said:
            return Sealed(secret)
        former = _from_json(name, kind, said["former"])
        return Sealed(replace(secret, former=former), int(said["former_until_ns"]))
    except (InvalidTag, msgspec.DecodeError, IndexError, KeyError, TypeError, ValueError):
        raise DamagedEvidence(
            f"secret {name}: its file was changed, or is another secret's; restore it, or remove it and set it anew"
        ) from None


def check_key(key: SealingKey, name: str, content: bytes) -> None:
    """Raises `Refused` when a sealed secret's header names another key; what is no sealed secret passes."""
    named = content[10:18]
    if content[:8] == MAGIC and len(named) == len(key.key_id) and named != key.key_id:
        raise Refused(
            f"secret {name}: sealed with key {named.hex()}, but secrets.key here is {key.key_id.hex()}; give the same "
            "key (a credential of systemd is not seen outside of its unit)"
        )


def _to_json(secret: Secret) -> dict[str, Any]:
    return {"value": secret.value.reveal(), **{name: getattr(secret, name) for name in _FIELDS}}


def _from_json(name: str, kind: Kind, said: dict[str, Any]) -> Secret:
    return Secret(name, kind, SecretText(said["value"]), **{field: said[field] for field in _FIELDS})
