"""Programs that relays are compared with, each held to one core: HAProxy, mitmproxy, pgbouncer.

They run on a host of the bench and end with it. mitmproxy has a virtual environment of its own, since it needs other
versions of what Verbatim needs too: `.ci/peers` makes it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.appliance import literal
from tests.lab.net import ROOT, Host
from tests.lab.process import Process
from tests.lab.wait import until

MITMDUMP = ROOT / ".cache/peers/bin/mitmdump"
START_SECONDS = 30.0
CONNECTIONS = 4000  # at one time; each takes two file descriptors

HAPROXY = """
global
    nbthread 1
    maxconn {connections}
    tune.ssl.default-dh-param 2048
defaults
    mode tcp
    retries 0
    timeout connect 10s
    timeout client 300s
    timeout server 300s
frontend agents
    bind {listen} ssl crt {certificate} alpn http/1.1
    default_backend servers
backend servers
    server one {upstream} ssl verify required ca-file {authority} sni str({name}) verifyhost {name} alpn http/1.1
"""

PGBOUNCER = """
[databases]
{database} = host={host} port={port} dbname={database}
[pgbouncer]
listen_addr = {listen}
listen_port = {listen_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = 20
max_client_conn = 2000
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
stats_period = 3600
"""


@dataclass(frozen=True)
class Place:
    """An address and a port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{literal(self.address)}:{self.port}"


@dataclass(frozen=True)
class Bridge:
    """What a TLS bridge does: it takes TLS at `listen` with `certificate` and `key`, and speaks TLS to `upstream`.

    The certificate of `upstream` must be for `name` and signed by `authority`. All files are PEM.
    """

    listen: Place
    certificate: Path
    key: Path
    upstream: Place
    name: str
    authority: Path


def pinned(command: Sequence[str | Path], core: int) -> list[str | Path]:
    """The command, held to one core."""
    return ["taskset", "-c", str(core), *command]


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, of all its threads: proc(5), stat fields 14 and 15.

    Work done, divided by this, is a figure that holds where the ends of the traffic and what is measured share cores.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def haproxy(host: Host, folder: Path, bridge: Bridge, core: int) -> Process:
    """HAProxy as a TLS bridge that passes bytes unchanged."""
    folder.mkdir()
    pem = _both(folder, bridge)
    config = folder / "haproxy.cfg"
    config.write_text(
        HAPROXY.format(
            connections=CONNECTIONS,
            listen=bridge.listen,
            certificate=pem,
            upstream=bridge.upstream,
            authority=bridge.authority,
            name=bridge.name,
        )
    )
    return _start(host, ["haproxy", "-db", "-f", config], bridge.listen, core)


def mitmproxy(host: Host, folder: Path, bridge: Bridge, core: int) -> Process:
    """mitmdump as a reverse proxy, with nothing added to it. The upstream certificate must name the address, too."""
    if not MITMDUMP.exists():
        raise FileNotFoundError(f"{MITMDUMP} is missing; run '.ci/peers', as 'make bench' does")
    folder.mkdir()
    options = {
        "confdir": folder,
        "certs": f"*={_both(folder, bridge)}",
        "ssl_verify_upstream_trusted_ca": bridge.authority,
        "upstream_cert": "false",
        "stream_large_bodies": "1m",
    }
    command: list[str | Path] = [MITMDUMP, "-q", "--mode", f"reverse:https://{bridge.upstream}"]
    command += ["--listen-host", bridge.listen.address, "--listen-port", str(bridge.listen.port)]
    for name, value in options.items():
        command += ["--set", f"{name}={value}"]
    return _start(host, command, bridge.listen, core)


def pgbouncer(
    host: Host,
    folder: Path,
    listen: Place,
    upstream: Place,
    database: str,
    passwords: Mapping[str, str],
    core: int,
) -> Process:
    """pgbouncer in transaction mode, with 20 connections to PostgreSQL; users log in with the same passwords."""
    folder.mkdir()
    users, config = folder / "users.txt", folder / "pgbouncer.ini"
    users.touch(0o600)
    users.write_text("".join(f'"{user}" "{password}"\n' for user, password in passwords.items()))
    config.write_text(
        PGBOUNCER.format(
            database=database,
            host=upstream.address,
            port=upstream.port,
            listen=listen.address,
            listen_port=listen.port,
            users=users,
        )
    )
    host.run(["chown", "-R", "postgres:postgres", folder])
    return _start(host, ["pgbouncer", config], listen, core, user="postgres")


def _both(folder: Path, bridge: Bridge) -> Path:
    """Certificate and key in one file, as both bridges want it."""
    pem = folder / "own.pem"
    pem.touch(0o600)
    pem.write_text(bridge.certificate.read_text() + bridge.key.read_text())
    return pem


def _start(host: Host, command: Sequence[str | Path], listen: Place, core: int, user: str | None = None) -> Process:
    process = host.popen(pinned(command, core), user=user)
    shown: list[str | Path] = ["ss", "-Hltn", f"sport = :{listen.port}"]

    def listens() -> bool:
        process.check()
        return bool(host.run(shown).output)

    until(listens, f"{process.name} listens at {listen}", START_SECONDS)
    return process
