"""The second lock: an nftables table that forwards only what the eBPF program marked as recorded.

The program marks a packet on arrival after its record is in the ring; the table's `forward` chain has the policy *drop*
and accepts that mark only, between configured interfaces only. With the program detached nothing is marked and nothing
passes; with the table gone the program still drops what it could not record. A second mark is answered: a reset for
TCP, "administratively prohibited" for the rest, so that clients fail at once. That is done before routing: the program
used up the hop limit of these packets, lest the kernel forward them when the table is gone. Answers go to who is behind
the interface only.

The `input` chain protects the gateway itself from the agents' side, which may reach the API and the proxies of relays,
answer what the gateway began, and use the ICMP that IP needs; and what the program steered to a relay, by a third mark,
gets there. That mark is forwarded by no chain. The chain is stateless (every TCP segment but a connection's first is
let through, and the kernel resets what belongs to no connection), because connection tracking would track, and
defragment, all that is forwarded. Input from upstream interfaces is the machine's own business.

Connections to the API are limited by the second and link-layer address, lest one host take all that the
API can hold; a host has addresses without number (IPv6), and the API itself limits each address and /64.

The `output` chain keeps one thing back. An answer to a refused packet bears the address of the server that the packet
was for; when the agent's neighbour entry fails, the kernel complains to that server about the answer, and quotes
numbers that the agent chose. Complaints about hosts that cannot be reached are therefore not sent upstream.

The table is replaced as a whole in one transaction (nft(8), "table … delete table … table"), and watched: the kernel
tells of every change of the rule set (NFNLGRP_NFTABLES) and numbers it (NFT_MSG_GETGEN). After a change the listing is
compared with what was set up; without one there is nothing to compare, and no other program to wait for.

Other tables are none of ours and stay. An `accept` in one of them opens nothing, since every chain of a hook is asked;
what marks packets, or leads them past the forward hook, is told (`Interlock.strangers`), and the gate holds.
"""

import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from appliance.config import endpoint
from appliance.errors import MalformedInput, Unavailable
from appliance.wire.abi import MARK_RECORDED, MARK_REFUSED, MARK_STEERED
from appliance.wire.news import News

TIMEOUT = 10.0  # seconds for one run of nft
NETLINK_NETFILTER = 12  # linux/netlink.h
NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
GETGEN = 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN (linux/netfilter/nf_tables.h)
NEWGEN = 10 << 8 | 15
NLM_F_REQUEST = 1
GENERATION = struct.Struct("=IHHII4x4x4s")  # nlmsghdr, nfgenmsg, header and value of the first attribute, NFTA_GEN_ID

CALLS = 50  # connections to the API in a second from one link-layer address: a host, or a router with many behind it
BURST = 200
ICMP = "echo-request, echo-reply, destination-unreachable, time-exceeded, parameter-problem"
ICMPV6 = ICMP + ", packet-too-big, nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit"


STRANGE = {  # what in another table touches the interlock
    re.compile(r"\bmeta mark set\b|\bxt target \"?(?:CONN)?MARK\b"): "sets packet marks",
    re.compile(r"\bflow add @"): "sends flows past the forward hook (flowtable)",
    re.compile(r"\bfwd (?:ip6? )?to\b"): "sends packets past the forward hook (fwd)",
}
TABLE = re.compile(r"^table (\S+ \S+) \{", re.M)


