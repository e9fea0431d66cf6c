"""What an agent tries in order to pass as another one, to reach the gateway itself, or to leave nothing for others."""

import struct
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether

from appliance import config
from appliance.wire import abi
from appliance.wire.abi import Kind, Reason
from tests.bpf.bench import AGENT_MAC, PEER_MAC, Bench, Namespace, boottime

A4, A6, S4, S6 = "10.0.1.5", "fd00:1::5", "192.0.2.80", "2001:db8::80"
GATEWAY4, GATEWAY6 = "10.0.1.1", "fd00:1::1"
THIEF_MAC = "02:00:00:00:00:66"
SYN = TCP(sport=40000, dport=80, flags="S", seq=1000)
DATA = IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags="A", seq=1001) / bytes(2000)


def owner(lease: int) -> bytes:
    return struct.pack("<QQ", lease, 2**64 - 1)


def held(bench: Bench, name: bytes) -> int:
    """Flows of an owner by the program's books."""
    value = bench.map("quotas").lookup(name)
    return abi.Quota.unpack(value).opened if value else 0


# ---- another's address


@pytest.mark.parametrize("packet", [IP(src=A4, dst=S4) / SYN, IPv6(src=A6, dst=S6) / SYN], ids=["v4", "v6"])
def test_a_lease_is_bound_to_its_link_layer_address(open_bench: Bench, packet: Any) -> None:
    for address in (A4, A6):
        open_bench.lease(address, link=PEER_MAC)
    open_bench.set(refusal_interval=0)
    stolen = open_bench.send(Ether(dst=AGENT_MAC, src=THIEF_MAC) / packet)
    assert (stolen.verdict, stolen.reason) == ("drop", Reason.SPOOFED)
    assert open_bench.send(packet).verdict == "forward"
    later = packet.copy()
    later[TCP].flags, later[TCP].seq = "A", 1001
    assert open_bench.send(Ether(dst=AGENT_MAC, src=THIEF_MAC) / later).reason is Reason.SPOOFED
    assert open_bench.send(later).verdict == "forward"


def test_every_byte_of_the_link_layer_address_counts(open_bench: Bench) -> None:
    open_bench.lease(A4, link=PEER_MAC)
    whole = bytes.fromhex(PEER_MAC.replace(":", ""))
    for at in range(6):
        other = bytearray(whole)
        other[at] ^= 0x80
        frame = bytes(Ether(dst=AGENT_MAC, src=PEER_MAC) / IP(src=A4, dst=S4) / SYN)
        assert open_bench.send(frame[:6] + bytes(other) + frame[12:]).verdict == "drop"
    assert open_bench.counters() == {"spoofed": 6}


def test_an_agent_that_serves_others_is_bound_too(open_bench: Bench) -> None:
    open_bench.send(IP(src=A4, dst="10.0.1.6") / SYN)
    open_bench.lease("10.0.1.6", 8, link=PEER_MAC)
    answer = IP(src="10.0.1.6", dst=A4) / TCP(sport=80, dport=40000, flags="SA", seq=1, ack=1001)
    assert open_bench.send(Ether(dst=AGENT_MAC, src=THIEF_MAC) / answer).reason is Reason.IMPOSTOR
    assert open_bench.send(answer).verdict == "forward"


@pytest.mark.parametrize(("source", "network"), [(A4, "10.0.1.0/24"), (A6, "fd00:1::/64")], ids=["v4", "v6"])
def test_without_a_lease_a_source_must_be_where_the_routes_lead(bench: Bench, source: str, network: str) -> None:
    syn = (IPv6(src=source, dst=S6) if ":" in source else IP(src=source, dst=S4)) / SYN
    for to in ("0.0.0.0/0", "::/0"):
        bench.rule(to, unbound=True)
        bench.network(to, bench.upstream)
    outcome = bench.send(syn)
    assert (outcome.verdict, outcome.reason) == ("drop", Reason.SPOOFED)
    assert list(bench.flows()) == []
    bench.network(network, 0)  # to several interfaces
    assert bench.send(syn).verdict == "drop"
    assert bench.counters()["spoofed"] == 2
    bench.network(network, bench.agent)
    assert bench.send(syn).verdict == "forward"


# ---- the gateway itself


