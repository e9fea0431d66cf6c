"""A TCP connection through the capture program while the ring is filled to a level: windows in, windows out."""

from dataclasses import dataclass, field
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from appliance.wire import abi
from tests.bpf.bench import AGENT_MAC, HEADER, PEER_MAC, Bench, Outcome

A4, S4 = "10.0.1.5", "192.0.2.80"
A6, S6 = "fd00:1::5", "2001:db8::80"
RING = 2**18
CLAMP, HOLD, BRINK = RING // 4, RING // 2, RING * 2 // 3
SLOT = 8 + HEADER
FLOOR = 4 * 1460
OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
BIG = 2**32


def datagram(size: int) -> bytes:
    return bytes(Ether(dst=AGENT_MAC, src=PEER_MAC) / IP(src=A4, dst=S4) / UDP(sport=5000, dport=53) / bytes(size))


DATAGRAM = datagram(3000)


def fill(bench: Bench, level: int) -> int:
    """Put datagrams into the ring up to `level`; by less than one it holds less, and how much it holds."""
    used = bench.ring.fill
    while (room := level - used) >= SLOT + 28 + 8:
        rest = room - SLOT - 28 - 8
        assert bench.send(DATAGRAM if rest > 3000 else datagram(rest)).verdict == "forward"
        used = bench.ring.fill
    bench.forget_shares()
    return used


@dataclass
class Seen:
    """What came out: the window and the right edge that it gives, as the other side understands them."""

    outcome: Outcome
    field: int
    window: int
    edge: int


@dataclass
class Talk:
    """A connection whose client's SYN and server's SYN-ACK had these options and windows; numbers are right."""

    bench: Bench
    v6: bool = False
    options: tuple[Any, Any] = (OPTIONS, OPTIONS)
    syn_window: int = 1000
    port: int = 40000
    next: list[int] = field(default_factory=lambda: [1000, BIG - 500])
    scale: list[int] = field(default_factory=lambda: [0, 0])

    def network(self, side: int) -> Any:
        ends = (A6, S6) if self.v6 else (A4, S4)
        return (IPv6 if self.v6 else IP)(src=ends[side], dst=ends[1 - side])

    def say(self, side: int, flags: str, window: int, body: bytes = b"", **more: Any) -> Seen:
        """`ack`: how many bytes less than everything; `inner`: headers before TCP's; `gso`: as for `Bench.send`."""
        network, gso, less = more.pop("inner", self.network(side)), more.pop("gso", 0), more.pop("less", 0)
        ports = (self.port, 80) if side == 0 else (80, self.port)
        ack = (self.next[1 - side] - less) % BIG if "A" in flags else 0
        tcp = TCP(sport=ports[0], dport=ports[1], flags=flags, seq=self.next[side], ack=ack, window=window, **more)
        packet = network / tcp / body
        outcome = (self.bench.receive if side else self.bench.send)(packet, gso=gso)
        assert outcome.verdict == "forward"
        self.next[side] = (self.next[side] + len(body) + ("S" in flags) + ("F" in flags)) % BIG
        sent = Ether(outcome.frame)
        found = sent[TCP].window
        assert_only_the_window_changed(packet, sent)
        window = found << (0 if "S" in flags else self.scale[side])
        return Seen(outcome, found, window, (ack + window) % BIG)

    def open(self) -> "Talk":
        offered = [dict(options).get("WScale") for options in self.options]
        self.say(0, "S", self.syn_window, options=list(self.options[0]))
        self.say(1, "SA", self.syn_window, options=list(self.options[1]))
        if None not in offered:
            self.scale = [int(scale) for scale in offered if scale is not None]
        return self


def assert_only_the_window_changed(before: Any, after: Any) -> None:
    checksum = after[TCP].chksum
    raw = bytearray(bytes(after.payload))
    del after[TCP].chksum
    assert Ether(bytes(after))[TCP].chksum == checksum
    expected = bytearray(bytes(before))
    at = len(expected) - len(bytes(before[TCP]))
    for packet in (raw, expected):
        packet[at + 14 : at + 18] = bytes(4)  # window and checksum
    assert raw == expected


def held(bench: Bench) -> list[tuple[abi.FlowKey, abi.Held]]:
    return [(abi.FlowKey.unpack(key), abi.Held.unpack(value)) for key, value in bench.map("held").items()]