def ruleset(
    table: str, agents: Sequence[str], upstream: Sequence[str], ports: Sequence[int], proxies: Sequence[int] = ()
) -> str:
    """The nft script that replaces table `inet <table>`.

    `agents`, `upstream`: names of the interfaces; `ports`: TCP ports of the API on the gateway; `proxies`: of relays.
    """
    names = _names(agents)
    guard = f"iifname {names} goto agents" if agents else ""
    mute = f"oifname {_names(upstream)} jump upstream" if upstream else ""
    both = _names([*agents, *upstream])
    between = f"iifname {both} oifname {both} " if agents or upstream else ""
    api = f"tcp dport {_ports(ports)} goto callers" if ports else ""
    proxy = f"tcp dport {_ports(proxies)} accept" if proxies else ""
    return f"""\
table inet {table}
delete table inet {table}
table inet {table} {{
    counter refused {{ }}
    counter unrecorded {{ }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        {between}meta mark {MARK_RECORDED:#x} accept
        counter name unrecorded drop
    }}
    chain answer {{
        type filter hook prerouting priority raw; policy accept;
        meta mark {MARK_REFUSED:#x} counter name refused goto refuse
    }}
    chain refuse {{
        fib saddr . iif oif missing drop
        meta l4proto tcp reject with tcp reset
        reject with icmpx admin-prohibited
    }}
    set hosts {{
        type ether_addr; size 65536; flags dynamic,timeout; timeout 1m;
    }}
    chain callers {{
        update @hosts {{ ether saddr limit rate over {CALLS}/second burst {BURST} packets }} drop
        accept
    }}
    chain agents {{
        meta mark {MARK_STEERED:#x} meta l4proto tcp accept
        tcp flags & (syn | ack) != syn accept
        {api}
        {proxy}
        icmp type {{ {ICMP} }} accept
        icmpv6 type {{ {ICMPV6} }} accept
        drop
    }}
    chain upstream {{
        icmp type destination-unreachable icmp code host-unreachable drop
        icmpv6 type destination-unreachable icmpv6 code addr-unreachable drop
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        {guard}
    }}
    chain output {{
        type filter hook output priority filter; policy accept;
        {mute}
    }}
}}
"""


def _ports(ports: Sequence[int]) -> str:
    return "{ " + ", ".join(str(port) for port in sorted(set(ports))) + " }"


def api_ports(listen: Sequence[str]) -> tuple[int, ...]:
    """TCP ports of the `api.listen` addresses; those that any free port is taken for (0) are left out."""
    ports = []
    for address in listen:
        port = address.rpartition(":")[2]
        if not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise MalformedInput(f"api.listen {address}: no port; write host:port or [v6]:port")
        ports.append(int(port))
    return tuple(sorted({port for port in ports if port}))


def proxy_ports(proxy: Sequence[str], api: Sequence[int]) -> tuple[int, ...]:
    """TCP ports of the `relay.proxy` addresses. Raises `MalformedInput` for one that is also the API's."""
    ports = tuple(sorted({endpoint(address)[1] for address in proxy}))
    if both := set(ports) & set(api):
        raise MalformedInput(f"relay.proxy: port {min(both)} is also one of api.listen; choose another one")
    return ports


def api_addresses(listen: Sequence[str]) -> tuple[str, ...]:
    """Addresses of this machine that `api.listen` names; those that mean all of them, or itself, are left out."""
    hosts = []
    for address in listen:
        with contextlib.suppress(ValueError):  # the API says what is wrong with it
            host = ip_address(address.rpartition(":")[0].removeprefix("[").removesuffix("]"))
            if not host.is_unspecified and not host.is_loopback:
                hosts.append(str(host))
    return tuple(hosts)


