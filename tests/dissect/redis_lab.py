"""A real Redis on this machine."""

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.wait import until

SECONDS = 20.0  # that anything may take


@dataclass(frozen=True)
class Server:
    """`port` of its loopback address, and `tls_port` (0: none). User `alice` may do everything with `password`;
    `default` needs none."""

    port: int
    tls_port: int = 0
    password: str = "wachtwoord-üß-7!"


def available() -> bool:
    return shutil.which("redis-server") is not None and shutil.which("redis-cli") is not None


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), SECONDS) as one:
            one.sendall(b"PING\r\n")
            return one.recv(100) == b"+PONG\r\n"
    except OSError:
        return False


@contextmanager
def server(certificate: tuple[Path, Path] | None = None) -> Iterator[Server]:
    """A fresh server; by TLS too, where it has a certificate and key."""
    folder = Path(tempfile.mkdtemp(prefix="vb-redis-", dir="/tmp"))
    with socket.create_server(("127.0.0.1", 0)) as probe, socket.create_server(("127.0.0.1", 0)) as other:
        one = Server(probe.getsockname()[1], other.getsockname()[1] if certificate else 0)
    lines = [f"port {one.port}", "bind 127.0.0.1", 'save ""', f"dir {folder}", "repl-diskless-sync-delay 0"]
    lines += [f"user alice on +@all ~* &* >{one.password}", "user default on nopass +@all ~* &*"]
    if certificate is not None:
        lines += [f"tls-port {one.tls_port}", "tls-auth-clients no"]
        lines += [f"tls-{what}-file {path}" for what, path in zip(("cert", "key"), certificate, strict=True)]
        lines += [f"tls-ca-cert-file {certificate[0]}"]
    (folder / "redis.conf").write_text("\n".join(lines) + "\n", "utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["redis-server", folder / "redis.conf"], stdout=log, stderr=log)
    try:
        until(lambda: _answers(one.port), f"Redis answers: {folder / 'log'}", SECONDS)
        yield one
    finally:
        process.kill()
        process.wait(SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