@pytest.mark.parametrize("port", [22, 8123, 9100, 80])
@pytest.mark.parametrize("to", [GATEWAY4, "198.51.100.1", GATEWAY6, "fe80::1"])
def test_of_the_gateway_agents_reach_the_api_only(open_bench: Bench, to: str, port: int) -> None:
    for address in (GATEWAY4, "198.51.100.1", GATEWAY6):
        open_bench.local(address)
    open_bench.set(ports=[8443, 9443])
    packet = IPv6(src=A6, dst=to) if ":" in to else IP(src=A4, dst=to)
    outcome = open_bench.send(packet / TCP(sport=40000, dport=port, flags="S"))
    assert (outcome.verdict, outcome.reason) == ("drop", Reason.GATEWAY)
    (record,) = outcome.records
    assert (record.header.source_port, record.header.destination_port) == (40000, port)
    for open_port in (8443, 9443):
        assert open_bench.send(packet / TCP(sport=40000, dport=open_port, flags="S")).verdict == "pass"
    assert open_bench.counters() == {"gateway": 1, "local": 2}


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (IP(src=A4, dst=GATEWAY4) / UDP(dport=53), Reason.GATEWAY),
        (IP(src=A4, dst=GATEWAY4) / UDP(dport=8443), Reason.GATEWAY),
        (IPv6(src=A6, dst=GATEWAY6) / UDP(dport=53), Reason.GATEWAY),
        (IP(src=A4, dst=GATEWAY4, proto=47) / bytes(20), Reason.GATEWAY),
        (IPv6(src=A6, dst=GATEWAY6) / IPv6ExtHdrDestOpt() / TCP(dport=8443, flags="S"), Reason.GATEWAY),
        (IP(src=A4, dst=GATEWAY4) / TCP(dport=0, flags="S"), Reason.GATEWAY),
        (IP(src=A4, dst=GATEWAY4, flags="MF") / TCP(dport=8443, flags="S"), Reason.FRAGMENT),
        (IP(src=A4, dst=GATEWAY4, frag=1, proto=6) / bytes(20), Reason.FRAGMENT),
        (IPv6(src=A6, dst=GATEWAY6) / IPv6ExtHdrFragment(m=1) / TCP(dport=8443, flags="S"), Reason.GATEWAY),
        (IP(src=A4, dst=GATEWAY4, proto=6, len=28) / bytes(8), Reason.MALFORMED),
        (IP(src=A4, dst=GATEWAY4, proto=17, len=24) / bytes(4), Reason.MALFORMED),
    ],
    ids=lambda value: value.summary() if hasattr(value, "summary") else value.name,
)
def test_nothing_else_is_for_agents(open_bench: Bench, packet: Any, reason: Reason) -> None:
    for address in (GATEWAY4, GATEWAY6):
        open_bench.local(address)
    open_bench.set(ports=[8443])
    outcome = open_bench.send(packet)
    assert (outcome.verdict, outcome.reason) == ("drop", reason)


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=A4, dst=GATEWAY4) / ICMP(),
        IPv6(src=A6, dst=GATEWAY6) / ICMPv6EchoRequest(),
        IPv6(src="fe80::5", dst="fe80::1") / ICMPv6ND_NS(),
        IP(src=A4, dst=GATEWAY4) / TCP(sport=25, dport=40000, flags="SA"),
        IP(src=A4, dst=GATEWAY4) / TCP(sport=25, dport=22, flags="A"),
    ],
    ids=lambda packet: packet.summary(),
)
def test_what_ip_needs_and_answers_to_the_gateway_pass(open_bench: Bench, packet: Any) -> None:
    for address in (GATEWAY4, GATEWAY6):
        open_bench.local(address)
    assert open_bench.send(packet).verdict == "pass"


def test_upstream_reaches_the_gateway_as_before(open_bench: Bench) -> None:
    open_bench.local("198.51.100.1")
    assert open_bench.receive(IP(src=S4, dst="198.51.100.1") / TCP(dport=22, flags="S")).verdict == "pass"


# ---- flows


