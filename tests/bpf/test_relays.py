"""The relay lane without sockets: who may be steered at all, what is counted, and what is never taken for another lane.

Where sockets are needed, tests/wire/test_steering.py has them.
"""

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from appliance.wire import abi
from appliance.wire.abi import Lane, Leg, Reason, SideState
from appliance.wire.steering import flow_key
from tests.bpf.bench import Bench

A4, B4, S4, A6, S6 = "10.0.1.5", "10.0.1.6", "192.0.2.80", "fd00:1::5", "2001:db8::80"
GATEWAY4, GATEWAY6 = "10.0.1.1", "fd00:1::1"
PORT, PROXY = 40000, 3128


@pytest.fixture
def relayed(open_bench: Bench) -> Bench:
    """Every destination is for a relay; the gateway has addresses and a proxy."""
    for to in ("0.0.0.0/0", "::/0"):
        open_bench.rule(to, Lane.RELAY)
    for address in (GATEWAY4, GATEWAY6):
        open_bench.local(address)
    open_bench.set(ports=(8443,), proxies=(PROXY,), refusal_interval=1)
    return open_bench


def ip(source: str, destination: str) -> Any:
    return (IPv6 if ":" in source else IP)(src=source, dst=destination)


def segment(flags: str, body: bytes = b"", source: str = A4, to: str = S4, port: int = 443, **more: Any) -> Any:
    return ip(source, to) / TCP(sport=PORT, dport=port, flags=flags, **more) / body


def opened(bench: Bench) -> dict[bytes, int]:
    """Owners with flows in the books."""
    counts = {key: abi.Quota.unpack(value).opened for key, value in bench.map("quotas").items()}
    return {key: count for key, count in counts.items() if count}


@pytest.mark.parametrize(("source", "to"), [(A4, S4), (A6, S6)])
def test_without_a_relay_a_syn_is_dropped_on_record_and_leaves_nothing(relayed: Bench, source: str, to: str) -> None:
    outcome = relayed.send(segment("S", source=source, to=to))
    assert (outcome.verdict, outcome.reason) == ("drop", Reason.RELAY)
    header = outcome.records[0].header
    assert (header.lane, header.flow, header.lease) == (Lane.RELAY, 0, 7 if source == A4 else 9)
    assert not list(relayed.flows())
    assert not opened(relayed)


@pytest.mark.parametrize(
    ("flags", "verdict", "reason"),
    [("A", "refuse", Reason.RELAY_LOST), ("PA", "refuse", Reason.RELAY_LOST), ("R", "drop", Reason.NO_FLOW)],
)
def test_a_segment_without_a_socket(relayed: Bench, flags: str, verdict: str, reason: Reason) -> None:
    outcome = relayed.send(segment(flags))
    assert (outcome.verdict, outcome.reason) == (verdict, reason)
    assert not list(relayed.flows())


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (ip(A4, S4) / UDP(sport=5000, dport=443) / b"x", Reason.QUIC),
        (ip(A6, S6) / UDP(sport=5000, dport=443) / b"x", Reason.QUIC),
        (ip(A4, S4) / UDP(sport=5000, dport=53) / b"x", Reason.PROTOCOL),
    ],
)
def test_a_relay_takes_tcp_only(relayed: Bench, packet: Any, reason: Reason) -> None:
    relayed.rule("0.0.0.0/0", Lane.RELAY, protocol=17)
    outcome = relayed.send(packet)
    assert (outcome.verdict, outcome.reason) == ("refuse", reason)


def test_leases_are_asked_as_in_the_tap_lane(relayed: Bench) -> None:
    relayed.revoke(A4)
    assert relayed.send(segment("S")).reason is Reason.NO_LEASE
    relayed.lease(A4, 7, seconds=-1)
    assert relayed.send(segment("S", seq=5)).reason is Reason.LEASE_EXPIRED
    relayed.rule("0.0.0.0/0", Lane.RELAY, unbound=True)
    assert relayed.send(segment("S", seq=6)).reason is Reason.RELAY
    relayed.network("10.0.1.0/24", relayed.upstream)
    assert relayed.send(segment("S", seq=7)).reason is Reason.SPOOFED


