"""Real sftp and scp against their real servers, through a pipe that records: as a relay would journal them."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.dissect import ssh_messages as ssh
from appliance.dissect.ssh_relayed import SshRelayed
from tests.dissect.harness import C, Played, S, Turn, assert_truncated, play
from tests.dissect.ssh_bytes import ACCEPTED, ENDED, OPEN, data, request

SERVER = Path("/usr/lib/openssh/sftp-server")
pytestmark = pytest.mark.skipif(not SERVER.exists() or not shutil.which("scp"), reason="needs OpenSSH")

# runs its last argument and writes what passes through it: direction, length, bytes
PIPE = """
import os, select, subprocess, sys
inner = subprocess.Popen(["sh", "-c", sys.argv[-1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
ends = {0: inner.stdin.fileno(), inner.stdout.fileno(): 1}
with open(LOG, "wb") as log:
    log.write(sys.argv[-1].encode() + b"\\n")
    while inner.stdout.fileno() in ends:
        for source in select.select(list(ends), [], [])[0]:
            part = os.read(source, 30000)
            if not part:
                os.close(ends.pop(source))
                continue
            log.write(bytes([source != 0]) + len(part).to_bytes(4, "big") + part)
            rest = part
            while rest:
                rest = rest[os.write(ends[source], rest):]
"""


def pipe(folder: Path) -> Path:
    program = folder / "pipe"
    program.write_text(f"#!{sys.executable}\nLOG = {str(folder / 'log')!r}\n{PIPE}", "utf-8")
    program.chmod(0o755)
    return program


def relayed(folder: Path, *, subsystem: bool) -> tuple[str, list[Turn]]:
    """What a relay would have journaled, and the command."""
    command, _, rest = (folder / "log").read_bytes().partition(b"\n")
    asked = request("subsystem", name="sftp") if subsystem else request("exec", command=command.decode())
    turns: list[Turn] = [*OPEN, (C, asked), (S, ACCEPTED)]
    while rest:
        size = int.from_bytes(rest[1:5])
        content = rest[5 : 5 + size]
        turns.append((S, data(content)) if rest[0] else (C, data(content, 7)))
        rest = rest[5 + size :]
    return command.decode(), [*turns, *ENDED]


def read(turns: list[Turn]) -> Played:
    """In pieces and whole, with the same outcome."""
    played = play(SshRelayed, turns, split=1021)
    assert [(m.kind, m.text, m.start, m.end) for m in played.messages] == [
        (m.kind, m.text, m.start, m.end) for m in play(SshRelayed, turns).messages
    ]
    assert "malformed" not in played.kinds()
    return played


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "big file").write_bytes(os.urandom(300_000))
    (tmp_path / "here" / "small").write_bytes(b"small\n")
    return tmp_path


def test_sftp(folder: Path) -> None:
    here, there = folder / "here", folder / "there"
    batch = (
        f"put '{here}/big file' {there}/big\nget {there}/big {here}/back\nrename {there}/big {there}/moved\n"
        f"mkdir {there}/d\nls -l {there}\nchmod 600 {there}/moved\nln -s {there}/moved {there}/link\ndf {there}\n"
        f"-get {there}/none {here}/none\nrm {there}/link\nrmdir {there}/d\n"
    )
    command = ["sftp", "-b", "-", "-D", f"{pipe(folder)} {SERVER}"]
    subprocess.run(command, input=batch.encode(), check=True, capture_output=True, timeout=20)
    assert (here / "back").read_bytes() == (here / "big file").read_bytes()
    played = read(relayed(folder, subsystem=True)[1])
    said = [message for message in played.messages if message.kind.startswith("sftp")]
    closed = [m.attrs for m in said if m.attrs["operation"] == "close" and m.kind == "sftp"]
    assert {"path": f"{there}/big", "read": 0, "written": 300_000}.items() <= closed[0].items()
    assert {"path": f"{there}/big", "read": 300_000, "written": 0}.items() <= closed[1].items()
    for kind in ("sftp-write", "sftp-read"):
        assert sum(m.attrs["bytes"] for m in said if m.kind == kind and m.attrs["path"] == f"{there}/big") == 300_000
    operations = [message.text for message in said if message.kind == "sftp"]
    assert f"posix-rename {there}/big {there}/moved" in operations
    for text in (f"mkdir {there}/d", f"rmdir {there}/d", f"remove {there}/link", f"setstat {there}/moved"):
        assert text in operations
    assert any(text.startswith("symlink ") and str(there / "moved") in text for text in operations)
    assert any(text.startswith("statvfs ") for text in operations)
    assert any("moved" in message.text and message.attrs["operation"] == "readdir" for message in said)
    assert any(message.attrs.get("status") == "no such file" for message in said)
    asked = {message.start for message in said if message.kind == "sftp"}
    assert all(m.reply_to in asked for m in said if m.kind == "sftp-reply" and m.attrs["operation"] != "version")


@pytest.mark.parametrize("upload", [True, False])
def test_scp_of_the_old_protocol(folder: Path, upload: bool) -> None:
    here, there = folder / "here", folder / "there"
    paths = [str(here), f"host:{there}"] if upload else [f"host:{here}", str(there)]
    command = ["scp", "-O", "-r", "-p", "-S", str(pipe(folder)), *paths]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    assert (there / "here" / "small").read_bytes() == b"small\n"
    asked, turns = relayed(folder, subsystem=False)
    played = read(turns)
    assert [message.text for message in played.messages if message.kind == "exec"] == [asked]
    copies = {message.attrs["path"]: message for message in played.messages if message.kind == "copy"}
    assert {path: message.attrs["size"] for path, message in copies.items()} == {
        "here/big file": 300_000, "here/small": 6,
    }  # fmt: skip
    assert {message.direction for message in copies.values()} == {C if upload else S}
    assert b"small\n\0" in played.bytes_of(copies["here/small"])
    assert_truncated(SshRelayed, turns, step=50_021)


def test_file_that_the_relay_hashed() -> None:
    digest = hashlib.sha256(b"content").hexdigest()
    payload = ssh.encode(ssh.FILE, path="/tmp/ä", direction="download", bytes=7, sha256=digest)
    assert ssh.parse(payload).fields["sha256"] == digest
