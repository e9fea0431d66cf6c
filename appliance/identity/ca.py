"""The appliance's certificate authority: made at first start, mints the API's certificate.

Files in `DATA/keys/`, keys with mode 0600: `ca.key`, `ca.crt` (ECDSA P-256, RFC 5280, path length 0, ten years) and
`api.key`, `api.crt`. A leaf is made anew when its names change, when another CA signed it, when its key is another one,
or 30 days before it ends.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.errors import DamagedEvidence, MalformedInput

CA_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)
BACKDATE = timedelta(hours=1)  # agents' clocks may be behind


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA's key and certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER certificate, as `openssl x509 -fingerprint -sha256` prints it."""
        return self.certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def load_or_create(data: Path, node: str, now: datetime | None = None) -> Authority:
    """The CA in `data`/keys, made if there is none. Raises `DamagedEvidence` when its files don't fit together."""
    folder = data / "keys"
    key_path, certificate_path = folder / "ca.key", folder / "ca.crt"
    if key_path.exists() != certificate_path.exists():
        raise DamagedEvidence(f"{folder}: only one of ca.key and ca.crt is there; restore the other from a backup")
    if not key_path.exists():
        for each in (data, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = _make(node, now or datetime.now(UTC))
        write_private(key_path, private_pem(authority.key))
        certificate_path.write_bytes(authority.pem)
        return authority
    try:
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
    except ValueError as error:
        raise DamagedEvidence(f"{folder}: ca.key or ca.crt is not readable PEM; restore it from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise DamagedEvidence(f"{folder}: ca.key does not belong to ca.crt; restore both from a backup")
    return Authority(key, certificate)


def issue(
    authority: Authority, names: Iterable[str], now: datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Mint a server certificate for DNS names and IP addresses. Raises `MalformedInput` when there is no name."""
    subjects = [_general_name(name) for name in dict.fromkeys(names)]
    if not subjects:
        raise MalformedInput("certificate: no name or address to issue it for")
    key = ec.generate_private_key(ec.SECP256R1())
    common = str(subjects[0].value)[:64]
    certificate = (
        _builder(common, authority.certificate.subject, key.public_key(), now, LEAF_LIFETIME)
        .add_extension(x509.SubjectAlternativeName(subjects), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return key, certificate


def api_certificate(
    authority: Authority, data: Path, names: Iterable[str], now: datetime | None = None
) -> tuple[Path, Path]:
    """Paths of the API's certificate chain and key, valid for all `names`; made anew when the present one is not."""
    now = now or datetime.now(UTC)
    wanted = list(dict.fromkeys(names))
    certificate_path, key_path = data / "keys" / "api.crt", data / "keys" / "api.key"
    if not (
        key_path.exists() and certificate_path.exists() and _fits(certificate_path, key_path, authority, wanted, now)
    ):
        key, certificate = issue(authority, wanted, now)
        write_private(key_path, private_pem(key))
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + authority.pem)
    return certificate_path, key_path


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_private(path: Path, content: bytes) -> None:
    """Write a secret file, mode 0600 from its first byte, replacing the old one as a whole."""
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _make(node: str, now: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Verbatim CA {node}"[:64])])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(f"Verbatim CA {node}"[:64], name, key.public_key(), now, CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


def _builder(
    common: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise MalformedInput(f"certificate: {name!r} is neither an address nor a DNS name") from error


def _fits(path: Path, key_path: Path, authority: Authority, names: list[str], now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        if serialization.load_pem_private_key(key_path.read_bytes(), None).public_key() != certificate.public_key():
            return False
        certificate.verify_directly_issued_by(authority.certificate)
        present = set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return {_general_name(name) for name in names} <= present and certificate.not_valid_after_utc - now > RENEW_BEFORE
