"""A real MariaDB on this machine, and clients for it: the command line's, and the C library's prepared statements."""

import ctypes
import ctypes.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.dissect.handshakes import make_certificate
from tests.dissect.postgres_lab import SECONDS
from tests.lab.wait import until

SERVER = Path("/usr/sbin/mariadbd")
LONG, DOUBLE, LONGLONG, BLOB, STRING = 3, 5, 8, 252, 254
CURSOR_TYPE, ARRAY_SIZE = 1, 201  # enum enum_stmt_attr_type
READ_ONLY = 1  # enum enum_cursor_type


@dataclass
class Server:
    """`port` of its loopback address; users `native`, `ed` and `open` with the password of `password`."""

    port: int
    folder: Path
    password: str = "wachtwoord-7-sesam"

    def cli(self, port: int, *more: str, user: str = "open", sql: str = "") -> subprocess.CompletedProcess[bytes]:
        command = ["mariadb", "--no-defaults", "--skip-ssl", "-h", "127.0.0.1", "-P", str(port)]
        command += ["-u", user, "-D", "shop"]
        if user != "open":
            command.append(f"-p{self.password}")
        return subprocess.run([*command, *more], input=sql.encode(), capture_output=True, check=False, timeout=SECONDS)

    def root(self, sql: str) -> None:
        """Run SQL as the superuser, by the server's Unix socket."""
        command = ["mariadb", "--no-defaults", f"--socket={self.folder / 'socket'}", "-u", "root"]
        subprocess.run(command, input=sql.encode(), capture_output=True, check=True, timeout=SECONDS)


def available() -> bool:
    return SERVER.exists() and os.geteuid() == 0


