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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("frob = 1", "frob: no such setting"),
        ("[wire]\nfrob = 1", "wire.frob: no such setting"),
        ("[wire]\nring_bytes = 100000", "power of two"),
        ('[[rules]]\nto = "10.0.0.1/8"', "rules.0.to"),
        ('[[rules]]\nto = "10.0.0.0/8"\nport = 1', "needs protocol"),
        ('[[rules]]\nto = "10.0.0.0/8"\nport = 70000\nprotocol = "tcp"', "rules.0.port"),
        ('[[issuers]]\nissuer = "https://x"\naudience = ["v"]\nalgorithms = ["HS256"]', "algorithms must be"),
        ('[[issuers]]\nissuer = "https://x"\naudience = []', "audience"),
        ('node = "two words"', "node"),
        ("data = ", "not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(MalformedInput, match=says) as error:
        load(path)
    assert str(path) in str(error.value)


def test_missing_file_is_an_error_only_when_named(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match="--config"):
        load(tmp_path / "none.toml")
