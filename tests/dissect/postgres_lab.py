"""A real PostgreSQL 15 on this machine and a relay in front of it that records what both sides send."""

import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from appliance.model import Direction
from tests.dissect.harness import C, S, Turn
from tests.lab.wait import until

BIN = Path("/usr/lib/postgresql/15/bin")
SECONDS = 20.0  # that anything may take


@dataclass
class Server:
    """`port` of its loopback address; roles `plain`, `md5`, `scram` and `open` with the password of `password`."""

    port: int
    folder: Path
    password: str = "wachtwoord-üß-7!"

    def dsn(self, port: int, role: str = "open", **more: str) -> str:
        options = {"host": "127.0.0.1", "port": str(port), "user": role, "dbname": "postgres", **more}
        if role != "open":
            options["password"] = self.password
        return " ".join(f"{name}='{value}'" for name, value in options.items())


@dataclass
class Recording:
    """One connection through the relay: turns in order of arrival."""

    turns: list[Turn] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def stream(self, direction: Direction) -> bytes:
        return b"".join(what for whose, what in self.turns if whose is direction and isinstance(what, bytes))


class Relay:
    """Forwards connections to `target` and records them, each in `recordings`."""

    def __init__(self, target: int) -> None:
        self.recordings: list[Recording] = []
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(SECONDS)

    def ended(self, count: int = 1) -> list[Recording]:
        """The recordings, once there are `count` and all of them have ended."""
        until(lambda: len(self.recordings) >= count, f"{count} connections", SECONDS)
        for recording in self.recordings:
            assert recording.ended.wait(SECONDS), "a recorded connection did not end"
        return self.recordings

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            recording = Recording()
            self.recordings.append(recording)
            thread = threading.Thread(target=self._forward, args=(client, recording), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _forward(self, client: socket.socket, recording: Recording) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            open_ends = {client: (C, server), server: (S, client)}
            while open_ends:
                ready, _, _ = select.select(list(open_ends), [], [], SECONDS)
                if not ready:
                    break
                for source in ready:
                    direction, sink = open_ends[source]
                    try:
                        data = source.recv(65536)
                    except OSError:
                        data = b""
                    if data:
                        recording.turns.append((direction, data))
                        with suppress(OSError):
                            sink.sendall(data)
                    else:
                        del open_ends[source]
                        with suppress(OSError):
                            sink.shutdown(socket.SHUT_WR)
        recording.ended.set()


@contextmanager
def relay(port: int) -> Iterator[Relay]:
    """To a server on this port."""
    one = Relay(port)
    try:
        yield one
    finally:
        one.close()


def available() -> bool:
    return (BIN / "initdb").exists() and os.geteuid() == 0


@contextmanager
def server(tls: tuple[Path, Path] | None = None) -> Iterator[Server]:
    """A fresh cluster in a folder of its own (on a short path: its Unix socket is there too). `tls`: the files of its
    certificate and its key, for connections that ask for it."""
    user = pwd.getpwnam("postgres")
    folder = Path(tempfile.mkdtemp(prefix="vb-postgres-", dir="/tmp"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    data = folder / "data"
    one = Server(port, folder)
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    initdb: list[str | Path] = [
        BIN / "initdb",
        "-D",
        data,
        "-U",
        "postgres",
        "--no-sync",
        "--no-instructions",
        "-E",
        "UTF8",
    ]
    subprocess.run(
        [*as_postgres, *initdb, "--locale=C.UTF-8", "-A", "trust"], check=True, capture_output=True, cwd=folder
    )
    (data / "pg_hba.conf").write_text(
        "local all all trust\nhost all plain 127.0.0.1/32 password\nhost all md5 127.0.0.1/32 md5\n"
        "host all scram 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
        "host replication all 127.0.0.1/32 trust\n"
    )
    options = ["-k", str(folder), "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    options += ["-c", "TimeZone=UTC", "-c", "wal_level=logical", "-c", "autovacuum=off"]
    for name, path in zip(("cert", "key"), tls or (), strict=False):
        copied = folder / f"server.{name}"
        copied.touch(0o600)
        copied.write_bytes(path.read_bytes())
        os.chown(copied, user.pw_uid, user.pw_gid)
        options += ["-c", f"ssl_{name}_file={copied}"]
    with (data / "postgresql.conf").open("a") as settings:  # there, so that it can be changed later
        settings.write(f"ssl = {'on' if tls else 'off'}\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*as_postgres, BIN / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd=folder
        )
    try:
        psql = ["psql", "-X", "-h", str(folder), "-p", str(port), "-U", "postgres", "-d", "postgres", "-qAt"]
        deadline = time.monotonic() + SECONDS
        while subprocess.run([*psql, "-c", "SELECT 1"], check=False, capture_output=True).returncode:
            assert process.poll() is None, (folder / "log").read_text("utf-8", "replace")
            assert time.monotonic() < deadline, "PostgreSQL did not start"
        roles = f"""
            CREATE ROLE open LOGIN REPLICATION; GRANT pg_monitor, pg_signal_backend TO open;
            GRANT ALL ON SCHEMA public TO open;
            CREATE ROLE plain LOGIN PASSWORD '{one.password}'; CREATE ROLE scram LOGIN PASSWORD '{one.password}';
            SET password_encryption = 'md5'; CREATE ROLE md5 LOGIN PASSWORD '{one.password}';
        """
        subprocess.run(psql, input=roles.encode(), check=True, capture_output=True)
        yield one
    finally:
        process.send_signal(signal.SIGQUIT)  # at once: nothing is to be kept
        process.wait(SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