class Interlock:
    """The table in this network namespace. `fileno()` is readable when some rule set changed: then call `verify`.

    `strangers`: other tables that touch the interlock, each with what it does, as the last `verify` found.
    """

    def __init__(
        self,
        table: str,
        agents: Sequence[str],
        upstream: Sequence[str],
        ports: Sequence[int],
        proxies: Sequence[int] = (),
    ) -> None:
        self._table = f"inet {table}"
        self._script = ruleset(table, agents, upstream, ports, proxies)
        self.strangers: tuple[str, ...] = ()
        self._expected = ""
        self._found: str | None = None  # the text of a former process's table
        self._verified: int | None = None  # generation of the rule set in which the table was as it should be
        try:
            self._news = News(NETLINK_NETFILTER, 1 << NFNLGRP_NFTABLES - 1)
        except OSError as error:
            raise Unavailable(f"nftables: no news of its changes: {error.strerror}; run as root") from error

    def fileno(self) -> int:
        return self._news.fileno()

    def close(self) -> None:
        """Stop watching. The table stays."""
        self._news.close()

    @property
    def standing(self) -> bool:
        """Whether a table was there when this process began that is the same as the one it set up."""
        return bool(self._found) and self._found == self._expected

    def establish(self) -> None:
        """Put the table in place, replacing one of that name in the same transaction."""
        if self._found is None:
            self._found = self._tables().get(self._table, "")
        _nft("-f", "-", script=self._script)
        self._expected = self._tables().get(self._table, "")

    def verify(self) -> bool:
        """Whether the table is as it was set up. Forgets the news that came before."""
        self._news.heard()
        try:
            now = _generation()
            if now != self._verified:
                tables = self._tables()
                self._verified = now if tables.get(self._table) == self._expected else None
                self.strangers = _strangers({name: text for name, text in tables.items() if name != self._table})
        except Unavailable:
            self._verified = None
        return self._verified is not None

    @staticmethod
    def _tables() -> dict[str, str]:
        """Each table's text, without counters and the elements of sets, by family and name."""
        text = _nft("--stateless", "--terse", "list", "ruleset")
        _, *parts = TABLE.split(text)  # name, text, name, text, …
        return {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _strangers(tables: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"table {name} {what}" for name, text in tables.items() for sign, what in STRANGE.items() if sign.search(text)
    )


def _generation() -> int:
    """The number of this namespace's rule set; another one after every change."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as sock:
        sock.settimeout(TIMEOUT)
        try:
            sock.send(struct.pack("=IHHII4x", 20, GETGEN, NLM_F_REQUEST, 1, 0))
            answer = sock.recv(4096)
        except OSError as error:
            raise Unavailable(f"nftables: no answer: {error.strerror or 'in time'}; run as root") from error
    if len(answer) < GENERATION.size or (said := GENERATION.unpack_from(answer))[1] != NEWGEN:
        raise Unavailable("nftables: the kernel does not number its rule sets; use a kernel of 6.1 or later")
    return int.from_bytes(said[5], "big")


def present(table: str) -> bool:
    """Whether the table is there, as it should be or not. Raises `Unavailable`."""
    return f"inet {table}" in TABLE.findall(_nft("--terse", "list", "ruleset"))


def remove(table: str) -> None:
    """Delete the table if it is there: from then on the kernel forwards without it."""
    _nft("-f", "-", script=f"table inet {table}\ndelete table inet {table}\n")


def _names(interfaces: Sequence[str]) -> str:
    return "{ " + ", ".join(f'"{_interface(name)}"' for name in interfaces) + " }"


def _interface(name: str) -> str:
    """nft has no escape in quoted names, and the kernel forbids only `/` and blanks."""
    if not name or len(name) > 15 or any(c in '"*\\' or not c.isprintable() or c.isspace() for c in name):
        raise MalformedInput(f"interface {name!r}: not a name that nftables can quote; rename it")
    return name


def nft_path() -> str | None:
    """Where nft is: on $PATH, or where only root's has it."""
    return shutil.which("nft", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")))


def run_nft(*arguments: str, script: str | None = None, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
    """One run of nft, whatever it says of itself. Raises `Unavailable` when there is none, or no answer in time."""
    if (command := nft_path()) is None:
        raise Unavailable("nft is missing; apt-get install nftables")
    try:
        return subprocess.run(
            [command, *arguments], input=script, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"nft: no answer within {timeout:.0f} s; look at the machine's load") from error


def nft_fault(done: subprocess.CompletedProcess[str]) -> str:
    """What nft said was wrong; empty: nothing was."""
    if not done.returncode:
        return ""
    return next((line for line in done.stderr.splitlines() if line.strip()), "no message")


def _nft(*arguments: str, script: str | None = None) -> str:
    done = run_nft(*arguments, script=script)
    if fault := nft_fault(done):
        raise Unavailable(f"nft: {fault}; run as root on a kernel with nftables")
    return done.stdout
