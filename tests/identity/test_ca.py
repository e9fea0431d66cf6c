"""The appliance's CA and the certificate of its API, as OpenSSL sees them."""

import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.errors import DamagedEvidence, MalformedInput
from appliance.identity import ca


def test_made_once_and_read_back(tmp_path: Path) -> None:
    made = ca.load_or_create(tmp_path, "gate")
    again = ca.load_or_create(tmp_path, "gate")
    assert made.fingerprint == again.fingerprint
    assert stat.S_IMODE((tmp_path / "keys" / "ca.key").stat().st_mode) == 0o600
    said = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "keys" / "ca.crt", "-noout", "-fingerprint", "-sha256"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.fingerprint in said.stdout


def test_certificate_of_the_api_verifies(tmp_path: Path) -> None:
    authority = ca.load_or_create(tmp_path, "gate")
    certificate, key = ca.api_certificate(authority, tmp_path, ["10.0.0.1", "fd00::1", "gate.example"])
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for check in (["-verify_ip", "10.0.0.1"], ["-verify_ip", "fd00::1"], ["-verify_hostname", "gate.example"]):
        trusted = str(tmp_path / "keys" / "ca.crt")
        command = ["openssl", "verify", "-x509_strict", "-CAfile", trusted, *check, str(certificate)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().endswith("OK")


def test_certificate_is_kept_until_it_no_longer_fits(tmp_path: Path) -> None:
    authority = ca.load_or_create(tmp_path, "gate")
    now = datetime.now(UTC)
    path, _ = ca.api_certificate(authority, tmp_path, ["a.example", "b.example"], now)
    first = path.read_bytes()
    ca.api_certificate(authority, tmp_path, ["b.example"], now)
    assert path.read_bytes() == first
    ca.api_certificate(authority, tmp_path, ["c.example"], now)
    second = path.read_bytes()
    assert second != first
    ca.api_certificate(authority, tmp_path, ["c.example"], now + ca.LEAF_LIFETIME - timedelta(days=29))
    assert path.read_bytes() != second


def test_damage_is_named(tmp_path: Path) -> None:
    ca.load_or_create(tmp_path, "gate")
    keys = tmp_path / "keys"
    (keys / "ca.crt").rename(keys / "away.crt")
    with pytest.raises(DamagedEvidence, match="only one of"):
        ca.load_or_create(tmp_path, "gate")
    (keys / "ca.crt").write_text("rubbish")
    with pytest.raises(DamagedEvidence, match="not readable PEM"):
        ca.load_or_create(tmp_path, "gate")
    other = ca.load_or_create(tmp_path / "other", "gate")
    (keys / "ca.crt").write_bytes(other.pem)
    with pytest.raises(DamagedEvidence, match="does not belong"):
        ca.load_or_create(tmp_path, "gate")


def test_names_must_be_names(tmp_path: Path) -> None:
    authority = ca.load_or_create(tmp_path, "gate")
    for names in ([], ["bücher.example"]):
        with pytest.raises(MalformedInput, match="certificate"):
            ca.issue(authority, names, datetime.now(UTC))


def test_a_certificate_without_its_key_is_made_anew(tmp_path: Path) -> None:
    authority = ca.load_or_create(tmp_path, "gate")
    certificate, key = ca.api_certificate(authority, tmp_path, ["a.example"])
    first = certificate.read_bytes()
    key.write_bytes((tmp_path / "keys" / "ca.key").read_bytes())
    ca.api_certificate(authority, tmp_path, ["a.example"])
    assert certificate.read_bytes() != first
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)  # raises if they don't fit
