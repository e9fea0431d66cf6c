"""Hosts made of network namespaces, and the wires between them.

A host has one NIC or more, its own `/etc/resolv.conf` and `/etc/hosts`, and its own home folder. Programs run in it
through `nsenter --net` and not `ip netns exec`, which would mount a second `/sys` over the one with the pinned BPF
objects.
"""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import IO, Any, TypeVar

from tests.lab.process import Process

GROUPS = {"nobody": "nogroup"}  # of users whose group has another name
NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000
ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv/bin/python"

# Runs with the host's own name files bound over the machine's: $1 resolv.conf, $2 hosts, the rest the program.
DRESS = 'mount --bind "$1" /etc/resolv.conf && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'

Value = TypeVar("Value")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Nic:
    """A network interface and its addresses."""

    name: str
    v4: IPv4Interface
    v6: IPv6Interface

    @property
    def addresses(self) -> tuple[str, str]:
        """IPv4, IPv6."""
        return str(self.v4.ip), str(self.v6.ip)


def ip(*commands: str, netns: str | None = None) -> None:
    """Run `ip` commands, in a namespace if one is named; the first that fails raises."""
    within = ["-n", netns] if netns else []
    done = subprocess.run(["ip", *within, "-batch", "-"], input="\n".join(commands), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"ip {' '.join(within)} failed: {done.stderr.strip()}; the commands were: {'; '.join(commands)}"
        )


class Host:
    """One network namespace. `folder` holds its name files, its home and the logs of its programs."""

    def __init__(self, prefix: str, name: str, folder: Path) -> None:
        self.name = name
        self.netns = f"{prefix}-{name}"
        self.folder = folder
        self.home = folder / "home"
        self.nics: list[Nic] = []
        self.started: list[Process] = []

    def create(self) -> None:
        """Make the namespace. IPv6 addresses are usable at once: nobody else could claim them here (no DAD)."""
        self.home.mkdir(parents=True)
        self.names([], {})
        ip(f"netns add {self.netns}")
        self.sysctl(
            {
                "net/ipv6/conf/all/disable_ipv6": 0,
                "net/ipv6/conf/default/disable_ipv6": 0,
                "net/ipv6/conf/default/accept_dad": 0,
                "net/ipv6/conf/default/accept_ra": 0,
                "net/ipv4/conf/all/rp_filter": 1,
                "net/ipv4/conf/default/rp_filter": 1,
            }
        )
        ip("link set lo up", netns=self.netns)

    def sysctl(self, values: Mapping[str, int]) -> None:
        """Set kernel parameters of this namespace; names are paths below /proc/sys."""

        def write() -> None:
            for name, value in values.items():
                Path("/proc/sys", name).write_text(str(value))

        self.call(write)

    def names(self, servers: Sequence[str], hosts: Mapping[str, Sequence[str]]) -> None:
        """Write resolv.conf (`servers` in order) and hosts (addresses by name) for programs that start from now on."""
        (self.folder / "resolv.conf").write_text("".join(f"nameserver {server}\n" for server in servers))
        local = "127.0.0.1 localhost\n::1 localhost\n"
        (self.folder / "hosts").write_text(
            local + "".join(f"{address} {name}\n" for name, several in hosts.items() for address in several)
        )

    @property
    def nic(self) -> Nic:
        """The only NIC, or the first."""
        return self.nics[0]

    def command(self, args: Sequence[str | Path], user: str | None = None) -> list[str]:
        """The command line that runs `args` inside this host."""
        become = ["setpriv", f"--reuid={user}", f"--regid={GROUPS.get(user, user)}", "--init-groups"] if user else []
        return [
            *("nsenter", f"--net={NETNS / self.netns}", "unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", DRESS, "sh", str(self.folder / "resolv.conf"), str(self.folder / "hosts")),
            *become,
            *map(str, args),
        ]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        path = f"{ROOT / '.venv/bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        own = {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)}
        return own | dict(more or {})

    def run(
        self,
        args: Sequence[str | Path],
        *,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        check: bool = True,
        timeout: float = 30.0,
    ) -> "Done":
        """Run a program to its end. With `check`, a code other than 0 raises with its error output."""
        done = subprocess.run(
            self.command(args, user),
            input=input.encode() if isinstance(input, str) else input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            env=self.environment(env),
            cwd=self.home,
            timeout=timeout,
            start_new_session=True,
        )
        result = Done(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))
        if check and result.code:
            raise RuntimeError(f"{args[0]} on {self.name} ended with code {result.code}: {result.errors.strip()}")
        return result

    def popen(
        self,
        args: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
    ) -> Process:
        """Start a program in the background, as the leader of its own process group."""
        name = Path(args[0]).name
        log = self.folder / f"{len(self.started) + 1}-{name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                self.command(args, user),
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment(env),
                cwd=self.home,
                start_new_session=True,
            )
        self.started.append(Process(f"{name} on {self.name}", popen, log))
        return self.started[-1]

    def call(self, function: Callable[[], Value]) -> Value:
        """What `function` returns when called in this host's network: its sockets belong to the host.

        Runs in a thread of its own, since a namespace can be a single thread's. Name files are the machine's there.
        """
        answer: list[Value] = []
        failure: list[BaseException] = []

        def inside() -> None:
            try:
                with (NETNS / self.netns).open("rb") as namespace:
                    if _libc.setns(namespace.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"cannot enter {self.netns}")
                answer.append(function())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=inside, name=self.netns, daemon=True)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return answer[0]


@dataclass(frozen=True)
class Done:
    """How a program ended, and what it wrote."""

    code: int
    stdout: bytes
    errors: str

    @property
    def output(self) -> str:
        return self.stdout.decode("utf-8", "replace")


def connect(left: Host, left_nic: Nic, right: Host, right_nic: Nic | str) -> None:
    """A wire between two hosts. A NIC given by name only has no address: the port of a switch."""
    port = right_nic if isinstance(right_nic, str) else right_nic.name
    ip(f"link add {left_nic.name} type veth peer name {port} netns {right.netns}", netns=left.netns)
    plug(left, left_nic)
    if isinstance(right_nic, str):
        ip(f"link set {port} master switch up", netns=right.netns)
    else:
        plug(right, right_nic)


def plug(host: Host, nic: Nic) -> None:
    host.nics.append(nic)
    ip(
        f"addr add {nic.v4} dev {nic.name}",
        f"addr add {nic.v6} dev {nic.name} nodad",
        f"link set {nic.name} up",
        netns=host.netns,
    )


def route_by(host: Host, gateway: Nic) -> None:
    """The host's only way out is this NIC of the gateway."""
    v4, v6 = gateway.addresses
    ip(f"route add default via {v4}", f"route add default via inet6 {v6}", netns=host.netns)


def inhabitants(netns: str) -> list[int]:
    """Process ids in a namespace, the calling process excluded."""
    try:
        wanted = (NETNS / netns).stat()
    except FileNotFoundError:
        return []
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            namespace = (process / "ns/net").stat()
        except OSError:  # it ended meanwhile
            continue
        if (namespace.st_dev, namespace.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(int(process.name))
    return found
