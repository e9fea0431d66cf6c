"""`verbatim ca` as people run it, and OpenSSL on what it writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from appliance.journal import spool
from tests.cli.conftest import InProcess, objects


def ca(data: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "appliance", "ca", *arguments, "--data", str(data)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False)


def openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout


def test_made_shown_rotated_and_each_change_is_on_its_way_to_the_journal(tmp_path: Path) -> None:
    permit = ["--permit", "example.com", "--permit", "10.0.0.0/8", "--exclude", "secret.example.com"]
    made = ca(tmp_path, "init", "--name", "Our agents' CA", "--days", "100", *permit, "--json")
    (shown,) = objects(made)
    assert b"the API gets no certificate for localhost: outside of what the CA is permitted" in made.stderr
    assert (shown["name"], shown["permitted"], shown["excluded"]) == (
        "Our agents' CA",
        ["example.com", "10.0.0.0/8"],
        ["secret.example.com"],
    )
    certificate = str(tmp_path / "keys" / "ca.crt")
    text = openssl("x509", "-in", certificate, "-noout", "-text", "-fingerprint", "-sha256")
    assert "X509v3 Name Constraints: critical" in text
    assert shown["fingerprint_sha256"] in text
    assert objects(ca(tmp_path, "show", "--json")) == objects(ca(tmp_path, "--json")) == [shown]
    plain = ca(tmp_path).stdout.decode()
    assert plain.startswith("-----BEGIN CERTIFICATE-----\n")
    assert f"SHA-256    {shown['fingerprint_sha256']}\n" in plain
    again = ca(tmp_path, "init")
    assert (again.returncode, b"there is a CA already" in again.stderr) == (1, True)
    (rotated,) = objects(ca(tmp_path, "rotate", "--overlap", "7", "--json"))
    assert rotated["former"][0]["fingerprint_sha256"] == shown["fingerprint_sha256"]
    assert (rotated["permitted"], rotated["excluded"]) == (shown["permitted"], shown["excluded"])
    notes = [spool.read(path) for path in spool.left(tmp_path, 9)]
    assert [note["kind"] for note in notes] == ["ca-made", "ca-rotated"]
    assert notes[1]["attrs"]["former_sha256"] == notes[0]["attrs"]["fingerprint_sha256"] == shown["fingerprint_sha256"]
    assert notes[1]["attrs"]["overlap_until"] == rotated["overlap_until"]


def test_certificates_for_servers_and_clients(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "db"
    former = tmp_path / "former.crt"
    ca(data)
    former.write_bytes((data / "keys" / "ca.crt").read_bytes())
    assert ca(data, "rotate").returncode == 0
    said = ca(data, "issue", "db.example", "10.0.0.7", "--out", str(out), "--json")
    (issued,) = objects(said)
    assert (issued["certificate"], issued["key"]) == (f"{out}.crt", f"{out}.key")
    assert Path(issued["key"]).stat().st_mode & 0o777 == 0o600
    for trusted in (former, data / "keys" / "ca.crt"):
        sent = ["-CAfile", str(trusted), "-untrusted", f"{out}.crt", "-purpose", "sslserver", "-verify_ip", "10.0.0.7"]
        assert openssl("verify", "-x509_strict", *sent, f"{out}.crt").strip().endswith("OK")
    assert openssl("pkey", "-in", f"{out}.key", "-pubout") == openssl("x509", "-in", f"{out}.crt", "-pubkey", "-noout")
    again = ca(data, "issue", "db.example", "--out", str(out))
    assert (again.returncode, b"is there already; name another --out" in again.stderr) == (1, True)
    client = tmp_path / "client"
    assert ca(data, "issue", "Nightly report", "--client", "--out", str(client)).returncode == 0
    trusted = data / "keys" / "ca.crt"
    assert openssl("verify", "-CAfile", str(trusted), "-purpose", "sslclient", f"{client}.crt").strip().endswith("OK")
    assert "CN = Nightly report" in openssl("x509", "-in", f"{client}.crt", "-noout", "-subject")
    assert [spool.read(path)["kind"] for path in spool.left(data, 9)] == [
        "ca-rotated",
        "certificate-issued",
        "certificate-issued",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("rotate",), 3, "there is no CA; make one with 'verbatim ca init'"),
        (("issue", "a.example", "--out", "/tmp/none"), 3, "there is no CA"),
        (("init", "--permit", "*.example.com"), 2, "neither a name nor a network"),
        (("init", "--name", ""), 2, "--name: not a name for a CA"),
        (("init", "--key", "/no/such/key"), 2, "/no/such/key: No such file"),
        (("init", "--key", "/etc/passwd"), 2, "/etc/passwd: not an unencrypted private key in PEM"),
        (("init", "--key", "pkcs11:token=gate"), 2, "PKCS#11 is not built in"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], code: int, reason: str, tmp_path: Path, in_process: InProcess
) -> None:
    said = in_process("ca", *arguments, "--data", str(tmp_path))
    assert (said[0], reason in said[1]) == (code, True), said
    assert not (tmp_path / "keys" / "ca.crt").exists()


def test_an_option_before_the_verb_is_not_dropped_in_silence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "appliance", "ca", "--data", str(tmp_path), "init"]
    said = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (said.returncode, b"options go behind the verb" in said.stderr) == (2, True)
