"""A rotated CA as OpenSSL sees it, and what is left of a rotation that was killed."""

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.errors import DamagedEvidence, Refused, Unavailable
from appliance.identity import ca, certificate, staged
from appliance.identity.constraints import Constraints
from appliance.identity.mint import Mint
from appliance.identity.signer import KeySigner
from tests.killing import Say, killed_at

NOW = datetime.now(UTC)
MONTH = timedelta(days=30)


def verifies(folder: Path, trusted: x509.Certificate, chain: Sequence[x509.Certificate], at: datetime = NOW) -> bool:
    """`openssl verify` of the first of `chain`, with the others as what the server sent along."""
    for name, certificates in (("trusted", [trusted]), ("leaf", chain[:1]), ("sent", chain[1:])):
        (folder / name).write_bytes(b"".join(map(ca.pem, certificates)))
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-attime",
        str(int(at.timestamp())),
        "-CAfile",
        str(folder / "trusted"),
    ]
    sent = ["-untrusted", str(folder / "sent")] if chain[1:] else []
    return subprocess.run([*command, *sent, str(folder / "leaf")], capture_output=True, check=False).returncode == 0


def test_who_trusts_only_the_former_ca_verifies_during_the_overlap_and_not_after(tmp_path: Path) -> None:
    former = ca.load_or_create(tmp_path, "gate", NOW)
    fresh = ca.rotate(tmp_path, now=NOW, overlap=MONTH)
    assert fresh.fingerprint != former.fingerprint
    assert (fresh.certificate.subject, ca.load(tmp_path).formers) == (former.certificate.subject, (former.certificate,))
    chain = Mint(lambda: fresh, lambda: NOW).leaf(["db.example"]).chain
    for trusted in (former.certificate, fresh.certificate):
        assert verifies(tmp_path, trusted, chain)
    assert not verifies(tmp_path, former.certificate, chain[:1])
    after = NOW + MONTH + timedelta(hours=1)
    chain = Mint(lambda: fresh, lambda: after).leaf(["db.example"]).chain
    assert len(chain) == 1
    assert verifies(tmp_path, fresh.certificate, chain, after)
    assert not verifies(tmp_path, former.certificate, chain, after)


def test_a_former_ca_that_allows_no_other_below_it_carries_over_too(tmp_path: Path) -> None:
    """Path length 0: the bridge counts for none, being of the same name."""
    former = ca.load_or_create(tmp_path, "gate", NOW)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(former.certificate.subject, former.certificate.subject, key.public_key(), 7)
    builder = builder.not_valid_before(NOW - MONTH).not_valid_after(NOW + 12 * MONTH)
    for extension in former.certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            value = x509.BasicConstraints(ca=True, path_length=0)
        elif isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(value, extension.critical)
    old = builder.sign(key, hashes.SHA256())
    (tmp_path / "keys" / "ca.key").write_bytes(ca.private_pem(key))
    (tmp_path / "keys" / "ca.crt").write_bytes(ca.pem(old))
    fresh = ca.rotate(tmp_path, now=NOW, overlap=MONTH)
    assert verifies(tmp_path, old, Mint(lambda: fresh, lambda: NOW).leaf(["db.example"]).chain)


def test_the_certificate_of_the_api_carries_the_bridge(tmp_path: Path) -> None:
    former = ca.load_or_create(tmp_path, "gate", NOW)
    path, _ = ca.api_certificate(former, tmp_path, ["10.0.0.1"], NOW)
    before = path.read_bytes()
    fresh = ca.rotate(tmp_path, now=NOW, overlap=MONTH)
    ca.api_certificate(fresh, tmp_path, ["10.0.0.1"], NOW)
    chain = x509.load_pem_x509_certificates(path.read_bytes())
    assert path.read_bytes() != before
    assert verifies(tmp_path, former.certificate, chain)
    assert verifies(tmp_path, fresh.certificate, chain)
    ca.api_certificate(fresh, tmp_path, ["10.0.0.1"], NOW + 2 * MONTH)
    assert x509.load_pem_x509_certificates(path.read_bytes())[1:] == [fresh.certificate]


def test_what_is_handed_out(tmp_path: Path) -> None:
    former = ca.load_or_create(tmp_path, "gate", NOW)
    assert former.bundle(NOW) == former.pem
    fresh = ca.rotate(tmp_path, now=NOW, overlap=MONTH)
    assert fresh.bundle(NOW) == fresh.pem + former.pem
    assert fresh.bundle(NOW + 2 * MONTH) == fresh.pem


