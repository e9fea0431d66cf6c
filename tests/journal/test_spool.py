"""Facts that wait for the wire process."""

import os
from pathlib import Path

import pytest

from appliance.errors import MalformedInput
from appliance.journal import spool
from tests.killing import Say, killed_at


def test_left_and_read_in_their_order(tmp_path: Path) -> None:
    assert spool.left(tmp_path, 9) == []
    for time in (10**18, 5, 7):
        spool.leave(tmp_path, "secret-set", "a secret was set", time, name="orders")
    notes = [spool.read(path) for path in spool.left(tmp_path, 9)]
    assert [note["attrs"]["at_ns"] for note in notes] == [5, 7, 10**18]
    assert (notes[0]["kind"], notes[0]["text"], notes[0]["attrs"]["name"]) == (
        "secret-set",
        "a secret was set",
        "orders",
    )
    assert len(spool.left(tmp_path, 2)) == 2
    assert {path.stat().st_mode & 0o777 for path in spool.left(tmp_path, 9)} == {0o600}


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    def leave(say: Say) -> None:
        spool.leave(tmp_path, "secret-set", "a secret was set", 5)

    number, died = 0, True
    while died:
        died, _ = killed_at(number, leave)
        assert all(spool.read(path)["kind"] == "secret-set" for path in spool.left(tmp_path, 99))
        number += 2
    assert spool.left(tmp_path, 1)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 2}', b"\xff", b"[" * 100_000, b" " * (spool.MAX_NOTE + 1)]
)
def test_what_is_no_note(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "5.note"
    path.write_bytes(content)
    with pytest.raises(MalformedInput, match="not a note of"):
        spool.read(path)


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "pipe.note"
    os.mkfifo(path)
    with pytest.raises(MalformedInput, match="not a note of ours"):
        spool.read(path)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        spool.read(path)
