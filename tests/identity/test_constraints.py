"""What a constrained CA may certify, and that OpenSSL judges the same."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.errors import MalformedInput, Refused
from appliance.identity import ca, certificate
from appliance.identity.constraints import Constraints, subject
from appliance.identity.mint import Mint, names_of
from appliance.identity.signer import KeySigner
from tests.identity.test_ca_rotation import verifies

NOW = datetime.now(UTC)
GIVEN = Constraints.parse(["example.com", "10.0.0.0/8", "fd00::/8"], ["secret.example.com", "10.9.0.0/16"])
JUDGED = [
    ("example.com", ""),
    ("a.b.example.com", ""),
    ("*.b.example.com", ""),
    ("10.1.2.3", ""),
    ("fd00::1", ""),
    ("example.org", "outside of what the CA is permitted (example.com)"),
    ("notexample.com", "outside of what the CA is permitted (example.com)"),
    ("secret.example.com", "excluded from the CA (secret.example.com)"),
    ("a.secret.example.com", "excluded from the CA (secret.example.com)"),
    ("192.0.2.1", "outside of what the CA is permitted (10.0.0.0/8, fd00::/8)"),
    ("10.9.1.1", "excluded from the CA (10.9.0.0/16)"),
    ("2001:db8::1", "outside of what the CA is permitted (10.0.0.0/8, fd00::/8)"),
]


@pytest.mark.parametrize(("name", "reason"), JUDGED)
def test_our_judgement_is_that_of_openssl(name: str, reason: str, tmp_path: Path) -> None:
    signer = KeySigner(ec.generate_private_key(ec.SECP256R1()))
    constrained = certificate.root(signer, "Ours", NOW, timedelta(days=9), GIVEN)
    free = certificate.root(signer, "Ours", NOW, timedelta(days=9), Constraints())
    authority = ca.Authority(signer, constrained)
    assert Constraints.of(constrained) == GIVEN
    made = Mint(lambda: ca.Authority(signer, free), lambda: NOW).leaf([name])
    assert verifies(tmp_path, free, made.chain)
    assert verifies(tmp_path, constrained, made.chain) == (not reason)
    if reason:
        with pytest.raises(Refused) as refused:
            Mint(lambda: authority, lambda: NOW).leaf([name])
        assert str(refused.value).startswith(f"certificate: {name} is {reason}; ")
    else:
        assert verifies(tmp_path, constrained, Mint(lambda: authority, lambda: NOW).leaf([name]).chain)


def test_a_wildcard_that_would_stand_for_an_excluded_name() -> None:
    assert "excluded" in GIVEN.forbids("*.example.com")


def test_only_what_is_permitted_stays_of_a_servers_names(tmp_path: Path) -> None:
    free = ca.load_or_create(tmp_path / "theirs", "theirs", NOW)
    names = ["a.example.com", "b.example.com", "elsewhere.example", "secret.example.com"]
    _, theirs = ca.issue(free, names, NOW)
    ours = ca.create(tmp_path, "Ours", now=NOW, constraints=GIVEN)
    made = Mint(lambda: ours, lambda: NOW).leaf(["a.example.com"], theirs)
    assert verifies(tmp_path, ours.certificate, made.chain)
    assert names_of(made.certificate) == ("a.example.com", "b.example.com")


def test_names_of_the_api_that_are_forbidden_are_left_out(tmp_path: Path) -> None:
    ours = ca.create(tmp_path, "Ours", now=NOW, constraints=GIVEN)
    path, _ = ca.api_certificate(ours, tmp_path, ["gateway", "10.0.0.1", "192.0.2.1"], NOW)
    before = path.read_bytes()
    ca.api_certificate(ours, tmp_path, ["10.0.0.1", "127.0.0.1"], NOW)
    assert path.read_bytes() == before
    with pytest.raises(Refused, match=r"API certificate: 192\.0\.2\.1 is outside of what .* permit an address"):
        ca.api_certificate(ours, tmp_path, ["192.0.2.1"], NOW)


@pytest.mark.parametrize("text", ["*.example.com", ".example.com", "a b", "", "10.0.0.0/33", "bücher.example", "a/b"])
def test_what_is_no_name_and_no_network(text: str) -> None:
    with pytest.raises(MalformedInput, match="neither a name nor a network"):
        Constraints.parse([text], [])


@pytest.mark.parametrize(
    "text", ["", "a..b", "a\0b", "a/b", "-a.example", "a" * 64 + ".example", "a." * 127 + "example"]
)
def test_what_is_no_name_and_no_address(text: str) -> None:
    with pytest.raises(MalformedInput, match="neither an address nor a DNS name"):
        subject(text)
    assert (str(subject("[FD00::1]")), subject("A.Example.")) == ("fd00::1", "a.example")
