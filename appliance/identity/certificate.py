"""Certificates as the CA makes them (RFC 5280): its own, the one that carries trust over a rotation, and leaves.

All are ECDSA with SHA-256, begin an hour before they are made (agents' clocks may be behind), and name keys by their
identifiers, which is what tells the CA's certificates of one name apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from appliance.errors import Refused
from appliance.identity.constraints import Constraints, Subject, general_name
from appliance.identity.signer import Signer, as_private_key

BACKDATE = timedelta(hours=1)
MAX_COMMON_NAME = 64  # RFC 5280 appendix A.1, ub-common-name
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs: a CA's certificate and key."""

    certificate: x509.Certificate
    signer: Signer


def root(signer: Signer, name: str, now: datetime, lifetime: timedelta, constraints: Constraints) -> x509.Certificate:
    """A CA certificate that its own key signs."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return _authority(subject, subject, signer, now + lifetime, now, constraints).sign(
        as_private_key(signer), hashes.SHA256()
    )


def cross(fresh: x509.Certificate, former: Issuer, now: datetime, until: datetime) -> x509.Certificate:
    """The key of `fresh`, signed by the former CA: who trusts only that one verifies what the new one signs.

    Subject and issuer have one name, so the certificate is self-issued and counts for no path length (RFC 5280 sections
    4.2.1.9 and 6.1.4).
    """
    builder = _builder(
        fresh.subject, former.certificate.subject, _ec(fresh), now, min(until, ends(former.certificate))
    ).add_extension(_identifier(former.certificate), critical=False)
    for extension in fresh.extensions:
        if isinstance(extension.value, x509.BasicConstraints | x509.KeyUsage | x509.NameConstraints):
            builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(as_private_key(former.signer), hashes.SHA256())


def leaf(
    issuer: Issuer,
    key: ec.EllipticCurvePublicKey,
    subjects: Sequence[Subject],
    now: datetime,
    lifetime: timedelta,
    *,
    common: str = "",
    usage: ObjectIdentifier = SERVER,
) -> x509.Certificate:
    """A certificate for `subjects`, the first of which is its common name unless `common` says another.

    Raises `Refused` when the CA may not certify one of them, or has ended.
    """
    allowed = Constraints.of(issuer.certificate)
    for subject in subjects:
        if reason := allowed.forbids(subject):
            raise Refused(f"certificate: {subject} is {reason}; rotate the CA with other constraints to change that")
    until = min(now + lifetime, ends(issuer.certificate))
    if until <= now:
        raise Refused(f"certificate: the CA ended on {until:%Y-%m-%d}; rotate it and have agents trust the new one")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common or _common(subjects))])
    builder = (
        _builder(name, issuer.certificate.subject, key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(_identifier(issuer.certificate), critical=False)
    )
    if subjects:
        builder = builder.add_extension(x509.SubjectAlternativeName(map(general_name, subjects)), critical=False)
    return builder.sign(as_private_key(issuer.signer), hashes.SHA256())


def ends(certificate: x509.Certificate) -> datetime:
    return certificate.not_valid_after_utc


def _common(subjects: Sequence[Subject]) -> str:
    """A name if there is one; an address in words: alone it would be judged as a name (OpenSSL does)."""
    for subject in subjects:
        if isinstance(subject, str) and len(subject) <= MAX_COMMON_NAME:
            return subject
    return "a name too long for here" if isinstance(subjects[0], str) else f"address {subjects[0]}"


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    signer: Signer,
    until: datetime,
    now: datetime,
    constraints: Constraints,
) -> x509.CertificateBuilder:
    # One CA below it: not every client knows that a self-issued certificate doesn't count for the path length.
    builder = (
        _builder(subject, issuer, signer.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    extension = constraints.extension()
    return builder if extension is None else builder.add_extension(extension, critical=True)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _ec(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
