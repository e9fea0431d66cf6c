"""A real sshd on this machine, of any user, with keys made for it."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.wait import until

SSHD = Path("/usr/sbin/sshd")
SECONDS = 20.0  # that anything may take
KEYS = {"ed25519": ("-t", "ed25519"), "rsa": ("-t", "rsa", "-b", "2048"), "ecdsa": ("-t", "ecdsa")}


@dataclass(frozen=True)
class Server:
    """`port` of its loopback address; `folder` holds `host_ed25519` and the others, and the client's key `id`."""

    port: int
    folder: Path

    def client(self, port: int, *options: str) -> list[str]:
        """The command `ssh` to `port`, without the user's own settings."""
        settings = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR"]
        given = [part for one in settings for part in ("-o", one)]
        login = ["-i", str(self.folder / "id"), "-p", str(port), *options, f"{getpass.getuser()}@127.0.0.1"]
        return ["ssh", "-F", "none", *given, *login]

    def fingerprint(self, kind: str) -> str:
        """As ssh-keygen prints it."""
        command = ["ssh-keygen", "-l", "-E", "sha256", "-f", str(self.folder / f"host_{kind}.pub")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1]


def available() -> bool:
    return SSHD.exists() and shutil.which("ssh") is not None and os.geteuid() == 0


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), SECONDS) as one:
            return one.recv(8) == b"SSH-2.0-"
    except OSError:
        return False


@contextmanager
def server() -> Iterator[Server]:
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd confines its child
    folder = Path(tempfile.mkdtemp(prefix="vb-ssh-", dir="/tmp"))
    for name, options in {**{f"host_{kind}": made for kind, made in KEYS.items()}, "id": KEYS["ed25519"]}.items():
        command = ["ssh-keygen", "-q", "-N", "", *options, "-f", str(folder / name)]
        subprocess.run(command, check=True, capture_output=True)
    shutil.copy(folder / "id.pub", folder / "authorized")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        one = Server(probe.getsockname()[1], folder)
    lines = [f"Port {one.port}", "ListenAddress 127.0.0.1", f"AuthorizedKeysFile {folder}/authorized", "StrictModes no"]
    lines += [f"HostKey {folder}/host_{kind}" for kind in KEYS]
    lines += ["PidFile none", "UsePAM no", "PermitRootLogin yes", "KexAlgorithms +diffie-hellman-group-exchange-sha256"]
    (folder / "config").write_text("\n".join(lines) + "\n", "utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stdout=log, stderr=log)
    try:
        until(lambda: _greets(one.port), f"sshd greets: {folder / 'log'}", SECONDS)
        yield one
    finally:
        process.kill()
        process.wait(SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
