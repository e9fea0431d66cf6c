"""The relay lane with real packets: agents' connections to servers end at a relay on the gateway, and nowhere else."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from scapy.layers.inet import ICMP, IP, TCP

from appliance.identity.leases import LeaseUnknown
from appliance.model import Identity
from appliance.wire import bpf
from appliance.wire.abi import Flow, FlowEnd, FlowKey, Kind, Lane, Reason, Record, pack_address, unpack_address
from tests.lab.wait import until
from tests.wire.net import AGENT, AGENT6, UPSTREAM, UPSTREAM6, Net, Wire, inside, sh
from tests.wire.relaying import Relay
from tests.wire.sniffer import Sniffer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces, BPF and nftables")
ANN = Identity(issuer="https://idp.example", subject="ann", client="agent")
NOWHERE, NOWHERE6 = "198.51.100.7", "2001:db8::7"  # there is no such server
GATEWAY, GATEWAY6 = "10.91.1.1", "fd91:1::1"
FAMILIES = pytest.mark.parametrize(("agent", "server"), [(AGENT, NOWHERE), (AGENT6, NOWHERE6)], ids=["IPv4", "IPv6"])
PORT, PROXY = 443, 3128
RULES = f"""
[relay]
proxy = ["{GATEWAY}:{PROXY}"]
[[rules]]
to = "0.0.0.0/0"
protocol = "tcp"
lane = "relay"
[[rules]]
to = "::/0"
protocol = "tcp"
lane = "relay"
"""


@pytest.fixture(scope="module")
def running(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    wire = Wire(net, tmp_path_factory.mktemp("wire"), rules=RULES)
    for family, router in (("-4", UPSTREAM), ("-6", UPSTREAM6)):  # so that what is not steered would go upstream
        sh("ip", family, "route", "add", "default", "via", router, netns=net.gateway)
    try:
        yield wire.start()
    finally:
        wire.teardown()


@pytest.fixture
def wire(running: Wire) -> Iterator[Wire]:
    """Both agents have leases; none afterwards."""
    for address in (AGENT, AGENT6):
        running.client.grant(address, ANN, time.time_ns() + 60 * 10**9)
    yield running
    for lease in running.client.list():
        running.client.revoke(lease.id)


@pytest.fixture
def relay(net: Net, wire: Wire) -> Iterator[Relay]:
    with Relay(net, wire.bpffs) as one:
        yield one.registered()


@contextmanager
def pinned(wire: Wire, name: str) -> Iterator[bpf.Map]:
    fd = bpf.get(wire.bpffs / name)
    assert fd is not None
    try:
        yield bpf.Map(fd)
    finally:
        os.close(fd)


def flows(wire: Wire) -> Iterator[tuple[FlowKey, Flow]]:
    with pinned(wire, "flows") as there:
        for key, value in there.items():
            yield FlowKey.unpack(key), Flow.unpack(value)


def flow_of(wire: Wire, sock: socket.socket) -> Flow:
    address, port = sock.getsockname()[:2]
    (found,) = (flow for key, flow in flows(wire) if (unpack_address(key.source), key.source_port) == (address, port))
    return found


def settled(wire: Wire, sock: socket.socket) -> Flow | None:
    """The flow, when all that the relay sent is acknowledged."""
    flow = flow_of(wire, sock)
    return flow if flow.server.acked == flow.server.next else None


def echo(sock: socket.socket, text: bytes) -> bytes:
    sock.settimeout(10)
    sock.sendall(text)
    got = bytearray()
    while len(got) < len(text) and (data := sock.recv(65536)):
        got += data
    return bytes(got)


def refused(wire: Wire, reason: Reason) -> list[Record]:
    return [record for record, _ in wire.records() if record.kind == Kind.REFUSAL and record.reason == reason]


@FAMILIES
def test_the_relay_gets_the_connection_and_the_address_that_was_meant(
    net: Net, wire: Wire, relay: Relay, agent: str, server: str
) -> None:
    text = os.urandom(300_000)
    with Sniffer(net.upstream) as sniffer:
        with net.connect(PORT, server) as sock:
            here = sock.getsockname()[:2]
            assert echo(sock, b"hello") == b"hello"
            accepted = relay.hear("accepted")
            for at in range(0, len(text), 30000):
                assert echo(sock, text[at : at + 30000]) == text[at : at + 30000]
            live = flow_of(wire, sock)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        closed = relay.hear("closed")
        assert (accepted["peer"], accepted["server"]) == ([agent, here[1]], [server, PORT])
        lease = next(int(lease.id, 16) for lease in wire.client.list() if lease.address == agent)
        assert accepted["lease"] == accepted["flow"]["lease"] == live.lease == lease
        assert (live.lane, live.rule, live.end) == (Lane.RELAY, 1 if agent == AGENT else 2, FlowEnd.LIVE)
        for side in ("client", "server"):
            assert closed["flow"][side]["bytes"] >= len(text) + 5
            assert closed["flow"][side]["sent"] >= len(text) + 6

        def end() -> list[Flow]:
            return [
                Flow.unpack(data)
                for record, data in wire.records()
                if record.kind == Kind.FLOW_END and record.source_port == here[1]
            ]

        (last,) = until(end, "the flow's end is on record")
        assert (last.end, last.lane, last.lease) == (FlowEnd.FIN, Lane.RELAY, lease)
        for one in (last.client, last.server):  # with SYN and FIN
            assert one.next - one.isn & 0xFFFFFFFF == one.acked - one.isn & 0xFFFFFFFF == len(text) + 7
    assert not sniffer.seen((agent, server)), "nothing of it went upstream"
    own = {(agent, here[1]), (server, PORT)}
    packets = [record for record, _ in wire.records() if record.kind == Kind.PACKET]
    assert not [one for one in packets if {(unpack_address(one.source), one.source_port)} & own], "nor to the ring"


@FAMILIES
def test_without_a_relay_nothing_answers_and_the_next_syn_finds_the_one_that_came(
    net: Net, wire: Wire, agent: str, server: str
) -> None:
    before = len(refused(wire, Reason.RELAY))

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET)
        sock.setblocking(False)
        assert sock.connect_ex((server, PORT)) != 0
        return sock

    with Sniffer(net.upstream) as sniffer, Sniffer(net.agent) as answers, inside(net.agent, connect) as sock:
        here = sock.getsockname()[1]
        until(lambda: len(refused(wire, Reason.RELAY)) > before, "the refusal is on record")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert not [key for key, _ in flows(wire) if key.source_port == here], "it never was a flow"
        assert not answers.seen((server,))
        with Relay(net, wire.bpffs) as relay:
            relay.do("register")
            relay.hear("accepted")
            assert echo(sock, b"at last") == b"at last"
    assert not sniffer.seen((agent, server))


@FAMILIES
@pytest.mark.parametrize("way", ["gateway", "agent"])
def test_both_legs_are_counted(net: Net, wire: Wire, way: str, agent: str, server: str) -> None:
    address = UPSTREAM if agent == AGENT else UPSTREAM6
    text = b"x" * 20000
    with net.listen(address) as listener, Relay(net, wire.bpffs, way) as relay, Sniffer(net.upstream) as sniffer:
        relay.do("register")
        port = listener.getsockname()[1]
        with net.connect(port, address) as sock:
            relay.hear("accepted")
            sock.sendall(text)
            upstream, peer = listener.accept()
            with upstream:
                got = b""
                while len(got) < len(text):
                    got += upstream.recv(65536)
                    upstream.sendall(b"ok")
                sock.settimeout(10)
                assert sock.recv(2) == b"ok"
                sock.shutdown(socket.SHUT_WR)
                while upstream.recv(65536):
                    pass
        closed = relay.hear("closed")
    assert "error" not in closed
    ours = {"IPv4": "10.91.2.1", "IPv6": "fd91:2::1"}["IPv4" if agent == AGENT else "IPv6"]
    assert peer[0] == (agent if way == "agent" else ours)
    leg = closed["leg"]
    assert leg["client"]["sent"] == leg["client"]["acked"] == len(text) + 2  # SYN and FIN
    assert leg["server"]["packets"] > 1
    assert leg["client"]["bytes"] >= len(text) == closed["flow"]["client"]["sent"] - 2
    seen = {one.ports for one in sniffer.seen((agent, ours)) if one.protocol == socket.IPPROTO_TCP}
    assert seen == {(peer[1], port)}, "the leg, and nothing of the agent's own connection"


def test_an_end_of_the_lease_cuts_both_directions_at_once(net: Net, wire: Wire, relay: Relay) -> None:
    """By the programs alone: the wire process is stopped."""
    assert wire.process is not None
    with net.connect(PORT, NOWHERE) as sock, Sniffer(net.upstream) as sniffer, Sniffer(net.agent) as heard:
        assert echo(sock, b"hello") == b"hello"
        before = until(lambda: settled(wire, sock), "acknowledged")
        wire.process.send_signal(signal.SIGSTOP)
        try:
            with pinned(wire, "leases") as leases:
                assert leases.delete(pack_address(AGENT))
            relay.do("shout")
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                until(lambda: not echo(sock, b"still there?"), "it is reset")
            after = flow_of(wire, sock)
        finally:
            wire.process.send_signal(signal.SIGCONT)
    assert (after.client.bytes, after.server.bytes, after.end) == (5, 5, FlowEnd.LIVE)
    assert after.client.refused
    assert before.start == after.start
    assert heard.has(b"hello")
    assert not heard.has(b"unasked")
    until(lambda: refused(wire, Reason.NO_LEASE), "the refusal is on record")
    assert not sniffer.seen((AGENT, NOWHERE)), "the server never heard of the connection, nor does it of its end"


def test_a_waiting_agent_is_told_of_the_end_of_its_lease(net: Net, wire: Wire, relay: Relay) -> None:
    with net.connect(PORT, NOWHERE) as sock:
        assert echo(sock, b"hello") == b"hello"
        with Sniffer(net.upstream) as sniffer:
            wire.client.revoke(next(lease.id for lease in wire.client.list() if lease.address == AGENT))
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
            until(lambda: wire.client.status()["flows"] == 0, "the look is over")
    packets = [packet for packet in sniffer.packets if socket.inet_aton(AGENT) in packet[:20]]
    assert not packets, "resets included: the server never heard of the connection"


def refusals(wire: Wire) -> list[int]:
    """How many packets found no relay, or none any more."""
    counts = wire.client.status()["refusals"]
    return [counts.get(reason, 0) for reason in ("relay", "relay-lost")]


@FAMILIES
def test_ports_may_be_used_again_while_the_relay_waits(
    net: Net, wire: Wire, relay: Relay, agent: str, server: str
) -> None:
    """The relay's end is in TIME_WAIT, having closed first: the same ports are a connection of their own."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET

    def connect(port: int) -> socket.socket:
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(5)
        sock.bind((agent, port))
        sock.connect((server, PORT))
        return sock

    port, starts = 0, set()
    for _ in range(2):
        with inside(net.agent, partial(connect, port)) as sock:
            port = sock.getsockname()[1]
            assert echo(sock, b"x") == b"x"
            starts.add(flow_of(wire, sock).start)
            relay.do("hang-up")
            assert sock.recv(1) == b""
    assert len(starts) == 2


