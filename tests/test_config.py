"""Settings: defaults, files, the environment, and errors that name what is wrong."""

from pathlib import Path

import pytest

from appliance.config import load
from appliance.errors import MalformedInput


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERBATIM_CONFIG", raising=False)


def written(folder: Path, text: str) -> Path:
    path = folder / "verbatim.toml"
    path.write_text(text, "utf-8")
    return path


def test_file_then_environment_then_override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, 'data = "/a"\nnode = "one"\n[store]\nurl = "http://file"\n')
    assert load(path).store.url == "http://file"
    monkeypatch.setenv("VERBATIM_STORE__URL", "http://environment")
    monkeypatch.setenv("VERBATIM_CONFIG", str(path))
    settings = load(data=Path("/b"))
    assert (settings.store.url, settings.data, settings.node) == ("http://environment", Path("/b"), "one")


def test_rules_of_both_ip_versions(tmp_path: Path) -> None:
    text = '[[rules]]\nto = "10.0.0.0/8"\nport = 5432\nprotocol = "tcp"\n[[rules]]\nto = "fd00::/8"\nlane = "refuse"\n'
    first, second = load(written(tmp_path, text)).rules
    assert (str(first.to), first.port, first.lane, first.unbound) == ("10.0.0.0/8", 5432, "tap", False)
    assert (str(second.to), second.protocol, second.lane) == ("fd00::/8", "any", "refuse")


SECRET_FOR_A_NAME = """
[[rules]]
host = "api.example.com"
lane = "relay"
relay.application = "http"
relay.mode = "mediate"
relay.secret = "key"
"""
VERIFIED = 'relay.upstream_tls = "require"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("frob = 1", "frob: no such setting"),
        ("[wire]\nfrob = 1", "wire.frob: no such setting"),
        ("[wire]\nring_bytes = 100000", "power of two"),
        ('[[rules]]\nto = "10.77.9.53/24"', "rules.0.to: '10.77.9.53/24': host bits are set; write 10.77.9.0/24$"),
        ('[[rules]]\nto = "fd00::1/64"', "rules.0.to: 'fd00::1/64': host bits are set; write fd00::/64$"),
        ('[[rules]]\nto = "here"', "rules.0.to: 'here' is not a network; write 10.0.0.0/8 or fd00::/8$"),
        ("[[rules]]\nto = 5", "rules.0.to: 5 is not a network"),
        ('[[rules]]\nto = "10.0.0.0/8"\nport = 1', "needs protocol"),
        ('[[rules]]\nto = "10.0.0.0/8"\nport = 70000\nprotocol = "tcp"', "rules.0.port"),
        ('[[issuers]]\nissuer = "https://x"\naudience = ["v"]\nalgorithms = ["HS256"]', "algorithms must be"),
        ('[[issuers]]\nissuer = "https://x"\naudience = []', "audience"),
        ('[[issuers]]\nissuer = ""\naudience = ["v"]\njwks_uri = "https://x/jwks"', "issuer must not be empty"),
        ('[[issuers]]\nissuer = "https://x?a=b"\naudience = ["v"]', "no query and no fragment"),
        (
            '[[rules]]\nto = "10.0.0.0/8"\nlane = "relay"\nrelay = {application = "ssh", secret = "key"}',
            "secret needs mode = 'mediate'",
        ),
        (
            '[[rules]]\nhost = "db.example.com"\nlane = "relay"\nrelay = {application = "mysql"}',
            "application = 'mysql' needs a network in 'to', and no 'host': the server speaks first",
        ),
        (
            '[[rules]]\nhost = "git.example.com"\nto = "10.0.0.0/8"\nlane = "relay"\n'
            'relay = {application = "ssh", mode = "mediate"}',
            "application = 'ssh' needs a network in 'to', and no 'host': the server speaks first",
        ),
        (
            '[[rules]]\nto = "10.0.0.0/8"\nlane = "relay"\n'
            'relay = {application = "http", mode = "mediate", identify = "token", opaque = "pass"}',
            "opaque = 'pass' cannot go with identify = 'token': no token is seen in ciphertext",
        ),
        (
            '[[rules]]\nto = "10.0.0.0/8"\nlane = "relay"\n'
            'relay = {application = "ssh", mode = "mediate", host_key = "SHA256:yiOgvmn1eMqX5jupdvETmVv4mSXuxNHDA"}',
            "not a public key of SSH; write it as ssh-ed25519 AAAA",
        ),
        (SECRET_FOR_A_NAME, "rules.0: a secret for a 'host' needs its network in 'to'"),
        (SECRET_FOR_A_NAME + VERIFIED + "relay.verify = false", "a secret for a 'host' needs its network"),
        (SECRET_FOR_A_NAME.replace("lane", 'to = "0.0.0.0/0"\nlane', 1), "a secret for a 'host' needs its network"),
        ('[relay]\nproxy = ["10.1.0.1"]', "relay.proxy: '10.1.0.1' is not an address with a port; write 10.0.0.1:3128"),
        ('[relay]\nproxy = ["fd00::1:3128"]', "relay.proxy: 'fd00::1:3128' is not an address with a port"),
        ('[relay]\nproxy = ["here:3128"]', "relay.proxy: 'here:3128' is not an address with a port"),
        ('[relay]\nproxy = ["10.1.0.1:0"]', "relay.proxy: '10.1.0.1:0' is not an address with a port"),
        ('node = "two words"', "node"),
        ("data = ", "not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(MalformedInput, match=says) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("proof", [VERIFIED, 'to = "10.0.5.0/24"'])
def test_a_secret_goes_to_a_host_whose_network_or_certificate_is_known(tmp_path: Path, proof: str) -> None:
    (rule,) = load(written(tmp_path, SECRET_FOR_A_NAME + proof)).rules
    assert rule.relay.secret == "key"


NO_ADDRESSES = [
    "login.example.com",
    "http://login.example.com",
    "https://",
    "https:///login",
    "https://[::1/login",
    "https://login.example.com:port",
    "https://login.example.com:99999",
    "https://login.example.com:0",
    "https://login example.com",
    "https://login.example.com\\u0000/",
]


@pytest.mark.parametrize("address", NO_ADDRESSES)
@pytest.mark.parametrize("name", ["issuer", "jwks_uri"])
def test_issuers_are_asked_at_addresses(tmp_path: Path, name: str, address: str) -> None:
    other = 'issuer = "accounts.example.com"\n' if name == "jwks_uri" else ""
    text = f'[[issuers]]\naudience = ["v"]\n{other}{name} = "{address}"\n'
    with pytest.raises(MalformedInput, match=f"issuers.0: .*{name} must be an address as https://"):
        load(written(tmp_path, text))


def test_an_issuer_that_is_not_asked_may_have_any_name(tmp_path: Path) -> None:
    text = '[[issuers]]\naudience = ["v"]\nissuer = "accounts.example.com"\njwks_uri = "https://[fd00::1]:8443/jwks"\n'
    (issuer,) = load(written(tmp_path, text)).issuers
    assert issuer.issuer == "accounts.example.com"


def test_a_password_in_an_address_is_not_shown(tmp_path: Path) -> None:
    text = '[[issuers]]\naudience = ["v"]\nissuer = "https://me:opensesame@login.example.com"\n'
    with pytest.raises(MalformedInput, match="without a user's name") as error:
        load(written(tmp_path, text))
    assert "opensesame" not in str(error.value)


def test_missing_file_is_an_error_only_when_named(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match="--config"):
        load(tmp_path / "none.toml")
