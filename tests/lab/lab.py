"""The lab: agents, a gateway and upstream servers on this machine, in network namespaces.

    agent1 ── 10.20.1.0/24, fd20:0:0:1::/64 ──┐             198.51.100.0/24
                                              ├── gateway ── 2001:db8:100::/64 ── switch ── db, web, idp, dns
    agent2 ── 10.20.2.0/24, fd20:0:0:2::/64 ──┘

Other servers have a name and a place in the rules from the beginning, and start when a test first asks for one.
The agents' only route leads through the gateway, and so does the servers' route to the agents. Every name that
exists outside of the namespaces carries a prefix of its own (`vb-…`), so that several labs can run beside each other.
"""

import secrets
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from tests.lab import leftovers
from tests.lab.net import Host, Nic, connect, ip, plug, route_by
from tests.lab.pki import Pki
from tests.lab.services import (
    DOMAIN,
    ON_DEMAND,
    SERVICES,
    Grpc,
    Idp,
    Llm,
    MariaDb,
    Postgres,
    Redis,
    Service,
    Site,
    Ssh,
    Tls,
    TlsPostgres,
    Web,
    WebSocket,
)
from tests.lab.tokens import TokenClient

AGENTS = 2
AGENT = 10  # last part of an agent's addresses; the gateway's is 1 everywhere
UPSTREAM_V4 = IPv4Network("198.51.100.0/24")  # RFC 5737
UPSTREAM_V6 = IPv6Network("2001:db8:100::/64")  # RFC 3849
UPSTREAM = UPSTREAM_V4, UPSTREAM_V6
MANAGEMENT_V4 = IPv4Network("198.18.0.0/15")  # RFC 2544
SIGNALS = (signal.SIGTERM, signal.SIGHUP)

SomeService = TypeVar("SomeService", bound=Service)


def agent_networks(number: int) -> tuple[IPv4Network, IPv6Network]:
    return IPv4Network(f"10.20.{number}.0/24"), IPv6Network(f"fd20:0:0:{number:x}::/64")


def nic(name: str, networks: tuple[IPv4Network, IPv6Network], number: int) -> Nic:
    v4, v6 = networks
    return Nic(
        name,
        IPv4Interface((int(v4.network_address) + number, v4.prefixlen)),
        # The same digits in both: 10 is ::10.
        IPv6Interface((int(v6.network_address) + int(str(number), 16), v6.prefixlen)),
    )