def test_without_an_overlap_the_former_is_worth_nothing_any_more(tmp_path: Path) -> None:
    first = ca.load_or_create(tmp_path, "gate", NOW)
    second = ca.rotate(tmp_path, now=NOW, overlap=MONTH)
    with pytest.raises(Refused, match="overlap with the one before lasts until"):
        ca.rotate(tmp_path, now=NOW, overlap=MONTH)
    third = ca.rotate(tmp_path, now=NOW, overlap=timedelta())
    assert (third.bundle(NOW), third.formers) == (third.pem, (second.certificate, first.certificate))
    assert not (tmp_path / "keys" / "ca-cross.crt").exists()
    chain = Mint(lambda: third, lambda: NOW).leaf(["db.example"]).chain
    assert not verifies(tmp_path, second.certificate, chain)
    assert verifies(tmp_path, third.certificate, chain)
    assert ca.rotate(tmp_path, now=NOW, overlap=MONTH).overlap(NOW)


def test_constraints_stay_unless_others_are_given(tmp_path: Path) -> None:
    given = Constraints.parse(["example.com", "10.0.0.0/8"], ["secret.example.com"])
    ca.create(tmp_path, "Ours", now=NOW, constraints=given)
    assert Constraints.of(ca.rotate(tmp_path, now=NOW, overlap=timedelta()).certificate) == given
    other = Constraints.parse(["example.org"], [])
    assert Constraints.of(ca.rotate(tmp_path, now=NOW, overlap=timedelta(), constraints=other).certificate) == other


def test_a_process_sees_a_rotation_without_a_restart(tmp_path: Path) -> None:
    current = ca.Current(tmp_path, "gate")
    before = current()
    assert current() is before
    fresh = ca.rotate(tmp_path, now=NOW)
    assert current().fingerprint == fresh.fingerprint != before.fingerprint
    (tmp_path / "keys" / "ca.crt").write_text("rubbish")
    with pytest.raises(DamagedEvidence, match="not readable PEM"):
        current()


def test_nothing_to_rotate(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="there is no CA; make one with 'verbatim ca init'"):
        ca.rotate(tmp_path, now=NOW)
    with pytest.raises(Unavailable, match="there is no CA"):
        ca.load(tmp_path / "none")


def test_a_rotation_that_is_killed_leaves_the_former_ca_or_the_new_one(tmp_path: Path) -> None:
    folders = iter(range(10_000))
    current, died = tmp_path / "none", True
    number = 0
    while died:
        current = tmp_path / str(next(folders))
        former = ca.load_or_create(current, "gate", NOW).fingerprint

        def rotate(say: Say, data: Path = current) -> None:
            ca.rotate(data, now=NOW)

        died, _ = killed_at(number, rotate)
        after = ca.load(current)
        assert after.fingerprint == former or after.formers[0].fingerprint(hashes.SHA256()).hex(":").upper() == former
        assert not (current / "keys" / staged.STAGED).exists()
        assert ca.Current(current, "gate")().fingerprint == after.fingerprint
        number += 2  # whole operations: nothing is written piece by piece
    assert number // 2 >= 15
    assert after.fingerprint != former


def test_the_key_may_stay_where_the_operator_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "own.key"
    path.touch(0o600)
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(ca.private_pem(key))
    made = ca.create(tmp_path / "data", "Ours", now=NOW, key=path)
    assert (tmp_path / "data" / "keys" / "ca.key").readlink() == path
    assert made.certificate.public_key() == key.public_key()
    assert verifies(tmp_path, made.certificate, [ca.issue(made, ["a.example"], NOW)[1]])
    path.rename(tmp_path / "away.key")
    with pytest.raises(DamagedEvidence, match=r"own\.key, is gone"):
        ca.load(tmp_path / "data")


class Token:
    """A signer whose key is in another process, as a hardware token's is: all it gives is signatures."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.asked = 0

    def public_key(self) -> ec.EllipticCurvePublicKey:
        command = ["openssl", "pkey", "-in", str(self._path), "-pubout"]
        said = subprocess.run(command, capture_output=True, check=True).stdout
        key = serialization.load_pem_public_key(said)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    def sign(self, data: bytes) -> bytes:
        self.asked += 1
        command = ["openssl", "dgst", "-sha256", "-sign", str(self._path)]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def test_minting_needs_signatures_and_no_key(tmp_path: Path) -> None:
    path = tmp_path / "token.key"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path], check=True)
    token = Token(path)
    made = certificate.root(token, "Token CA", NOW, MONTH, Constraints())
    mint = Mint(lambda: ca.Authority(token, made), lambda: NOW)
    assert verifies(tmp_path, made, mint.leaf(["db.example"]).chain)
    assert token.asked == 2
    fresh = certificate.root(KeySigner(ec.generate_private_key(ec.SECP256R1())), "Token CA", NOW, MONTH, Constraints())
    certificate.cross(fresh, certificate.Issuer(made, token), NOW, NOW + MONTH).verify_directly_issued_by(made)
