import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable
from appliance.journal import JournalKey


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def test_is_made_once_and_kept_private(tmp_path: Path) -> None:
    first = JournalKey.load_or_create(tmp_path)
    assert JournalKey.load_or_create(tmp_path) == JournalKey.load(tmp_path) == first
    assert (tmp_path / "keys" / "journal.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["journal.key"]


def test_processes_that_start_together_get_the_same_key(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from appliance.journal.key import JournalKey; "
        "print(JournalKey.load_or_create(Path(sys.argv[1])).secret.hex())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(4)
    ]
    assert len({process.communicate()[0] for process in running}) == 1
    assert all(process.returncode == 0 for process in running)


def test_credential_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "journal.key").write_bytes(b"c" * 32)
    (tmp_path / "journal.key").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert JournalKey.load_or_create(tmp_path / "data").secret == b"c" * 32
    assert not (tmp_path / "data").exists()


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="there is no journal key"):
        JournalKey.load(tmp_path)


def test_readable_by_others(tmp_path: Path) -> None:
    JournalKey.load_or_create(tmp_path)
    (tmp_path / "keys" / "journal.key").chmod(0o644)
    with pytest.raises(Refused, match=r"chmod 600"):
        JournalKey.load(tmp_path)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_wrong_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "keys" / "journal.key"
    path.parent.mkdir()
    path.write_bytes(os.urandom(size))
    path.chmod(0o600)
    with pytest.raises(DamagedEvidence, match="not 32 bytes"):
        JournalKey.load(tmp_path)
    with pytest.raises(MalformedInput, match="instead of 32"):
        JournalKey(bytes(size))