def test_generations_hand_over_without_a_refusal(net: Net, wire: Wire, relay: Relay) -> None:
    before = refusals(wire)
    with net.connect(PORT, NOWHERE) as first, Relay(net, wire.bpffs) as younger:
        assert echo(first, b"one") == b"one"
        relay.hear("accepted")
        younger.do("register")
        relay.do("unregister")
        relay.do("deafen")
        for _ in range(8):
            with net.connect(PORT, NOWHERE) as later:
                assert echo(later, b"two") == b"two"
                younger.hear("accepted")
        assert echo(first, b"three") == b"three"
        assert not [said for said in relay.said if said["what"] == "accepted"]
    assert refusals(wire) == before


def test_relays_share_new_connections(net: Net, wire: Wire, relay: Relay) -> None:
    with Relay(net, wire.bpffs) as other:
        other.do("register")
        for _ in range(40):
            with net.connect(PORT, NOWHERE) as sock:
                assert echo(sock, b"x") == b"x"
        heard = [one.hear("accepted") for one in (relay, other)]
    assert len({one["server"][0] for one in heard}) == 1


def test_a_relay_that_died_is_left_out_at_once_and_told_of(net: Net, wire: Wire, relay: Relay) -> None:
    with Relay(net, wire.bpffs) as other:
        other.do("register")
        until(lambda: wire.client.status()["relays"] == 2, "both serve")
        before = wire.events().count("relay-gone")
        other.kill()
        for _ in range(10):
            with net.connect(PORT, NOWHERE, timeout=0.9) as sock:  # sooner than a SYN is sent again
                assert echo(sock, b"x") == b"x"
    until(lambda: wire.events().count("relay-gone") > before, "it is on record")
    assert wire.client.status()["relays"] == 1


