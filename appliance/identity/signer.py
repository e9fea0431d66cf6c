"""What the CA signs with: a key file now, a hardware token by the same interface.

`Signer` is all that minting knows of the CA's key: its public half, and a signature over bytes. A PKCS#11 signer is a
class with these two members (`C_Sign` with CKM_ECDSA over the hash, its result as DER, RFC 3279 section 2.2.3).
"""

import os
import stat
from pathlib import Path
from typing import Any, NoReturn, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.errors import DamagedEvidence, MalformedInput, Refused


class Signer(Protocol):
    """Signs with a key on an elliptic curve that this process may not hold."""

    def public_key(self) -> ec.EllipticCurvePublicKey: ...

    def sign(self, data: bytes) -> bytes:
        """ECDSA with SHA-256 over `data`: the signature in DER, as certificates have it (RFC 5758 section 3.2)."""
        ...


class KeySigner:
    """Signs with a private key in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "KeySigner()"

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))


def read_signer(path: Path) -> KeySigner:
    """The key in a PEM file. Raises `MalformedInput` unless it is an unencrypted EC key, `Refused` if others may read
    it.
    """
    if str(path).startswith("pkcs11:"):
        raise MalformedInput("--key: PKCS#11 is not built in; name the PEM file of an EC key")
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = serialization.load_pem_private_key(file.read(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MalformedInput(f"{path}: not an unencrypted private key in PEM; openssl genpkey makes one") from error
    if mode & 0o077:
        raise Refused(f"{path}: other users may read the CA's key (mode {mode:03o}); chmod 600 it")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise MalformedInput(f"{path}: not a key on an elliptic curve; make one with curve P-256")
    return KeySigner(key)


def stored_signer(path: Path) -> KeySigner:
    """The key in the CA's own file. Raises `DamagedEvidence` when it is not readable, `Refused` as `read_signer`."""
    try:
        return read_signer(path)
    except MalformedInput as error:
        raise DamagedEvidence(f"{path}: not readable PEM of an EC key; restore it from a backup") from error


class _Delegate(ec.EllipticCurvePrivateKey):
    """A signer in the shape that certificate builders take: only its public key and signatures exist."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        algorithm = signature_algorithm.algorithm
        assert isinstance(algorithm, hashes.SHA256)
        return self._signer.sign(bytes(data))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._signer.public_key()

    @property
    def curve(self) -> ec.EllipticCurve:
        return self.public_key().curve

    @property
    def key_size(self) -> int:
        return self.curve.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        return self._nothing_else()

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        return self._nothing_else()

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        return self._nothing_else()

    def __copy__(self) -> "_Delegate":
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> "_Delegate":
        return self

    def _nothing_else(self) -> NoReturn:
        raise Refused("CA key: it only signs")


def as_private_key(signer: Signer) -> ec.EllipticCurvePrivateKey:
    """For `CertificateBuilder.sign`, with SHA-256."""
    return _Delegate(signer)