def test_an_agent_may_have_as_many_flows_as_are_free(open_bench: Bench) -> None:
    room = open_bench.settings.max_flows
    greedy = [open_bench.send(IP(src=A4, dst=S4) / TCP(sport=port, flags="S")) for port in range(1000, 1000 + room)]
    assert [outcome.verdict for outcome in greedy] == ["forward"] * (room // 2) + ["drop"] * (room // 2)
    assert greedy[room // 2].reason is Reason.FLOW_SHARE
    honest = [open_bench.send(IP(src="10.0.1.6", dst=S4) / TCP(sport=port, flags="S")) for port in range(room // 4)]
    assert {outcome.verdict for outcome in honest} == {"forward"}
    assert open_bench.send(DATA[IP].copy()).verdict == "drop"  # midstream, it would open a flow too
    known = IP(src=A4, dst=S4) / TCP(sport=1000, flags="A", seq=1)
    assert open_bench.send(known).verdict == "forward"
    assert held(open_bench, owner(7)) == room // 2
    assert held(open_bench, bytes(16)) == room // 2 + room // 4


def test_there_is_room_however_many_are_greedy(namespace: Namespace) -> None:
    settings = config.Wire(ring_bytes=2**16, max_flows=1024)
    bench = Bench(namespace, namespace.index("agents"), namespace.index("servers"), settings)
    try:
        bench.rule("0.0.0.0/0")
        for number in range(40):
            bench.lease(f"10.0.2.{number}", 100 + number)
            for port in range(1000, 1000 + 600):
                if bench.send(IP(src=f"10.0.2.{number}", dst=S4) / TCP(sport=port, flags="S")).verdict == "drop":
                    break
        bench.lease(A4, 7)
        assert bench.send(IP(src=A4, dst=S4) / SYN).verdict == "forward"
        assert held(bench, owner(100)) == 512
        assert held(bench, owner(139)) == 1
    finally:
        bench.close()


def test_no_lease_has_more_flows_than_the_setting(open_bench: Bench) -> None:
    open_bench.set(max_flows_per_lease=3)
    verdicts = [open_bench.send(IP(src=A4, dst=S4) / UDP(sport=port, dport=53)).verdict for port in range(1000, 1005)]
    assert verdicts == ["forward"] * 3 + ["drop"] * 2
    open_bench.map("released").update(owner(7), struct.pack("<Q", 1))
    assert open_bench.send(IP(src=A4, dst=S4) / UDP(sport=2000, dport=53)).verdict == "forward"
    assert open_bench.send(IP(src=A4, dst=S4) / UDP(sport=2001, dport=53)).verdict == "drop"


@pytest.mark.parametrize(("client", "server"), [(A4, S4), (A6, S6)], ids=["v4", "v6"])
def test_nobody_speaks_for_either_side_of_an_unbound_flow(bench: Bench, client: str, server: str) -> None:
    def packet(source: str, destination: str, layer: Any) -> Any:
        return (IPv6(src=source, dst=destination) if ":" in source else IP(src=source, dst=destination)) / layer

    other = bench.upstream
    bench.role(other, abi.Role.AGENT)
    for to in ("0.0.0.0/0", "::/0"):
        bench.rule(to, unbound=True)
        bench.network(to, 1)
    for network in ("10.0.1.0/24", "fd00:1::/64"):
        bench.network(network, bench.agent)
    asks = packet(client, server, UDP(sport=5000, dport=53) / b"who is it")
    answer = packet(server, client, UDP(sport=53, dport=5000) / b"me")
    assert bench.send(asks).verdict == "forward"
    for interface in (bench.agent, other):
        assert bench.send(answer, interface).verdict == "drop"
    assert bench.send(asks, other).verdict == "drop"
    assert bench.counters()["spoofed"] == 3
    bench.role(bench.upstream, abi.Role.UPSTREAM)
    assert bench.receive(answer).verdict == "forward"
    assert bench.send(asks).verdict == "forward"


@pytest.mark.parametrize(("one", "other"), [("10.0.1.5", "10.0.2.5"), ("fd00:1::5", "fd00:2::5")], ids=["v4", "v6"])
def test_without_leases_a_network_shares_one_quota(bench: Bench, one: str, other: str) -> None:
    """Any number of addresses in an agent's own /64 is still one owner."""
    for to in ("0.0.0.0/0", "::/0"):
        bench.rule(to, unbound=True)
    bench.set(max_flows_per_lease=4)

    def send(source: str) -> str:
        return bench.send((IPv6(src=source, dst=S6) if ":" in source else IP(src=source, dst=S4)) / SYN).verdict

    sources = [f"{one[:-1]}{number}" for number in range(1, 9)]
    assert [send(source) for source in sources] == ["forward"] * 4 + ["drop"] * 4
    assert send(other) == "forward"


def test_a_flow_that_begins_anew_is_counted_once(open_bench: Bench) -> None:
    for seq in (1000, 2000, 3000):
        assert open_bench.send(IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags="S", seq=seq)).verdict == "forward"
    assert (held(open_bench, owner(7)), held(open_bench, bytes(16))) == (1, 1)
    open_bench.lease(A4, 70)
    assert open_bench.send(IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags="S", seq=4000)).verdict == "forward"
    assert (held(open_bench, owner(7)), held(open_bench, owner(70))) == (0, 1)


# ---- the ring


def fill(bench: Bench, packet: Any) -> int:
    """Packets until one is refused; how many went."""
    sent = 0
    while bench.send(packet).verdict == "forward":
        sent += 1
    return sent


def test_one_agent_does_not_fill_the_ring(open_bench: Bench) -> None:
    flood = IP(src=A4, dst=S4) / UDP(sport=1000, dport=2000) / bytes(1000)
    honest = IP(src="10.0.1.6", dst=S4) / TCP(sport=40000, dport=80, flags="A", seq=1001) / bytes(1000)
    open_bench.hold = True
    fill(open_bench, flood)
    assert open_bench.counters()["ring_share"] == 1
    assert fill(open_bench, honest) >= 15
    assert open_bench.send(flood).verdict == "drop"
    open_bench.ring.drain()
    assert open_bench.send(flood).verdict == "forward"


def test_flows_that_only_open_share_the_ring_too(open_bench: Bench) -> None:
    """Each datagram from another port: all of them are the same agent's."""
    open_bench.hold = True
    for number in range(28):
        opening = IP(src=A4, dst=S4) / UDP(sport=1000 + number, dport=2000) / bytes(3000)
        assert open_bench.send(opening).verdict == "forward"
    books = open_bench.map("quotas").lookup(owner(7))
    assert books
    assert abi.Quota.unpack(books).since > 3000
    fill(open_bench, IP(src=A4, dst=S4) / UDP(sport=1000, dport=2000) / bytes(1000))
    assert open_bench.send(IP(src=A4, dst=S4) / UDP(sport=3000, dport=2000) / bytes(1000)).verdict == "drop"
    assert open_bench.counters()["ring_share"] == 2


def test_a_share_is_what_is_in_the_ring_now(open_bench: Bench) -> None:
    """Who sent much long ago, and is drained all the time, may send on."""
    flood = IP(src=A4, dst=S4) / UDP(sport=1000, dport=2000) / bytes(1000)
    ballast = IP(src="10.0.1.6", dst=S4) / UDP(sport=1000, dport=2000) / bytes(1000)
    open_bench.hold = True
    for _ in range(130):  # the ring stays half full of another's records
        assert open_bench.send(ballast).verdict == "forward"
    for _ in range(600):
        assert open_bench.send(flood).verdict == "forward"
        open_bench.ring.drain(1)


def test_resets_and_acknowledgements_are_no_ones_share(open_bench: Bench) -> None:
    open_bench.send(IP(src=A4, dst=S4) / SYN)
    open_bench.hold = True
    fill(open_bench, DATA)
    for flags in ("A", "FA", "RA"):
        assert open_bench.send(IP(src=A4, dst=S4) / TCP(sport=40000, dport=80, flags=flags, seq=1001)).verdict == (
            "forward"
        )


# ---- refusal records


def test_refusals_of_made_up_sources_are_few_and_all_counted(open_bench: Bench) -> None:
    open_bench.set(refusal_rate=10)
    open_bench.map("budget").update(bytes(4), abi.Budget(boottime() + 5 * 10**9, 0).pack())  # a second that lasts
    told, verdicts = 0, []
    for number in range(100):
        outcome = open_bench.send(IPv6(src=f"fd00:1::bad:{number:x}", dst=S6) / SYN)
        told += sum(record.kind is Kind.REFUSAL for record in outcome.records)
        verdicts.append(outcome.verdict)
    assert told in (10, 20)  # a clock before its second counts as a new one
    assert verdicts == ["refuse"] * told + ["drop"] * (100 - told), "no answers to whom nothing is told of"
    counts = open_bench.map("counters").lookup_percpu(struct.pack("<I", abi.Counter.UNTOLD + Reason.NO_LEASE))
    assert sum(struct.unpack("<Q", value)[0] for value in counts) == 100 - told
    assert open_bench.counters()["no_lease"] == 100
    assert len(list(open_bench.map("refusals").keys())) == told


def test_a_known_source_is_counted_in_its_next_record(open_bench: Bench) -> None:
    open_bench.set(refusal_rate=1, refusal_interval=0)
    refused = IP(src="10.0.1.9", dst=S4) / SYN
    assert len(open_bench.send(refused).records) == 1
    later = [open_bench.send(refused) for _ in range(5)]
    assert {outcome.verdict for outcome in later} == {"refuse"}, "it is still told that it is refused"
    open_bench.map("budget").update(bytes(4), bytes(16))
    (record,) = open_bench.send(refused).records
    assert record.header.count + sum(r.header.count for o in later for r in o.records) == 6


@pytest.mark.parametrize("port", [443, 51820, 4789])
def test_a_tunnel_that_a_rule_names_is_open(open_bench: Bench, port: int) -> None:
    packet = IP(src=A4, dst=S4) / UDP(sport=5000, dport=port) / b"x"
    assert open_bench.send(packet).verdict == "refuse"
    open_bench.rule("192.0.2.0/24", protocol=17, port=port, number=9)
    assert open_bench.send(packet).verdict == "forward"