def test_the_connections_of_a_relay_that_died_are_reset(net: Net, wire: Wire) -> None:
    with Relay(net, wire.bpffs) as relay:
        relay.do("register")
        with net.connect(PORT, NOWHERE) as sock:
            assert echo(sock, b"hello") == b"hello"
            # Nothing of its death arrives: the agent learns it from what it says next.
            rule = (
                f"add table inet vb {{ chain out {{ type filter hook output priority 0; ip saddr {NOWHERE} drop; }}; }}"
            )
            sh("nft", rule, netns=net.gateway)
            try:
                relay.kill()
                sh("ss", "-K", "-n", "src", NOWHERE, netns=net.gateway)
            finally:
                sh("nft", "delete table inet vb", netns=net.gateway)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                until(lambda: not echo(sock, b"anybody?"), "it is reset")


def test_the_explicit_proxy(net: Net, wire: Wire) -> None:
    with Relay(net, wire.bpffs, proxy=f"{GATEWAY}:{PROXY}") as relay:
        with net.connect(PROXY, GATEWAY) as sock:
            assert echo(sock, b"CONNECT") == b"CONNECT"
            accepted = relay.hear("accepted")
            flow = flow_of(wire, sock)
        lease = next(int(lease.id, 16) for lease in wire.client.list() if lease.address == AGENT)
        assert accepted["server"] == [GATEWAY, PROXY]
        assert (flow.lane, flow.rule, flow.lease) == (Lane.RELAY, 0, lease)
        assert flow.client.bytes == flow.server.bytes == 7
        for one in wire.client.list():
            wire.client.revoke(one.id)
        with net.connect(PROXY, GATEWAY) as sock:
            assert echo(sock, b"without") == b"without"
            assert (flow_of(wire, sock).lease, flow_of(wire, sock).lane) == (0, Lane.RELAY)
        with pytest.raises((TimeoutError, ConnectionRefusedError)):
            net.connect(PROXY + 1, GATEWAY, timeout=0.5)


