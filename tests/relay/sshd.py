"""OpenSSH's server on loopback with an account of its own, `worker`, in a mount namespace of its own."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tests.lab.services.ssh import DRESS, USER, USER_ID
from tests.lab.wait import until


def keygen(path: Path, kind: str = "ed25519") -> Path:
    """A private key; its public key is in `path`.pub."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", path.name, "-f", str(path)], check=True)
    return path


def public(path: Path) -> str:
    """`type base64` of a private key's public half."""
    return " ".join(Path(f"{path}.pub").read_text().split()[:2])


class Sshd:
    """Context manager. `more`: lines of sshd_config that win over those here."""

    def __init__(self, *more: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vb-sshd-"))  # the account must get there, unlike to pytest's
        self.folder.chmod(0o755)
        self.home = self.folder / "home"
        self.password = secrets.token_urlsafe(18)
        self._more = more
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address: tuple[str, int] = free.getsockname()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.home.mkdir()
        os.chown(self.home, USER_ID, USER_ID)
        self.host, self.key, self.authority = (keygen(self.folder / name) for name in ("host", "user", "authority"))
        sign = ["ssh-keygen", "-q", "-s", str(self.authority), "-h", "-I", "host", f"{self.host}.pub"]
        subprocess.run(sign, check=True)
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"], input=self.password.encode(), stdout=subprocess.PIPE, check=True
        ).stdout.decode()
        own = {
            "passwd": f"{USER}:x:{USER_ID}:{USER_ID}:Verbatim:{self.home}:/bin/bash",
            "group": f"{USER}:x:{USER_ID}:",
            "shadow": f"{USER}:{hashed.strip()}:19000:0:99999:7:::",
        }
        for name, line in own.items():
            machines = "" if name == "shadow" else Path("/etc", name).read_text().rstrip("\n") + "\n"
            (self.folder / name).write_text(f"{machines}{line}\n")
        config = self.folder / "sshd_config"
        config.write_text(
            "\n".join(
                (
                    *self._more,
                    f"ListenAddress {self.address[0]}:{self.address[1]}",
                    f"HostKey {self.host}",
                    f"HostCertificate {self.host}-cert.pub",
                    f"AuthorizedKeysFile {self.key}.pub",
                    f"TrustedUserCAKeys {self.authority}.pub",
                    "PidFile none",
                    "UsePAM no",
                    "UseDNS no",
                    "StrictModes no",
                    f"AllowUsers {USER}",
                    "KbdInteractiveAuthentication no",
                    "PrintMotd no",
                    "PrintLastLog no",
                    "MaxStartups 100",
                    "AcceptEnv *",
                    "Subsystem sftp internal-sftp",
                )
            )
            + "\n"
        )
        server = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", DRESS, "sh", str(self.folder), *server],
            stdin=subprocess.DEVNULL,
            stderr=self._log,
            start_new_session=True,
        )
        until(self._listening, "sshd to listen")
        return self

    def _listening(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self.folder / "log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(self.address, 1):
            return True
        return False

    def __exit__(self, *unused: object) -> None:
        assert self._process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()
        shutil.rmtree(self.folder)
