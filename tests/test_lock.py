"""One process of a kind per data folder."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import Refused
from appliance.lock import only


def test_the_second_one_is_refused_and_told_who_is_the_first(tmp_path: Path) -> None:
    with only(tmp_path, "record"):
        with pytest.raises(Refused, match=rf"'verbatim record' is running \(process {os.getpid()}\); stop that first"):
            only(tmp_path, "record").__enter__()
        with only(tmp_path, "up"):
            pass
    with only(tmp_path, "record"):
        pass


@pytest.mark.parametrize("verb", ["record", "up"])
def test_verbs_that_must_be_alone(tmp_path: Path, verb: str) -> None:
    command = [sys.executable, "-m", "appliance", verb, "--data", str(tmp_path / "data")]
    with only(tmp_path / "data", verb):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"verbatim: {tmp_path / 'data'}: 'verbatim {verb}' is running")
    assert done.stdout == ""


def test_a_full_disk_keeps_nobody_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("appliance.lock.os.write", full)
        with only(tmp_path, "record"), pytest.raises(Refused, match=r"\(process unknown\)"):
            only(tmp_path, "record").__enter__()


def test_the_data_folder_is_private(tmp_path: Path) -> None:
    with only(tmp_path / "deep/data", "up"):
        assert (tmp_path / "deep/data").stat().st_mode & 0o777 == 0o700