@contextmanager
def server(certificate: tuple[Path, Path] | None = None) -> Iterator[Server]:
    """A fresh server with a database `shop`, in a folder of its own (on a short path: its Unix socket is there too).

    `certificate` and key; else it makes itself one.
    """
    user = pwd.getpwnam("mysql")
    folder = Path(tempfile.mkdtemp(prefix="vb-mysql-", dir="/tmp"))
    both = folder / "both.pem"
    if certificate is None:
        make_certificate(both)
    else:
        both.write_bytes(b"".join(path.read_bytes() for path in certificate))
    for path in (folder, both):
        os.chown(path, user.pw_uid, user.pw_gid)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    one = Server(port, folder)
    data, unix = folder / "data", folder / "socket"
    install = ["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db"]
    scratch = f"--tmpdir={folder}"  # a server that starts removes all temporary tables that it finds
    install += [scratch, "--auth-root-authentication-method=normal", "--innodb-log-file-size=4M", "--skip-log-bin"]
    subprocess.run(install, check=True, capture_output=True, cwd=folder, timeout=60)
    options = ["--no-defaults", scratch, f"--datadir={data}", f"--socket={unix}", f"--port={port}", "--user=mysql"]
    options += ["--bind-address=127.0.0.1", "--plugin-load-add=auth_ed25519", "--local-infile=1", "--skip-name-resolve"]
    options += ["--innodb-buffer-pool-size=8M", "--innodb-flush-log-at-trx-commit=0", "--log-bin", "--server-id=1"]
    options += [f"--ssl-cert={both}", f"--ssl-key={both}", "--default-time-zone=+00:00"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SERVER, *options], stdout=log, stderr=log, cwd=folder)
    try:
        root = ["mariadb", "--no-defaults", f"--socket={unix}", "-u", "root"]

        def ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text("utf-8", "replace")
            return not subprocess.run([*root, "-e", "SELECT 1"], check=False, capture_output=True).returncode

        until(ready, "MariaDB", SECONDS)
        users = f"""
            CREATE DATABASE shop CHARACTER SET utf8mb4;
            CREATE USER open@'%'; CREATE USER native@'%' IDENTIFIED BY '{one.password}';
            CREATE USER ed@'%' IDENTIFIED VIA ed25519 USING PASSWORD('{one.password}');
            GRANT ALL ON *.* TO open@'%'; GRANT ALL ON shop.* TO native@'%'; GRANT ALL ON shop.* TO ed@'%';
        """
        one.root(users)
        yield one
    finally:
        process.send_signal(signal.SIGKILL)  # at once: nothing is to be kept
        process.wait(SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


_NO_FLAGS = ctypes.c_ulong(0)


class _Bind(ctypes.Structure):
    """MYSQL_BIND of MariaDB Connector/C."""

    _fields_ = (
        ("length", ctypes.c_void_p),
        ("is_null", ctypes.c_void_p),
        ("buffer", ctypes.c_void_p),
        ("error", ctypes.c_void_p),
        ("indicator", ctypes.c_void_p),
        ("functions", ctypes.c_void_p * 3),
        ("buffer_length", ctypes.c_ulong),
        ("offset", ctypes.c_ulong),
        ("length_value", ctypes.c_ulong),
        ("flags", ctypes.c_uint),
        ("pack_length", ctypes.c_uint),
        ("buffer_type", ctypes.c_int),
        ("bools", ctypes.c_char * 4),
        ("extension", ctypes.c_void_p),
    )


Value = int | float | str | bytes | None


class Library:
    """One connection of the C library. Each method raises where the library reports an error."""

    def __init__(self, port: int) -> None:
        name = ctypes.util.find_library("mariadb")
        assert name is not None, "libmariadb3 is missing"
        self._c = ctypes.CDLL(name)
        for function in ("mysql_init", "mysql_real_connect", "mysql_stmt_init"):
            getattr(self._c, function).restype = ctypes.c_void_p
        for function in ("mysql_error", "mysql_stmt_error"):
            getattr(self._c, function).restype = ctypes.c_char_p
        self._connection = ctypes.c_void_p(self._c.mysql_init(None))
        self._c.mysql_real_connect(self._connection, b"127.0.0.1", b"open", None, b"shop", port, None, _NO_FLAGS)
        self._checked(self._c.mysql_error(self._connection))
        self._checked(self._c.mysql_set_character_set(self._connection, b"utf8mb4") and b"no character set")

    def close(self) -> None:
        self._c.mysql_close(self._connection)

    def statement(self, sql: str) -> ctypes.c_void_p:
        made = ctypes.c_void_p(self._c.mysql_stmt_init(self._connection))
        raw = sql.encode()
        self._c.mysql_stmt_prepare(made, raw, ctypes.c_ulong(len(raw)))
        self._check(made)
        return made

    def direct(self, sql: str) -> None:
        """Prepare and execute in one go."""
        made = ctypes.c_void_p(self._c.mysql_stmt_init(self._connection))
        raw = sql.encode()
        self._c.mariadb_stmt_execute_direct(made, raw, ctypes.c_size_t(len(raw)))
        self._c.mysql_stmt_store_result(made)
        self._check(made)
        self._c.mysql_stmt_close(made)

    def execute(self, made: ctypes.c_void_p, values: Sequence[Value] = (), *, long: Sequence[bytes] = ()) -> None:
        """`long`: pieces of the first value, which is sent before."""
        self._bind(made, [self._values([one]) for one in values], 1)
        for piece in long:
            self._c.mysql_stmt_send_long_data(made, 0, piece, ctypes.c_ulong(len(piece)))
        self._c.mysql_stmt_execute(made)
        self._check(made)
        self._c.mysql_stmt_store_result(made)
        self._check(made)
        self._c.mysql_stmt_free_result(made)

    def bulk(self, made: ctypes.c_void_p, columns: Sequence[Sequence[Value]]) -> None:
        size = ctypes.c_uint(len(columns[0]))
        self._c.mysql_stmt_attr_set(made, ARRAY_SIZE, ctypes.byref(size))
        self._bind(made, [self._values(column) for column in columns], len(columns[0]))
        self._c.mysql_stmt_execute(made)
        self._check(made)

    def cursor(self, made: ctypes.c_void_p) -> int:
        """Execute with a cursor and fetch all rows, two at a time; returns how many there are."""
        for attribute, value in ((CURSOR_TYPE, READ_ONLY), (2, 2)):
            self._c.mysql_stmt_attr_set(made, attribute, ctypes.byref(ctypes.c_ulong(value)))
        self._c.mysql_stmt_execute(made)
        self._check(made)
        count = 0
        while not self._c.mysql_stmt_fetch(made):
            count += 1
        self._check(made)
        return count

    def change_user(self, user: str, password: str) -> None:
        self._c.mysql_change_user(self._connection, user.encode(), password.encode(), b"shop")
        self._checked(self._c.mysql_error(self._connection))

    def reset(self, made: ctypes.c_void_p) -> None:
        self._c.mysql_stmt_reset(made)
        self._check(made)

    def end(self, made: ctypes.c_void_p) -> None:
        self._c.mysql_stmt_close(made)

    def _values(self, values: Sequence[Value]) -> tuple[int, object, object, object]:
        """Type, buffer, lengths and indicators of one column."""
        count = len(values)
        indicators = (ctypes.c_ubyte * count)(*[int(one is None) for one in values])
        first = next((one for one in values if one is not None), 0)
        lengths = (ctypes.c_ulong * count)()
        if isinstance(first, int):
            return LONGLONG, (ctypes.c_longlong * count)(*[int(one or 0) for one in values]), lengths, indicators
        if isinstance(first, float):
            return DOUBLE, (ctypes.c_double * count)(*[float(one or 0) for one in values]), lengths, indicators
        raw = [one.encode() if isinstance(one, str) else bytes(one or b"") for one in values]  # type: ignore[arg-type]
        lengths[:] = [len(one) for one in raw]
        kind = STRING if isinstance(first, str) else BLOB
        if count == 1:
            return kind, ctypes.create_string_buffer(raw[0], len(raw[0]) + 1), lengths, indicators
        buffers = [ctypes.create_string_buffer(one, len(one) + 1) for one in raw]
        pointers = (ctypes.c_void_p * count)(*[ctypes.addressof(one) for one in buffers])
        self._kept = buffers
        return kind, pointers, lengths, indicators

    def _bind(self, made: ctypes.c_void_p, columns: list[tuple[int, object, object, object]], count: int) -> None:
        if not columns:
            return
        binds = (_Bind * len(columns))()
        for bind, (kind, buffer, lengths, indicators) in zip(binds, columns, strict=True):
            bind.buffer_type = kind
            bind.buffer = ctypes.addressof(buffer)  # type: ignore[arg-type]
            bind.length = ctypes.addressof(lengths)  # type: ignore[arg-type]
            if count > 1:
                bind.indicator = ctypes.addressof(indicators)  # type: ignore[arg-type]
            else:
                bind.is_null = ctypes.addressof(indicators)  # type: ignore[arg-type]
        self._bound = (binds, columns)  # the library keeps pointers to them
        self._c.mysql_stmt_bind_param(made, binds)

    def _check(self, made: ctypes.c_void_p) -> None:
        self._checked(self._c.mysql_stmt_error(made))

    def _checked(self, said: bytes | int) -> None:
        if said:
            raise RuntimeError(str(said))