class Lab:
    """Context manager. Everything is up and answers when it is entered, and gone when it is left."""

    def __init__(
        self,
        services: Sequence[type[Service]] = SERVICES,
        *,
        on_demand: Sequence[type[Service]] = ON_DEMAND,
        manage: bool = False,
    ) -> None:
        """`on_demand`: started by `need`. `manage`: this machine's own shell reaches the gateway too, over a network
        of its own."""
        self.prefix = f"vb-{secrets.token_hex(3)}"
        self.secrets: set[str] = set()  # tokens, passwords and the like that were used: never to be found at rest
        self.folder = Path()
        self.hosts: list[Host] = []  # all of them
        self.agents: list[Host] = []
        self.services: dict[str, Service] = {}
        self.extra_nics: list[Nic] = []  # of the gateway, besides those of agents and upstream
        self.pins = leftovers.BPFFS / self.prefix  # where the gateway's BPF objects are pinned
        self.kinds: tuple[type[Service], ...] = (*services, *on_demand)
        self._now = services
        self._needing = threading.Lock()
        self._manage = manage
        self._handlers: dict[signal.Signals, Any] = {}

    # -- its parts ---------------------------------------------------------------------------------------------------

    def agent(self, number: int) -> Host:
        """Agent host 1 or 2."""
        return self.agents[number - 1]

    def gateway_nic(self, number: int) -> Nic:
        """The gateway's NIC on an agent's network."""
        return self.gateway.nics[number - 1]

    def need(self, of: type[SomeService]) -> SomeService:
        """A service that answers; started now if nobody has asked for it before. Raises when it has ended."""
        with self._needing:
            if of.name not in self.services:
                if of not in self.kinds:
                    raise KeyError(f"{of.name} is not a service of this lab; name it when the lab is made")
                self._settle(of)
                self._bring_up(self.services[of.name])
            service = self.services[of.name]
            service.check()
        assert isinstance(service, of)
        return service

    @property
    def db(self) -> Postgres:
        return self.need(Postgres)

    @property
    def web(self) -> Web:
        return self.need(Web)

    @property
    def idp(self) -> Idp:
        return self.need(Idp)

    @property
    def tls_db(self) -> TlsPostgres:
        return self.need(TlsPostgres)

    @property
    def mariadb(self) -> MariaDb:
        return self.need(MariaDb)

    @property
    def redis(self) -> Redis:
        return self.need(Redis)

    @property
    def ssh(self) -> Ssh:
        return self.need(Ssh)

    @property
    def llm(self) -> Llm:
        return self.need(Llm)

    @property
    def websocket(self) -> WebSocket:
        return self.need(WebSocket)

    @property
    def grpc(self) -> Grpc:
        return self.need(Grpc)

    @property
    def tls(self) -> Tls:
        return self.need(Tls)

    def addresses(self, kind: type[Service]) -> tuple[str, str]:
        """IPv4 and IPv6 of a service, started or not."""
        return nic("eth0", UPSTREAM, kind.number).addresses

    def tokens(self, agent: int = 1) -> TokenClient:
        """Tokens as this agent host gets them."""
        return TokenClient(self.agent(agent), self.idp, self.pki.certificate)

    def token(self, client: str, *, agent: int = 1, lifetime: int | None = None) -> str:
        """An access token of the program `client`, for as many seconds as `lifetime` says at most."""
        return self.tokens(agent).client_credentials(client, lifetime)

    # -- up and down -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        leftovers.sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self.folder.chmod(0o755)  # servers that give up root look in
        leftovers.claim(self.prefix, self.folder)
        self._catch_signals()
        try:
            self.pki = Pki(self.folder / "pki")
            self._network()
            self._start_services()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything. A signal that comes meanwhile does not stop it half-way."""
        ignored = {number: signal.signal(number, signal.SIG_IGN) for number in (*SIGNALS, signal.SIGINT) if _in_main()}
        try:
            for service in reversed(self.services.values()):
                with suppress(OSError, subprocess.SubprocessError):
                    service.stop()
            for host in self.hosts:
                for process in host.started:
                    process.stop(signal.SIGKILL)
            leftovers.remove(self.prefix)
        finally:
            for number, handler in (ignored | self._handlers).items():
                signal.signal(number, handler)
            self._handlers.clear()

    def _catch_signals(self) -> None:
        """A polite kill ends the lab as Ctrl-C does: by an exception that unwinds it."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        if _in_main():
            self._handlers = {number: signal.signal(number, interrupt) for number in SIGNALS}

    def _host(self, name: str) -> Host:
        host = Host(self.prefix, name, self.folder / "hosts" / name)
        self.hosts.append(host)
        host.create()
        return host

    def _network(self) -> None:
        self._switch = self._host("switch")
        ip("link add switch type bridge mcast_snooping 0", "link set switch up", netns=self._switch.netns)
        self.gateway = self._host("gateway")
        self.gateway.sysctl({"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1})
        for number in range(1, AGENTS + 1):
            agent = self._host(f"agent{number}")
            networks = agent_networks(number)
            connect(self.gateway, nic(f"agent{number}", networks, 1), agent, nic("eth0", networks, AGENT))
            route_by(agent, self.gateway.nics[-1])
            self.agents.append(agent)
        self.upstream_nic = nic("upstream", UPSTREAM, 1)
        connect(self.gateway, self.upstream_nic, self._switch, "gateway")
        if self._manage:
            self._management_network()
        (self.folder / "services").mkdir()
        for kind in self._now:
            self._settle(kind)
        self._names()

    def _settle(self, kind: type[Service]) -> None:
        """Give a service its host."""
        host = self._host(kind.name)
        connect(host, nic("eth0", UPSTREAM, kind.number), self._switch, kind.name)
        route_by(host, self.upstream_nic)
        names = {name: self.addresses(other) for other in self.kinds for name in other.names()}
        self.services[kind.name] = kind(Site(host, self.folder / "services", self.pki, names, self.secrets))

    def _management_network(self) -> None:
        """A wire from this machine's own namespace to the gateway. Its network is drawn: several labs may be up."""
        drawn = secrets.randbelow(2**15)
        base = int(MANAGEMENT_V4.network_address) + 4 * drawn
        ours, theirs = IPv4Interface((base + 2, 30)), IPv4Interface((base + 1, 30))
        near = f"{self.prefix}-m"
        ip(f"link add {near} type veth peer name manage netns {self.gateway.netns}")
        ip(f"addr add {ours} dev {near}", f"link set {near} up")
        far = Nic("manage", theirs, IPv6Interface(f"fd20:0:ffff:{drawn:x}::1/64"))
        plug(self.gateway, far)
        self.extra_nics.append(far)

    def _names(self) -> None:
        """Agents ask the lab's name server; what they need before they have a lease stands in their hosts file."""
        servers = self.services["dns"].addresses if "dns" in self.services else ()
        idp = {self.idp.fqdn: self.idp.addresses} if "idp" in self.services else {}
        for number, agent in enumerate(self.agents, 1):
            agent.names(servers, idp | {f"gateway.{DOMAIN}": self.gateway_nic(number).addresses})
        self.gateway.names(servers, idp)

    def _start_services(self) -> None:
        with ThreadPoolExecutor(max_workers=max(1, len(self.services))) as pool:
            for started in [pool.submit(self._bring_up, service) for service in self.services.values()]:
                started.result()

    @staticmethod
    def _bring_up(service: Service) -> None:
        service.start()
        service.wait()


def _in_main() -> bool:
    return threading.current_thread() is threading.main_thread()
