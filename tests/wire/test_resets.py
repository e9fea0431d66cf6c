"""Resets as bytes: addresses, numbers and checksums, taken apart by scapy."""

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from appliance.wire.abi import SIDE_F_ACKED, SIDE_F_SEEN, Flow, FlowKey, SideState, pack_address
from appliance.wire.resets import resets

CLIENT = SideState(next=1500, acked=1200, flags=SIDE_F_SEEN | SIDE_F_ACKED)
SERVER = SideState(next=0xFFFFFFF0, acked=0xFFFFFFF0, flags=SIDE_F_SEEN | SIDE_F_ACKED)


def flow(client: SideState = CLIENT, server: SideState = SERVER) -> Flow:
    return Flow(start=1, last=2, lease=7, rule=1, lane=1, end=0, flags=0, client=client, server=server)


def key(source: str, destination: str, protocol: int = 6) -> FlowKey:
    family = 6 if ":" in source else 4
    return FlowKey(pack_address(source), pack_address(destination), 40000, 443, protocol, family)


@pytest.mark.parametrize(("agent", "server"), [("10.0.1.5", "192.0.2.80"), ("fd00:1::5", "2001:db8::80")])
def test_both_ends_are_told_in_the_others_name(agent: str, server: str) -> None:
    network = IPv6 if ":" in agent else IP
    said = []
    for destination, raw in resets(key(agent, server), flow()):
        packet = network(raw)
        said.append((packet.src, packet.dst, packet[TCP].sport, packet[TCP].dport, packet[TCP].seq, packet[TCP].ack))
        assert (destination, packet[TCP].flags, packet[TCP].payload.original) == (packet.dst, "RA", b"")
        checksum = packet[TCP].chksum
        del packet[TCP].chksum
        assert network(bytes(packet))[TCP].chksum == checksum
    assert sorted(said) == sorted(
        [
            (server, agent, 443, 40000, 0xFFFFFFF0, 1500),
            (agent, server, 40000, 443, 1200, 0xFFFFFFF0),  # as far as the server acknowledged
            (agent, server, 40000, 443, 1500, 0xFFFFFFF0),  # as far as anything was forwarded
        ]
    )


def test_who_still_waits_for_an_answer_to_its_syn_is_told() -> None:
    client = SideState(next=1001, flags=SIDE_F_SEEN)
    said = [IP(raw)[TCP] for _, raw in resets(key("10.0.1.5", "192.0.2.80"), flow(client, SideState()))]
    assert [(tcp.dport, tcp.seq, tcp.ack) for tcp in said] == [(40000, 0, 1001), (443, 1001, 0)]


def test_datagrams_have_none() -> None:
    assert resets(key("10.0.1.5", "192.0.2.80", 17), flow()) == []