def restored(wire: Wire, times: int) -> bool:
    """Whether it was put back more often than that."""
    return wire.events().count("steering-restored") > times


def test_other_rules_and_tables_stay_and_ours_come_back(net: Net, wire: Wire, relay: Relay) -> None:
    sh("ip", "rule", "add", "fwmark", "0x7", "lookup", "100", "priority", "500", netns=net.gateway)
    try:
        for command in (
            ("ip", "rule", "flush"),
            ("ip", "-6", "rule", "del", "priority", "86"),
            ("ip", "route", "flush", "table", "22082"),
            ("ip", "-6", "route", "flush", "table", "22082"),
        ):
            before = wire.events().count("steering-restored")
            sh(*command, netns=net.gateway)
            if command[-1] == "flush":
                for table, priority in (("main", "32766"), ("default", "32767")):
                    sh("ip", "rule", "add", "lookup", table, "priority", priority, netns=net.gateway)
            until(partial(restored, wire, before), "it is put back")
        for server in (NOWHERE, NOWHERE6):
            with net.connect(PORT, server) as sock:
                assert echo(sock, b"x") == b"x"
    finally:
        with suppress(AssertionError):
            sh("ip", "rule", "del", "priority", "500", netns=net.gateway)


def test_nothing_steered_leaves_when_the_way_to_the_relay_is_gone(net: Net, wire: Wire, relay: Relay) -> None:
    """The wire process is stopped, so nobody puts the rules back; interlock and gate are gone too."""
    assert wire.process is not None
    with net.connect(PORT, NOWHERE) as sock, Sniffer(net.upstream) as sniffer:
        assert echo(sock, b"x") == b"x"
        wire.process.send_signal(signal.SIGSTOP)
        try:
            for family in ("-4", "-6"):
                for interface in ("agents0", "upstream0"):
                    sh("ip", family, "rule", "del", "priority", "86", "iif", interface, netns=net.gateway)
            sh("nft", "flush ruleset", netns=net.gateway)
            sh("tc", "filter", "del", "dev", "upstream0", "egress", netns=net.gateway)
            for server in (NOWHERE, NOWHERE6):
                assert not works(net, server)
            complain(net, sock)  # without a socket of its own, which the kernel would not forward anyway
        finally:
            wire.process.send_signal(signal.SIGCONT)
        until(lambda: works(net, NOWHERE), "it works again")
    assert not sniffer.seen((AGENT, AGENT6, NOWHERE))