def test_a_tapped_flow_does_not_change_lanes(relayed: Bench) -> None:
    relayed.rule("0.0.0.0/0", Lane.TAP)
    assert relayed.send(segment("S")).verdict == "forward"
    relayed.rule("0.0.0.0/0", Lane.RELAY)
    outcome = relayed.send(segment("A", b"hello", seq=1))
    assert (outcome.verdict, outcome.reason) == ("refuse", Reason.RELAY_LOST)
    assert relayed.receive(ip(S4, A4) / TCP(sport=443, dport=PORT, flags="PA") / b"x").reason is Reason.NO_FLOW


def test_no_mark_that_came_in_counts(relayed: Bench) -> None:
    for mark in (abi.MARK_STEERED, abi.MARK_RECORDED):
        assert relayed.send(segment("S"), mark=mark).verdict == "drop"
        assert relayed.send(ip(A4, GATEWAY4) / TCP(dport=22, flags="S"), mark=mark).reason is Reason.GATEWAY
    relayed.rule("0.0.0.0/0", Lane.TAP)
    assert relayed.send(segment("S"), mark=abi.MARK_STEERED).verdict == "forward"


def test_the_proxy_is_a_flow_with_or_without_a_lease(relayed: Bench) -> None:
    outcome = relayed.send(segment("S", to=GATEWAY4, port=PROXY, seq=100))
    assert (outcome.verdict, outcome.records) == ("pass", [])
    relayed.send(segment("PA", b"CONNECT", to=GATEWAY4, port=PROXY, seq=101, ack=1))
    flow = relayed.flow()
    assert (flow.lane, flow.rule, flow.lease, flow.client.packets, flow.client.bytes) == (Lane.RELAY, 0, 7, 2, 7)
    relayed.revoke(A4)
    outcome = relayed.send(segment("PA", b"more", to=GATEWAY4, port=PROXY, seq=108, ack=1))
    assert (outcome.verdict, outcome.reason) == ("refuse", Reason.NO_LEASE)
    assert relayed.flow().client.bytes == 7
    assert relayed.send(segment("S", to=GATEWAY4, port=PROXY, source=A4, seq=900)).verdict == "pass"
    assert relayed.flow().flags == abi.RECORD_F_UNBOUND
    assert relayed.send(segment("S", to=GATEWAY6, port=PROXY, source=A6)).verdict == "pass"


def test_other_ports_of_the_gateway_stay_as_they_are(relayed: Bench) -> None:
    assert relayed.send(segment("S", to=GATEWAY4, port=PROXY + 1)).reason is Reason.GATEWAY
    assert relayed.send(segment("S", to=GATEWAY4, port=8443)).verdict == "pass"
    assert relayed.send(ip(A4, GATEWAY4) / UDP(sport=1, dport=PROXY) / b"x").reason is Reason.GATEWAY
    assert relayed.receive(segment("S", source=S4, to=GATEWAY4, port=PROXY)).verdict == "pass"
    assert not list(relayed.flows())


def test_malformed_segments_for_the_proxy(relayed: Bench) -> None:
    for hostile in (
        IP(src=A4, dst=GATEWAY4, proto=6) / (bytes(TCP(sport=1, dport=PROXY, flags="S"))[:19]),
        ip(A4, GATEWAY4) / TCP(sport=1, dport=PROXY, flags="S", dataofs=4),
        ip(A4, GATEWAY4) / TCP(sport=1, dport=PROXY, flags="S", dataofs=15),
    ):
        assert relayed.send(hostile).reason is Reason.MALFORMED
    assert not list(relayed.flows())


