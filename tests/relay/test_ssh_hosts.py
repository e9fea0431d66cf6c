"""The gateway's own host keys, and those that it saw of servers."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.errors import Unavailable
from appliance.relay.ssh_hosts import ED25519, RSA, KnownHosts, fingerprint, host_keys, public_keys
from tests.relay.sshd import keygen, public


def test_keys_are_made_once_for_all_workers(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as workers:
        made = list(workers.map(lambda number: host_keys(tmp_path), range(4)))
    assert all(keys == made[0] for keys in made)
    assert [key.split()[0] for key in public_keys(tmp_path)] == ["ssh-ed25519", "ssh-rsa"]
    for name in (ED25519, RSA):
        path = tmp_path / "keys" / name
        assert path.stat().st_mode & 0o777 == 0o600
        printed = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True).stdout
        assert printed.split()[1] in [fingerprint(key) for key in public_keys(tmp_path)]


def test_the_command_line_shows_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "appliance", "ca", "ssh", "--data", str(tmp_path)]
    plain = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, timeout=60, check=True).stdout)
    for shown, key in zip(told["keys"], public_keys(tmp_path), strict=True):
        assert shown == {"key": key, "fingerprint_sha256": fingerprint(key)}
        assert f"{key}\n" in plain
        assert fingerprint(key) in plain


def test_a_key_that_is_none_is_named(tmp_path: Path) -> None:
    host_keys(tmp_path)
    (tmp_path / "keys" / RSA).write_bytes(b"no key")
    with pytest.raises(Unavailable, match="not readable; remove it"):
        public_keys(tmp_path)


def test_a_servers_key_is_kept_and_never_replaced(tmp_path: Path) -> None:
    first, second = (public(keygen(tmp_path / name)) for name in ("first", "second"))
    known = KnownHosts(tmp_path)
    assert known.find("10.0.0.1", 22) == ""
    assert known.remember("10.0.0.1", 22, first)
    assert known.remember("fd00::1", 2222, second)
    assert known.remember("10.0.0.1", 22, first)
    assert not known.remember("10.0.0.1", 22, second)
    assert (known.find("10.0.0.1", 22), known.find("fd00::1", 2222)) == (first, second)
    assert known.find("10.0.0.1", 2) == known.find("0.0.0.1", 22) == ""
    assert known.path.stat().st_mode & 0o777 == 0o600
    assert len(known.path.read_text().splitlines()) == 2