def complain(net: Net, sock: socket.socket) -> None:
    """The agent's host sends an ICMP error about what the relay sent."""
    quoted = IP(src=NOWHERE, dst=AGENT) / TCP(sport=PORT, dport=sock.getsockname()[1])
    error = IP(src=AGENT, dst=NOWHERE) / ICMP(type=3, code=4, nexthopmtu=1400) / bytes(quoted)[:28]
    with inside(net.agent, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as raw:
        raw.sendto(bytes(error), (NOWHERE, 0))


def works(net: Net, server: str) -> bool:
    try:
        with net.connect(PORT, server, timeout=0.5) as sock:
            return echo(sock, b"x") == b"x"
    except OSError:
        return False


def test_syn_cookies(net: Net, wire: Wire, relay: Relay) -> None:
    sh("sysctl", "-qw", "net.ipv4.tcp_syncookies=2", netns=net.gateway)
    try:
        for server in (NOWHERE, NOWHERE6):
            with net.connect(PORT, server) as sock:
                assert echo(sock, b"x") == b"x"
    finally:
        sh("sysctl", "-qw", "net.ipv4.tcp_syncookies=1", netns=net.gateway)


def test_whose_lease_it_is(wire: Wire) -> None:
    (lease,) = (lease for lease in wire.client.list() if lease.address == AGENT)
    assert wire.client.identity(lease.id) == lease.identity
    assert lease.identity.subject == ANN.subject
    wire.client.revoke(lease.id)
    with pytest.raises(LeaseUnknown):
        wire.client.identity(lease.id)


def test_a_teardown_removes_rules_and_routes(net: Net, running: Wire) -> None:
    assert "22082" in sh("ip", "rule", netns=net.gateway)
    running.teardown()
    for family in ("-4", "-6"):
        assert "22082" not in sh("ip", family, "rule", netns=net.gateway)
        assert not sh("ip", family, "route", "show", "table", "all", "proto", "86", netns=net.gateway)