def put_leg(bench: Bench, source: str, server: str, flags: int = 0) -> bytes:
    key = flow_key(source, 50000, server, 5432).pack()
    bench.map("legs").update(key, Leg(0, 0, 2, flags, SideState(), SideState()).pack())
    return key


def from_server(server: str, to: str, flags: str = "PA", body: bytes = b"rows") -> Any:
    return ip(server, to) / TCP(sport=5432, dport=50000, flags=flags, seq=1000, ack=500) / body


@pytest.mark.parametrize(("server", "gateway"), [(S4, GATEWAY4), (S6, GATEWAY6)])
def test_a_leg_to_the_gateway_is_counted_and_passed(relayed: Bench, server: str, gateway: str) -> None:
    key = put_leg(relayed, gateway, server)
    assert relayed.receive(from_server(server, gateway, "SA", b"")).verdict == "pass"
    outcome = relayed.receive(from_server(server, gateway))
    assert (outcome.verdict, outcome.records) == ("pass", [])
    leg = Leg.unpack(relayed.map("legs").lookup(key) or b"")
    assert (leg.server.packets, leg.server.bytes, leg.server.next, leg.client.acked) == (2, 4, 1004, 500)
    assert 0 < leg.start < leg.last
    assert relayed.receive(ip(server, gateway) / TCP(sport=5432, dport=50001, flags="A")).verdict == "pass"
    assert Leg.unpack(relayed.map("legs").lookup(key) or b"").server.packets == 2


def test_a_server_among_the_agents_needs_its_lease(relayed: Bench) -> None:
    key = put_leg(relayed, GATEWAY4, B4)
    assert relayed.send(from_server(B4, GATEWAY4)).verdict == "pass"
    relayed.revoke(B4)
    assert relayed.send(from_server(B4, GATEWAY4)).reason is Reason.IMPOSTOR
    put_leg(relayed, GATEWAY4, B4, abi.LEG_F_UNBOUND)
    assert relayed.send(from_server(B4, GATEWAY4)).verdict == "pass"
    relayed.network("10.0.1.6/32", relayed.upstream)
    assert relayed.send(from_server(B4, GATEWAY4)).reason is Reason.SPOOFED
    assert Leg.unpack(relayed.map("legs").lookup(key) or b"").server.packets == 1


@pytest.mark.parametrize("flags", [abi.LEG_F_TRANSPARENT, 0], ids=["transparent", "of another address"])
def test_a_leg_in_the_agents_name_is_no_flow_of_the_tap_lane(relayed: Bench, flags: int) -> None:
    """Nor is there a socket for it here: so it is dropped, silently, and neither recorded nor forwarded."""
    put_leg(relayed, A4, S4, flags)
    outcome = relayed.receive(from_server(S4, A4))
    assert (outcome.verdict, outcome.reason) == ("drop", Reason.NO_FLOW)
    put_leg(relayed, A4, B4, flags)
    relayed.rule("0.0.0.0/0", Lane.TAP)
    outcome = relayed.send(from_server(B4, A4, "S"))
    assert (outcome.verdict, outcome.reason) == ("drop", Reason.NO_FLOW)
    relayed.revoke(B4)
    outcome = relayed.send(from_server(B4, A4))
    assert outcome.reason is (Reason.IMPOSTOR if flags else Reason.NO_FLOW)
    assert not list(relayed.flows())


def test_an_icmp_error_about_a_leg_is_for_the_stack(relayed: Bench) -> None:
    put_leg(relayed, A4, S4, abi.LEG_F_TRANSPARENT)
    quoted = ip(A4, S4) / TCP(sport=50000, dport=5432)
    outcome = relayed.receive(ip("192.0.2.1", A4) / ICMP(type=3, code=4) / bytes(quoted)[:28])
    assert outcome.verdict == "steer"
    assert outcome.frame[14 + 8] == 1, "the hop limit is used up: it cannot be forwarded"
